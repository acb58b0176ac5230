"""A plan on the terminal: what would train, and what it costs."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from narrowtune.core.numbers import number, rounded_up
from narrowtune.core.path_results import SharingEstimate
from narrowtune.core.results import Plan
from narrowtune.report.sections import Fact, components, cost_facts, fast_path
from narrowtune.report.terminal import cell, fact_table, table
from narrowtune.report.text import count, duration, percent, plural, size, small
from narrowtune.report.verdict import points


def render_plan(plan: Plan) -> Group:
    """Everything in `plan` as one renderable; what is not known is left out."""
    share = percent(plan.num_trainable / plan.num_parameters) if plan.num_parameters else "–"
    parts: list[RenderableType] = [
        Text.assemble(
            (cell(plan.recipe).plain, "bold"),
            f" on {cell(plan.model).plain} ({cell(plan.family).plain}, {plan.dtype}): ",
            (f"{count(plan.num_trainable)} of {count(plan.num_parameters)} parameters", "bold"),
            f" ({share}) in {plural(plan.num_tensors, 'tensor')}",
        ),
        "",
        _component_table(plan),
        "",
        _layer_table(plan),
        "",
        fact_table(_costs(plan)),
    ]
    if plan.excluded:
        parts.extend(["", Text(f"{plural(len(plan.excluded), 'parameter')} left out:")])
        parts.append(fact_table([Fact(name, why) for name, why in plan.excluded.items()]))
    if plan.fused:
        names = ", ".join(plan.fused)
        parts.extend(["", cell(f"Fused matrices train whole: {names}")])
    parts.extend(cell(f"Note: {note}", "dim") for note in plan.notes)
    return Group(*parts)


def _component_table(plan: Plan) -> Table:
    made = table("component", "parameters", "trainable", "share")
    for component, bar in zip(plan.components, components(plan), strict=True):
        made.add_row(
            cell(component.component),
            count(component.num_parameters),
            count(component.num_trainable),
            bar.detail,
        )
    return made


def _layer_table(plan: Plan) -> Table:
    """Neighbouring layers that train the same share one row."""
    made = table("layer", "matrices", "trainable each", texts=2)
    groups: list[list[int]] = []
    for place, layer in enumerate(plan.layers):
        last = plan.layers[groups[-1][-1]] if groups else None
        same = last is not None and (last.num_trainable, last.matrices) == (
            layer.num_trainable,
            layer.matrices,
        )
        if same:
            groups[-1].append(place)
        else:
            groups.append([place])
    for group in groups:
        first, last_one = plan.layers[group[0]], plan.layers[group[-1]]
        name = first.name if len(group) == 1 else f"{first.name} … {last_one.name} ({len(group)})"
        made.add_row(cell(name), cell(", ".join(first.matrices)), count(first.num_trainable))
    return made


def _costs(plan: Plan) -> list[Fact]:
    memory = plan.memory
    parts = (
        ("weights", memory.weights),
        ("masters", memory.masters),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("anchor", memory.anchor),
        ("workspace", memory.workspace),
    )
    facts = [
        Fact("peak memory", size(memory.total)),
        Fact("of it", ", ".join(f"{name} {size(part)}" for name, part in parts if part)),
        Fact("batch", f"{plan.per_device_train_batch_size} per device"),
        Fact(
            "tokens per sample",
            f"{number(plan.tokens_per_sample)}, {number(plan.labels_per_sample)} of them labels",
        ),
    ]
    if plan.num_samples is not None and plan.num_steps is not None:
        steps = plural(plan.num_steps, "step")
        facts.append(Fact("samples", f"{count(plan.num_samples)} in {steps}"))
    saved = 1 - plan.flops_per_token / plan.flops_per_token_full if plan.flops_per_token_full else 0
    facts.append(
        Fact(
            "FLOPs per token",
            f"{small(plan.flops_per_token)} ({percent(saved)} less than training everything)",
        )
    )
    if plan.fast_path is not None:
        facts.append(Fact("fast path", fast_path(plan.fast_path)))
    if plan.sharing is not None:
        facts.append(Fact("shared by rows", _shared(plan.sharing)))
    if plan.flops_total is not None:
        facts.append(Fact("FLOPs of the run", small(plan.flops_total)))
    if plan.time is not None:
        time = plan.time
        step = f"{small(time.measured_step_seconds)} s per step, measured in {time.compute_dtype}"
        if time.training_seconds is None:
            facts.append(Fact("time of training", step))
        else:
            facts.append(Fact("time of training", f"{duration(time.training_seconds)} ({step})"))
        if time.evaluation_seconds is not None:
            facts.append(Fact("time of evaluation", duration(time.evaluation_seconds)))
    facts.append(Fact("delta", size(plan.delta_bytes)))
    if plan.smallest_budget is not None:
        smallest = points(rounded_up(plan.smallest_budget))
        facts.append(Fact("smallest budget the keep items can prove", smallest))
    return [*facts, *(cost_facts(plan.cost) if plan.cost else [])]


def _shared(sharing: SharingEstimate) -> str:
    """Say what is computed once for several rows."""
    said = (
        f"{number(sharing.factor)} × fewer FLOPs than row by row: a pass computes "
        f"{number(sharing.positions)} positions in place of {number(sharing.positions_plain)}"
    )
    if sharing.pictures < sharing.pictures_plain:
        said += (
            f" and looks at {number(sharing.pictures)} pictures in place of "
            f"{number(sharing.pictures_plain)}"
        )
    return said
