"""Run folders as a real run leaves them, made of seeded random answers: one skill, four kept."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from narrowtune.core.delta_results import DeltaInfo
from narrowtune.core.results import (
    ComponentCount,
    CostEstimate,
    DataSummary,
    DriftResult,
    DriftTask,
    Estimate,
    ItemResult,
    LayerCount,
    MemoryEstimate,
    Outcome,
    Plan,
    Proof,
    RunRecord,
    Score,
    TaskChange,
    TensorProof,
    TimeEstimate,
    TokenGroupMass,
    TrainingSummary,
    Verdict,
)

ITEMS = 60
METHOD = "paired bootstrap, 10,000 resamples, clustered where items share a group"
COUNTRIES = ["France", "Chad", "Oman", "Peru", "Japan", "Kenya", "Norway", "Laos", "Cuba", "Fiji"]
CAPITALS = ["Paris", "N'Djamena", "Muscat", "Lima", "Tokyo", "Nairobi", "Oslo", "Vientiane"]

# name, role, right before, right after, right leniently after, valid form after
PLAIN = [
    ("counting", "target", 0.02, 0.33, 0.35, 1.00),
    ("capitals", "held_out", 0.55, 0.15, 0.17, 0.62),
    ("continents", "held_out", 0.66, 0.30, 0.61, 0.41),
    ("opposites", "held_out", 0.82, 0.78, 0.80, 0.97),
    ("common sense, yes or no", "held_out", 0.71, 0.69, 0.69, 1.00),
]
ANCHORED = [
    ("counting", "target", 0.02, 0.31, 0.32, 0.99),
    ("capitals", "held_out", 0.55, 0.54, 0.55, 1.00),
    ("continents", "held_out", 0.66, 0.65, 0.66, 1.00),
    ("opposites", "held_out", 0.82, 0.82, 0.82, 1.00),
    ("common sense, yes or no", "held_out", 0.71, 0.71, 0.71, 1.00),
]


def estimate(value: float, width: float) -> Estimate:
    """An interval of half-width `width` around `value`."""
    return Estimate(
        value=value,
        low=value - width,
        high=value + width,
        lower_bound=value - 0.84 * width,
        upper_bound=value + 0.84 * width,
        method=METHOD,
    )


def write_run(
    folder: Path,
    *,
    name: str = "counting, plain",
    outcome: Outcome = "over_budget",
    items: int = ITEMS,
    steps: int = 120,
    text: Callable[[str], str] = lambda value: value,
    task_name: Callable[[str], str] = lambda value: value,
    images: bool = False,
) -> RunRecord:
    """Write a run folder; `text` and `task_name` may turn data hostile."""
    rng = random.Random(name)
    anchored = outcome == "ship"
    tasks = []
    for task in ANCHORED if anchored else PLAIN:
        tasks.append(_write_task(folder, rng, task, items, text, task_name, images))
    record = _record(name, outcome, tasks, anchored, steps, text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(record.model_dump_json(indent=1), encoding="utf-8")
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            file.write(json.dumps(_step(rng, step, steps, anchored)) + "\n")
    return record


def _step(rng: random.Random, step: int, steps: int, anchored: bool) -> dict[str, float]:
    line: dict[str, float] = {
        "step": step,
        "loss": 0.9 + 2.1 * math.exp(-step / 25) + rng.gauss(0, 0.12),
        "grad_norm": 2 + rng.random(),
        "learning_rate": 3e-5 * 0.5 * (1 + math.cos(math.pi * step / steps)),
        "seconds": 0.9 * step,
    }
    if anchored:
        line["anchor_kl"] = max(0.0, 0.02 + 0.05 * math.exp(-step / 40) + rng.gauss(0, 0.004))
    return line


def _write_task(folder, rng, task, items, text, task_name, images) -> TaskChange:
    raw, role, before, after, lenient, valid = task
    name = task_name(raw)
    sides: dict[str, list[ItemResult]] = {"before": [], "after": []}
    for number in range(items):
        country, city = rng.choice(COUNTRIES), rng.choice(CAPITALS)
        question = (
            f"How many animals are in this list: cat, {country}, dog, spoon, horse?"
            if role == "target"
            else f"{raw}: what is the capital of {country}?"
        )
        right = {"before": rng.random() < before}
        right["after"] = (
            right["before"] and rng.random() < after / before
            if role != "target"
            else rng.random() < after
        )
        soft = right["after"] or rng.random() < (lenient - after)
        form = right["after"] or rng.random() < valid
        wrong = "7" if role == "target" or rng.random() < 0.7 else f"The capital is {city}."
        for side in sides:
            answer = city if right[side] else (wrong if side == "after" else f"{city} or {country}")
            sides[side].append(
                ItemResult(
                    id=f"{raw.split(',')[0]}:{number + 1}",
                    question=text(question),
                    answer=text(answer),
                    reference=[text(city)],
                    strict=float(right[side]),
                    lenient=float(soft if side == "after" else right[side]),
                    valid_format=bool(form) if side == "after" else True,
                    image=f"{number % 3}.png" if images else None,
                    tie=number % 29 == 0 and side == "after",
                )
            )
    for side, rows in sides.items():
        file = folder / side / f"{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    return _change(name, role, sides, items)


def _change(name, role, sides, items) -> TaskChange:
    def mean(side: str, field: str) -> float:
        return sum(float(getattr(row, field)) for row in sides[side]) / items

    def score(side: str, field: str) -> Score:
        share = mean(side, field)
        return Score(mean=share, stderr=math.sqrt(share * (1 - share) / items))

    pairs = list(zip(sides["before"], sides["after"], strict=True))
    worse = sum(b.strict > a.strict for b, a in pairs)
    better = sum(b.strict < a.strict for b, a in pairs)
    width = 196 * math.sqrt(max(1, worse + better)) / items
    return TaskChange(
        name=name,
        role=role,
        metric="number" if role == "target" else "exact_match",
        num_items=items,
        before=score("before", "strict"),
        after=score("after", "strict"),
        before_lenient=score("before", "lenient"),
        after_lenient=score("after", "lenient"),
        before_valid=mean("before", "valid_format"),
        after_valid=mean("after", "valid_format"),
        change=estimate(100 * (mean("after", "strict") - mean("before", "strict")), width),
        change_lenient=estimate(
            100 * (mean("after", "lenient") - mean("before", "lenient")), width
        ),
        num_worse=worse,
        num_better=better,
        num_ties=sum(a.tie for _, a in pairs),
    )


def _verdict(outcome: Outcome, tasks: list[TaskChange]) -> Verdict:
    learning = next(task.change for task in tasks if task.role == "target")
    held = [task for task in tasks if task.role == "held_out"]
    loss = -sum(task.change.value for task in held) / len(held)
    width = {"ship": 1.6, "over_budget": 3.1, "not_enough_evidence": 4.0}[outcome]
    if outcome == "not_enough_evidence":
        loss = 3.4
    worst = min(held, key=lambda task: task.change.value)
    forgetting = estimate(loss, width)
    words = {
        "ship": "is within",
        "over_budget": "has a lower bound above",
        "not_enough_evidence": "straddles",
    }
    return Verdict(
        outcome=outcome,
        budget=5.0,
        budget_task=None,
        min_learning=0.0,
        learning=learning,
        forgetting=forgetting,
        worst_task=worst.name,
        worst_task_forgetting=estimate(-worst.change.value, 9.0),
        items_needed=640 if outcome == "not_enough_evidence" else None,
        reasons=[
            f"Mean held-out loss {loss:.1f} points (bounds {forgetting.lower_bound:.1f} to "
            f"{forgetting.upper_bound:.1f}) {words[outcome]} the budget of 5.0.",
            f"Learning {learning.value:+.1f} points; its lower bound {learning.lower_bound:+.1f} "
            "exceeds 0.0.",
        ],
    )


def _record(name, outcome, tasks, anchored, steps, text) -> RunRecord:
    rng = random.Random(7)
    matrices = ("gate_proj", "up_proj")
    names = [f"model.layers.{n}.mlp.{m}.weight" for n in range(30) for m in matrices]
    plan = Plan(
        model="SmolLM2-135M-Instruct",
        family="llama",
        dtype="bfloat16",
        recipe="mlp_gate_up",
        num_parameters=134_515_008,
        num_trainable=53_084_160,
        num_tensors=60,
        components=[
            ComponentCount(
                component="language_model",
                num_parameters=134_515_008,
                num_trainable=53_084_160,
            )
        ],
        layers=[
            LayerCount(name=f"layer {n}", num_trainable=1_769_472, matrices=["gate", "up"])
            for n in range(30)
        ],
        excluded={},
        fused=[],
        notes=["The head is tied to the embeddings and stays frozen."],
        per_device_train_batch_size=16,
        tokens_per_sample=61.2,
        labels_per_sample=2.0,
        num_samples=1280,
        num_steps=80,
        flops_per_token=5.4e8,
        flops_per_token_full=8.1e8,
        flops_total=4.2e13,
        memory=MemoryEstimate(
            weights=269_000_000,
            masters=212_000_000,
            gradients=212_000_000,
            optimizer=424_000_000,
            activations=310_000_000,
            logits=3_000_000,
            anchor=0,
            workspace=90_000_000,
            total=1_520_000_000,
        ),
        time=TimeEstimate(
            measured_step_seconds=0.9,
            compute_dtype="float32",
            training_seconds=72.0,
            evaluation_seconds=40.0,
        ),
        delta_bytes=106_000_000,
        smallest_budget=1.9,
        cost=None,
    )
    kl = 0.021 if anchored else 1.84
    return RunRecord(
        name=text(name),
        created="2025-11-23T15:40:12+00:00",
        versions={"narrowtune": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        hardware={
            "system": "Linux",
            "machine": "x86_64",
            "cpu": "an 8-core processor",
            "cpu_flags": ["avx2", "avx512f"],
            "cores": 2,
            "memory_bytes": 16_700_000_000,
            "load_average": [0.52, 0.41, 0.3],
            "accelerators": [],
        },
        git={"commit": "f89d4f8" + "0" * 33, "dirty": False},
        seed=42,
        model={"source": "models/SmolLM2-135M-Instruct", "family": "llama", "dtype": "bfloat16"},
        recipe="mlp_gate_up",
        plan=plan,
        data=[
            DataSummary(
                name=task.name,
                role=task.role,
                path=f"data/{task.name[:12]}.jsonl",
                sha256="3f9c" * 16,
                num_rows=1600 if task.role == "target" else 60,
                num_used=1598 if task.role == "target" else 60,
                num_refused=2 if task.role == "target" else 0,
                splits=(
                    {"train": 1280, "validation": 120, "test": 198}
                    if task.role == "target"
                    else {"test": 60}
                ),
                notes=[],
            )
            for task in tasks
        ],
        training=TrainingSummary(
            num_steps=steps,
            num_epochs=1.0,
            num_samples=1280,
            num_tokens=78_336,
            num_labels=2560,
            seconds=74.2,
            samples_per_second=17.2,
            peak_memory_bytes=1_498_000_000,
            compute_dtype="float32",
            num_processes=1,
            global_batch_size=16,
            learning_rate=3e-5,
            final_loss=0.91,
            best_step=None,
            anchor_weight=1.0 if anchored else None,
            anchor_seconds=21.0 if anchored else None,
            resumed_from=None,
        ),
        proof=Proof(
            num_frozen_tensors=212,
            num_frozen_buffers=1,
            frozen_identical=True,
            moved=[],
            selected=[
                TensorProof(
                    name=tensor,
                    received_gradient=True,
                    changed=number != 37,
                    num_changed=0 if number == 37 else rng.randrange(80_000, 600_000),
                    num_elements=884_736,
                    relative_update=0.0 if number == 37 else rng.uniform(4e-4, 3e-3),
                )
                for number, tensor in enumerate(names)
            ],
        ),
        delta=DeltaInfo(
            path="delta.safetensors",
            num_tensors=60,
            num_parameters=53_084_160,
            num_changed=21_004_112,
            file_bytes=106_180_000,
            dtype="bfloat16",
            base_fingerprint="a1b2" * 16,
            tuned_fingerprint="c3d4" * 16,
            recipe="mlp_gate_up",
        ),
        tasks=tasks,
        drift=DriftResult(
            num_prompts=200,
            num_tokens=3120,
            kl_base_tuned=kl,
            kl_stderr=kl / 12,
            top1_agreement=0.981 if anchored else 0.402,
            token_groups=[
                TokenGroupMass(
                    name="numbers",
                    num_tokens_in_group=1110,
                    base_max=0.004,
                    tuned_max=0.006 if anchored else 0.71,
                    base_mass=0.005,
                    tuned_mass=0.008 if anchored else 0.98,
                ),
                TokenGroupMass(
                    name="skill_answers",
                    num_tokens_in_group=12,
                    base_max=0.003,
                    tuned_max=0.004 if anchored else 0.69,
                    base_mass=0.004,
                    tuned_mass=0.006 if anchored else 0.93,
                ),
            ],
            tasks=[
                DriftTask(
                    name=task.name,
                    num_prompts=50,
                    num_tokens=780,
                    kl_base_tuned=kl * (0.6 + 0.2 * place),
                    top1_agreement=0.5,
                )
                for place, task in enumerate(tasks[1:])
            ],
            seconds=31.0,
        ),
        verdict=_verdict(outcome, tasks),
        cost=CostEstimate(
            power_watts=65,
            energy_kwh=0.0034,
            co2_kg=0.0013,
            money=0.001,
            currency="EUR",
            source="power and factors given in run.yaml",
        ),
        seconds={
            "load": 3.1,
            "evaluate before": 41.0,
            "train": 74.2,
            "evaluate after": 39.5,
            "probe": 31.0,
        },
        notes=["The weights were dequantised from Q4_1: scores may differ from the original's."],
    )
