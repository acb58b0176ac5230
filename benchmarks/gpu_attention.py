"""Attention on a GPU in the forms that rows can be given to it: what decides how they are laid out.

    python benchmarks/gpu_attention.py

Forward and backward of one layer of 28 heads of 128 in bf16 (Qwen2.5-VL-7B's), for B rows of L
tokens, in each of which so many rows lie end to end:
- `causal`: without a mask, each token seeing all before it; what rows padded on the right take;
- `numbers`: with a mask of numbers, 0 and -inf, as a layout's; `truth values`: of booleans;
- `flex`: FlexAttention, compiled, which skips blocks of which no token is seen; keys and values of
  4 heads.

And forward of one layer of a tower of its shape (16 heads of 80), for 8 pictures of 784 x 784
pixels in windows of 64 patches: a call of the kernel for each window, and one for all.

Milliseconds, the mean of ten. Below 0.4 it is launching kernels that takes the time. Results:
benchmarks/results/gpu_attention.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as attend

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results" / "gpu_attention.json"
HEADS, SHARED, WIDTH = 28, 4, 128
LAYOUTS = (
    (8, 834, 1),
    (8, 368, 1),
    (1, 2936, 8),
    (2, 1468, 4),
    (4, 736, 2),
    (2, 960, 1),
    (1, 6700, 8),
)
"""Rows, tokens of each, and rows that lie end to end in it."""
PICTURES, PATCHES, WINDOW, TOWER_HEADS, TOWER_WIDTH = 8, 56 * 56, 64, 16, 80
WARM_UP, REPEATS = 3, 10


def milliseconds(run: Callable[[], object]) -> float:
    """Return the mean of some runs, after some."""
    for _ in range(WARM_UP):
        run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(REPEATS):
        run()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / REPEATS


def both_ways(forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """Return forward and backward."""

    def run() -> object:
        found = forward()
        return torch.autograd.grad(found, inputs, torch.ones_like(found))

    return run


def draw(rows: int, heads: int, tokens: int, width: int) -> Tensor:
    """Return random states."""
    return torch.randn(rows, heads, tokens, width, device="cuda", dtype=torch.bfloat16)


def layout(rows: int, tokens: int, each: int) -> dict[str, float]:
    """Time one layout in every form."""
    query, key, value = (draw(rows, HEADS, tokens, WIDTH).requires_grad_() for _ in range(3))
    inputs = [query, key, value]
    owner = torch.arange(tokens, device="cuda") * each // tokens
    before = torch.ones(tokens, tokens, device="cuda", dtype=torch.bool).tril()
    seen = (owner[:, None] == owner) & before
    room = torch.zeros(1, 1, tokens, (tokens // 8 + 1) * 8, device="cuda", dtype=torch.bfloat16)
    numbers = room[..., :tokens].masked_fill_(~seen, -torch.inf).expand(rows, -1, -1, -1)
    truth = seen.expand(rows, 1, -1, -1)
    found = {
        "causal": milliseconds(both_ways(lambda: attend(*inputs, is_causal=True), inputs)),
        "numbers": milliseconds(both_ways(lambda: attend(*inputs, attn_mask=numbers), inputs)),
        "truth values": milliseconds(both_ways(lambda: attend(*inputs, attn_mask=truth), inputs)),
    }
    block = create_block_mask(
        lambda _row, _head, i, j: (owner[i] == owner[j]) & (j <= i),
        None,
        None,
        tokens,
        tokens,
        device="cuda",
    )
    few = [query, *(draw(rows, SHARED, tokens, WIDTH).requires_grad_() for _ in range(2))]
    compiled = torch.compile(flex_attention, dynamic=True)
    found["flex"] = milliseconds(
        both_ways(lambda: compiled(*few, block_mask=block, enable_gqa=True), few)
    )
    return found


@torch.no_grad()
def windows() -> dict[str, float]:
    """Time a tower's windows, one by one and together."""
    total = PICTURES * PATCHES
    states = [draw(1, TOWER_HEADS, total, TOWER_WIDTH) for _ in range(3)]

    def one_by_one() -> Tensor:
        split = zip(*(torch.split(each, WINDOW, dim=2) for each in states), strict=True)
        return torch.cat([attend(*window) for window in split], dim=2)

    def together() -> Tensor:
        return attend(*(each[0].unflatten(1, (-1, WINDOW)).transpose(0, 1) for each in states))

    return {"one by one": milliseconds(one_by_one), "together": milliseconds(together)}


def main() -> None:
    """Measure, write and print."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here")
    layouts = {f"{b} x {n}, {each} rows each": layout(b, n, each) for b, n, each in LAYOUTS}
    found = {
        "device": torch.cuda.get_device_name(),
        "milliseconds": {**layouts, "windows": windows()},
        "versions": provenance.versions(),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["milliseconds"], indent=1))


if __name__ == "__main__":
    main()
