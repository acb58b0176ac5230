"""Narrow tuning inside TRL: select, train with SFTTrainer, watch the drift, keep an exact delta.

    python examples/trl_narrow.py --model FOLDER --data rows.jsonl --output skill.safetensors

Needs the extra `trl`. Rows are prompt/completion pairs, as TRL reads them. The model is loaded as
it is stored; what trains is held in fp32, and the delta fits the folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

import narrowtune as nt

PROMPTS = [
    "Describe a walk in the rain.",
    "What makes a good friend?",
    "Explain how bread is made.",
    "Write a sentence about the sea.",
]


def main() -> None:
    """Parse the command line, train, and prove that the delta is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", default="mlp_gate_up")
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="auto")
    stored = model.dtype
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    selection = nt.select(model, args.recipe, dtype=torch.float32)
    print(selection)

    drift = nt.DriftCallback(PROMPTS, every=max(1, args.max_steps // 4), max_new_tokens=16)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            args=SFTConfig(
                output_dir=folder,
                max_steps=args.max_steps,
                learning_rate=args.learning_rate,
                per_device_train_batch_size=4,
                completion_only_loss=True,
                max_length=None,
                save_strategy="no",
                report_to="none",
                bf16=stored == torch.bfloat16,
                gradient_checkpointing=False,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=datasets.load_dataset("json", data_files=args.data, split="train"),
            processing_class=tokenizer,
            callbacks=[drift],
        )
        trainer.train()
    for step, kl in drift.history:
        print(f"step {step}: KL(base‖tuned) {kl:.4f} nats per token")

    delta = nt.extract(model, selection)
    delta.save(args.output)
    nt.select(model, args.recipe, dtype=stored)  # the masters as the delta has them
    nt.undo(model, delta)
    same = all(torch.equal(p, base[name]) for name, p in model.named_parameters())
    print(f"{args.output}: undone is the base, bit for bit: {same}")


if __name__ == "__main__":
    main()
