"""What several runs on the same rows share, so that it is made once.

Owns: `Shared`, which holds the rows that were read and encoded, what the base answers to an
anchor's prompts, and which settings these depend on. A single run has one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from narrowtune.core.config import RunConfig
from narrowtune.data.chat import ChatEncoder
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline.inputs import (
    PIXEL_BYTES,
    Inputs,
    Taught,
    make_encoder,
    read_anchor_prompts,
    read_inputs,
    write_refused_rows,
)
from narrowtune.train.anchor import Anchor, build_anchor

_OWN = {"recipe", "training", "anchor", "output_dir", "dial", "budget", "min_learning"}
"""Settings that may differ between runs that share their rows."""


class Shared:
    """Rows of one or of several runs.

    Args:
        several: whether another run is to come; then prompts are kept as they were encoded, up to
            `PIXEL_BYTES` of pictures.
    """

    def __init__(self, *, several: bool = False) -> None:
        self._remembered = PIXEL_BYTES if several else 0
        self._key: tuple[Any, ...] | None = None
        self._encoder: ChatEncoder | None = None
        self._inputs = Inputs()
        self._anchors: dict[tuple[str, str], Anchor] = {}

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
            self._key, self._anchors = None, {}
            self._encoder = make_encoder(loaded, config, remembered_bytes=self._remembered)
            without = config.model_copy(update={"anchor": None})
            self._inputs = read_inputs(without, self._encoder, refused_path, taught=taught)
            self._key = key
        # Each run adds notes and takes tasks out for itself.
        own = {part.name: copy(getattr(self._inputs, part.name)) for part in fields(Inputs)}
        inputs = replace(self._inputs, **own)
        try:
            read_anchor_prompts(config, self._encoder, inputs)
        finally:
            write_refused_rows(inputs, refused_path)
        return self._encoder, inputs

    def anchor(
        self, loaded: LoadedModel, config: RunConfig, inputs: Inputs, *, fingerprint: str
    ) -> Anchor | None:
        """Return a run's anchor, if it has one; the base answers its prompts once.

        Args:
            loaded: the model; it must still be the base.
            config: the run.
            inputs: its rows.
            fingerprint: of the base.

        Raises:
            TrainingError, DataError: as for `build_anchor`.
        """
        settings = config.anchor
        if settings is None:
            return None
        assert self._encoder is not None, "rows are read before the anchor is built"
        key = fingerprint, settings.model_dump_json()
        if key not in self._anchors:
            self._anchors[key] = build_anchor(
                loaded,
                self._encoder,
                inputs.anchor_prompts,
                settings,
                batch_size=config.eval_batch_size,
                seed=config.seed,
            )
        return copy(self._anchors[key])  # a run may raise its weight
