"""A delta as a LoRA adapter: what other tools load, and what of the delta that keeps.

For each matrix W the tuned minus the base's values, in fp32, are cut to their `rank` largest
singular values: ΔW ≈ B A with B = U √S and A = √S Vᵀ. An adapter is near the delta, not equal to
it: how near is part of what is returned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from narrowtune.core.delta_results import Kept
from narrowtune.core.errors import DeltaError, UsageError
from narrowtune.core.extras import require
from narrowtune.data.digest import tensor_sha256
from narrowtune.delta.base import Base
from narrowtune.delta.bits import xor
from narrowtune.delta.copying import CARD, staged
from narrowtune.delta.store import Delta, check_free_space, write_tensors
from narrowtune.models.fingerprint import combine_hashes

# Where singular values are found by random projection: directions beyond the rank, and power
# iterations, so that the first ones are right.
_SURPLUS, _PASSES = 32, 6
_EXACT = 1024  # smaller side of a matrix up to which all singular values are computed
_SHARES = {"90 %": 0.9, "99 %": 0.99}
_ROUNDING = 1e-6
_ROWS = 4096  # of a matrix that are squared at a time


@dataclass(frozen=True)
class _Factors:
    """Of one matrix.

    Attributes:
        up: B, [out, rank].
        down: A, [rank, in].
        squares: of the singular values that were computed, the largest first.
        shape: of the matrix.
        total: squared values of the difference, summed.
        kept: the same, less those of what B A leaves.
    """

    up: Tensor
    down: Tensor
    squares: Tensor
    shape: tuple[int, ...]
    total: float
    kept: float


class LowRank:
    """A delta cut to a rank.

    Biases, norms and other tensors that are no matrix have no place in an adapter: they stay the
    base's, and `kept` names them. Time: singular values of every matrix of the delta. Memory: the
    adapter, and a few copies of one matrix in fp32.

    Args:
        folder: the base.
        delta: of that base.
        rank: of every matrix.

    Raises:
        UsageError: the rank is not positive; peft is not installed, which writes the adapter.
        DeltaError: the delta does not fit the folder, or has no matrix.
    """

    def __init__(self, folder: str | Path, delta: Delta, rank: int) -> None:
        asked = f"a LoRA adapter of rank {rank} from a delta ({delta.metadata.recipe})"
        if rank < 1:
            raise UsageError(asked=asked, found=f"rank {rank}", do="give 1 or more")
        require("lora", "peft", asked=asked)
        self._base, self._delta, self.rank = Base(folder, [delta], asked), delta, rank
        self._factors: dict[str, _Factors] = {}
        self._lost: dict[str, float] = {}
        for name in delta.metadata.tensors:
            difference = self._base.difference(delta, name).float()
            linear = difference.ndim == 2 and name.endswith(".weight") and _is_linear(name)
            # Beside MLPs of a mixture's layers without experts, peft would load none.
            if linear and not self._base.family.is_in_place_of_experts(name):
                self._factors[name] = _factor(difference, rank)
            else:
                self._lost[name] = _square(difference)
        if not self._factors:
            raise DeltaError(
                asked=asked,
                found=f"no matrix of a linear layer among its {len(self._lost)} tensors",
                do="ship the delta itself, or a merged model (`narrowtune delta merge`)",
            )

    def kept(self) -> Kept:
        """Return how much of the delta is left."""
        factors, lost = self._factors, self._lost
        matrices = math.fsum(each.total for each in factors.values())
        total = matrices + math.fsum(lost.values())
        # Where only some singular values of a matrix are known, no rank beyond them can be told.
        known = min(
            (len(f.squares) for f in factors.values() if len(f.squares) < min(f.shape)),
            default=max(len(f.squares) for f in factors.values()),
        )
        by_rank = torch.zeros(known, dtype=torch.float64)
        for each in factors.values():
            squares = each.squares[:known]
            by_rank[: len(squares)] += squares
        reached = by_rank.cumsum(0) / matrices if matrices else torch.ones_like(by_rank)
        # The sum of the squares and the square of the whole are rounded differently.
        reached = reached + _ROUNDING
        needed = {
            name: int((reached < share).sum()) + 1 if bool((reached >= share).any()) else None
            for name, share in _SHARES.items()
        }
        return Kept(
            rank=self.rank,
            energy=math.fsum(f.kept for f in factors.values()) / total if total else 1.0,
            by_tensor={n: f.kept / f.total if f.total else 1.0 for n, f in factors.items()},
            left_out={n: square / total if total else 0.0 for n, square in lost.items()},
            needed=needed,
        )

    def save(self, out: str | Path, card: str, base_name: str | None = None) -> None:
        """Write the folder of an adapter that peft, and what reads its format, loads.

        Args:
            out: a folder that does not exist yet, or is empty.
            card: text of its README.md.
            base_name: what the adapter says that its base is; the folder unless given.

        Raises:
            DeltaError: `out` is in use or can't be written, or the disk has too little room.
        """
        asked = f"write a LoRA adapter to {out}"
        from peft import LoraConfig

        tensors: dict[str, Tensor] = {}
        for name, factors in self._factors.items():
            module = name.removesuffix(".weight")
            tensors[f"base_model.model.{module}.lora_A.weight"] = factors.down
            tensors[f"base_model.model.{module}.lora_B.weight"] = factors.up
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,
            target_modules=[name.removesuffix(".weight") for name in self._factors],
            base_model_name_or_path=base_name or str(self._base.folder),
            inference_mode=True,
            task_type="CAUSAL_LM",
        )
        with staged(self._base.folder, Path(out), asked) as staging:
            check_free_space(staging, sum(tensor.nbytes for tensor in tensors.values()), asked)
            write_tensors(tensors, staging / "adapter_model.safetensors", {"format": "pt"})
            config.save_pretrained(str(staging))
            (staging / CARD).write_text(card, encoding="utf-8")

    def as_delta(self) -> Delta:
        """Return the delta of the model that this adapter makes, merged and rounded.

        With it, what the cut costs in score can be measured as any other change.
        """
        bits, changed = {}, {}
        for name, record in self._delta.metadata.tensors.items():
            after = before = self._base.read(name)
            if name in self._factors:
                factors = self._factors[name]
                after = (before.float() + factors.up @ factors.down).to(before.dtype)
            bits[name] = xor(after, before)
            changed[name] = record.model_copy(update={"tuned_sha256": tensor_sha256(after)})
        metadata = self._delta.metadata
        hashes = {name: record.tuned_sha256 for name, record in changed.items()}
        update = {
            "tensors": changed,
            "tuned_fingerprint": combine_hashes({**metadata.frozen, **hashes}),
            "notes": [*metadata.notes, f"cut to rank {self.rank}"],
        }
        return Delta(metadata.model_copy(update=update), bits)


def _is_linear(name: str) -> bool:
    """Whether a matrix is that of a linear layer, of which adapters are: no table, and no router.

    A table is looked up in rather than multiplied with; a router of experts is a module of its own.
    """
    module = name.rsplit(".", 2)[-2]
    return "embed" not in module and module != "gate"


def _factor(difference: Tensor, rank: int) -> _Factors:
    """Cut a matrix [out, in] to its largest singular values."""
    smaller = min(difference.shape)
    if smaller <= max(_EXACT, rank + _SURPLUS):
        left, values, right = torch.linalg.svd(difference, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(difference, rank + _SURPLUS, _PASSES)
        right = right.T
    # A matrix may be smaller than the rank: what is left over is zero, so that all have one rank.
    used = min(rank, len(values))
    roots = values[:used].sqrt()
    up, down = left.new_zeros(len(left), rank), right.new_zeros(rank, right.shape[1])
    up[:, :used], down[:used] = left[:, :used] * roots, roots[:, None] * right[:used]
    total = _square(difference)
    rest = math.fsum(
        float((part - up[first : first + _ROWS] @ down).double().square().sum())
        for first, part in zip(
            range(0, len(difference), _ROWS), difference.split(_ROWS), strict=True
        )
    )
    squares, shape = values.double().square(), tuple(difference.shape)
    return _Factors(up, down, squares, shape, total, total - rest)


def _square(tensor: Tensor) -> float:
    """Return the sum of squares in fp64, a part at a time."""
    flat = tensor.reshape(-1)
    return math.fsum(float(part.double().square().sum()) for part in flat.split(_ROWS * 4096))
