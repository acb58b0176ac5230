"""Which arithmetic a run computes in: measured on this machine, recorded, used again.

The fastest arithmetic can't be read off the machine's name. On some AMD processors oneDNN's fp32
kernels (`float32_matmul_precision="medium"`) are twice as fast as the default and as exact; on a
processor with AMX the same switch rounds to bf16. bf16 is four times as fast as fp32 here and
many times slower there. Two threads are slower than one where another process holds a core. So
each candidate is timed on the matrix products of the model itself, and its error is measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from narrowtune.core.errors import UsageError
from narrowtune.core.results import Value
from narrowtune.engine.attention import (
    AttentionKind,
    answering_by_torchs_products,
    attention_by_products,
    quicker_attention,
)
from narrowtune.engine.packing import packing

ComputeDtype = Literal["bfloat16", "float32"]
Precision = Literal["highest", "medium"]

MAX_FLOAT32_ERROR = 1e-5
"""Relative error (against fp64) above which a float32 product is not one."""

_MARGIN = 1.25  # one thread must beat all of them by this factor, and oneDNN torch's own kernels
_GIVE_UP = 2.0  # a candidate this many times slower than the best so far is not timed again
_MAX_ROWS = 512
_FLOPS_PER_PASS = 6e9  # over the distinct shapes
_REPEATS = 3
_LOOKS = 3  # further measurements where all threads were slower than one
_PAUSE = 0.5  # seconds before each


class Arithmetic(Value):
    """What a run computes in. Goes to JSON and back, so that every run of a comparison agrees.

    Attributes:
        compute_dtype: of the forward and backward pass; masters of what trains are fp32 in both.
        float32_matmul_precision: for `torch.set_float32_matmul_precision`.
        packing: whether rows go through the model end to end, what they begin with alike once,
            where that is cheaper; False is the plain path, row by row.
        attention: how a layout's rows attend while a model trains (engine/attention.py).
        threads: for `torch.set_num_threads`; results may differ in the last bit between counts.
        seconds: measured time of one pass over the model's matrix products, by candidate.
        error: relative error of the chosen arithmetic's products against fp64 (Frobenius norm,
            the largest over shapes, forward and both gradients); None where it was not measured.
        float32_error: the same of fp32 products at `float32_matmul_precision`.
        note: how it was chosen, for people.
        measured_for: the model and the settings that it was measured for.
    """

    compute_dtype: ComputeDtype
    float32_matmul_precision: Precision = "highest"
    threads: int = Field(ge=1)
    packing: bool = True
    attention: AttentionKind = "fused"
    seconds: dict[str, float] = Field(default_factory=dict)
    error: float | None = None
    float32_error: float | None = None
    note: str = ""
    measured_for: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The compute dtype as torch has it."""
        return torch.bfloat16 if self.compute_dtype == "bfloat16" else torch.float32

    def to_json(self) -> str:
        """Return it as JSON, for a resume or for the next run of a comparison."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str) -> Arithmetic:
        """Read back what `to_json` wrote."""
        return cls.model_validate_json(text)


class Mode(NamedTuple):
    """A way to multiply on a CPU."""

    dtype: ComputeDtype
    precision: Precision


_MODES = (Mode("float32", "highest"), Mode("float32", "medium"), Mode("bfloat16", "highest"))


def measure_arithmetic(
    model: nn.Module,
    *,
    num_tokens: int = 256,
    device: torch.device | str | None = None,
    requested: Literal["auto", "bfloat16", "float32"] = "auto",
) -> Arithmetic:
    """Time the model's matrix products in each arithmetic and choose the fastest sound one.

    Takes a second or two. The model is only looked at: its linear layers' shapes, not its weights.

    Args:
        model: the model that will be trained.
        num_tokens: tokens in a batch; sets the size of the products (at most 512 rows).
        device: where training will run; the model's own device unless given.
        requested: `auto` chooses; a dtype is honoured, and only the rest is chosen.

    Returns:
        The choice, with what was measured. On a GPU bf16 is taken without a measurement wherever
        the GPU has it.

    Raises:
        UsageError: bf16 was requested for a GPU that has none, or on a CPU for a model in fp16; or
            the model has no linear layer.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    if device.type != "cpu":
        return _for_accelerator(device, requested)
    # A CPU's autocast can't join fp16 weights with what it computed in bf16 (CLIP's towers do).
    half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
    if half and requested == "bfloat16":
        raise UsageError(
            asked="training.compute_dtype bfloat16",
            found="a base in float16, which a CPU can't compute with in bf16",
            do="set training.compute_dtype to float32, or load the base in bf16: dtype: bfloat16",
        )
    modes = [mode for mode in _MODES if not (half and mode.dtype == "bfloat16")]
    shapes = _linear_shapes(model)
    products = [_Product(shape, count, num_tokens, shapes) for shape, count in shapes.items()]
    errors: dict[Mode, float] = {}
    notes = []
    for mode in modes:
        with torch_settings(mode.precision, 1):
            error = max(product.error(mode.dtype) for product in products)
        if mode.precision == "medium" and error > MAX_FLOAT32_ERROR:
            notes.append(f"float32 'medium' is not used: its relative error is {error:.1e}")
        else:
            errors[mode] = error
    # One thread first: its times are steady even where other work holds a core.
    all_threads = torch.get_num_threads()
    seconds: dict[tuple[Mode, int], float] = {}
    for threads in sorted({1, all_threads}):
        for mode in errors:
            enough = _GIVE_UP * min(seconds.values(), default=float("inf"))
            seconds[mode, threads] = _time(products, mode, threads, enough)

    # All threads slower than one is other work on the machine, as a rule of a second or two, which
    # would otherwise decide the arithmetic of hours.
    for mode in errors:
        for _ in range(_LOOKS):
            if seconds[mode, all_threads] <= seconds[mode, 1]:
                break
            time.sleep(_PAUSE)
            again = _time(products, mode, all_threads, seconds[mode, 1])
            seconds[mode, all_threads] = min(again, seconds[mode, all_threads])

    # Where oneDNN is but a little faster at products, it is slower in a step: attention's backward
    # pass took twice as long (docs/LOG.md, 2026-11-27). On other processors it is twice as fast.
    def cost(key: tuple[Mode, int]) -> float:
        mode, number = key
        unlike = (number < all_threads) + (mode.precision == "medium")
        return seconds[key] * _MARGIN**unlike

    best, threads = min((k for k in seconds if requested in ("auto", k[0].dtype)), key=cost)
    # Evaluation computes in fp32 whatever training does, so its precision is chosen by itself.
    float32 = min(
        (mode for mode in errors if mode.dtype == "float32"), key=lambda m: cost((m, threads))
    )
    if threads < all_threads:
        notes.append(
            f"one thread beats {all_threads}: other work holds a core, or products are small"
        )
    attention, told = _choose_attention(model, best, threads)
    notes += [told] if told else []
    chosen = "fastest measured" if requested == "auto" else f"{requested} as requested"
    return Arithmetic(
        compute_dtype=best.dtype,
        attention=attention,
        float32_matmul_precision=float32.precision,
        threads=threads,
        seconds={_label(*key): value for key, value in seconds.items()},
        error=errors[best],
        float32_error=errors[float32],
        note="; ".join([f"{_label(best, threads)}: {chosen}", *notes]),
    )


