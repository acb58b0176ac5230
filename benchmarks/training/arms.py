"""What is measured: narrowtune's recipes and the tools that its users have today.

Owns: how each tool is set up. Every arm trains the same tokens with the same labels, `SAMPLES` rows
per optimiser step, and returns the seconds of its steps. `default` leaves a tool's settings as they
come (but for the rows per step, which are accumulated where its batch is smaller); `best` is what
its documentation offers for speed on this machine; `compiled` is that with its decoder's layers
compiled, for any length of rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from narrowtune.engine.arithmetic import Arithmetic

SAMPLES = 16
RANK = 16
_ALL_LINEAR = "all-linear"
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

Result = dict[str, Any]
Tokens = dict[str, list[int]]
"""`input_ids` and `labels` of a row."""


class StepClock(TrainerCallback):
    """Seconds from the end of one optimiser step to the end of the next."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Mark the time, once a GPU has done what it was given."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    @property
    def seconds(self) -> list[float]:
        """Of every step but the first."""
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


class StepProfile(TrainerCallback):
    """What one step's time goes to.

    Args:
        step: its number, from 1.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profile = torch.profiler.profile(activities=kinds)

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Start with the step."""
        if state.global_step == self.step - 1:
            self._profile.start()

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Stop once a GPU has done what it was given."""
        if state.global_step == self.step:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._profile.stop()

    def table(self) -> str:
        """Return the operations that took longest on the device, and those on the CPU."""
        found = self._profile.key_averages()
        keys = ["self_cuda_time_total"] if torch.cuda.is_available() else []
        return "\n".join(
            found.table(sort_by=key, row_limit=40, max_name_column_width=90)
            for key in [*keys, "self_cpu_time_total"]
        )


def _load(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def common_arguments(
    best: bool, bf16: bool, num_steps: int, folder: str, *, compiled: bool = False
) -> dict[str, Any]:
    """Return Trainer arguments that every peer gets."""
    values: dict[str, Any] = {
        "output_dir": folder,
        "max_steps": num_steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "use_cpu": not torch.cuda.is_available(),
        "per_device_train_batch_size": SAMPLES if best else 8,
        "gradient_accumulation_steps": 1 if best else SAMPLES // 8,
    }
    if best:
        values |= {
            "bf16": bf16,
            "optim": "adamw_torch_fused",
            "dataloader_pin_memory": False,
            "train_sampling_strategy": "group_by_length",
        }
    if compiled:
        # What accelerate documents for repeated layers and for rows of many lengths.
        os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "true"
        values["torch_compile"] = True
    return values


def narrowtune(recipe: str, *, packing: bool = True) -> Callable[..., Result]:
    """Our own training, as `narrowtune teach` does it; its defaults are its best."""

    def run(
        rows: list[Tokens],
        model_folder: str,
        arithmetic: Arithmetic,
        steps: int,
        folder: str,
        *,
        setting: str,
    ) -> Result:
        from narrowtune.data.collate import Encoded
        from narrowtune.models.load import load_model

        loaded = load_model(model_folder)
        encoded = [Encoded(row["input_ids"], row["labels"]) for row in rows]
        training = {
            "global_batch_size": SAMPLES,
            "per_device_train_batch_size": SAMPLES,
            "max_steps": steps,
            "torch_compile": setting == "compiled",
        }
        chosen = arithmetic if packing else arithmetic.model_copy(update={"packing": False})
        return fit_recipe(loaded, recipe, encoded, chosen, folder, training)

    return run


def fit_recipe(
    loaded: Any,
    recipe: str,
    encoded: list[Any],
    arithmetic: Arithmetic,
    folder: str,
    training: dict[str, Any],
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> Result:
    """Train a recipe in a loaded model on encoded rows, with these settings of `training`."""
    from narrowtune.core.config import parse_config
    from narrowtune.engine.arithmetic import apply_arithmetic
    from narrowtune.models.select import resolve
    from narrowtune.train.fit import fit
    from narrowtune.train.masters import computing_in

    values = {
        "model": loaded.source,
        "recipe": recipe,
        "skill": "rows.jsonl",
        "output_dir": folder,
        "training": training,
    }
    config = parse_config(values, "this benchmark")
    clock = StepClock()
    computed = arithmetic.torch_dtype if arithmetic.compute_dtype == "float32" else loaded.dtype
    with apply_arithmetic(arithmetic), computing_in(loaded.model, computed):
        selection = resolve(loaded.model, recipe)
        watching = [clock, *callbacks]
        fit(loaded, selection, encoded, config, arithmetic=arithmetic, callbacks=watching)
    return {
        "seconds": clock.seconds,
        "losses": clock.losses,
        "num_trainable": selection.num_parameters,
    }


def _set_machine(best: bool, arithmetic: Arithmetic) -> bool:
    """Give a peer the machine's fastest arithmetic, where it runs at its best; whether bf16 is."""
    if best:
        torch.set_float32_matmul_precision(arithmetic.float32_matmul_precision)
        torch.set_num_threads(arithmetic.threads)
    return best and arithmetic.compute_dtype == "bfloat16"


