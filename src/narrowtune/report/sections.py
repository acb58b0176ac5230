"""View models of the report's tables: what trained, the proof, delta, cost, data, provenance."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from narrowtune.core.delta_results import DeltaInfo
from narrowtune.core.numbers import number
from narrowtune.core.path_results import FastPath
from narrowtune.core.results import (
    CostEstimate,
    Plan,
    Proof,
    RunRecord,
    TensorProof,
    TrainingSummary,
)
from narrowtune.report.text import (
    anchor,
    count,
    duration,
    percent,
    plural,
    pulled,
    size,
    small,
    tick,
)

SHOWN_TENSORS = 10
"""Rows of the proof that are open at once; the others fold out."""


@dataclass(frozen=True)
class Fact:
    """One name and one value."""

    name: str
    value: str


@dataclass(frozen=True)
class Bar:
    """One name, one value, and a bar in percent of the longest."""

    name: str
    value: str
    length: float
    detail: str = ""


def components(plan: Plan) -> list[Bar]:
    """Components with the share of each that trains."""
    return [
        Bar(
            item.component,
            f"{count(item.num_trainable)} of {count(item.num_parameters)}",
            100 * item.num_trainable / item.num_parameters if item.num_parameters else 0.0,
            percent(item.num_trainable / item.num_parameters, 1) if item.num_parameters else "–",
        )
        for item in plan.components
    ]


@dataclass(frozen=True)
class ProofView:
    """The proof as a reader checks it."""

    passed: bool
    frozen: str
    num_selected: int
    num_gradient: int
    num_changed: int
    worst: list[TensorProof]
    others: list[TensorProof]


def proof_view(proof: Proof) -> ProofView:
    """Order the tensors: without gradient, unchanged, then by relative update, largest first."""
    tensors = sorted(
        proof.selected,
        key=lambda t: (t.received_gradient, t.changed, -t.relative_update, t.name),
    )
    with_gradient = sum(tensor.received_gradient for tensor in tensors)
    buffers = (
        f" and {plural(proof.num_frozen_buffers, 'buffer')}" if proof.num_frozen_buffers else ""
    )
    return ProofView(
        passed=proof.frozen_identical and not proof.moved and with_gradient == len(tensors),
        frozen=f"{count(proof.num_frozen_tensors)} frozen tensors{buffers}",
        num_selected=len(tensors),
        num_gradient=with_gradient,
        num_changed=sum(tensor.changed for tensor in tensors),
        worst=tensors[:SHOWN_TENSORS],
        others=tensors[SHOWN_TENSORS:],
    )


WRITES = ("Fetch the base", "Write the")
"""How commands are told by what they do that end in a model's folder."""


def delta_commands(record: RunRecord, delta: DeltaInfo) -> list[tuple[str, str]]:
    """The commands that apply and undo the delta, with what each does."""
    source = os.path.expanduser(str(record.model.get("source") or "MODEL"))  # noqa: PTH111
    model, first = shlex.quote(source), []
    if record.model.get("is_folder") is False:
        revision = record.model.get("revision")
        which = f" --revision {shlex.quote(str(revision))}" if revision is not None else ""
        fetch = f"hf download {model}{which} --local-dir base_model"
        first, model = [("Fetch the base as a folder", fetch)], "base_model"
    file = shlex.quote(delta.path)
    if ledger := record.model.get("ledger"):
        # Its base has the earlier skills on it, and is no folder.
        folder = shlex.quote(str(ledger))
        return [
            ("Show every skill", f"narrowtune ledger show {folder}"),
            ("Write the model that holds them", f"narrowtune ledger build {folder} --output tuned"),
            ("Look inside", f"narrowtune delta info {file}"),
        ]
    return [
        *first,
        ("Write the tuned model", f"narrowtune delta apply {model} {file} --output tuned"),
        ("Get the base back from it", f"narrowtune delta undo tuned {file} --output base"),
        ("Look inside", f"narrowtune delta info {file}"),
    ]


def delta_facts(delta: DeltaInfo) -> list[Fact]:
    """The delta, described."""
    changed = f" ({percent(delta.num_changed / delta.num_parameters)})" * bool(delta.num_parameters)
    packed = ""
    if delta.file_bytes < delta.dense_bytes:
        share = percent(delta.file_bytes / delta.dense_bytes)
        packed = f", packed without loss: {share} of {size(delta.dense_bytes)}"
    return [
        Fact("file", delta.path),
        Fact("recipe", delta.recipe),
        Fact("model family", delta.family or "not recorded"),
        Fact("size", size(delta.file_bytes) + packed),
        Fact("tensors", count(delta.num_tensors)),
        Fact("parameters", count(delta.num_parameters)),
        Fact("of them changed", count(delta.num_changed) + changed),
        Fact("dtype", delta.dtype),
        Fact("base fingerprint", delta.base_fingerprint),
        Fact("tuned fingerprint", delta.tuned_fingerprint),
        *(Fact("note", note) for note in delta.notes),
    ]


def fast_path(path: FastPath) -> str:
    """Say what of the fast path a run takes."""
    taken = (
        ("rows laid out anew where that is cheaper", path.packing),
        ("attention by products", path.products),
        ("pictures looked up", path.pictures_kept),
        ("layers compiled", path.compiled),
    )
    said = ", ".join(name for name, is_taken in taken if is_taken)
    return said or "off: the plain path, row by row"


