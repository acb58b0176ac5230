"""Do blended deltas hold what mergekit makes of the same tensors?

    pip install --no-deps mergekit immutables
    python benchmarks/blend_against_mergekit.py

Random matrices stand for a base and two models tuned from it; our blend goes through delta files of
a tiny Llama. Prints the largest difference, and how large the merged differences are.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from mergekit.merge_methods.generalized_task_arithmetic import (
    ConsensusMethod,
    GeneralizedTaskArithmeticMerge,
)
from mergekit.sparsify import SparsificationMethod
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from narrowtune.delta.apply import apply
from narrowtune.delta.blend import Blending, blend
from narrowtune.delta.extract import extract
from narrowtune.models.select import select


def theirs(base: Tensor, tuned: list[Tensor], how: Blending) -> Tensor:
    """What mergekit makes of one tensor, at its defaults for the rule."""
    ties = how.rule == "ties"
    method = GeneralizedTaskArithmeticMerge(
        consensus_method=ConsensusMethod.sum if ties else None,
        sparsification_method=SparsificationMethod.magnitude if ties else None,
        default_normalize=ties,
        default_rescale=False,
        method_name=how.rule,
        method_pretty_name=None,
        method_reference_url=None,
    )
    entries = [SimpleNamespace(id=k, tensor=each) for k, each in enumerate(tuned)]
    return method.merge_group(
        SimpleNamespace(base=SimpleNamespace(tensor=base), non_base=entries),
        weight=dict(enumerate(how.weights)),
        density=dict.fromkeys(range(len(tuned)), how.density),
        normalize=ties,
        rescale=False,
        int8_mask=False,
        **{"lambda": 1},
    )


def main() -> None:
    """Compare rule by rule."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)
        base = {n: p.detach().clone() for n, p in model.named_parameters()}
        deltas = []
        for _ in range(2):
            tuned = AutoModelForCausalLM.from_pretrained(folder)
            selection = select(tuned, "sa_proj")
            for n, parameter in tuned.named_parameters():
                if n in selection.names:
                    parameter.data += 0.01 * torch.randn_like(parameter)
            deltas.append(extract(tuned, selection, base))
        for how in (
            Blending("linear", (1.0, 1.0)),
            Blending("linear", (0.3, 1.7)),
            Blending("ties", (1.0, 1.0), 0.2),
            Blending("ties", (1.0, 1.0), 0.7),
            Blending("ties", (0.5, 0.5), 0.5),
            Blending("ties", (0.5, 1.0), 0.5),
        ):
            ours = AutoModelForCausalLM.from_pretrained(folder)
            apply(ours, blend(folder, deltas, how))
            largest, size = 0.0, 0.0
            for n, parameter in ours.named_parameters():
                if n in deltas[0].bits:
                    tuned = []
                    for delta in deltas:
                        bits = base[n].view(torch.int32) ^ delta.bits[n]
                        tuned.append(bits.view(torch.float32))
                    expected = theirs(base[n], tuned, how)
                    largest = max(largest, float((parameter - expected).abs().max()))
                    size = max(size, float((expected - base[n]).abs().max()))
            print(f"{how.rule} {how.weights} {how.density or 1:g}: {largest:.1e} of {size:.1e}")


if __name__ == "__main__":
    main()