def peer(make: Callable[..., Trainer]) -> Callable[..., Result]:
    """Another tool.

    Args:
        make: from the model, its tokenizer, the rows, what all peers' arguments are, whether it is
            at its best, and the callbacks, to its trainer.
    """

    def run(
        rows: list[Tokens],
        model_folder: str,
        arithmetic: Arithmetic,
        steps: int,
        folder: str,
        *,
        setting: str,
    ) -> Result:
        best = setting != "default"
        bf16 = _set_machine(best, arithmetic) and setting != "fp32"
        model, tokenizer = _load(model_folder)
        clock = StepClock()
        compiled = setting == "compiled"
        common = common_arguments(best, bf16, steps, folder, compiled=compiled)
        trainer = make(model, tokenizer, rows, common, best, [clock])
        trainer.train()
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        return {"seconds": clock.seconds, "losses": clock.losses, "num_trainable": trained}

    return run


def _lora(targets: str | list[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, task_type="CAUSAL_LM")


def trl(targets: str | list[str] | None, *, padding_free: bool = False) -> Callable[..., Result]:
    """TRL's SFTTrainer: everything, or LoRA of `RANK` by peft on `targets`.

    Its loss leaves out the head at ignored tokens by default. At its best: no gradient
    checkpointing, one pass per step, rows of like length together; or, `padding_free`, all rows of
    a pass end to end.
    """

    def make(
        model: Any,
        tokenizer: Any,
        rows: list[Tokens],
        common: dict[str, Any],
        best: bool,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        own = {"gradient_checkpointing": False} if best else {}
        if padding_free:
            own |= {"padding_free": True, "max_length": None}
        lora = _lora(targets) if targets else None
        return SFTTrainer(
            model,
            args=SFTConfig(**common, **own),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=callbacks,
        )

    return peer(make)


def plain_trainer(trains: str | list[str]) -> Callable[..., Result]:
    """`transformers.Trainer`, loss by the model.

    Args:
        trains: a recipe, whose matrices alone are trainable; or what gets LoRA of `RANK` by peft.
    """

    def make(
        model: Any,
        tokenizer: Any,
        rows: list[Tokens],
        common: dict[str, Any],
        best: bool,
        callbacks: list[TrainerCallback],
    ) -> Trainer:
        from peft import get_peft_model
        from transformers import DataCollatorForSeq2Seq

        from narrowtune.models.select import resolve

        if isinstance(trains, str):
            names = set(resolve(model, trains).names)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in names)
        else:
            model = get_peft_model(model, _lora(trains))
        data = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return Trainer(
            model,
            args=TrainingArguments(**common),
            train_dataset=data,
            data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=None),
            callbacks=callbacks,
        )

    return peer(make)


OURS: Mapping[str, Callable[..., Result]] = {
    "narrowtune sa_proj": narrowtune("sa_proj"),
    "narrowtune mlp_gate_up": narrowtune("mlp_gate_up"),
    "narrowtune language_model": narrowtune("language_model"),
    "narrowtune sa_proj, plain path": narrowtune("sa_proj", packing=False),
}

PEERS: Mapping[str, Callable[..., Result]] = {
    "TRL, everything": trl(None),
    "TRL + peft LoRA, all linear": trl(_ALL_LINEAR),
    "TRL + peft LoRA, attention": trl(_ATTENTION),
    "TRL + peft LoRA, all linear, padding-free": trl(_ALL_LINEAR, padding_free=True),
    "transformers.Trainer, attention trainable": plain_trainer("sa_proj"),
    "transformers.Trainer, everything": plain_trainer("full"),
    "transformers.Trainer + peft LoRA, attention": plain_trainer(_ATTENTION),
}

ARMS = {**OURS, **PEERS}

COMPILED = (
    "narrowtune sa_proj",
    "narrowtune mlp_gate_up",
    "TRL + peft LoRA, attention",
    "transformers.Trainer, attention trainable",
)
"""Arms that are also measured compiled: what each is compared with takes a minute to compile."""
