"""The plan: what would train and what it costs, from this model, these rows and this machine.

Parameters are exact. FLOPs are counted on one row, what autograd keeps on two and on these two
twice (on one where that is a batch; of long texts on their ends); seconds
are measured on a quarter and on half of a batch, and on a whole one where that is quick and there
is memory for two. The rest is carried on in a straight line, so that a plan never runs into the
limit that it is asked about. Nothing is changed.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Trainer

from narrowtune.core.config import RunConfig
from narrowtune.core.path_results import FastPath, SharingEstimate
from narrowtune.core.provenance import hardware
from narrowtune.core.results import (
    CostEstimate,
    MemoryEstimate,
    Plan,
    TimeEstimate,
)
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic
from narrowtune.engine.cost import estimate_cost
from narrowtune.engine.forward import label_positions, to_device
from narrowtune.engine.memory import (
    Activations,
    Kept,
    available_bytes,
    estimate_memory,
    optimizer_bytes,
    process_bytes,
    sum_bytes,
)
from narrowtune.engine.packing import LayoutSize, packing
from narrowtune.evaluate.statistics import smallest_provable_budget
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection, resolve
from narrowtune.train.anchor import HELD_BYTES
from narrowtune.train.arguments import planned_samples, training_arguments
from narrowtune.train.distributions import position_bytes
from narrowtune.train.plan_evaluation import evaluation_seconds
from narrowtune.train.plan_projected import projected_cost
from narrowtune.train.quantised import quantised_cost
from narrowtune.train.trial import (
    MakeOptimizer,
    borrowed,
    count_flops,
    count_row_flops,
    kept_bytes,
    seconds_at,
    time_pass,
    time_update,
)
from narrowtune.train.workload import (
    EXAMPLE_LABELS,
    EXAMPLE_TOKENS,
    Batches,
    Workload,
    shortened,
)

_HEADER_BYTES = 330  # of a delta's header per tensor, beside its name twice: hashes, shape, place
_TRACED_ROWS, _TRACED_TOKENS = 2, 512  # what is kept goes by positions, however long rows are
_QUICK_SECONDS = 5.0  # of a pass over half a batch, for a whole one to be measured as well


def make_plan(
    loaded: LoadedModel,
    config: RunConfig,
    workload: Workload,
    *,
    arithmetic: Arithmetic,
    measure_time: bool = True,
    num_processes: int = 1,
    device: torch.device | str | None = None,
) -> Plan:
    """Return what `config` would train in `loaded` and what it would cost.

    Args:
        loaded: the base, in its own dtype or widened to fp32; it is left bit for bit as it was.
            Parameters that are FakeTensors, shapes without data, do where no time is measured.
        arithmetic: what the run would compute in.
        measure_time: False leaves times, energy, emissions and money out. One row's forward pass
            is run in any case.
        device: where training would run, if that is not where the model is now; no time is
            measured then.

    Raises:
        UsageError: unknown recipe, or batch sizes that don't fit each other.
        SelectionError: the recipe does not fit the model.
    """
    where = loaded.model.device if device is None else torch.device(device)
    assert not measure_time or where == loaded.model.device, "time is measured where the model is"
    planner = _Planner(loaded, config, workload, arithmetic, num_processes, where)
    return planner.plan(measure_time)


class _Planner:
    """The steps of making one plan."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: RunConfig,
        workload: Workload,
        arithmetic: Arithmetic,
        num_processes: int,
        device: torch.device,
    ) -> None:
        self.loaded, self.model, self.config = loaded, loaded.model, config
        self.arithmetic, self.num_processes, self.device = arithmetic, num_processes, device
        self.selection: Selection = resolve(loaded.model, config.recipe)
        self.batches = Batches(loaded, config, workload, num_processes, device.type)
        self.tasks, self.num_samples = workload.tasks, workload.num_samples
        self.looked_at_once = workload.looked_at_once
        self.quantised = quantised_cost(loaded, self.selection, config.training.quantize_frozen)
        strength = config.anchor.projection if config.anchor is not None else 0.0
        self.projected = projected_cost(self.model, self.selection.names, strength, arithmetic)
        self.notes = [*self.selection.notes, *self.quantised.notes, *self.projected.notes]
        if not workload.rows:
            self.notes.append(
                f"No rows given: sizes are for rows of {EXAMPLE_TOKENS} tokens of text, "
                f"{EXAMPLE_LABELS} of them labels."
            )
        if config.anchor is not None and not workload.anchor_prompts:
            self.notes.append("No anchor prompts given: the anchor's part is not counted.")
        if config.training.fsdp:
            self.notes.append(
                "Memory is that of a device which has the whole model: what FSDP saves by sharing "
                "it out (training.fsdp) is not counted."
            )
        self.make_optimizer = self._optimizer(num_processes)

    def plan(self, measure_time: bool) -> Plan:
        """Count, measure, and put it together."""
        with apply_arithmetic(self.arithmetic):
            flops = self._flops_per_token(self.config.recipe)
            flops_full = self._flops_per_token("full")
            memory = self._memory()
            seconds = self._time(memory) if measure_time else None
            flops_per_pass, flops_once, sharing = self._flops()
        steps = self.batches.num_steps
        held_out = [task.num_groups for task in self.tasks if task.role == "held_out"]
        components = list(self.selection.components)
        return Plan(
            model=self.loaded.source,
            family=self.selection.family,
            dtype=str(self.loaded.dtype).removeprefix("torch."),
            recipe=self.config.recipe,
            num_parameters=sum(part.num_parameters for part in components),
            num_trainable=self.selection.num_parameters,
            num_tensors=len(self.selection.names),
            components=components,
            layers=list(self.selection.layers),
            excluded=dict(self.selection.excluded),
            fused=list(self.selection.fused),
            notes=self.notes,
            per_device_train_batch_size=self.batches.batch_size,
            tokens_per_sample=self.batches.tokens_per_sample,
            labels_per_sample=self.batches.labels_per_sample,
            num_samples=self.num_samples
            and planned_samples(self.config, self.num_samples, self.num_processes),
            num_steps=steps,
            flops_per_token=flops,
            flops_per_token_full=flops_full,
            flops_total=None
            if steps is None
            else (flops_per_pass * self.batches.micro_batches + self.projected.flops) * steps
            + flops_once,
            sharing=sharing,
            fast_path=FastPath(
                packing=self.arithmetic.packing,
                products=self.arithmetic.packing and self.arithmetic.attention == "products",
                pictures_kept=self.looked_at_once is not None,
                compiled=self.config.training.torch_compile,
            ),
            memory=memory,
            time=seconds,
            delta_bytes=self._delta_bytes(),
            smallest_budget=smallest_provable_budget(held_out) if held_out else None,
            cost=self._cost(seconds),
        )

    def _optimizer(self, num_processes: int) -> MakeOptimizer:
        arguments = training_arguments(
            self.config,
            num_samples=self.num_samples or len(self.batches.rows),
            bf16=self.arithmetic.compute_dtype == "bfloat16",
            on_cpu=self.device.type == "cpu",
            num_processes=num_processes,
        )
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, self.model)
        return lambda parameters: kind(parameters, **options)

    def _flops_per_token(self, recipe: str) -> float:
        row = self.batches.typical
        names = resolve(self.model, recipe).names
        return count_flops(self.model, names, self._batch([row])) / len(row.input_ids)

    def _flops(self) -> tuple[float, float, SharingEstimate | None]:
        """Return the FLOPs of a micro-batch, and once for all; and what is saved by its layout.

        Products with weights go by positions, attention by the square of a row's length, the head
        by labels, the tower by rows with pictures; where its features are kept, it is no part of a
        micro-batch.
        """
        batches, names = self.batches, self.selection.names
        row = batches.typical
        parts = count_row_flops(self.model, names, self._batch([row]))
        num_tokens = len(row.input_ids)
        num_labels = label_positions(torch.tensor([row.labels]))[1].numel()
        head = batches.labels_per_pass * parts.labelled / max(1, num_labels)
        tower = 0
        if (pictured := batches.typical_pictured) is not None:
            tower = count_row_flops(self.model, names, self._batch([pictured])).tower
        once = self.looked_at_once
        in_pass = tower if once is None else 0

        def flops(size: LayoutSize) -> float:
            square = parts.attention * size.length / num_tokens / (1 if size.masked else 2)
            layers = size.positions / num_tokens * (parts.linear + square)
            return layers + head + size.rows_with_pictures * in_pass

        laid_out, plain = zip(*batches.sizes, strict=True)
        mean = statistics.fmean(map(flops, laid_out))
        factor = statistics.fmean(map(flops, plain)) / mean
        shared = None
        shares = any(a[:3] != b[:3] for a, b in zip(laid_out, plain, strict=True))
        if shares and factor > 1:
            looks = 1 if once is None else 0
            shared = SharingEstimate(
                positions=statistics.fmean(size.positions for size in laid_out),
                positions_plain=statistics.fmean(size.positions for size in plain),
                pictures=looks * statistics.fmean(size.rows_with_pictures for size in laid_out),
                pictures_plain=looks * statistics.fmean(size.rows_with_pictures for size in plain),
                factor=factor,
            )
        return mean, (once or 0) * tower, shared

    def _memory(self) -> MemoryEstimate:
        """Estimate the peak of the step that holds the longest row."""
        batches = self.batches
        on_cpu = self.device.type == "cpu"
        workspace = process_bytes() - sum_bytes(self.model.parameters()) if on_cpu else 0
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        with borrowed(self.model, self.selection.names, self.arithmetic):
            whole = self._activations(vocabulary)
        activations = whole
        if self.config.training.gradient_checkpointing:
            checkpointing = borrowed(
                self.model, self.selection.names, self.arithmetic, gradient_checkpointing=True
            )
            with checkpointing:
                kept = self._activations(vocabulary)
            # One layer at a time is computed again, and then holds everything.
            num_layers = self.model.config.get_text_config().num_hidden_layers
            again = (whole.per_position - kept.per_position) / num_layers
            activations = Activations(kept.per_step, kept.per_position + again)
        parameters = dict(self.model.named_parameters())
        chosen = [parameters[name] for name in self.selection.names]
        frozen = sum(p.numel() for p in parameters.values()) - self.selection.num_parameters
        width = 4 if self.arithmetic.compute_dtype == "float32" else self.loaded.dtype.itemsize
        head = self.model.get_output_embeddings().weight
        anchor_logits = batches.anchor_labels * vocabulary  # of one row
        return estimate_memory(
            frozen_bytes=self.quantised.held(frozen, width) + sum_bytes(self.model.buffers()),
            num_trainable=self.selection.num_parameters,
            base_bytes=self.loaded.dtype.itemsize * self.selection.num_parameters,
            base_on_device=self.config.training.pull_to_base > 0,
            optimizer_bytes_per_parameter=optimizer_bytes(self.make_optimizer),
            activations=activations,
            num_positions=batches.most_positions(),
            logits=math.ceil(batches.batch_size * batches.labels_per_sample * vocabulary),
            anchor_logits=batches.num_anchor_rows * anchor_logits,
            # Answers may be shorter than planned, so that all are held: at most this.
            anchor_cache_bytes=min(HELD_BYTES, self._distribution_bytes(vocabulary)),
            matrix_bytes=self.projected.matrix_bytes,
            moment_bytes=self.projected.moment_bytes,
            step_copy_bytes=self.projected.copy_bytes,
            head_gradient_bytes=4 * head.numel() if any(p is head for p in chosen) else 0,
            accumulates=batches.micro_batches > 1,
            workspace=max(0, workspace)
            + self.quantised.workspace_bytes
            + batches.attention_bytes(self.arithmetic, checkpointing=whole is not activations),
            device=self.device,
        )

    def _distribution_bytes(self, vocabulary: int) -> int:
        """Return what the anchor keeps of the base's distributions, where answers are longest."""
        if self.config.anchor is None:
            return 0
        num_labels = len(self.batches.anchor_rows) * self.batches.anchor_labels
        return num_labels * position_bytes(vocabulary, self.config.anchor.top_k)

    def _activations(self, vocabulary: int) -> Activations:
        number = min(_TRACED_ROWS, self.batches.batch_size)
        draw = random.Random(self.config.seed)
        short = shortened(self.batches.draw_task(draw, number), _TRACED_TOKENS)
        traces = []
        # Row by row: a layout saves more of a larger batch, which would hide the slope.
        with packing("never"):
            for rows in (short, short + short):
                batch = self._batch(rows)
                num_labels = label_positions(batch["labels"])[1].numel()
                num_bytes = kept_bytes(self.model, batch, self.arithmetic)
                traces.append(Kept(num_bytes, self.batches.width(rows), num_labels * vocabulary))
        return Activations.from_traces(*traces)

    def _time(self, memory: MemoryEstimate) -> TimeEstimate | None:
        """Measure parts of a step."""
        needed = memory.total - memory.workspace - memory.weights
        free = available_bytes(self.device)
        if needed > free:
            self.notes.append(
                f"Not timed: training needs {needed / 2**30:.1f} GiB beyond the weights, and "
                f"{free / 2**30:.1f} GiB are free here."
            )
            return None
        machine = hardware()
        if machine["load_average"] and machine["load_average"][0] > machine["cores"]:
            self.notes.append(
                f"Timed under a load of {machine['load_average'][0]:.1f} on {machine['cores']} "
                "cores: a run is faster once the machine is free."
            )
        draw = random.Random(self.config.seed)
        whole = self.batches.batch_size
        sizes = sorted({max(1, whole // 4), max(1, whole // 2), whole})
        points: list[tuple[int, float]] = []
        with borrowed(
            self.model,
            self.selection.names,
            self.arithmetic,
            gradient_checkpointing=self.config.training.gradient_checkpointing,
        ) as parameters:
            for size in sizes:
                if (
                    points
                    and size == whole
                    and (2 * needed > free or points[-1][1] > _QUICK_SECONDS)
                ):
                    break
                rows = self.batches.draw(draw, size)
                seconds = time_pass(self.model, self._batch(rows), self.arithmetic)
                points.append((self.batches.width(rows), seconds))
            limit = self.config.training.max_grad_norm
            make = self.projected.attached(self.make_optimizer)
            update = time_update(parameters, make, limit)
        again = 3 if self.config.training.gradient_checkpointing else 2  # forward and backward
        seconds = seconds_at(points, self.batches.positions()) + again * self.quantised.seconds
        step = self.batches.micro_batches * seconds + update
        steps = self.batches.num_steps
        return TimeEstimate(
            measured_step_seconds=step,
            compute_dtype=self.arithmetic.compute_dtype,
            training_seconds=None if steps is None else step * steps,
            evaluation_seconds=evaluation_seconds(
                self.loaded, self.config, self.tasks, self.device.type == "cpu"
            ),
        )

    def _delta_bytes(self) -> int:
        parameters = dict(self.model.named_parameters())
        sizes = [
            parameters[name].numel() * self.loaded.dtype.itemsize + 2 * len(name) + _HEADER_BYTES
            for name in self.selection.names
        ]
        return sum(sizes)

    def _cost(self, seconds: TimeEstimate | None) -> CostEstimate | None:
        if seconds is None or seconds.training_seconds is None:
            return None
        total = seconds.training_seconds + (seconds.evaluation_seconds or 0.0)
        return estimate_cost(self.config.cost, total)

    def _batch(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        return to_device(collate(rows, padding_id(self.loaded.tokenizer)), self.model.device)
