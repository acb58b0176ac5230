"""What a frozen tower makes of a picture, computed once.

Evaluation before and after, probes, and every arm of a study look at the same pictures, and with
tower and projector frozen they see the same: the states that the language model is given are kept
by the pixels' hash. Pictures are computed one at a time, so that what is kept does not depend on
the batch that came first.

Owns: the store in memory and on disk, its keys, and how a model is made to look things up.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from narrowtune.core.cache import BoundedFolder
from narrowtune.core.run_folder import write_bytes
from narrowtune.data.digest import tensor_sha256
from narrowtune.engine.modes import evaluation_mode
from narrowtune.engine.pictures import picture_sha256, pictures_apart
from narrowtune.models.fingerprint import fingerprint, named_tensors
from narrowtune.models.load import LoadedModel

logger = logging.getLogger(__name__)

MAX_BYTES = 2**30
"""Of features in memory, unless told otherwise."""

MAX_FOLDER_BYTES = 8 * 2**30
"""Of features on disk, unless told otherwise."""

_NAME, _CHECK = "features", "sha256"

_UNSEEN = {"text_config", "use_cache", "_name_or_path", "transformers_version", "architectures"}
"""Settings that decide nothing that is seen, and that training or loading may change."""


class FeatureStore:
    """Features by key.

    What is full takes no more: pictures come in the same order every time, and the first would make
    room for the last just before they are asked for again.

    Args:
        max_bytes: of features in memory.
        folder: where features are kept for other processes and later runs; None keeps none. Any
            number of processes may read and write there: files come into being whole. A folder that
            can't be used is a warning.
        max_folder_bytes: of files there. Beyond it, files that were used last before this store was
            made are deleted, the oldest first.

    Attributes:
        num_found, num_computed: pictures so far that were there, and that were not.
    """

    def __init__(
        self,
        *,
        max_bytes: int = MAX_BYTES,
        folder: Path | None = None,
        max_folder_bytes: int = MAX_FOLDER_BYTES,
    ) -> None:
        self.max_bytes = max_bytes
        self._folder = BoundedFolder(folder, max_folder_bytes) if folder is not None else None
        self.num_found = self.num_computed = 0
        self._kept: dict[str, Tensor] = {}
        self._num_bytes = 0
        self._writes = folder is not None

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is kept under `key`; `compute` it, and keep it, if nothing is."""
        found = self._kept.get(key)
        if found is None:
            found = self._read(key)
            if found is None:
                self.num_computed += 1
                found = compute()
                self._write(key, found)
            else:
                self.num_found += 1
            if self._num_bytes + found.nbytes <= self.max_bytes:
                self._kept[key] = found
                self._num_bytes += found.nbytes
        else:
            self.num_found += 1
        return found

    @property
    def notes(self) -> list[str]:
        """How often the tower was spared, where it was; for the record."""
        if not self.num_found:
            return []
        return [
            f"What the tower makes of a picture was computed {self.num_computed} times and looked "
            f"up {self.num_found} times (remember_pictures)."
        ]

    def _read(self, key: str) -> Tensor | None:
        if self._folder is None:
            return None
        path = _path(self._folder, key)
        try:
            content = path.read_bytes()
            # What is made in inference mode could take no part in a backward pass later.
            with torch.inference_mode(False):
                parts = load(content)
            features = parts[_NAME]
            if not torch.equal(parts[_CHECK], _digest(features)):
                return None
        # Another process may delete it at any time, and a full disk may have cut it short.
        except (OSError, SafetensorError, KeyError):
            return None
        self._folder.used(path)
        return features

    def _write(self, key: str, features: Tensor) -> None:
        if self._folder is None or not self._writes:
            return
        content = save({_NAME: features.contiguous(), _CHECK: _digest(features)})
        try:
            if self._folder.has_room(len(content)):
                # A file that a power cut leaves behind is known by its digest.
                write_bytes(_path(self._folder, key), content, sync=False)
        except OSError as error:
            logger.warning("Features of pictures are not kept in %s: %s", self._folder.path, error)
            self._writes = False


def _path(folder: BoundedFolder, key: str) -> Path:
    return folder.path / key[:2] / f"{key}.safetensors"


def _digest(features: Tensor) -> Tensor:
    return torch.tensor(list(bytes.fromhex(tensor_sha256(features))), dtype=torch.uint8)


