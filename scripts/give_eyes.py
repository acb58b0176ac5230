"""Put a small tower and a projector in front of SmolLM2-135M, and teach them to see for it.

    python scripts/give_eyes.py runs/eyes --seeing-steps 360 --answering-steps 70

The tower is that of the reference model that ships; the projector begins anew; the language model
is SmolLM2 and stays as it is. First tower and projector learn to say what each patch shows in
SmolLM2's own words, which needs no layer of it; then they learn through it, from questions of the
split `pretrain` about the held-out tasks and what comes before them, several for each picture. A
target skill's question is never asked. The class is transformers' own
`LlavaOnevisionForConditionalGeneration`. Stopped, it goes on from its last checkpoint. At its end
`runs/eyes/taught` is a model folder, and what it answers to the held-out tasks is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from narrowtune.core.config import ModelSettings
from narrowtune.demo.weights import smollm2_folder
from narrowtune.engine.arithmetic import apply_arithmetic, measure_arithmetic
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.batches import Batch, Steps, Writer, draw_samples, load_steps
from narrowtune.miniature.reference.eyes import SEE, covering
from narrowtune.miniature.reference.first_sights import take_apart
from narrowtune.miniature.reference.forward import (
    answer_lengths,
    answer_logits,
    hidden_states,
)
from narrowtune.miniature.reference.losses import answer_loss, size_loss
from narrowtune.miniature.reference.optimizers import make_optimizers, rate_factor
from narrowtune.miniature.reference.schedule import Schedule, finishing_shares, seeing_shares
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.reference.visual_words import VisualWords
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.pipeline.single import evaluate

IMAGE, VIDEO = "<image>", "<video>"
TOWER = "llava_onevision"
"""The reference model that the tower is of."""

NUM_KEPT, QUESTIONS, SEED = 60, 6, 11
NUM_SHOWN = 16  # pictures whose tokens are measured
BATCH, MICRO_BATCHES = {"seeing": 64, "answering": 16}, {"seeing": 2, "answering": 2}
RATES = {"seeing": 2e-3, "answering": 1e-3}
TOWER_FACTOR = 0.3  # of the tower's rate: it sees already
DECAY = 0.4  # share of a stage's steps over which its rate falls
EVERY = 30  # steps between checkpoints and lines of the log


def build() -> tuple[Any, Any]:
    """Return the model, its projector at random, in fp32, and its tokenizer."""
    blueprint, source = get_blueprint(TOWER), smollm2_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    language_model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE, VIDEO]})
    language_model.resize_token_embeddings(len(tokenizer))
    own: Any = blueprint.make_config(blueprint.tokenizer())
    config = LlavaOnevisionConfig(
        vision_config=own.vision_config.to_dict(),
        text_config=language_model.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        # No picture is a video: the token is one that no question has.
        video_token_index=tokenizer.convert_tokens_to_ids(VIDEO),
        image_grid_pinpoints=own.image_grid_pinpoints,
        vision_feature_layer=own.vision_feature_layer,
        vision_feature_select_strategy=own.vision_feature_select_strategy,
        vision_aspect_ratio=own.vision_aspect_ratio,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    model: Any = LlavaOnevisionForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language_model.model.state_dict())
    seeing = LlavaOnevisionForConditionalGeneration.from_pretrained(
        reference_folder(TOWER), dtype=torch.float32
    )
    model.model.vision_tower.load_state_dict(seeing.model.vision_tower.state_dict())
    take_apart(model.model.multi_modal_projector)
    as_long_as_words(model)
    model.tie_weights()
    teach_template(tokenizer)
    return model, tokenizer


@torch.no_grad()
def as_long_as_words(model: Any) -> None:
    """Scale the first visual tokens and ends of rows to the mean length of a word."""
    words = model.get_input_embeddings().weight.float().norm(dim=-1).mean()
    samples = draw_samples(seeing_shares()[0][1], NUM_SHOWN, SEED, 1)
    pixels = np.stack([np.asarray(sample.scene.image) for sample in samples])
    looked = SEE[TOWER](model, torch.from_numpy(pixels).permute(0, 3, 1, 2), True)
    last = model.model.multi_modal_projector.linear_2
    factor = words / covering(model, looked).norm(dim=-1).mean()
    for part in (last.weight, last.bias):
        part.mul_(factor)
    newline = model.model.image_newline
    newline.mul_(words / newline.norm())


def teach_template(tokenizer: Any) -> None:
    """Let SmolLM2's chat template take pictures."""
    content = (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "{{ '" + IMAGE + "\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )
    own = tokenizer.chat_template
    head, tail = "{{'<|im_start|>' + message['role'] + '\n'", "'<|im_end|>' + '\n'}}"
    spoken = f"{head} + message['content'] + {tail}"
    if spoken not in own:
        raise SystemExit("SmolLM2's chat template is not the one that this script knows")
    tokenizer.chat_template = own.replace(spoken, f"{head}}}}}{content}{{{{{tail}")


def write(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the model's folder in bf16, with what turns pictures and words into its inputs."""
    tokenizer.save_pretrained(folder)
    for name, values in get_blueprint(TOWER).processor_files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    model.to(torch.bfloat16).save_pretrained(folder)


class SystemWriter(Writer):
    """Writes as SmolLM2's template does: its system turn stands before the picture."""

    def __init__(self, tokenizer: Any) -> None:
        blueprint = get_blueprint(TOWER)
        super().__init__(tokenizer, blueprint.picture, blueprint.placeholder)
        turns = [{"role": "user", "content": IMAGE}]
        front, _, _ = tokenizer.apply_chat_template(turns, tokenize=False).partition(IMAGE)
        self._before = self._encode(front)


Shares = list[tuple[int, Mapping[str, float]]]


class Eyes:
    """The tower and the projector on their way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dtype = folder, torch.float32
        self.model, self.tokenizer = build()
        self.model.train()
        blueprint = get_blueprint(TOWER)
        sees = (f"{blueprint.tower}.", f"{blueprint.projector}.", "model.image_newline")
        tower, projector = [], []
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.startswith(sees))
            if name.startswith(sees):
                (tower if name.startswith(sees[0]) else projector).append((name, parameter))
        width, side = self.model.config.get_text_config().hidden_size, blueprint.side
        self.words = VisualWords(self.tokenizer, width=width, side=side, seed=SEED)
        self.writer = SystemWriter(self.tokenizer)
        self.see = torch.compile(SEE[TOWER], dynamic=False)
        self.groups = [
            {"params": projector, "factor": 1.0},
            {"params": tower, "factor": TOWER_FACTOR},
        ]
        self.trained = nn.ParameterList(p for group in self.groups for _, p in group["params"])

    def run(
        self, stage: str, num_steps: int, shares: list[tuple[int, Mapping[str, float]]]
    ) -> None:
        """Do what is missing of a stage."""
        path = self.folder / f"{stage}.pt"
        optimizers = make_optimizers(self.groups, Schedule().factors)
        first = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.trained.load_state_dict(state["trained"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            first = state["step"]
        blueprint = get_blueprint(TOWER)
        steps = Steps(
            self.writer,
            self.tokenizer.convert_tokens_to_ids("<|endoftext|>"),
            shares,
            batch_size=BATCH[stage],
            micro_batches=MICRO_BATCHES[stage],
            questions=1 if stage == "seeing" else QUESTIONS,
            told=False,
            labelled_patch=blueprint.labelled_patch,
            seed=SEED + (stage == "answering"),
            first=first,
            last=num_steps,
        )
        started, seen = time.monotonic(), []
        for step, parts in enumerate(load_steps(steps, in_background=True), first):
            factor = rate_factor(step, num_steps, decay_share=DECAY)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = RATES[stage] * factor * group["factor"]
            seen.append(self.learn(stage, parts))
            nn.utils.clip_grad_norm_(self.trained, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if (step + 1) % EVERY == 0 or step + 1 == num_steps:
                named, told = (sum(values) / len(values) for values in zip(*seen, strict=True))
                seconds = time.monotonic() - started
                print(f"{stage} {step + 1} {seconds:.0f} s {named:.3f} {told:.3f}", flush=True)
                seen = []
                state = {"step": step + 1, "trained": self.trained.state_dict()}
                state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
                torch.save(state, path)

    def learn(self, stage: str, parts: list[Batch]) -> tuple[float, float]:
        """Put a step's gradients into what trains; return its losses of words and of answers."""
        named = told = 0.0
        num_answers = sum(len(answer_lengths(part.labels)) for part in parts)
        for part in parts:
            with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                # What says what patches show has no use for an overview.
                looked = self.see(self.model, part.pixels, stage != "seeing")
                grid = covering(self.model, looked)
                shown = self.words.shown(self.model, grid, part) / len(parts)
                loss = shown + size_loss(self.model, looked) / len(parts)
                if stage == "answering":
                    states = hidden_states(self.model, part, looked)
                    logits, labels = answer_logits(self.model, states.last, part.labels)
                    answered = answer_loss(logits, labels, part.labels) / num_answers
                    loss = Schedule().patch_weight * loss + answered
                    told += answered.item()
            loss.backward()
            named += shown.item()
        return named, told


def main() -> None:
    """Parse the command line, train, write and score."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeing-steps", type=int, default=900)
    parser.add_argument("--answering-steps", type=int, default=120)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    eyes = Eyes(given.folder)
    arithmetic = measure_arithmetic(eyes.model.model.language_model)
    eyes.dtype = arithmetic.torch_dtype
    with apply_arithmetic(arithmetic):
        eyes.run("seeing", given.seeing_steps, seeing_shares())
        eyes.run("answering", given.answering_steps, finishing_shares())
    taught = given.folder / "taught"
    write(eyes.model.eval(), eyes.tokenizer, taught)
    rows = [
        write_rows(given.folder, task.name, "validation", NUM_KEPT, SEED).model_dump()
        for task in tasks_of("held_out")
    ]
    found = evaluate(
        ModelSettings(model=str(taught)),
        rows,
        None,
        batch_size=32,
        output=given.folder / "answers",
        overwrite=True,
    )
    for result in found.tasks:
        print(f"{result.name} {result.strict.mean:.1%} strict, {result.lenient.mean:.1%} lenient")


if __name__ == "__main__":
    main()
