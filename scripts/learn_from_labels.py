"""Teach a reference model's language model from labels in place of pictures: what sight can't help.

    python scripts/learn_from_labels.py --tasks binding relations --steps 600

Visual tokens are made of what each patch shows and its colour, as if the tower made no mistake.
What stays at chance here is a matter of the curriculum or of the language model, not of the tower.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.marks import HUES, WHAT
from narrowtune.miniature.reference.architectures import BLUEPRINTS, PATCH, get_blueprint
from narrowtune.miniature.reference.batches import (
    LABELLED_PATCH,
    Batch,
    Steps,
    Writer,
    collate_samples,
    load_steps,
)
from narrowtune.miniature.reference.forward import (
    answer_lengths,
    answer_logits,
    answer_loss,
    hidden_states,
    place_codes,
    place_loss,
    plain_attention,
)
from narrowtune.miniature.reference.optimizers import make_optimizers
from narrowtune.miniature.reference.schedule import Schedule
from narrowtune.miniature.registry import LEVELS, TASKS
from narrowtune.miniature.sample import Sample

_SCALE = 0.02  # of embeddings before anything is learned, as the words'
_WARMUP = 100  # steps
_CHECK_EVERY = 100  # steps
_NUM_CHECKED = 64  # samples of each task, each with its further questions


class Labels(nn.Module):
    """Visual tokens from the labels of the patches below them."""

    def __init__(self, width: int) -> None:
        """Draw an embedding for each label at each place below a token."""
        super().__init__()
        self.side, self.inner = SIZE // PATCH, PATCH // LABELLED_PATCH
        places = self.inner**2
        self.embed_what = nn.Parameter(_SCALE * torch.randn(places, len(WHAT), width))
        self.embed_hue = nn.Parameter(_SCALE * torch.randn(places, len(HUES), width))

    def forward(self, batch: Batch) -> Tensor:
        """Return [B, V, H]."""
        below = torch.arange(self.inner**2)
        what, hue = self._below(batch.what), self._below(batch.hue)
        return (self.embed_what[below, what] + self.embed_hue[below, hue]).sum(2) / self.inner

    def _below(self, labels: Tensor | None) -> Tensor:
        """From patches row by row [B, N] to those below each token [B, V, places]."""
        assert labels is not None
        shape = (len(labels), self.side, self.inner, self.side, self.inner)
        return labels.view(shape).transpose(2, 3).reshape(len(labels), self.side**2, -1)


def main() -> None:
    """Parse the command line and train."""
    schedule = Schedule()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", choices=BLUEPRINTS, default="qwen2_5_vl")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(LEVELS[0]))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in ("answering_rate", "matrix_factor", "place_weight"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=float, default=getattr(schedule, name))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    blueprint = get_blueprint(given.name)
    tokenizer = blueprint.tokenizer()
    model = blueprint.build(tokenizer, seed=schedule.seed).train()
    language_model = model.model.language_model
    language_model.set_attn_implementation("eager")
    width, padding = model.config.get_text_config().hidden_size, int(tokenizer.pad_token_id)
    torch.manual_seed(schedule.seed)
    labels, codes = Labels(width), place_codes(width, SIZE // PATCH, schedule.seed)
    params = [*language_model.named_parameters(), *labels.named_parameters()]
    factors = {**schedule.factors, "matrix": given.matrix_factor}
    optimizers = make_optimizers([{"params": params, "factor": 1.0}], factors)
    writer = Writer(tokenizer, blueprint.picture, blueprint.placeholder)
    checks = {
        name: list(TASKS[name].samples("validation", _NUM_CHECKED, schedule.seed))
        for name in given.tasks
    }
    steps = Steps(
        writer,
        padding,
        [(0, dict.fromkeys(given.tasks, 1.0))],
        batch_size=schedule.answering_batch,
        micro_batches=schedule.micro_batches,
        questions=schedule.questions,
        seed=schedule.seed + 1,
        first=0,
        last=given.steps,
    )
    hidden = torch.compile(hidden_states, dynamic=False)
    started, told = time.monotonic(), 0.0
    for step, parts in enumerate(load_steps(steps, in_background=True), 1):
        num_answers = sum(len(answer_lengths(part.labels)) for part in parts)
        for part in parts:
            with plain_attention(), torch.autocast("cpu", torch.bfloat16):
                states = hidden(model, part, labels(part))
                logits, wanted = answer_logits(model, states.last, part.labels)
                loss = answer_loss(logits, wanted, part.labels) / num_answers
                placed = given.place_weight * place_loss(states.picture, codes) / len(parts)
            (loss + placed).backward()
            told += loss.item() / _CHECK_EVERY
        nn.utils.clip_grad_norm_([p for _, p in params], 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = given.answering_rate * min(1.0, step / _WARMUP) * group["factor"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % _CHECK_EVERY == 0:
            print(f"{step} {time.monotonic() - started:.0f} s loss {told:.3f}", flush=True)
            told = 0.0
            for name, samples in checks.items():
                most = schedule.questions
                batch = collate_samples(samples, writer, padding, questions=most, patches=True)
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    states = hidden_states(model, batch, labels(batch))
                    logits, wanted = answer_logits(model, states.last, batch.labels)
                right = (logits.argmax(-1) == wanted).split(answer_lengths(batch.labels).tolist())
                shares = by_kind(samples, batch, [bool(each.all()) for each in right], most)
                print(f"  {name}: {shares}", flush=True)


def by_kind(samples: list[Sample], batch: Batch, right: list[bool], most: int) -> str:
    """Return the share of right answers for each kind of question that had room in the batch."""
    kinds = [
        item.kind
        for sample, numbers in zip(samples, batch.question, strict=True)
        for item in sample.questions(most)[: int(numbers[numbers < most].max()) + 1]
    ]
    found: dict[str, list[bool]] = {}
    for kind, each in zip(kinds, right, strict=True):
        found.setdefault(kind, []).append(each)
    return ", ".join(f"{kind} {sum(v) / len(v):.0%}" for kind, v in sorted(found.items()))


if __name__ == "__main__":
    main()
