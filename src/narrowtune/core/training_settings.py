"""How a run trains.

Key names follow `transformers.TrainingArguments` where that has the setting.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from narrowtune.core.data_settings import Place, Settings

Quantisation = Literal["int8", "nf4"]
"""How frozen layers may be held while training: 8 bits, or the 4 bits of NF4."""

_OWN_STEPS = re.compile("lomo|schedule_free|layerwise")
"""Optimisers that change weights otherwise than in their step."""


class TrainingSettings(Settings):
    """Optimisation, with the names of `transformers.TrainingArguments`.

    Attributes:
        learning_rate: peak of the schedule.
        num_train_epochs: passes over the rows; ignored where max_steps is given.
        max_steps: optimiser steps; 0 trains nothing, -1 leaves it to the epochs.
        global_batch_size: samples per optimiser step over all devices; accumulation is derived
            from it, so that every recipe and every machine takes the same steps.
        per_device_train_batch_size: samples of one forward pass; a step's share is the most.
        lr_scheduler_type: as transformers names schedules.
        lr_scheduler_kwargs: what some schedules have to be told, such as `num_decay_steps` of
            `warmup_stable_decay` or `min_lr_rate` of `cosine_with_min_lr`.
        warmup_ratio: share of the steps; none where it is less than one step, since the first step
            of a warm-up has the rate 0.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        optim: as transformers names optimisers.
        gradient_checkpointing: compute activations again in the backward pass, to save memory.
        dataloader_num_workers: processes that prepare batches beside the training; worth it where
            pictures are too many to be held, and cores are free.
        compute_dtype: `auto` measures which arithmetic is fastest here and records it.
        quantize_frozen: hold the frozen linear layers of the language model in 8 or 4 bits while
            training, to save memory; scores and the delta are of full precision. Needs the extra
            `quant`.
        torch_compile: compile the language model's layers for training, with torch.compile: by the
            processor, steps are up to a third shorter, or not at all, after half a minute or more
            of compiling. The gradients of the first rows are compared with the plain layers', which
            go on if they differ.
        packing: lay rows end to end, so that what they begin with alike, pictures too, is computed
            once, where that is cheaper; the sums are the same. False takes the plain path, row by
            row.
        group_by_picture: draw pictures and not rows, so that all rows about a picture are in the
            same step, or in steps that follow each other, and share it. Batches differ
            from those of rows drawn one by one.
        pull_to_base: how far the training pulls what trains back to the base's weights, in e-folds:
            after each step it comes nearer to them, by a share in proportion to the step's rate, so
            that of what the first step changed exp(−pull_to_base) is left at the end, whatever
            rates and steps are (L2-SP, arXiv 1802.01483, decoupled from the optimiser as AdamW's
            decay is). 0: not at all.
        density: share of every trained tensor's elements that stays as trained, those that moved
            furthest; the others go back to the base once training has ended (the trimming of TIES,
            arXiv 2306.01708). 1 leaves all. What is measured while training, and the proof, are of
            all that was trained.
        save_steps: steps between checkpoints; 0 saves none, but with load_best_model_at_end one
            whenever the validation loss is computed.
        save_total_limit: checkpoints kept.
        eval_steps: steps between losses on validation rows; 0 never computes them.
        load_best_model_at_end: end with the checkpoint of the lowest validation loss.
        logging_steps: steps between lines of train.jsonl.
        report_to: trackers, as transformers names them.
        deepspeed: a DeepSpeed file, passed through.
        fsdp: share out over several GPUs, with PyTorch's FSDP, what training adds to the weights;
            what it made comes back whole. Each process loads the model, so the weights have to fit
            one device, and its host's memory.
        fsdp_config: options of `fsdp` as TrainingArguments takes them, or a JSON file of them.
    """

    learning_rate: float = Field(3e-5, gt=0)
    num_train_epochs: float = Field(1.0, ge=0)
    max_steps: int = Field(-1, ge=-1)
    global_batch_size: int = Field(16, ge=1)
    per_device_train_batch_size: int = Field(16, ge=1)
    lr_scheduler_type: str = "cosine"
    lr_scheduler_kwargs: dict[str, Any] = Field(default_factory=dict)
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    optim: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    dataloader_num_workers: int = Field(0, ge=0)
    compute_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    quantize_frozen: Quantisation | None = None
    torch_compile: bool = False
    packing: bool = True
    group_by_picture: bool = False
    pull_to_base: float = Field(0.0, ge=0, le=1e6)
    density: float = Field(1.0, gt=0, le=1)
    save_steps: int = Field(0, ge=0)
    save_total_limit: int = Field(2, ge=1)
    eval_steps: int = Field(0, ge=0)
    load_best_model_at_end: bool = False
    logging_steps: int = Field(1, ge=1)
    report_to: list[str] = Field(default_factory=list)
    deepspeed: Place | None = None
    fsdp: bool = False
    fsdp_config: dict[str, Any] | str | None = None

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def step_owner(self) -> str | None:
        """The setting with which steps are not one optimiser's, taken at once; None without.

        `anchor.projection` and `pull_to_base`, which change steps, are refused with it.
        """
        if self.fsdp:
            return "training.fsdp"
        if self.deepspeed:
            return "training.deepspeed"
        return f"training.optim: {self.optim}" if _OWN_STEPS.search(self.optim) else None
