"""`transformers.Trainer`, narrowed: label-only loss, the anchor, checkpoints of what trains.

Everything else (devices, accumulation, schedules, logging, resuming, FSDP and DeepSpeed) is the
Trainer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from narrowtune.core.errors import TrainingError
from narrowtune.data.collate import IGNORE_INDEX, Encoded
from narrowtune.engine.arithmetic import Arithmetic, autocast
from narrowtune.engine.forward import label_positions, labelled_cross_entropy, logits_at
from narrowtune.engine.pictures import PICTURE_INPUTS
from narrowtune.models.families import find_family
from narrowtune.models.select import Selection
from narrowtune.train.anchor import Anchor
from narrowtune.train.arguments import validation_batches
from narrowtune.train.checkpoint import Progress, load_trainable, save_trainable
from narrowtune.train.distillation import Distillation
from narrowtune.train.distributions import kl_base_tuned
from narrowtune.train.effort import EffortMeter
from narrowtune.train.projected import ProjectedSteps
from narrowtune.train.proof import GradientWitness
from narrowtune.train.sharded import join, parameters_of, whole


class Rows(Dataset[Encoded]):
    """Encoded rows as a data set; the sampler draws from it by number."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Encoded:
        """Return row `index`."""
        return self.rows[index]


class NarrowTrainer(Trainer):
    """A Trainer whose loss is normalised over the labels of the whole optimiser step.

    Args:
        model: with `requires_grad` on exactly the selection, in fp32.
        selection: what trains, for checkpoints.
        arithmetic: what a forward pass computes in. Not accelerate's mixed precision, which is set
            once per process: runs of a comparison may differ in it.
        witness: sees the gradients; what it saw goes into checkpoints and comes back.
        effort: measures what training takes; this goes into checkpoints and comes back too.
        anchor: rows that hold the model to the base; without, or at weight 0, a step has the
            task's alone.
        distillation: holds the model to what it was, on the task's own rows; None does not.
        projected: what every step is multiplied by; None takes steps as they are.
        sampler: the order of the rows; any order unless given.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        selection: Selection,
        arithmetic: Arithmetic,
        witness: GradientWitness,
        effort: EffortMeter,
        data_collator: Callable[[list[Encoded]], dict[str, Any]],
        train_dataset: Dataset[Encoded],
        eval_dataset: Dataset[Encoded] | None = None,
        anchor: Anchor | None = None,
        distillation: Distillation | None = None,
        projected: ProjectedSteps | None = None,
        sampler: Sampler[int] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        self._sampler, self._projected = sampler, projected
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
        )
        # Older releases of the Trainer divide by the accumulation steps unless this is set.
        self.model_accepts_loss_kwargs = True
        self.selection = selection
        self.arithmetic = arithmetic
        self.witness = witness
        self.effort = effort
        self.anchor = anchor if anchor is not None and anchor.weight > 0 else None
        self.distillation = distillation
        self.num_tokens = 0
        self.num_labels = 0
        self.num_samples = 0
        self._terms = {"cross_entropy": 0.0, "anchor_kl": 0.0, "distillation": 0.0}
        self._terms_steps = 0
        family, parameters = find_family(model), dict(model.named_parameters())
        eyes = [name for name in selection.names if family.component(name) != "language_model"]
        # Under FSDP these would be what is taken apart, and stay whole for being held here.
        self._eyes = [] if self.is_fsdp_enabled else [parameters[name] for name in eyes]
        self._step_has_pictures = False

    def load_finished(self, checkpoint: Path) -> None:
        """Take over a checkpoint of the last step; the Trainer would go on for another one."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_from_checkpoint(str(checkpoint))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
            self._load_best_model()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self._sampler or super()._get_train_sampler(train_dataset)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the Trainer's own optimiser, with its steps projected where that is asked for."""
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if self._projected is not None and is_new:
            self._projected.attach(optimizer, dict(self._inner_model().named_parameters()))
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """Draw one step's micro-batches, count their labels over all devices, add anchor rows."""
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        counts = torch.zeros(4, dtype=torch.int64)
        for batch in batches:
            labels = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
            rows = batch["labels"].shape[0]
            tokens = int(batch["attention_mask"].sum())
            counts += torch.tensor([labels, tokens, rows, not _lacks_pictures(batch)])
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts.to(device), reduction="sum").cpu()
        num_labels, num_tokens, num_rows, num_pictured = counts.tolist()
        self._step_has_pictures = num_pictured > 0
        if batches and num_labels == 0:
            raise TrainingError(
                asked=f"optimiser step {self.state.global_step + 1}",
                found="a batch without a single labelled token",
                do="check the data: every row needs an answer",
            )
        self.num_labels += num_labels
        self.num_tokens += num_tokens
        self.num_samples += num_rows
        self._terms_steps += 1
        if self.anchor is not None and batches:
            batches = self._with_anchor(batches)
        return batches, torch.tensor(num_labels, device=device)

    def _with_anchor(self, batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Share the step's anchor rows out over its micro-batches and devices."""
        assert self.anchor is not None
        indices = self.anchor.indices(self.state.global_step)
        parts = len(batches) * self.args.world_size
        total = self.anchor.num_labels(indices)
        rows = [self.anchor.encoded[index] for index in indices]
        self._step_has_pictures |= not all(_lacks_pictures(row.features) for row in rows)
        result = []
        for number, batch in enumerate(batches):
            mine = indices[number * self.args.world_size + self.args.process_index :: parts]
            if mine:
                batch = self.anchor.merge(batch, mine)
                batch["anchor_num_labels"] = total
            result.append(batch)
        return result

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return this micro-batch's share of the step's loss, in nats per label.

        Summed over micro-batches and averaged over devices it is: cross-entropy over all labels
        of the step divided by their number, plus the anchor's weight times KL(base‖tuned) over
        all anchor positions divided by theirs, plus distillation's term over the labels.

        Raises:
            TrainingError: the loss is not finite; no step is taken.
        """
        anchor_mask = inputs.pop("anchor_mask", None)
        anchor_distributions = inputs.pop("anchor_distributions", None)
        anchor_num_labels = inputs.pop("anchor_num_labels", None)
        task_mask, targets = label_positions(inputs["labels"])
        mask = task_mask if anchor_mask is None else task_mask | anchor_mask

        def forward(positions: Tensor) -> Tensor:
            with autocast(self.arithmetic, self.args.device):
                return logits_at(model, inputs, positions)

        distillation, teacher_NV = self.distillation, None
        if distillation is not None:
            teacher_NV = distillation.teach(lambda: forward(task_mask))
        logits_NV = forward(mask)
        # Anchor rows are below the task's, and positions come row by row.
        num_task = targets.numel()
        summed = nn.functional.cross_entropy(logits_NV[:num_task].float(), targets, reduction="sum")
        num_labels = num_items_in_batch if num_items_in_batch is not None else num_task
        loss = summed / num_labels
        self._terms["cross_entropy"] += float(loss.detach())
        if distillation is not None and teacher_NV is not None:
            held = distillation.loss(teacher_NV, logits_NV[:num_task]) / num_labels
            self._terms["distillation"] += float(held.detach())
            loss = loss + distillation.weight * held
        if anchor_mask is not None:
            assert self.anchor is not None
            kl = kl_base_tuned(anchor_distributions, logits_NV[num_task:]) / anchor_num_labels
            self._terms["anchor_kl"] += float(kl.detach())
            loss = loss + self.anchor.weight * kl
        if not torch.isfinite(loss):
            raise TrainingError(
                asked=f"optimiser step {self.state.global_step + 1}",
                found=f"a loss of {float(loss.detach())}",
                do="lower training.learning_rate, or look at the rows of this step; the last "
                "checkpoint is intact",
            )
        # Rows without pictures teach eyes nothing, and devices wait for everybody's gradients;
        # not those that share parameters out, which look after what is not used themselves.
        awaited = self.args.world_size > 1 and not self._shards_parameters()
        fills = bool(self._eyes) and _lacks_pictures(inputs)
        fills = fills and (awaited or not loss.requires_grad)
        if fills:
            loss = loss + 0.0 * torch.stack([eye.sum() for eye in self._eyes]).sum()
        # Where no device has a picture in the whole step, these zeros are no gradient.
        self.witness.passes_zeros = fills and not self._step_has_pictures
        # Gradients are averaged over devices, and each device has only its own rows.
        return loss * self.args.world_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the Trainer would walk all parameters in every step for a rough count.

        `plan` counts the products that a step has.
        """
        return 0

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the loss's two terms, averaged over the steps since the last log."""
        logs.pop("total_flos", None)  # not counted
        steps = self._terms_steps
        if "loss" in logs and steps > 0:
            terms = torch.tensor(list(self._terms.values()), device=self.args.device)
            if self.args.world_size > 1:
                terms = self.accelerator.reduce(terms, reduction="sum")
            logs["cross_entropy"] = float(terms[0]) / steps
            if self.anchor is not None:
                logs["anchor_kl"] = float(terms[1]) / steps
            if self.distillation is not None:
                logs["distillation"] = float(terms[2]) / steps
            self._terms = dict.fromkeys(self._terms, 0.0)
            self._terms_steps = 0
        super().log(logs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Return the cross-entropy per label over the validation rows, each counted once.

        Rows are taken by number: the Trainer's own loader repeats some, to give every device as
        many as the others.
        """
        assert self.model is not None
        self.model.eval()
        totals = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        for indices in validation_batches(
            len(rows),
            self.args.per_device_eval_batch_size,
            self.args.world_size,
            self.args.process_index,
        ):
            # A sharded model computes on all devices or on none, so one without rows joins in.
            batch = self.data_collator([rows[index] for index in indices or [0]])
            with autocast(self.arithmetic, self.args.device):
                summed, count = labelled_cross_entropy(self.model, self._prepare_inputs(batch))
            if indices:
                totals += torch.tensor([float(summed), count], device=totals.device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, reduction="sum")
        self.model.train()
        metrics = {f"{metric_key_prefix}_loss": float(totals[0] / totals[1])}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what trains; of a model that is shared out, every process has to ask for it."""
        if self.is_fsdp_enabled:
            join(self.witness)
            tensors = self._trainable()
            if self.args.should_save:
                save_trainable(tensors, Path(output_dir or self._folder()), self._progress())
        else:
            super().save_model(output_dir, _internal_call)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        if self.is_deepspeed_enabled:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:  # the Trainer asks every process
            folder = Path(output_dir or self._folder())
            save_trainable(self._trainable(), folder, self._progress())

    def _folder(self) -> str:
        folder = self.args.output_dir
        assert folder is not None
        return folder

    def _trainable(self) -> dict[str, Tensor]:
        parameters = parameters_of(self._inner_model())
        return {name: whole(parameters[name]) for name in self.selection.names}

    def _progress(self) -> Progress:
        return Progress(
            num_samples=self.num_samples,
            num_tokens=self.num_tokens,
            num_labels=self.num_labels,
            effort=self.effort.read(),
            received=tuple(sorted(self.witness.received)),
            nonzero=tuple(sorted(self.witness.nonzero)),
        )

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            names = self.selection.names
            done = load_trainable(self._inner_model(), names, Path(resume_from_checkpoint))
            self.num_samples = done.num_samples
            self.num_tokens = done.num_tokens
            self.num_labels = done.num_labels
            self.effort.earlier = done.effort
            self.witness.received.update(done.received)
            self.witness.nonzero.update(done.nonzero)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            assert self.state.best_model_checkpoint is not None
            load_trainable(
                self._inner_model(), self.selection.names, Path(self.state.best_model_checkpoint)
            )

    def _inner_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _shards_parameters(self) -> bool:
        """FSDP and DeepSpeed own the parameters."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)


def _lacks_pictures(inputs: Mapping[str, Any]) -> bool:
    return not any(name in inputs for name in PICTURE_INPUTS)
