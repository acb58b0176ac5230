"""One training, from resolved selection to rounded weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, set_seed

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import TrainingError
from narrowtune.core.results import Proof, TrainingSummary
from narrowtune.core.run_folder import RunFolder
from narrowtune.core.study_settings import DistillationSettings
from narrowtune.data.collate import Encoded, collate, padding_id
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.energy import EnergyMeter
from narrowtune.engine.features import FeatureStore, changes_eyes
from narrowtune.models.load import LoadedModel
from narrowtune.models.select import Selection
from narrowtune.models.swap import WeightSwap
from narrowtune.train.anchor import Anchor
from narrowtune.train.arguments import planned_steps, schedule, training_arguments
from narrowtune.train.callbacks import LogFile
from narrowtune.train.checkpoint import find_checkpoint
from narrowtune.train.distillation import Distillation
from narrowtune.train.drift_callback import DriftCallback
from narrowtune.train.effort import Effort, EffortMeter
from narrowtune.train.masters import (
    computing_in,
    copy_tensors,
    layer_norm_names,
    set_parameter_dtype,
)
from narrowtune.train.order import EpochOrder, PictureSampler
from narrowtune.train.projected import ProjectedSteps, project_steps, projected_layers
from narrowtune.train.proof import GradientWitness, prove, snapshot_frozen
from narrowtune.train.pull import PullBack, shares_of_steps
from narrowtune.train.quantised import is_quantised
from narrowtune.train.selfcheck import check_first_step
from narrowtune.train.sharded import (
    PartsWitness,
    end_sharing,
    plan_sharing,
    shareable_copy,
)
from narrowtune.train.trainer import NarrowTrainer, Rows

Device = torch.device | str


@dataclass(frozen=True)
class FitResult:
    """What training leaves: the model itself is tuned, rounded, and frozen again.

    Attributes:
        summary: numbers for the record.
        proof: evidence on every tensor.
        base: the selected tensors before training, in the base's dtype, on the CPU.
        earlier_seconds: what parts of a resumed run before this one took of the summary's time.
    """

    summary: TrainingSummary
    proof: Proof
    base: dict[str, Tensor]
    earlier_seconds: float = 0.0


def fit(
    loaded: LoadedModel,
    selection: Selection,
    rows: Sequence[Encoded],
    config: RunConfig,
    *,
    arithmetic: Arithmetic,
    num_processes: int = 1,
    validation: Sequence[Encoded] = (),
    anchor: Anchor | None = None,
    distillation: DistillationSettings | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    drift: DriftCallback | None = None,
    resume: bool = False,
    features: FeatureStore | None = None,
) -> FitResult:
    """Train exactly the selection on `rows`, and prove it.

    The model must be the base, inside `quantised_frozen` where the settings quantise what stays
    frozen, as the anchor's answers have to be of the same base. Afterwards the selected tensors
    hold the tuned weights rounded to the base's dtype, and every parameter has the dtype that it
    came with. `features` keeps what a frozen tower makes of pictures; several processes, and
    recipes that train it, don't use them. Where the run's first rows have another loss or other
    gradients than by the plain path, it takes that, and its summary says so.
    `drift` is measured against the base, whichever step a resumed run begins with. Where the model
    is shared out over devices (`training.fsdp`), it waits on the CPU meanwhile.

    Raises:
        TrainingError: a model that is quantised otherwise than set, a loss that is not finite, a
            batch without labels, a damaged checkpoint.
        ProofError: a frozen tensor moved, or a selected one got no gradient.
    """
    model = loaded.model
    _check_quantised(model, config)
    attributes = set(vars(model))
    set_seed(config.seed)
    device = model.device
    if config.training.fsdp:  # masters of a model that is to be shared out may not fit a device
        _move(model, "cpu")
    parameters = dict(model.named_parameters())
    dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
    if arithmetic.compute_dtype == "float32":
        set_parameter_dtype(model, torch.float32, None)
    base = copy_tensors(model, selection.names, loaded.dtype)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in base)
    before = snapshot_frozen(model, selection.names)
    set_parameter_dtype(model, torch.float32, selection.names)
    on_cpu = device.type == "cpu"
    args = training_arguments(
        config,
        num_samples=len(rows),
        bf16=arithmetic.compute_dtype == "bfloat16",
        on_cpu=on_cpu,
        num_processes=num_processes,
    )
    sampler = PictureSampler(rows, config.seed) if config.training.group_by_picture else None
    # Processes that share one tower would have to run it for the same pictures at the same time.
    fixed = num_processes == 1 and not changes_eyes(loaded, selection.names)
    checked = check_first_step(
        loaded,
        selection,
        rows,
        config,
        arithmetic,
        features=features if fixed else None,
        sampler=sampler,
    )
    pad = padding_id(loaded.tokenizer)
    use_cache = getattr(model.config, "use_cache", None)
    witness = GradientWitness(model, selection.names)
    energy = EnergyMeter() if config.cost.measure_energy and args.process_index == 0 else None
    order = [EpochOrder(sampler)] if sampler is not None else []
    meter = EffortMeter(device, energy)
    trainer = NarrowTrainer(
        shareable_copy(model) if config.training.fsdp else model,
        args,
        selection=selection,
        arithmetic=arithmetic,
        witness=witness,
        effort=meter,
        data_collator=partial(collate, pad_token_id=pad),
        train_dataset=Rows(rows),
        eval_dataset=Rows(validation) if validation else None,
        anchor=anchor,
        distillation=Distillation(WeightSwap(model, base), **distillation.model_dump())
        if distillation is not None
        else None,
        projected=(
            projected := _projected(loaded, selection, anchor, config, arithmetic, len(rows))
        ),
        sampler=sampler,
        callbacks=[
            LogFile(RunFolder(Path(config.output_dir)).log),
            *callbacks,
            *([PullBack(pull, base)] if (pull := config.training.pull_to_base) else []),
            *order,
            *([PartsWitness(witness, selection.names)] if config.training.fsdp else []),
            *([drift] if drift is not None else []),
        ],
    )
    if config.training.fsdp:
        plan_sharing(trainer, loaded, selection)
    if drift is not None:
        # Seldom needed, and a GPU's memory is: the plan counts no second copy there.
        drift.swap = WeightSwap(model, base, copied=False)
    # For callbacks only (DriftCallback): the Trainer itself would change the model's settings.
    trainer.callback_handler.processing_class = loaded.processor or loaded.tokenizer
    # It prints a dictionary per step where there is no tqdm bar.
    trainer.remove_callback(PrinterCallback)
    checkpoint = find_checkpoint(Path(config.output_dir)) if resume else None
    steps = planned_steps(config, len(rows))
    with (
        # What is shared out is cast as FSDP was told.
        nullcontext()
        if config.training.fsdp
        else computing_in(model, torch.float32, layer_norm_names(model)),
        checked.taken(loaded),
        meter,
    ):
        _train(trainer, checkpoint, steps, drift)
    if config.training.fsdp:
        end_sharing(trainer, model, witness)
    effort = meter.read()
    # Accelerate leaves a mark that it was there (and under FSDP a forward that casts); without it
    # the model can be trained again. Its own unwrapping would strip the model's decorators too.
    for name in set(vars(model)) - attributes:
        delattr(model, name)
    witness.close()
    model.config.use_cache = use_cache
    model.eval()
    model.zero_grad(set_to_none=True)
    # What is evaluated from here on is what the delta stores: the rounded weights.
    set_parameter_dtype(model, loaded.dtype, selection.names)
    proof = prove(
        model, selection, before, base, witness, num_steps=trainer.state.global_step if steps else 0
    )
    _put_back(model, dtypes, device)
    summary = TrainingSummary(
        num_steps=trainer.state.global_step if steps else 0,
        num_epochs=float(trainer.state.epoch or 0.0) if steps else 0.0,
        num_samples=trainer.num_samples,
        num_tokens=trainer.num_tokens,
        num_labels=trainer.num_labels,
        seconds=effort.seconds,
        samples_per_second=trainer.num_samples / effort.seconds if effort.seconds > 0 else 0.0,
        peak_memory_bytes=effort.peak_memory_bytes,
        compute_dtype=arithmetic.compute_dtype,
        num_processes=num_processes,
        global_batch_size=config.training.global_batch_size,
        learning_rate=config.training.learning_rate,
        final_loss=_final_loss(trainer.state.log_history),
        best_step=trainer.state.best_global_step
        if config.training.load_best_model_at_end
        else None,
        anchor_weight=anchor.weight if anchor else None,
        anchor_projection=projected.strength if projected else None,
        anchor_top_k=anchor.top_k if anchor else None,
        anchor_skill_pictures=config.anchor.skill_pictures or None if config.anchor else None,
        pull_to_base=config.training.pull_to_base or None,
        pulled=_pulled(trainer, config, steps),
        step_owner=config.training.step_owner,
        anchor_seconds=anchor.seconds + (projected.seconds if projected else 0) if anchor else None,
        drift_seconds=drift.seconds if drift else None,
        resumed_from=checkpoint.name if checkpoint else None,
        energy_kwh=effort.energy_kwh,
        energy_source=_energy_source(energy, effort),
        compilation=checked.compilation,
        first_step=checked.fast,
    )
    return FitResult(summary, proof, base, meter.earlier.seconds if meter.earlier else 0.0)


def _projected(
    loaded: LoadedModel,
    selection: Selection,
    anchor: Anchor | None,
    config: RunConfig,
    arithmetic: Arithmetic,
    num_rows: int,
) -> ProjectedSteps | None:
    """Look at what layers are given on the anchor's prompts, if steps are to be kept off it."""
    if anchor is None or not anchor.projection or not planned_steps(config, num_rows):
        return None
    model = loaded.model
    with computing_in(model, torch.float32, layer_norm_names(model)):
        return project_steps(
            loaded,
            projected_layers(model, selection.names),
            anchor.encoded,
            strength=anchor.projection,
            arithmetic=arithmetic,
            batch_size=config.eval_batch_size,
        )