def _choose_attention(model: nn.Module, mode: Mode, threads: int) -> tuple[AttentionKind, str]:
    """Return how rows attend while training on a CPU, and what was measured, if anything."""
    find = getattr(getattr(model, "config", None), "get_text_config", None)
    if find is None:
        return "fused", ""
    dtype = torch.bfloat16 if mode.dtype == "bfloat16" else torch.float32
    with torch_settings(mode.precision, threads):
        return quicker_attention(find(), dtype)


@contextmanager
def apply_arithmetic(arithmetic: Arithmetic) -> Iterator[None]:
    """Compute as `arithmetic` says inside the block; as before after it.

    Casting is left to `autocast`, which must not span optimiser steps.
    """
    settings = torch_settings(arithmetic.float32_matmul_precision, arithmetic.threads)
    laid_out = packing("cheaper" if arithmetic.packing else "never")
    answering = answering_by_torchs_products(arithmetic.float32_matmul_precision == "medium")
    products = attention_by_products(arithmetic.packing and arithmetic.attention == "products")
    with settings, laid_out, answering, products:
        yield


def autocast(arithmetic: Arithmetic, device: torch.device | str) -> torch.autocast:
    """Return the context in which one forward pass computes in `arithmetic`'s dtype.

    One pass and no more: torch keeps the casts of fp32 weights until the outermost such context
    ends, so a context around a whole run would compute every step with the first step's weights.
    """
    kind = torch.device(device).type
    enabled = arithmetic.compute_dtype == "bfloat16"
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=enabled)