@contextmanager
def remembered_features(loaded: LoadedModel, store: FeatureStore | None) -> Iterator[bool]:
    """Let the model look up pictures in `store` inside the block; yields whether it does.

    It does not without a store, for a model without eyes, and inside another such block. Weights
    of tower and projector must not change inside; where a gradient is to reach them, a picture is
    computed as ever.

    Keys are of everything that decides the features: the pixels after preprocessing, sizes, all
    weights outside the language model, the configuration, the dtype and precision of the
    arithmetic, and the libraries' versions.
    """
    if store is None or not can_remember(loaded):
        yield False
        return
    inner = loaded.model.model
    if "get_image_features" in vars(inner):
        yield False
        return
    plain = inner.get_image_features
    origin = functools.cache(lambda: _origin(loaded))

    @functools.wraps(plain)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        inputs = _named(loaded, plain, args, kwargs)
        learns = torch.is_grad_enabled() and any(
            parameter.requires_grad and _is_seen_by(loaded, name)
            for name, parameter in loaded.model.named_parameters()
        )
        pictures = None if learns else pictures_apart(inputs, loaded.model.config)
        if pictures is None:
            return plain(*args, **kwargs)
        pixels = inputs["pixel_values"]
        found = [
            store.get(
                _key(origin(), pixels.device, picture),
                functools.partial(_look, loaded, plain, picture),
            )
            for picture in pictures
        ]
        return _seen(
            [each.to(pixels.device) for each in found],
            _num_parts(loaded),
            stacked=loaded.family.stacks_features,
        )

    inner.get_image_features = remembered
    try:
        yield True
    finally:
        del inner.get_image_features


def can_remember(loaded: LoadedModel) -> bool:
    """Whether the model has eyes, and transformers can be told what they saw.

    Features are taken in one form by every architecture since transformers has
    `mm_encoder_outputs`.
    """
    known = inspect.signature(loaded.model.forward).parameters
    return loaded.family.is_multimodal and "mm_encoder_outputs" in known


def changes_eyes(loaded: LoadedModel, names: Iterable[str]) -> bool:
    """Whether training parameters of these names changes what the model sees."""
    return any(_is_seen_by(loaded, name) for name in names)


def _is_seen_by(loaded: LoadedModel, name: str) -> bool:
    """Whether a tensor of this name may decide what the model sees."""
    return loaded.family.component(name) != "language_model"


def _origin(loaded: LoadedModel) -> str:
    """Return a hash of what pictures go through."""
    settings = loaded.model.config.to_dict()
    config = {name: value for name, value in settings.items() if name not in _UNSEEN}
    versions = f"{torch.__version__} {transformers.__version__}"
    seen = [name for name, _ in named_tensors(loaded.model) if _is_seen_by(loaded, name)]
    weights = fingerprint(loaded.model, seen)
    return hashlib.sha256(
        f"{versions}\n{json.dumps(config, sort_keys=True, default=str)}\n{weights}".encode()
    ).hexdigest()


def _key(origin: str, device: torch.device, picture: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{origin} {device.type} {_precision(device)}\n".encode())
    digest.update(picture_sha256(picture).encode())
    return digest.hexdigest()


def _precision(device: torch.device) -> str:
    """Return what decides in which precision products are computed now."""
    narrowed = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    kernels = (matmul.fp32_precision, torch.get_float32_matmul_precision())
    convolutions = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return f"{narrowed} {kernels} {convolutions}"


def _named(
    loaded: LoadedModel, plain: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return what decides a call's result, by name.

    Training and generation call with and without the configuration's own settings; these, what is
    None, and what is only about the call's form or the language model are left out.
    """
    named = {**dict(zip(inspect.signature(plain).parameters, args, strict=False)), **kwargs}
    for name in ("return_dict", "use_cache", "output_router_logits"):
        named.pop(name, None)
    config = loaded.model.config
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, Tensor) or (value is not None and value != getattr(config, name, None))
    }


def _num_parts(loaded: LoadedModel) -> int:
    """Return how many states a picture's place has: one, and one for each layer it enters later."""
    vision: Any = loaded.model.config.vision_config
    return 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())


def _look(loaded: LoadedModel, plain: Callable[..., Any], picture: Mapping[str, Tensor]) -> Tensor:
    """Return a picture's features, on the CPU: without dropout, always.

    Returns:
        [parts x tokens, hidden size]: what stands in the picture's places first, then what later
        layers are given there.
    """
    # What is made in inference mode could take no part in a backward pass later.
    with evaluation_mode(loaded.model), torch.inference_mode(False), torch.no_grad():
        seen = plain(**picture, return_dict=True)
        parts = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
        return torch.cat([features for (features,) in parts]).cpu().clone()


def _seen(
    pictures: Sequence[Tensor], num_parts: int, *, stacked: bool
) -> BaseModelOutputWithPooling:
    """Return what `_look` gave for each picture as the model's own method would."""
    parts = list(zip(*(picture.chunk(num_parts) for picture in pictures), strict=True))
    pooled: Any = torch.stack(parts[0]) if stacked else list(parts[0])
    seen = BaseModelOutputWithPooling(pooler_output=pooled)
    if num_parts > 1:
        seen.deepstack_features = [list(part) for part in parts[1:]]
    return seen