def _put_back(model: PreTrainedModel, dtypes: Mapping[str, torch.dtype], device: Device) -> None:
    """Leave the model frozen, in the dtypes and on the device that it came with."""
    for dtype in set(dtypes.values()):
        set_parameter_dtype(model, dtype, [name for name, own in dtypes.items() if own == dtype])
    model.requires_grad_(False)
    _move(model, device)


def _move(model: PreTrainedModel, device: Device) -> None:
    # transformers' wrapper of `to` hides whose method it is.
    model.to(device)  # type: ignore[arg-type]


def _check_quantised(model: nn.Module, config: RunConfig) -> None:
    if is_quantised(model) != (config.training.quantize_frozen is not None):
        raise TrainingError(
            asked=f"to train with training.quantize_frozen: {config.training.quantize_frozen}",
            found=f"a model that is {'' if is_quantised(model) else 'not '}quantised",
            do="call fit inside quantised_frozen exactly where the setting asks for it",
        )


def _train(
    trainer: NarrowTrainer, checkpoint: Path | None, steps: int, drift: DriftCallback | None
) -> None:
    """Train what a checkpoint has left to do."""
    if checkpoint is not None and _is_last(checkpoint, steps, drift):
        trainer.load_finished(checkpoint)
        if drift is not None:
            drift.take_up(trainer.state)
    elif steps > 0:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _pulled(trainer: NarrowTrainer, config: RunConfig, steps: int) -> float | None:
    """Return the e-folds by which the weights that stay were pulled back to the base's.

    By the schedule: the callback knows nothing of steps where a checkpoint had none left to do.
    """
    training, state = config.training, trainer.state
    if not training.pull_to_base or steps == 0:
        return 0.0 if training.pull_to_base else None
    best = state.best_global_step if training.load_best_model_at_end else None
    planned = schedule(trainer.args, training.lr_scheduler_kwargs, steps)
    taken = shares_of_steps(planned, steps)[: best or state.global_step]
    return training.pull_to_base * math.fsum(taken)


def _final_loss(logged: Sequence[Mapping[str, float]]) -> float | None:
    """Return the cross-entropy that was logged last; of a checkpoint before it was, the loss."""
    last = next((entry for entry in reversed(logged) if "loss" in entry), None)
    return None if last is None else last.get("cross_entropy", last["loss"])


def _energy_source(energy: EnergyMeter | None, effort: Effort) -> str | None:
    """Return what measured the energy of all parts, or why there is no figure."""
    if energy is None or energy.source.startswith("not measured") or effort.energy_kwh is not None:
        return energy.source if energy else None
    return "not measured: the part before the run was resumed has no figure"


def _is_last(checkpoint: Path, steps: int, drift: DriftCallback | None) -> bool:
    """Whether a run has nothing left to do after a checkpoint: no step, or drift has ended it."""
    step = int(checkpoint.name.rpartition("-")[2])
    if step >= steps or drift is None:
        return step >= steps
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return drift.has_stopped(state["log_history"], step)
