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
import os
import tempfile
from collections import OrderedDict
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

from narrowtune.engine.pictures import picture_sha256, pictures_apart
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import LoadedModel

MAX_BYTES = 2**30
"""Of features in memory, unless told otherwise."""

MAX_FOLDER_BYTES = 8 * 2**30
"""Of features on disk, unless told otherwise."""

_KEPT_SHARE = 0.9
"""Of a full folder that stays when room is made: otherwise, every further file would look again."""

_NAME = "features"

_UNSEEN = {"text_config", "use_cache", "_name_or_path", "transformers_version", "architectures"}
"""Settings that decide nothing that is seen, and that training or loading may change."""


class FeatureStore:
    """Features by key, the least recently used forgotten first.

    Args:
        max_bytes: of features in memory.
        folder: where features are kept for other processes and later runs; None keeps none. Any
            number of processes may read and write there: files come into being whole.
        max_folder_bytes: of files there; the oldest are deleted beyond it.

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
        self.max_bytes, self.folder, self.max_folder_bytes = max_bytes, folder, max_folder_bytes
        self.num_found = self.num_computed = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._num_bytes = 0
        self._folder_bytes: int | None = None

    def get(self, key: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is kept under `key`; `compute` it and keep it if nothing is."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        else:
            found = self._read(key)
        if found is None:
            self.num_computed += 1
            found = compute()
            self._write(key, found)
        else:
            self.num_found += 1
        if key not in self._kept:
            self._keep(key, found)
        return found

    def _keep(self, key: str, features: Tensor) -> None:
        self._kept[key] = features
        self._num_bytes += features.nbytes
        while self._num_bytes > self.max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= oldest.nbytes

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            found = load(path.read_bytes())[_NAME]
            os.utime(path)  # used lately
        # Another process may delete it at any time, and a full disk may have cut it short.
        except (FileNotFoundError, SafetensorError, KeyError):
            return None
        return found

    def _write(self, key: str, features: Tensor) -> None:
        if self.folder is None:
            return
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = save({_NAME: features.contiguous()})
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as part:
            part.write(content)
        Path(part.name).replace(path)
        if self._folder_bytes is None:
            self._folder_bytes = sum(size for _, size, _ in _files(self.folder))
        else:
            self._folder_bytes += len(content)
        if self._folder_bytes > self.max_folder_bytes:
            self._make_room(self.folder)

    def _make_room(self, folder: Path) -> None:
        files = sorted(_files(folder))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= _KEPT_SHARE * self.max_folder_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._folder_bytes = total


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """Return when each file of features was used last, its size and its path."""
    found = []
    for path in folder.glob("*/*.safetensors"):
        try:
            status = path.stat()
        except FileNotFoundError:  # deleted by another process
            continue
        found.append((status.st_mtime, status.st_size, path))
    return found


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
    inner = getattr(loaded.model, "model", None)
    if store is None or not can_remember(loaded) or "get_image_features" in vars(inner):
        yield False
        return
    assert inner is not None
    plain = inner.get_image_features
    origin = _origin(loaded)

    @functools.wraps(plain)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        inputs = _named(loaded, plain, args, kwargs)
        learns = torch.is_grad_enabled() and any(p.requires_grad for _, p in _eyes(loaded))
        pictures = None if learns else pictures_apart(inputs)
        if pictures is None:
            return plain(*args, **kwargs)
        pixels = inputs["pixel_values"]
        found = [
            store.get(
                _key(origin, pixels.device, picture), functools.partial(_look, plain, picture)
            )
            for picture in pictures
        ]
        features = [each.to(pixels.device) for each in found]
        return BaseModelOutputWithPooling(pooler_output=features)  # type: ignore[arg-type]

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
    return any(loaded.family.component(name) != "language_model" for name in names)


def _eyes(loaded: LoadedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter outside the language model, with its name."""
    for name, parameter in loaded.model.named_parameters():
        if loaded.family.component(name) != "language_model":
            yield name, parameter


def _origin(loaded: LoadedModel) -> str:
    """Return a hash of what pictures go through."""
    settings = loaded.model.config.to_dict()
    config = {name: value for name, value in settings.items() if name not in _UNSEEN}
    versions = f"{torch.__version__} {transformers.__version__}"
    weights = fingerprint(loaded.model, [name for name, _ in _eyes(loaded)])
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
    kernels = (torch.backends.mkldnn.matmul.fp32_precision, torch.get_float32_matmul_precision())
    return f"{narrowed} {kernels}"


def _named(
    loaded: LoadedModel, plain: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return what decides a call's result, by name.

    Training and generation call with and without the configuration's own settings; these, and what
    is None, are left out.
    """
    named = {**dict(zip(inspect.signature(plain).parameters, args, strict=False)), **kwargs}
    named.pop("return_dict", None)
    config = loaded.model.config
    return {
        name: value
        for name, value in named.items()
        if isinstance(value, Tensor) or (value is not None and value != getattr(config, name, None))
    }


def _look(plain: Callable[..., Any], picture: Mapping[str, Tensor]) -> Tensor:
    """Return a picture's features [tokens, hidden size], on the CPU."""
    # What is made in inference mode could take no part in a backward pass later.
    with torch.inference_mode(False), torch.no_grad():
        (features,) = plain(**picture, return_dict=True).pooler_output
        return features.cpu().clone()  # type: ignore[no-any-return]
