"""What several runs on the same rows share, so that it is made once.

Owns: `Shared`, which holds the rows that were read and encoded, what is answered to an anchor's
prompts and by whom, and which settings these depend on. A single run has one of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from narrowtune.core.config import RunConfig
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.features import FeatureStore
from narrowtune.evaluate.evaluate import model_key
from narrowtune.ledger.book import Book
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline.earlier import Taught
from narrowtune.pipeline.inputs import (
    PIXEL_BYTES,
    Inputs,
    add_anchor_prompts,
    make_encoder,
    read_inputs,
    write_refused_rows,
)
from narrowtune.pipeline.stages import arithmetic_words, measuring
from narrowtune.train.anchor import Anchor, build_anchor
from narrowtune.train.anchor_cache import AnchorCache

_OWN = {"recipe", "training", "anchor", "output_dir", "dial", "budget", "min_learning"}
"""Settings that may differ between runs that share their rows."""


class Shared:
    """Rows of one or of several runs.

    Args:
        several: whether another run is to come; then prompts are kept as they were encoded, up to
            `PIXEL_BYTES` of pictures.
    """

    def __init__(self, *, several: bool = False) -> None:
        self._several = several
        self._key: tuple[Any, ...] | None = None
        self._encoder: ChatEncoder | None = None
        self._inputs = Inputs()
        self._anchor: tuple[Hashable, Anchor] | None = None

    def read(
        self,
        loaded: LoadedModel,
        config: RunConfig,
        refused_path: Path | None,
        taught: Sequence[Taught] = (),
    ) -> tuple[ChatEncoder, Inputs]:
        """Return the encoder and the rows of a run; they are read unless an earlier one read them.

        Args and errors are those of `read_inputs`.
        """
        key = config.model_dump_json(exclude=_OWN), tuple(taught)
        if key != self._key or self._encoder is None:
            self._key = self._anchor = None
            remembered = PIXEL_BYTES if self._several else 0
            self._encoder = make_encoder(loaded, config, remembered_bytes=remembered)
            without = config.model_copy(update={"anchor": None})
            self._inputs = read_inputs(without, self._encoder, refused_path, taught=taught)
            self._key = key
        # Each run adds notes and takes tasks out for itself.
        own = {part.name: copy(getattr(self._inputs, part.name)) for part in fields(Inputs)}
        inputs = replace(self._inputs, **own)
        try:
            add_anchor_prompts(config, self._encoder, inputs, taught)
        finally:
            write_refused_rows(inputs, refused_path)
        return self._encoder, inputs

    def anchor(
        self,
        loaded: LoadedModel,
        config: RunConfig,
        inputs: Inputs,
        *,
        fingerprint: str,
        features: FeatureStore | None = None,
        book: Book | None = None,
        arithmetic: Arithmetic | None = None,
    ) -> Anchor | None:
        """Return a run's anchor, if it has one; the last run's where the base answered the same.

        It may take gigabytes, so that it is kept only until a run has none: its memory is not to
        count as that of others.

        Args:
            loaded: the model; it must still be the base, but for how its frozen part is held.
            config: the run.
            inputs: its rows.
            fingerprint: of the base.
            features: of pictures.
            book: the run's ledger, the model in its latest state. General prompts are answered by
                the ledger's own base then, so that what they hold does not wander off skill by
                skill; not where the frozen part is quantised, since a delta fits full precision.
            arithmetic: of the run. With it, answers that an earlier run kept are taken, and are
                kept for later ones, where the top of distributions is held (`anchor.top_k`).

        Raises:
            TrainingError, DataError: as for `build_anchor`.
            LedgerError, DeltaError: as for `Book.first_base`.
        """
        settings, quantised = config.anchor, config.training.quantize_frozen
        if settings is None:
            self._anchor = None
            return None
        assert self._encoder is not None, "rows are read before the anchor is built"
        prompts = tuple(inputs.anchor_prompts), tuple(inputs.taught_prompts)
        # What is quantised, and so what is answered, depends on what trains.
        held = (quantised, config.recipe) if quantised is not None else None
        key = fingerprint, settings.model_dump_json(), prompts, held
        if self._anchor is not None and self._anchor[0] == key:
            anchor = copy(self._anchor[1])
            anchor.seconds = 0.0  # that this run took
            return anchor
        self._anchor = None
        general, taught = inputs.anchor_prompts, inputs.taught_prompts

        def build(
            asked: Sequence[Sequence[Message]], state: str, num_general: int | None = None
        ) -> Anchor:
            encoder, cache = self._encoder, None
            assert encoder is not None
            if arithmetic is not None and settings.weight and settings.top_k and quantised is None:
                words = arithmetic_words(loaded, arithmetic, features)
                cache = AnchorCache(
                    model_key(loaded, encoder, model_fingerprint=state, arithmetic=words)
                )
            with measuring(loaded, features):
                return build_anchor(
                    loaded,
                    encoder,
                    asked,
                    settings,
                    batch_size=config.eval_batch_size,
                    seed=config.seed,
                    num_general=num_general,
                    share=len(asked) / (len(general) + len(taught)),
                    cache=cache,
                )

        if book is None or not book.ledger.skills or quantised is not None:
            anchor = build([*general, *taught], fingerprint, len(general))
        else:
            with book.first_base(loaded.model):
                anchor = build(general, book.ledger.base_fingerprint)
            anchor = anchor.beside(build(taught, fingerprint)) if taught else anchor
        if self._several:
            self._anchor = key, copy(anchor)  # a run may raise its own's weight
        return anchor
