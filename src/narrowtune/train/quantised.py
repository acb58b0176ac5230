"""The frozen part of the language model in 8 or 4 bits while a run trains, and only then.

Before and after, the model is the checkpoint's own, bit for bit: scores, fingerprints and deltas
are of full precision, and nothing that is kept for later runs was made by quantised weights.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from narrowtune.core.errors import ModelError, SelectionError
from narrowtune.core.training_settings import Quantisation
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.store import check_free_space
from narrowtune.engine.memory import sum_bytes, tensor_bytes
from narrowtune.engine.quantised import LIBRARIES, QuantisedLinear, check_quantiser
from narrowtune.models.families import is_below
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection

_REPEATS = 3
_NAME = "weight"
_ASIDE = ".frozen-"

_WORKSPACE = 6
"""Bytes for each number of a layer while it is computed: in the base's 16 bits, then in fp32."""


def frozen_layers(
    loaded: LoadedModel, selection: Selection, kind: Quantisation
) -> dict[str, nn.Linear]:
    """Return the linear layers in decoder layers of which nothing trains, by path.

    Experts of a mixture are none: they are one tensor, which no library here quantises.

    Raises:
        SelectionError: there is none.
    """
    root = loaded.family.language_model.layers
    trained = {name.rpartition(".")[0] for name in selection.names}
    found = {
        path: module
        for path, module in loaded.model.named_modules()
        if is_below(path, root) and type(module) is nn.Linear and path not in trained
    }
    if not found:
        names = [name for name, _ in loaded.model.named_parameters()]
        mixture = any(loaded.family.stored_otherwise(name) for name in names)
        raise SelectionError(
            asked=f"training.quantize_frozen: {kind}, with the recipe {selection.recipe!r}",
            found="no linear layer of the language model stays frozen"
            + (", and experts are not quantised" if mixture else ""),
            do="leave quantize_frozen out"
            + ("" if mixture else ", or choose a recipe that trains less, such as sa_proj"),
        )
    return found


def is_quantised(model: nn.Module) -> bool:
    """Whether a part of the model is held in fewer bits now."""
    return any(isinstance(module, QuantisedLinear) for module in model.modules())


@contextmanager
def quantised_frozen(
    loaded: LoadedModel, selection: Selection, kind: Quantisation, folder: Path
) -> Iterator[str]:
    """Hold what stays frozen in fewer bits inside the block; afterwards it is what it was.

    Meanwhile the weights wait on the disk: in memory they would take what is to be saved.

    Args:
        loaded: the base.
        selection: what trains; it is left alone, as are embeddings, head, norms, biases, vision
            tower and projector.
        kind: how.
        folder: of the run. The weights wait in a folder in it that is deleted at the end.

    Yields:
        A sentence for the record and the delta.

    Raises:
        UsageError: the library is missing, or the device is none for it.
        SelectionError: nothing stays frozen.
        DeltaError: the disk has too little room.
        ModelError: what comes back from the disk is not what was put there.
    """
    check_quantiser(kind)
    layers = frozen_layers(loaded, selection, kind)
    asked = f"put {len(layers)} layers aside that are quantised while training"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_ASIDE}*"):  # by a run that was killed; this one takes its place
        shutil.rmtree(left, ignore_errors=True)
    check_free_space(folder, sum_bytes(layer.weight for layer in layers.values()), asked)
    numbers = sum(layer.weight.numel() for layer in layers.values())
    hashes: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=_ASIDE) as aside:
        files = {path: Path(aside) / f"{number}.safetensors" for number, path in enumerate(layers)}
        try:
            for path, layer in layers.items():
                quantised = QuantisedLinear(layer, kind)
                hashes[path] = tensor_sha256(layer.weight)
                save_file({_NAME: layer.weight.detach().contiguous()}, files[path])
                loaded.model.set_submodule(path, quantised)
                layer.weight.data = layer.weight.new_empty(0)
            library = LIBRARIES[kind]
            yield (
                f"Trained over a base whose frozen linear layers were held in {kind} "
                f"({library} {metadata.version(library)}; {len(layers)} layers, {numbers:,} "
                "numbers). What trained was not quantised, and all scores are of full precision."
            )
        finally:
            failed: list[Exception] = []
            for path in hashes:
                layer = layers[path]
                loaded.model.set_submodule(path, layer)
                try:
                    if not layer.weight.numel():
                        _bring_back(layer, files[path], hashes[path], asked)
                except Exception as error:  # all others come back before anyone is told
                    failed.append(error)
            if failed:
                raise failed[0]


def _bring_back(layer: nn.Linear, file: Path, sha256: str, asked: str) -> None:
    # A copy: what is mapped from a file that is about to go lies where the file has it.
    weight = load_file(file)[_NAME].clone()
    if tensor_sha256(weight) != sha256:
        raise ModelError(
            asked=asked,
            found=f"{file.name} on the disk has other bits than were written",
            do="check the disk, and run again",
        )
    layer.weight.data = weight.to(layer.weight.device)
    layer.weight.requires_grad_(False)


@dataclass(frozen=True)
class QuantisedCost:
    """What quantising changes of a training's cost.

    Attributes:
        num_parameters: numbers in their weights.
        num_bytes: that hold these while training.
        workspace_bytes: for the largest layer, while it is computed.
        seconds: to dequantise each layer once.
        notes: for people.
    """

    num_parameters: int = 0
    num_bytes: int = 0
    workspace_bytes: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    def held(self, numbers: int, width: int) -> int:
        """Return the bytes of all frozen numbers, of which those not quantised take `width`."""
        return width * (numbers - self.num_parameters) + self.num_bytes


def quantised_cost(
    loaded: LoadedModel, selection: Selection, kind: Quantisation | None
) -> QuantisedCost:
    """Quantise one layer of every shape, and multiply; nothing is changed.

    Raises as `quantised_frozen`, but for the disk.
    """
    if kind is None:
        return QuantisedCost()
    check_quantiser(kind)
    layers: Collection[nn.Linear] = frozen_layers(loaded, selection, kind).values()
    by_shape: dict[torch.Size, list[nn.Linear]] = {}
    for layer in layers:
        by_shape.setdefault(layer.weight.shape, []).append(layer)
    num_bytes, seconds = 0, 0.0
    for alike in by_shape.values():
        quantised = QuantisedLinear(alike[0], kind)
        num_bytes += len(alike) * sum(map(tensor_bytes, quantised.buffers()))
        seconds += len(alike) * _seconds(quantised)
    numbers = sum(layer.weight.numel() for layer in layers)
    return QuantisedCost(
        num_parameters=numbers,
        num_bytes=num_bytes,
        workspace_bytes=_WORKSPACE * max(layer.weight.numel() for layer in layers),
        seconds=seconds,
        notes=(
            f"{len(layers)} frozen linear layers, {numbers:,} numbers, are held in {kind} while "
            "training; before and after it the model is loaded and measured in full precision.",
        ),
    )


def _seconds(layer: QuantisedLinear) -> float:
    """Return the seconds of dequantising a layer, the shortest of a few."""
    clocked = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        # On a GPU this waits for the result, as a clock must.
        layer.weight_in(torch.float32)[0, 0].item()
        clocked.append(time.perf_counter() - started)
    return min(clocked)
