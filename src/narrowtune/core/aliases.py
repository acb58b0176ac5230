"""What other tools call a setting, and what stands for it here.

Names are those of LLaMA-Factory, ms-swift, Axolotl, TRL and transformers in 2026.
"""

from __future__ import annotations

_MODEL = "model"
_ROWS = "skill.path, and keep for what must not get worse"
_LENGTH = "max_length, beyond which a row is an error and never cut"
_RECIPE = "recipe, which says what trains"
_LORA = (
    f"{_RECIPE}; LoRA is there to compare with (narrowtune study) and to export to (delta export)"
)
_STEP = "training.global_batch_size, the rows of a step on all devices; the passes follow from it"
_DTYPE = "training.compute_dtype"
_BITS = "training.quantize_frozen"
_KERNELS = "nothing: attention is chosen by what was measured"
_ANSWERS = "nothing: what the assistant says is learned, and nothing else"
_TURNS = "marks of turns in the rows, such as train: false (docs/data.md)"
_SYSTEM = "a column system of the rows, or defaults of a data set: skill.defaults: {system: …}"
_TEMPLATE = "the model's own chat template; chat_template_kwargs are passed to it"

ALIASES: dict[str, str] = {
    **dict.fromkeys(("model_name_or_path", "base_model", "model_id_or_path", "model_path"), _MODEL),
    **dict.fromkeys(("dataset", "datasets", "dataset_dir", "dataset_name", "train_file"), _ROWS),
    **dict.fromkeys(("eval_dataset", "val_dataset", "test_datasets"), "keep, or skill.test_path"),
    **dict.fromkeys(("cutoff_len", "sequence_len", "max_seq_length", "max_seq_len"), _LENGTH),
    **dict.fromkeys(("finetuning_type", "train_type", "tuner_type", "adapter"), _LORA),
    **dict.fromkeys(("lora_rank", "lora_r", "lora_alpha", "lora_target", "target_modules"), _LORA),
    **dict.fromkeys(("freeze_vision_tower", "freeze_multi_modal_projector"), _RECIPE),
    **dict.fromkeys(("freeze_vit", "freeze_aligner", "freeze_llm", "unfrozen_parameters"), _RECIPE),
    **dict.fromkeys(("gradient_accumulation_steps", "train_batch_size", "batch_size"), _STEP),
    "micro_batch_size": "training.per_device_train_batch_size",
    **dict.fromkeys(("bf16", "fp16", "pure_bf16", "tf32", "mixed_precision"), _DTYPE),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization_bit", "quant_bits"), _BITS),
    "torch_dtype": "dtype",
    **dict.fromkeys(("system", "default_system"), _SYSTEM),
    **dict.fromkeys(("mask_history", "last_round"), _TURNS),
    **dict.fromkeys(("train_on_inputs", "train_on_prompt", "roles_to_train"), _ANSWERS),
    "num_epochs": "training.num_train_epochs",
    "lr": "training.learning_rate",
    "warmup_steps": "training.warmup_ratio, a share of the steps",
    "optimizer": "training.optim",
    **dict.fromkeys(("template", "chat_template"), _TEMPLATE),
    **dict.fromkeys(
        ("val_size", "val_set_size", "split_dataset_ratio"),
        "skill.validation, with training.eval_steps",
    ),
    **dict.fromkeys(("max_samples", "max_train_samples", "num_samples"), "limit of a data set"),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy"), "training.eval_steps"),
    **dict.fromkeys(("save_strategy",), "training.save_steps"),
    **dict.fromkeys(("flash_attn", "attn_implementation", "use_liger_kernel"), _KERNELS),
    **dict.fromkeys(("do_train", "do_eval", "stage"), "the command: teach, evaluate, plan"),
    "overwrite_output_dir": "nothing: choose another output_dir, or go on with --resume",
    "early_stopping_patience": "training.load_best_model_at_end, or drift.budget",
    **dict.fromkeys(("image_dir", "media_dir", "image_folder"), "image_root of a data set"),
    "replay": "mix",
    **dict.fromkeys(("max_pixels", "min_pixels"), "processor_kwargs, such as max_pixels"),
    "image_max_pixels": "processor_kwargs.max_pixels",
    "image_min_pixels": "processor_kwargs.min_pixels",
}
"""By a key of another tool."""
