"""What the base answers to an anchor's prompts, kept for the next run on the same base.

Only the top of its distributions is (`anchor.top_k`): whole ones take megabytes a prompt.

Owns: the files of the cache, `anchors/<two hex digits>/<key>.safetensors`, each with a checksum of
its content and whole or not there. One that can't be trusted is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.core.cache import BoundedFolder, cache_folder
from narrowtune.core.run_folder import write_bytes
from narrowtune.data.collate import Encoded
from narrowtune.data.digest import tensor_sha256
from narrowtune.train.distributions import Distributions

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of an entry, and of how distributions are made; part of the key."""

MAX_BYTES = 2 * 2**30
"""Of entries."""

_CHECK = "sha256"


class AnchorCache:
    """Answers to sets of prompts in a folder, which any number of processes may use.

    Args:
        origin: what answers depend on beside prompts and the anchor's settings: the model, the code
            and the arithmetic (`evaluate.evaluate.model_key`).
        max_bytes: of all entries. Beyond it those that were used last before this object was made
            are deleted, the oldest first; answers that still have no room are not kept.
    """

    def __init__(self, origin: Mapping[str, Any], *, max_bytes: int = MAX_BYTES) -> None:
        self._origin = origin
        self._folder = BoundedFolder(cache_folder() / "anchors", max_bytes)

    def load(
        self, prompts: Sequence[Encoded], settings: AnchorSettings
    ) -> tuple[list[list[int]], list[Distributions]] | None:
        """Return tokens of each prompt's answer and the base's distributions along it, or None."""
        path = self._path(prompts, settings)
        try:
            parts = load(path.read_bytes())
            if not torch.equal(parts.pop(_CHECK), _digest(parts)):
                raise ValueError("its checksum does not fit its content")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("The cached answers %s are damaged and made anew: %s", path, error)
            return None
        self._folder.used(path)
        sizes = parts["sizes"].tolist()
        answers = [part.tolist() for part in parts["answers"].split(sizes)]
        return answers, list(Distributions(parts["log_probs"], parts["tokens"]).split(sizes))

    def save(
        self,
        prompts: Sequence[Encoded],
        settings: AnchorSettings,
        answers: Sequence[Sequence[int]],
        distributions: Sequence[Distributions],
    ) -> None:
        """Keep what `load` returns; nothing where distributions are whole.

        A folder that can't be written, or has no room, is a warning.
        """
        held = Distributions.join(distributions)
        if held.tokens is None:
            return
        parts = {
            "sizes": torch.tensor([len(answer) for answer in answers]),
            "answers": torch.tensor([token for answer in answers for token in answer]),
            "log_probs": held.log_probs,
            "tokens": held.tokens,
        }
        content = save({**parts, _CHECK: _digest(parts)})
        try:
            # Answers to a user's own questions are nobody else's.
            self._folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._folder.has_room(len(content)):
                raise OSError(f"it would grow beyond {self._folder.max_bytes / 2**20:.0f} MiB")
            write_bytes(self._path(prompts, settings), content)
        except OSError as error:
            logger.warning("The anchor's answers are not kept in %s: %s", self._folder.path, error)

    def _path(self, prompts: Sequence[Encoded], settings: AnchorSettings) -> Path:
        key = {
            "format": FORMAT,
            **self._origin,
            "max_new_tokens": settings.max_new_tokens,
            "top_k": settings.top_k,
            "prompts": [[prompt.input_ids, prompt.picture_digest] for prompt in prompts],
        }
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._folder.path / name[:2] / f"{name}.safetensors"


def _digest(parts: Mapping[str, Tensor]) -> Tensor:
    lines = "".join(f"{name} {tensor_sha256(parts[name])}\n" for name in sorted(parts))
    return torch.tensor(list(hashlib.sha256(lines.encode()).digest()), dtype=torch.uint8)
