"""What `anchor.top_k` keeps on SmolLM2: bytes, mass, and how much of a tuned model's KL.

    python benchmarks/anchor_top_k.py [--prompts 40] [--steps 20]

The base answers prompts that ship with the package, as an anchor has them. Then gate and up of all
layers are tuned to multiply, without an anchor (AdamW, 8 rows a step), and KL(base‖tuned) along the
base's answers is taken over all words, and over its likeliest ones and all others together.
"""

from __future__ import annotations

import argparse

import torch

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.data.examples import Example, Message, Text
from narrowtune.demo.weights import smollm2_folder
from narrowtune.engine.forward import label_positions, labelled_cross_entropy, logits_at
from narrowtune.models.load import load_model
from narrowtune.models.select import select
from narrowtune.pipeline.prompts import read_anchor_prompts
from narrowtune.train.anchor import build_anchor
from narrowtune.train.distributions import Distributions, kl_base_tuned, position_bytes

WORDS = (1, 16, 64, 256, 1024)
RATE, ROWS = 1e-4, 8


def row(number: int) -> Example:
    """Return a question that is answered by a number."""
    left, right = 2 + number % 13, 3 + number // 13 % 11
    answer = str(left * right)
    question = Text(f"How many stones are in {left} piles of {right}?")
    turns = (Message("user", (question,)), Message("assistant", (Text(answer),)))
    return Example(str(number), turns, (answer,))


def main() -> None:
    """Answer, tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    loaded = load_model(str(smollm2_folder()), dtype="float32", device="cpu")
    model, pad = loaded.model, padding_id(loaded.tokenizer)
    encoder = ChatEncoder(loaded.tokenizer)
    settings = AnchorSettings(max_prompts=given.prompts)
    prompts = read_anchor_prompts(settings, encoder, [], []).messages
    anchor = build_anchor(loaded, encoder, prompts, settings, batch_size=8, seed=0)

    selection = select(model, "mlp_gate_up")
    trained = [p for name, p in model.named_parameters() if name in set(selection.names)]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    for step in range(given.steps):
        rows = [encoder.encode(row(ROWS * step + place)) for place in range(ROWS)]
        summed, count = labelled_cross_entropy(model, collate(rows, pad))
        (summed / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    tuned = []
    for encoded in anchor.encoded:
        batch = collate([encoded], pad)
        mask, _ = label_positions(batch["labels"])
        with torch.no_grad():
            tuned.append(logits_at(model, batch, mask))
    logits, whole = torch.cat(tuned), Distributions.join(anchor.distributions)
    number, vocabulary = logits.shape
    kl = float(kl_base_tuned(whole, logits)) / number
    print(f"{number} tokens of {len(prompts)} answers, {vocabulary} words")
    a_prompt = settings.max_new_tokens * position_bytes(vocabulary, None)
    print(
        f"all: {a_prompt} bytes a prompt of {settings.max_new_tokens} tokens; KL {kl:.3f} a token"
    )
    for top_k in WORDS:
        held = Distributions.of(whole.log_probs, top_k)
        mass = 1 - held.log_probs[:, -1].exp()
        part = float(kl_base_tuned(held, logits)) / number / kl
        print(
            f"top {top_k}: {settings.max_new_tokens * position_bytes(vocabulary, top_k)} bytes; "
            f"mass {float(mass.mean()):.4f}, least {float(mass.min()):.4f}; "
            f"{100 * part:.1f} % of KL"
        )


if __name__ == "__main__":
    main()
