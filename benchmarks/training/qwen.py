"""Qwen2.5-VL with random weights, as large as the published 7B or tiny, and rows made up for it.

Owns: sizes, and the kinds of rows. `pictures` has one question a picture, `questions` has
`QUESTIONS`, one row each, and `text` has none. Tokens are drawn at random, since neither time nor
memory depends on which they are.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from narrowtune.data.collate import IGNORE_INDEX, Encoded
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.models.families import find_family
from narrowtune.models.load import LoadedModel

KINDS = ("pictures", "questions", "text")
QUESTIONS = 4
_PATCHES = 4  # behind one visual token: 2 x 2


@dataclass(frozen=True)
class Size:
    """A model's size and its rows'.

    Attributes:
        text, vision: settings of the language model and of the tower that aren't the defaults.
        ids: first the tokens that begin and end a picture, then the one that visual tokens replace.
        side: visual tokens along each side of a picture; a token is 28 x 28 pixels.
        question, answer: fewest and most tokens beside a picture.
        prompt, reply: the same of a row of text.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    ids: tuple[int, int, int]
    side: int
    question: tuple[int, int] = (16, 64)
    answer: tuple[int, int] = (4, 16)
    prompt: tuple[int, int] = (128, 512)
    reply: tuple[int, int] = (16, 64)


SIZES = {
    # config.json of Qwen2.5-VL-7B-Instruct.
    "7B": Size(
        text={
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 128000,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        ids=(151652, 151653, 151655),
        side=28,
    ),
    "tiny": Size(
        text={
            "vocab_size": 4096,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            },
        },
        vision={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        ids=(4090, 4091, 4092),
        side=8,
        prompt=(32, 64),
        reply=(4, 16),
    ),
}


def make_model(name: str, device: torch.device) -> LoadedModel:
    """Return a model of a size in `SIZES`, its bf16 weights drawn on `device`.

    Inside a FakeTensorMode it has shapes and no weights. The tokenizer is another model's: it only
    says what to pad with.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2_5_VLConfig

    size = SIZES[name]
    begin, end, place = size.ids
    config = Qwen2_5_VLConfig(
        text_config=size.text,
        vision_config=size.vision,
        vision_start_token_id=begin,
        vision_end_token_id=end,
        image_token_id=place,
        video_token_id=place + 1,
    )
    with device:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    folder = reference_folder("qwen2_5_vl")
    return LoadedModel(
        model=model.eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        processor=None,
        family=find_family(model),
        source=f"Qwen2.5-VL of the {name} shape, random weights",
        folder=folder,
        dtype=torch.bfloat16,
    )


def make_rows(name: str, kind: str, num: int) -> list[Encoded]:
    """Return `num` rows of a kind in `KINDS`, those about one picture one after the other."""
    size = SIZES[name]
    draw = random.Random(f"rows:{kind}")
    if kind == "text":
        return [_row(draw, [], size.prompt, size.reply, size) for _ in range(num)]
    begin, end, place = size.ids
    shown = [begin, *[place] * size.side**2, end]
    grid = torch.tensor([[1, 2 * size.side, 2 * size.side]])
    numbers = torch.Generator().manual_seed(0)
    rows = []
    for count in range(num):
        if count % (QUESTIONS if kind == "questions" else 1) == 0:
            # Channels x frames x 14 x 14 pixels, as the processor gives each patch.
            shape = (_PATCHES * size.side**2, 3 * 2 * 14 * 14)
            pixels = torch.randn(shape, generator=numbers)
        row = _row(draw, shown, size.question, size.answer, size)
        row.features.update(
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=torch.tensor([int(token == place) for token in row.input_ids]),
        )
        rows.append(row)
    return rows


def _row(
    draw: random.Random,
    shown: list[int],
    asked: tuple[int, int],
    answered: tuple[int, int],
    size: Size,
) -> Encoded:
    ordinary = range(size.text["vocab_size"] // 100, min(size.ids) - 50)
    prompt = [*shown, *draw.choices(ordinary, k=draw.randint(*asked))]
    answer = draw.choices(ordinary, k=draw.randint(*answered))
    return Encoded([*prompt, *answer], [*[IGNORE_INDEX] * len(prompt), *answer])
