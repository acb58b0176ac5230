"""Training speed and peak memory of a 7B multimodal model on one GPU, beside TRL and peft.

    python benchmarks/gpu_speed.py --plan-only   # on any machine, some GB of memory: predictions
    python benchmarks/gpu_speed.py               # on the GPU; goes on where an earlier start ended
    python benchmarks/gpu_speed.py --tiny        # the same path in a small model, on a CPU as well

A model of the shape of Qwen2.5-VL-7B with random bf16 weights, made on the device; nothing is
downloaded. 8 rows per optimiser step, one pass per step, the same tokens and labels for all. Rows
are of three kinds: a picture of 784 x 784 pixels (784 visual tokens) with one question, four rows
about each picture, and text. Every arm runs in a process of its own. Two steps warm up; samples per
second are from the median of the others. Attention is SDPA for all.

narrowtune keeps fp32 masters of what it trains. TRL trains bf16 weights with bf16 optimiser states,
without which 8.3 billion parameters fit no such GPU; LoRA has rank 16 on every linear layer of the
language model, not of the tower, which would cost it more; "Liger" is TRL with that library's
kernels, its documentation's advice for speed. "Checkpointed" is gradient checkpointing, TRL's
default; "compiled" is narrowtune's `training.torch_compile`. What runs out of memory is recorded
with its message; what could not hold weights, gradients and optimiser states alone is not started.

Processes import and draw their rows side by side; then one after the other has the device, so that
a lease of some minutes is spent on steps. `--profile FOLDER` trains one more step of every case and
writes there what its time went to.

Every arm's process also times a product of two random 8192 x 8192 bf16 matrices, so that shares of
what the device does with such products can be told from shares of what its maker states.

The share of peak is of the FLOPs that an arm's rows need at least: forward, and backward for what
it trains; the head at labels alone; nothing for padding or what is computed again. narrowtune's
are those of rows as it lays them out, with a picture that rows share once; TRL's are row by row.

Predictions come from `narrowtune plan`'s own code on shapes without weights. For TRL's arms they
are weights, gradients, optimiser states and what autograd keeps, counted in the same way.

Results: benchmarks/results/gpu_speed.json (gpu_speed_tiny.json), written after every arm. An arm
that fails is left out, and tried again by the next start.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alone import run_alone
from rich.console import Console
from rich.table import Table

from narrowtune.core import provenance

RESULTS = Path(__file__).parent / "results"
SAMPLES = 8
WARM_UP, STEPS = 2, 8
CALIBRATED = 8192
PATIENCE = 90.0
"""Seconds that a process waits for the others to be ready."""
MINUTES = 9.0
KINDS = ("pictures", "questions", "text")

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""FLOP/s of dense bf16 products by a part of the device's name, as its maker states them."""


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        recipe: what narrowtune trains; of TRL `full`, or `lora`.
        peer: whether TRL trains it.
        checkpointed: whether activations are computed again in the backward pass.
        liger: whether TRL takes Liger's kernels.
        compiled: whether narrowtune compiles the decoder's layers.
    """

    recipe: str
    peer: bool = False
    checkpointed: bool = False
    liger: bool = False
    compiled: bool = False


ARMS: Mapping[str, Arm] = {
    "narrowtune sa_proj": Arm("sa_proj"),
    "narrowtune sa_proj, compiled": Arm("sa_proj", compiled=True),
    "narrowtune sa_proj, checkpointed": Arm("sa_proj", checkpointed=True),
    "narrowtune mlp_gate_up": Arm("mlp_gate_up"),
    "narrowtune mlp_gate_up, checkpointed": Arm("mlp_gate_up", checkpointed=True),
    "narrowtune language_model, checkpointed": Arm("language_model", checkpointed=True),
    "TRL + peft LoRA": Arm("lora", peer=True),
    "TRL + peft LoRA, Liger": Arm("lora", peer=True, liger=True),
    "TRL + peft LoRA, checkpointed": Arm("lora", peer=True, checkpointed=True),
    "TRL, everything": Arm("full", peer=True),
    "TRL, everything, checkpointed": Arm("full", peer=True, checkpointed=True),
}


def lora_config(model: Any) -> Any:
    """Return LoRA of `RANK` on the linear layers inside the language model's layers."""
    from peft import LoraConfig
    from training.arms import RANK

    from narrowtune.models.select import resolve

    names = (*resolve(model, "sa_proj").names, *resolve(model, "mlp").names)
    layers = sorted({name.rpartition(".")[0] for name in names})
    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=layers)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train one arm for some steps on each kind of rows, in this process."""
    import torch
    from filelock import FileLock
    from training.qwen import make_rows
    from trl import SFTTrainer

    from narrowtune.engine.heap import keep_freed_blocks

    assert SFTTrainer  # whoever runs: it is in what the process held before
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not ARMS[given.arm].peer:
        keep_freed_blocks()
    num_rows = (WARM_UP + STEPS + bool(given.profile)) * SAMPLES
    rows = {kind: make_rows(given.size, kind, num_rows) for kind in given.kinds}
    wait_for_others(Path(given.meeting), given.expected)
    found: dict[str, Any] = {}
    with FileLock(Path(given.meeting) / "device"):
        products = products_per_second(device) if device.type == "cuda" else None
        for kind in given.kinds:
            if time.time() > given.until:
                break
            try:
                found[kind] = {**train(given, kind, rows.pop(kind), device), **calibrated(products)}
            except torch.OutOfMemoryError as error:
                found[kind] = {"out_of_memory": str(error).splitlines()[0]}
            except Exception:  # the other kinds' time on the device is not to be lost
                found[kind] = {"failed": traceback.format_exc()[-3000:]}
            gc.collect()
            torch.cuda.empty_cache()
    return found


def wait_for_others(meeting: Path, expected: int) -> None:
    """Return once so many processes are ready, or have had enough time to be."""
    (meeting / str(os.getpid())).touch()
    started = time.monotonic()
    while len(list(meeting.glob("[0-9]*"))) < expected and time.monotonic() - started < PATIENCE:
        time.sleep(0.2)


def calibrated(products: float | None) -> dict[str, float]:
    """Return what the device does with large products, if that was measured."""
    return {} if products is None else {"products_per_second": products}


def train(given: argparse.Namespace, kind: str, rows: list[Any], device: Any) -> dict[str, Any]:
    """Train one arm for some steps on rows of a kind."""
    import torch
    from training.arms import StepProfile, fit_recipe
    from training.qwen import make_model

    from narrowtune.engine.arithmetic import measure_arithmetic
    from narrowtune.engine.memory import process_bytes
    from narrowtune.engine.peak import PeakMemory
    from narrowtune.models.chunks import attend_to_chunks_together

    arm = ARMS[given.arm]
    steps = len(rows) // SAMPLES
    profile = StepProfile(steps) if given.profile else None
    callbacks = [profile] if profile else []
    before = process_bytes() if device.type == "cpu" else 0
    torch.manual_seed(0)
    with PeakMemory(device) as peak, tempfile.TemporaryDirectory() as folder:
        loaded = make_model(given.size, device)
        if arm.peer:
            found = train_with_trl(loaded, arm, rows, steps, folder, callbacks)
        else:
            attend_to_chunks_together(loaded.model)  # as load_model does
            arithmetic = measure_arithmetic(loaded.model, requested="bfloat16")
            training = {
                "global_batch_size": SAMPLES,
                "per_device_train_batch_size": SAMPLES,
                "max_steps": steps,
                "gradient_checkpointing": arm.checkpointed,
                "group_by_picture": kind == "questions",
                "torch_compile": arm.compiled,
            }
            found = fit_recipe(
                loaded, arm.recipe, rows, arithmetic, folder, training, callbacks=callbacks
            )
    if profile:
        name = f"{given.arm}, {kind}.txt".replace(" ", "_").replace(",", "")
        (Path(given.profile) / name).write_text(profile.table(), encoding="utf-8")
    assert peak.bytes is not None
    # The first step is not among these, nor is one that was profiled.
    seconds = found["seconds"][WARM_UP - 1 : WARM_UP - 1 + STEPS]
    return {**found, "seconds": seconds, "peak_bytes": peak.bytes - before}


def products_per_second(device: Any) -> float:
    """Return FLOP/s of a large bf16 product on a GPU."""
    import torch

    a, b = (torch.randn(2, CALIBRATED, CALIBRATED, device=device)).bfloat16()
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / 10)
    return 2 * CALIBRATED**3 / statistics.median(seconds)


def train_with_trl(
    loaded: Any, arm: Arm, rows: list[Any], steps: int, folder: str, callbacks: list[Any]
) -> dict[str, Any]:
    """Train everything, or LoRA, by TRL's SFTTrainer on the same encoded rows."""
    from datasets import Dataset
    from training.arms import StepClock, common_arguments
    from trl import SFTConfig, SFTTrainer

    from narrowtune.data.collate import collate, padding_id

    on_cpu = loaded.model.device.type == "cpu"
    own = {
        "per_device_train_batch_size": SAMPLES,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": arm.checkpointed,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "max_length": None,
        "use_liger_kernel": arm.liger,
    }
    pad = padding_id(loaded.tokenizer)
    clock = StepClock()
    trainer = SFTTrainer(
        loaded.model,
        args=SFTConfig(**{**common_arguments(True, True, steps, folder), **own}),
        # Tokens are there for rows of like length to go together; the rest stays where it is.
        train_dataset=Dataset.from_list(
            [{"input_ids": row.input_ids, "place": place} for place, row in enumerate(rows)]
        ),
        data_collator=lambda batch: collate([rows[one["place"]] for one in batch], pad),
        processing_class=loaded.tokenizer,
        peft_config=lora_config(loaded.model) if arm.recipe == "lora" else None,
        callbacks=[clock, *callbacks],
    )
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {"seconds": clock.seconds, "losses": clock.losses, "num_trainable": trained}


