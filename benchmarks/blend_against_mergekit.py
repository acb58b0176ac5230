"""Do blended deltas hold what mergekit makes of the same tensors?

    pip install --no-deps mergekit immutables
    python benchmarks/blend_against_mergekit.py --output benchmarks/results/merge_rules.json

Random matrices stand for a base and two models tuned from it; our blend goes through delta files of
a tiny Llama, in fp32. What `dare_*` drop is one chance on both sides: both draw the same numbers
from one seed. `adapted` is mergekit with what differs by design taken out: the rest is scaled by
1 / density, as in the DARE paper, in place of the L1 norm of what there was, and what agrees in
sign is averaged, as `ties` does.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from mergekit import sparsify
from mergekit.merge_methods.generalized_task_arithmetic import (
    ConsensusMethod,
    GeneralizedTaskArithmeticMerge,
)
from mergekit.sparsify import SparsificationMethod
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from narrowtune.core.provenance import versions
from narrowtune.core.run_folder import write_json
from narrowtune.delta.apply import apply
from narrowtune.delta.blend import Blending, blend
from narrowtune.delta.extract import extract
from narrowtune.delta.store import Delta
from narrowtune.models.select import select

CASES = (
    Blending("linear", (1.0, 1.0)),
    Blending("linear", (0.3, 1.7)),
    Blending("ties", (1.0, 1.0), 0.2),
    Blending("ties", (1.0, 1.0), 0.7),
    Blending("ties", (0.5, 0.5), 0.5),
    Blending("ties", (0.5, 1.0), 0.5),
    Blending("dare_linear", (1.0, 1.0), 0.5),
    Blending("dare_linear", (0.3, 1.7), 0.2),
    Blending("dare_ties", (1.0, 1.0), 0.5),
    Blending("dare_ties", (0.5, 1.0), 0.5),
)
SPARSIFIED = {
    "linear": None,
    "ties": SparsificationMethod.magnitude,
    "dare_linear": SparsificationMethod.random,
    "dare_ties": SparsificationMethod.random,
}


def theirs(base: Tensor, tuned: list[Tensor], how: Blending, number: int, adapted: bool) -> Tensor:
    """What mergekit makes of one tensor, at its defaults for the rule or adapted.

    Args:
        base: in fp32.
        tuned: one tensor for each delta.
        how: rule, weights, density.
        number: of the tensor; with the rule's seed it decides what is dropped, as in `blend`.
        adapted: as the module says.
    """
    signs, by_chance = how.rule.endswith("ties"), how.rule.startswith("dare")
    method = GeneralizedTaskArithmeticMerge(
        consensus_method=ConsensusMethod.sum if signs else None,
        sparsification_method=SPARSIFIED[how.rule],
        default_normalize=False,
        default_rescale=False,
        method_name=how.rule,
        method_pretty_name=None,
        method_reference_url=None,
    )
    entries = [SimpleNamespace(id=k, tensor=each) for k, each in enumerate(tuned)]
    torch.manual_seed(how.seed * 1_000_003 + number)
    rescaled = sparsify.rescaled_masked_tensor
    if adapted:
        rescaled = lambda tensor, mask, _: tensor * mask / how.density  # noqa: E731
    with patch.object(sparsify, "rescaled_masked_tensor", rescaled):
        return method.merge_group(
            SimpleNamespace(base=SimpleNamespace(tensor=base), non_base=entries),
            weight=dict(enumerate(how.weights)),
            density=dict.fromkeys(range(len(tuned)), how.density),
            normalize=signs and (adapted or not by_chance),  # not with dare_ties' defaults
            rescale=by_chance,
            int8_mask=False,
            **{"lambda": 1},
        )


def compared(
    folder: Path, base: dict[str, Tensor], deltas: list[Delta], how: Blending, adapted: bool
) -> dict[str, Any]:
    """Blend in both ways, and return how far what comes out is apart."""
    ours = AutoModelForCausalLM.from_pretrained(folder)
    apply(ours, blend(folder, deltas, how))
    parameters = dict(ours.named_parameters())
    apart, change = [], []
    for number, name in enumerate(deltas[0].metadata.tensors):
        tuned = [(base[name].view(torch.int32) ^ d.bits[name]).view(torch.float32) for d in deltas]
        expected = theirs(base[name], tuned, how, number, adapted)
        apart.append((parameters[name].detach() - expected).flatten())
        change.append((expected - base[name]).flatten())
    difference, whole = torch.cat(apart), torch.cat(change)
    return {
        "rule": how.rule,
        "weights": how.weights,
        "density": how.density,
        "mergekit": "adapted" if adapted else "defaults",
        "largest_difference": float(difference.abs().max()),
        "largest_change": float(whole.abs().max()),
        "relative_difference": float(difference.norm() / whole.norm()),
    }


def main() -> None:
    """Compare rule by rule, print the table of docs/delta.md, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
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
        rows = []
        print("| rule | weights | density | mergekit | largest difference, of | relative |")
        print("|---|---|---|---|---|---|")
        for how in CASES:
            for adapted in (False, True) if how.rule.startswith("dare") else (False,):
                row = compared(folder, base, deltas, how, adapted)
                rows.append(row)
                weights = " and ".join(f"{weight:g}" for weight in how.weights)
                density = "–" if how.density is None else f"{how.density:g}"
                apart = f"{row['largest_difference']:.1e}, {row['largest_change']:.1e}"
                print(
                    f"| `{how.rule}` | {weights} | {density} | {row['mergekit']} | {apart} "
                    f"| {100 * row['relative_difference']:.2g} % |"
                )
    if given.output:
        write_json(given.output, {"versions": versions(), "rows": rows})


if __name__ == "__main__":
    main()