def _fast_path_taken(plan: Plan | None, training: TrainingSummary) -> list[Fact]:
    """What of it a run took, what it saved, and how far it is from the plain path."""
    if plan is None or plan.fast_path is None:
        return []
    said, first = fast_path(plan.fast_path), training.first_step
    if first is not None and not first.used:
        told = f"row by row, as loss or gradients of the first rows differ by {small(first.error)}"
        said = f"not taken: {told} otherwise (relative; up to {small(first.limit)} accepted)"
        return [Fact("fast path", said)]
    if plan.sharing is not None:
        said += f"; {number(plan.sharing.factor)} × fewer FLOPs than row by row, by plan"
    if first is not None:
        said += (
            f"; loss and gradients of the first rows differ from the plain path's by "
            f"{small(first.error)} (relative; up to {small(first.limit)} accepted)"
        )
        if first.float32_error is not None:
            said += f", which is rounding: in fp32 by {small(first.float32_error)}"
    elif plan.fast_path.packing or plan.fast_path.pictures_kept:
        said += "; not compared with the plain path"
    return [Fact("fast path", said)]


def training_facts(record: RunRecord) -> list[Fact]:
    """What the training stage did, in the order a reader asks."""
    training = record.training
    if training is None:
        return []
    processes = f"{training.num_processes} process" + "es" * (training.num_processes > 1)
    epochs = f"{training.num_epochs:.3g} epoch" + "s" * (training.num_epochs != 1)
    facts = [
        Fact("steps", count(training.num_steps)),
        Fact("samples", f"{count(training.num_samples)} ({epochs})"),
        Fact("labelled tokens", count(training.num_labels)),
        Fact("batch", f"{training.global_batch_size} over {processes}"),
        Fact("peak learning rate", tick(training.learning_rate)),
        Fact("compute dtype", training.compute_dtype),
        Fact("anchor", anchor(training) or "none"),
        *([Fact("pulled back to the base", pull)] if (pull := pulled(training)) else []),
        *_fast_path_taken(record.plan, training),
    ]
    if (compiled := training.compilation) is not None:
        told = "used" if compiled.used else "not used"
        facts.append(
            Fact(
                "compiled layers",
                f"{told}: loss or gradients differ from plain ones by {small(compiled.error)} "
                f"(relative; "
                f"up to {small(compiled.limit)} accepted), {duration(compiled.seconds)} to compile",
            )
        )
    if training.final_loss is not None:
        facts.append(Fact("final loss", small(training.final_loss)))
    if training.best_step is not None:
        facts.append(Fact("best step", count(training.best_step)))
    if training.resumed_from is not None:
        facts.append(Fact("resumed from", training.resumed_from))
    return facts


def stage_seconds(record: RunRecord) -> list[Bar]:
    """Seconds of every stage, longest bar first in the order of the run."""
    longest = max(record.seconds.values(), default=0.0) or 1.0
    return [
        Bar(name, duration(seconds), 100 * seconds / longest)
        for name, seconds in record.seconds.items()
    ]


def run_cost(record: RunRecord) -> list[Fact]:
    """Time, memory, and where factors were given energy, emissions and money."""
    facts = [Fact("all stages", duration(sum(record.seconds.values())))] if record.seconds else []
    training = record.training
    if training is not None:
        facts.append(Fact("training", duration(training.seconds)))
        facts.append(Fact("speed", f"{small(training.samples_per_second)} samples/s"))
        if training.anchor_seconds is not None:
            facts.append(Fact("of it the anchor", duration(training.anchor_seconds)))
        if training.drift_seconds is not None:
            facts.append(Fact("of it measuring drift", duration(training.drift_seconds)))
        if training.peak_memory_bytes is not None:
            facts.append(Fact("peak memory", size(training.peak_memory_bytes)))
    facts += cost_facts(record.cost) if record.cost else []
    return [*facts, *(_measured_energy(training) if training is not None else [])]


def _measured_energy(training: TrainingSummary) -> list[Fact]:
    """What was measured stands beside what was estimated, and each names its source."""
    if training.energy_source is None:
        return []
    if training.energy_kwh is None:
        return [Fact("energy of training", training.energy_source)]
    return [
        Fact("energy of training, measured", f"{small(training.energy_kwh)} kWh"),
        Fact("measured by", training.energy_source),
    ]


def cost_facts(cost: CostEstimate) -> list[Fact]:
    """Energy, emissions and money, as far as their factors were given."""
    known = (
        ("power", cost.power_watts, "W"),
        ("energy", cost.energy_kwh, "kWh"),
        ("emissions", cost.co2_kg, "kg CO₂"),
        ("money", cost.money, cost.currency or ""),
    )
    facts = [
        Fact(name, f"{small(value)} {unit}".strip())
        for name, value, unit in known
        if value is not None
    ]
    return [*facts, Fact("energy from", cost.source)] if cost.source else facts


def provenance(record: RunRecord) -> list[tuple[str, list[Fact]]]:
    """Groups of facts that a second run would need."""
    git = record.git or {"state": "not a git checkout"}
    run = {"name": record.name, "created": record.created, "seed": record.seed}
    return [
        ("Run", _facts(run)),
        ("Model", _facts(record.model)),
        ("Versions", _facts(record.versions)),
        ("Hardware", _facts(record.hardware)),
        ("Source", _facts(git)),
    ]


def _facts(values: Mapping[str, Any]) -> list[Fact]:
    return [
        Fact(key.replace("_", " "), _shown(key, value))
        for key, value in values.items()
        if value not in (None, [], {}, "")
    ]


def _shown(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("bytes") and isinstance(value, (int, float)):
        return size(value)
    if isinstance(value, float):
        return tick(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(str(name), inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(key, inner) for inner in value)
    return str(value)