def predict(given: argparse.Namespace) -> dict[str, Any]:
    """Plan one arm for a GPU on each kind of rows, on shapes without weights."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from training.qwen import make_model, make_rows

    from narrowtune.engine.arithmetic import Arithmetic

    arithmetic = Arithmetic(compute_dtype="bfloat16", threads=torch.get_num_threads())
    arm = ARMS[given.arm]
    planned = {}
    for kind in given.kinds:
        with FakeTensorMode(allow_non_fake_inputs=True):  # rows are real
            loaded = make_model(given.size, torch.device("cpu"))
        rows = make_rows(given.size, kind, (WARM_UP + STEPS) * SAMPLES)
        planned[kind] = (
            predict_peer(loaded, arm, rows, arithmetic)
            if arm.peer
            else predict_ours(loaded, arm, rows, arithmetic, grouped=kind == "questions")
        )
    return planned


def predict_ours(
    loaded: Any, arm: Arm, rows: list[Any], arithmetic: Any, *, grouped: bool
) -> dict[str, Any]:
    """Return what `narrowtune plan` says of a recipe."""
    from narrowtune.core.config import parse_config
    from narrowtune.train.plan import make_plan
    from narrowtune.train.workload import Workload

    values = {
        "model": loaded.source,
        "recipe": arm.recipe,
        "skill": "rows.jsonl",
        "output_dir": "unused",
        "training": {
            "global_batch_size": SAMPLES,
            "per_device_train_batch_size": SAMPLES,
            "max_steps": WARM_UP + STEPS,
            "gradient_checkpointing": arm.checkpointed,
            "group_by_picture": grouped,
        },
    }
    plan = make_plan(
        loaded,
        parse_config(values, "this benchmark"),
        Workload(rows=rows, num_samples=len(rows)),
        arithmetic=arithmetic,
        measure_time=False,
        device="cuda",
    )
    memory = plan.memory
    assert plan.flops_total is not None
    assert plan.num_samples is not None
    return {
        "num_parameters": plan.num_parameters,
        "num_trainable": plan.num_trainable,
        "tokens_per_sample": plan.tokens_per_sample,
        "flops_per_sample": plan.flops_total / plan.num_samples,
        "held_bytes": memory.weights + memory.masters + memory.gradients + memory.optimizer,
        "peak_bytes": memory.total,
    }


def predict_peer(loaded: Any, arm: Arm, rows: list[Any], arithmetic: Any) -> dict[str, Any]:
    """Count the same of one of TRL's arms: a pass over the longest rows, padded."""
    from peft import get_peft_model

    from narrowtune.data.collate import collate, padding_id
    from narrowtune.engine.memory import sum_bytes
    from narrowtune.train.trial import count_flops

    model = loaded.model
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if arm.recipe == "lora":
        get_peft_model(model, lora_config(model))  # in place, and frozen but for the adapters
    else:
        model.requires_grad_(True)
    chosen = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pad = padding_id(loaded.tokenizer)
    longest = sorted(rows, key=lambda row: len(row.input_ids))[-SAMPLES:]
    mean = statistics.fmean(len(row.input_ids) for row in rows)
    typical = min(rows, key=lambda row: abs(len(row.input_ids) - mean))
    flops = count_flops(model, chosen, collate([typical], pad)) / len(typical.input_ids) * mean
    model.train()
    kept = traced(model, longest, pad, arithmetic)
    if arm.checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = traced(model, longest, pad, arithmetic)
        # One layer at a time is computed again, and then holds everything.
        kept = again + (kept - again) // model.config.get_text_config().num_hidden_layers
    weights = sum_bytes([*model.parameters(), *model.buffers()])
    gradients = sum_bytes(chosen.values())
    held = weights + 3 * gradients  # AdamW's two states are as wide as the weight
    return {
        "num_parameters": num_parameters,
        "num_trainable": sum(parameter.numel() for parameter in chosen.values()),
        "tokens_per_sample": mean,
        "flops_per_sample": flops,
        "held_bytes": held,
        # As in plan: all activations and no new gradients, or all gradients.
        "peak_bytes": max(held, held - gradients + kept),
    }


