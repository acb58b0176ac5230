"""Put a small tower and a projector in front of SmolLM2-135M, and write what they learn from.

    python scripts/give_eyes.py runs/eyes --pictures 8000
    narrowtune teach runs/eyes/projector.yaml

The tower is that of the reference model that ships; the projector begins anew; the language model
is SmolLM2 and stays as it is. The class is transformers' own
`LlavaOnevisionForConditionalGeneration`, so that `narrowtune` teaches the projector as any other
recipe, on questions of the split `pretrain` about the held-out tasks and what comes before them,
several for each picture. A target skill's question is never asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)

from narrowtune.demo.weights import smollm2_folder
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.batches import draw_samples
from narrowtune.miniature.reference.eyes import SEE, covering
from narrowtune.miniature.reference.first_sights import take_apart
from narrowtune.miniature.reference.schedule import finishing_shares, seeing_shares
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows

IMAGE, VIDEO = "<image>", "<video>"
TOWER = "llava_onevision"
"""The reference model that the tower is of."""

NUM_KEPT, NUM_TESTED, QUESTIONS, SEED = 60, 200, 6, 11
NUM_SHOWN = 16  # pictures whose tokens are measured
_BATCH = 64  # questions of an optimiser step


def build(folder: Path) -> None:
    """Write the model's folder, its projector at random."""
    blueprint, source = get_blueprint(TOWER), smollm2_folder()
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    language_model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
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
    model.to(torch.bfloat16).save_pretrained(folder)
    write_processor(folder, tokenizer)


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


def write_processor(folder: Path, tokenizer: Any) -> None:
    """Write what turns pictures and conversations into the model's inputs."""
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
    tokenizer.save_pretrained(folder)
    for name, values in get_blueprint(TOWER).processor_files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_questions(folder: Path, pictures: int) -> Path:
    """Write rows of the split `pretrain`, up to `QUESTIONS` about each picture; return the file."""
    ((_, shares),) = finishing_shares()
    shown = folder / "pictures"
    shown.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample in draw_samples(shares, pictures, SEED, 0):
        picture = shown / f"{sample.id}.png"
        picture.write_bytes(sample.scene.png())
        for number, item in enumerate(sample.questions(QUESTIONS)):
            row = {
                "id": f"{sample.id}-{number}",
                "image": picture.relative_to(folder).as_posix(),
                "question": item.question,
                "answer": item.answers[0],
            }
            lines.append(json.dumps(row) + "\n")
    Random(SEED).shuffle(lines)
    path = folder / "questions.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_run(folder: Path, model: Path, questions: Path) -> Path:
    """Write the run that teaches the projector; what is kept shows what it sees."""
    keep = [
        write_rows(folder, task.name, "validation", NUM_KEPT, SEED) for task in tasks_of("held_out")
    ]
    share = round(NUM_TESTED / len(questions.read_text("utf-8").splitlines()), 6)
    run = {
        "model": str(model),
        "recipe": "projector",
        "skill": {"path": str(questions), "validation": 0, "test": share, "max_new_tokens": 24},
        "keep": [task.model_dump(mode="json", exclude_defaults=True) for task in keep],
        "training": {
            "learning_rate": 1e-3,
            "global_batch_size": _BATCH,
            "per_device_train_batch_size": _BATCH,
            "group_by_picture": True,
        },
        "output_dir": str(folder / "projector"),
    }
    path = folder / "projector.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=8000)
    given = parser.parse_args()
    model = given.folder / "model"
    build(model)
    questions = write_questions(given.folder, given.pictures)
    print(write_run(given.folder, model, questions))


if __name__ == "__main__":
    main()