@contextmanager
def torch_settings(precision: Precision, threads: int) -> Iterator[None]:
    """Set torch's own switches inside the block, and nothing of narrowtune's."""
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])


def _for_accelerator(device: torch.device, requested: str) -> Arithmetic:
    """Choose on a GPU, where the order of speeds is known: bf16 if there is any."""
    supported = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "bfloat16" and not supported:
        raise UsageError(
            asked="training.compute_dtype bfloat16",
            found=f"{torch.cuda.get_device_name(device)}, which has no bf16 arithmetic",
            do="set training.compute_dtype to auto or float32",
        )
    dtype: ComputeDtype = "bfloat16" if supported and requested != "float32" else "float32"
    how = "as requested" if requested != "auto" else "not measured: a GPU's bf16 is its fastest"
    return Arithmetic(
        compute_dtype=dtype, threads=torch.get_num_threads(), note=f"{dtype} on {device}: {how}"
    )


def _linear_shapes(model: nn.Module) -> Counter[tuple[int, int]]:
    """Return how often each [out, in] occurs among linear layers, the head left out.

    The head sees labelled positions only, and its shape would outweigh all others.
    """
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    shapes = Counter(
        (module.out_features, module.in_features)
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head
    )
    if not shapes:
        raise UsageError(
            asked=f"the fastest arithmetic for {type(model).__name__}",
            found="no linear layer in it",
            do="set training.compute_dtype to bfloat16 or float32",
        )
    return shapes


class _Product:
    """One linear layer's forward and backward on random numbers.

    Args:
        shape: [out, in] of the weight.
        count: how many such layers the model has.
        num_tokens: rows asked for; fewer if all shapes together would take too long.
        shapes: all shapes of the model.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        count: int,
        num_tokens: int,
        shapes: Counter[tuple[int, int]],
    ) -> None:
        affordable = int(_FLOPS_PER_PASS / (6 * sum(out * inner for out, inner in shapes)))
        num_rows = max(16, min(num_tokens, _MAX_ROWS, affordable))
        self.count = count
        generator = torch.Generator().manual_seed(0)
        num_out, num_in = shape
        x = torch.randn(num_rows, num_in, generator=generator)
        gradient = torch.randn(num_rows, num_out, generator=generator)
        self.weight = torch.randn(num_out, num_in, generator=generator) / num_in**0.5
        self.inputs = {"float32": x, "bfloat16": x.bfloat16()}
        self.gradients = {"float32": gradient, "bfloat16": gradient.bfloat16()}

    def run(self, dtype: ComputeDtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, gradient of the input, gradient of the weight."""
        # Activations flow in the compute dtype; the weight is fp32, as the master of one is.
        x = self.inputs[dtype].detach().requires_grad_()
        weight = self.weight.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            output = nn.functional.linear(x, weight)
        dx, dw = torch.autograd.grad(output, (x, weight), self.gradients[dtype])
        return output.detach(), dx, dw

    def error(self, dtype: ComputeDtype) -> float:
        """Return the largest relative error of the three products against fp64."""
        x, gradient = self.inputs["float32"].double(), self.gradients["float32"].double()
        weight = self.weight.double()
        exact = (x @ weight.T, gradient @ weight, gradient.T @ x)
        return max(
            float((found.double() - right).norm() / right.norm())
            for found, right in zip(self.run(dtype), exact, strict=True)
        )


def _time(products: list[_Product], mode: Mode, threads: int, enough: float) -> float:
    """Return seconds for all of the model's products, for each shape the best of a few passes.

    Args:
        enough: seconds above which the first pass decides.
    """
    best: dict[_Product, float] = {}
    with torch_settings(mode.precision, threads):
        for product in products:
            product.run(mode.dtype)
        for _ in range(_REPEATS):
            for product in products:
                started = time.perf_counter()
                product.run(mode.dtype)
                seconds = time.perf_counter() - started
                best[product] = min(seconds, best.get(product, seconds))
            total = sum(product.count * seconds for product, seconds in best.items())
            if total > enough:
                break
    return total


def _label(mode: Mode, threads: int) -> str:
    plural = "" if threads == 1 else "s"
    return f"{mode.dtype} {mode.precision}, {threads} thread{plural}"