def traced(model: Any, rows: list[Any], pad: int, arithmetic: Any) -> int:
    """Return what autograd keeps of padded rows, from the last one and the last two as plan does.

    Without the logits: TRL computes the head at labels and in parts.
    """
    from narrowtune.data.collate import collate
    from narrowtune.engine.forward import label_positions
    from narrowtune.engine.memory import Activations, Kept
    from narrowtune.engine.packing import packing
    from narrowtune.train.trial import kept_bytes

    vocabulary = model.config.get_text_config().vocab_size
    traces = []
    with packing("never"):
        for number in (1, 2):
            batch = collate(rows[-number:], pad)
            labels = label_positions(batch["labels"])[1].numel()
            kept = kept_bytes(model, batch, arithmetic)
            traces.append(Kept(kept, batch["input_ids"].numel(), labels * vocabulary))
    return Activations.from_traces(*traces).at(collate(rows, pad)["input_ids"].numel())


TASKS = {"measure": measure, "predict": predict}


def run_all(
    given: argparse.Namespace,
    task: str,
    plans: Mapping[str, Any],
    device: Mapping[str, Any],
    size: str,
    asked: Mapping[str, Sequence[str]],
    until: float,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run arms in processes of their own; yield what was found by case, but for what failed.

    Plans one after the other, since each takes some GB; measurements side by side until they need
    the device.
    """
    git = provenance.git_state(Path(__file__).parent)
    out_of_room: dict[str, dict[str, Any]] = {}
    wanted: dict[str, list[str]] = {}
    for arm, kinds in asked.items():
        for kind in kinds:
            case = f"{arm}|{kind}"
            reason = fits(plans.get(case), device) if task == "measure" else None
            if reason:
                out_of_room.setdefault(arm, {})[case] = {"out_of_memory": reason, "git": git}
            else:
                wanted.setdefault(arm, []).append(kind)
    yield from out_of_room.items()
    workers = len(wanted) if task == "measure" else 1
    with tempfile.TemporaryDirectory() as meeting, ThreadPoolExecutor(workers or 1) as pool:
        hidden = {"size": size, "meeting": meeting, "expected": workers, "until": until}
        if given.profile:
            Path(given.profile).mkdir(parents=True, exist_ok=True)
            hidden["profile"] = given.profile
        running = {
            pool.submit(run_arm, task, arm, kinds, hidden): arm for arm, kinds in wanted.items()
        }
        for done in as_completed(running):
            yield running[done], done.result()


def run_arm(task: str, arm: str, kinds: Sequence[str], hidden: Mapping[str, Any]) -> dict[str, Any]:
    """Run an arm in a process of its own; return what was found by case, but for what failed."""
    if time.time() > hidden["until"]:
        return {}
    try:
        found = run_alone(__file__, task=task, arm=arm, only=",".join(kinds), **hidden)
    except SystemExit as error:  # the others' time on the device is not to be lost
        Console(stderr=True).print(error, markup=False)
        return {}
    finally:  # nobody is to wait for a process that failed on its way
        (Path(hidden["meeting"]) / f"0{list(ARMS).index(arm)}").touch()
    for kind, one in found.items():
        if "failed" in one:
            Console(stderr=True).print(f"{arm}, {kind}: {one['failed']}", markup=False)
    git = provenance.git_state(Path(__file__).parent)
    return {
        f"{arm}|{kind}": {**one, "git": git} for kind, one in found.items() if "failed" not in one
    }


def device_facts() -> dict[str, Any]:
    """Return the GPU's name and bytes; of a CPU neither."""
    import torch

    if not torch.cuda.is_available():
        return {"name": "CPU", "bytes": None}
    properties = torch.cuda.get_device_properties(0)
    return {"name": properties.name, "bytes": properties.total_memory}


def peak_flops(name: str, given: float | None) -> float | None:
    """Return a device's dense bf16 FLOP/s: as given, or by its name; None if neither says."""
    return given or next((flops for part, flops in PEAKS.items() if part in name), None)


def fits(plan: Mapping[str, Any] | None, device: Mapping[str, Any]) -> str | None:
    """Return why an arm can't run on a device whatever its rows; None if it may."""
    if plan is None or device["bytes"] is None or plan["held_bytes"] <= device["bytes"]:
        return None
    held, there = plan["held_bytes"] / 1e9, device["bytes"] / 1e9
    return f"not started: weights, gradients and optimiser states take {held:.0f} of {there:.0f} GB"


def show(values: Mapping[str, Any], share: float, peak: float | None) -> list[Table]:
    """Return a table per kind of rows: what was predicted, and what was measured if anything."""
    tables = []
    name = values["measured_on"] or "predicted only"
    for kind in KINDS:
        table = Table(title=f"Qwen2.5-VL, {values['size']} shape, {kind}: {name}")
        columns = ("arm", "trained, M", "TFLOP a sample", "GB: plan", "measured", "samples/s")
        for column in (*columns, "share of peak", f"at {share:.0%} of peak"):
            table.add_column(column, justify="left" if column == "arm" else "right")
        for arm in ARMS:
            plan = values["plans"].get(f"{arm}|{kind}")
            found = values["arms"].get(f"{arm}|{kind}")
            if plan or found:
                table.add_row(arm, *_planned(plan), *_measured(plan, found, share, peak))
        tables.append(table)
    return [table for table in tables if table.row_count]


def _planned(plan: Mapping[str, Any] | None) -> list[str]:
    if plan is None:
        return ["", "", ""]
    numbers = plan["num_trainable"] / 1e6, plan["flops_per_sample"] / 1e12, plan["peak_bytes"] / 1e9
    return [f"{number:,.1f}" if number >= 0.1 else f"{number:.4f}" for number in numbers]


def _measured(
    plan: Mapping[str, Any] | None,
    found: Mapping[str, Any] | None,
    share: float,
    peak: float | None,
) -> list[str]:
    """Return GB, samples per second, the share of peak, and samples per second at `share` of it."""
    flops = plan["flops_per_sample"] if plan else None
    would = f"{share * peak / flops:.1f}" if flops and peak else ""
    if found is None:
        return ["", "", "", would]
    if "out_of_memory" in found:
        return ["out of memory", "", "", would]
    rate = SAMPLES / statistics.median(found["seconds"])
    reached = f"{rate * flops / peak:.0%}" if flops and peak else ""
    return [f"{found['peak_bytes'] / 1e9:.2f}", f"{rate:.2f}", reached, would]


def main() -> None:
    """Predict or measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan-only", action="store_true", help="predict, and train nothing")
    parser.add_argument("--tiny", action="store_true", help="a model of 2 million parameters")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no arm starts after these")
    parser.add_argument("--peak-tflops", type=float, help="dense bf16, of a GPU not in the table")
    parser.add_argument("--share", type=float, default=0.4, help="of peak, to predict speed at")
    parser.add_argument("--table", action="store_true", help="print what was found")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--profile", help="folder for what a step's time went to, by case")
    for hidden in ("task", "arm", "only", "size", "meeting"):
        parser.add_argument(f"--{hidden}", help=argparse.SUPPRESS)
    parser.add_argument("--expected", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.task:
        given.kinds = given.only.split(",")
        print(json.dumps(TASKS[given.task](given)))
        return
    size = "tiny" if given.tiny else "7B"
    output = given.output or RESULTS / f"gpu_speed{'_tiny' if given.tiny else ''}.json"
    values: dict[str, Any] = {"size": size, "measured_on": None, "plans": {}, "arms": {}}
    if output.exists():
        values = json.loads(output.read_text("utf-8"))
    device = device_facts()
    task, key = ("predict", "plans") if given.plan_only else ("measure", "arms")
    cases = [f"{arm}|{kind}" for kind in given.kinds for arm in given.arms]
    missing = [] if given.table else [case for case in cases if case not in values[key]]
    if missing and task == "measure":
        if size == "7B" and device["bytes"] is None:
            parser.error("no GPU here: --plan-only predicts without one, --tiny tries the path")
        if values["measured_on"] not in (None, device["name"]):
            parser.error(f"{output} was measured on {values['measured_on']}: name another --output")
    started = time.monotonic()
    asked = {
        arm: [kind for kind in given.kinds if f"{arm}|{kind}" in missing] for arm in given.arms
    }
    until = time.time() + 60 * given.minutes
    for arm, found in run_all(given, task, values["plans"], device, size, asked, until):
        values[key] |= found
        if task == "measure":
            values["measured_on"] = device["name"]
        values |= {"versions": provenance.versions(), "hardware": provenance.hardware()}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        Console(stderr=True).print(f"{time.monotonic() - started:.0f} s: {arm}")
    stated = given.peak_tflops * 1e12 if given.peak_tflops else None
    peak = peak_flops(values["measured_on"] or "H100", stated)
    for table in show(values, given.share, peak):
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
