"""What a reference model is made of, before it has learned anything.

Owns: sizes, special tokens, chat templates and processor settings. Every class is transformers'
own, so that a reference model takes the same path through narrowtune as a published one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    LlavaOnevisionConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Tokenizer,
)

from narrowtune.core.errors import UsageError
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.reference.first_sights import look_around, take_apart
from narrowtune.miniature.reference.first_weights import look_up, widen
from narrowtune.miniature.reference.origins import Origin, take_over
from narrowtune.miniature.reference.tokenizer import train_tokenizer

_TILE = SIZE // 2  # of LLaVA-OneVision: a picture is four, and an overview
_TILE_PATCH = 7
_ASPECT_RATIO = "anyres_max_1"  # four tiles take the room of one: each four patches are averaged

_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for b in m['content'] %}"
    "{% if b['type'] == 'image' %}{{ 'PICTURE\n' }}{% else %}{{ b['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_NUM_LAYERS = 6

_LANGUAGE_MODEL = {
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": _NUM_LAYERS,
    # Few and wide: in 32 numbers, half of which turn quickly, 250 words can't be told apart.
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1024,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Blueprint:
    """An architecture at its size.

    Attributes:
        name: of the reference model and its folder.
        family: of its architecture; models of several sizes have the same.
        placeholders: special tokens beside those of the chat.
        picture: what stands for a picture in the chat template.
        placeholder: the token in it that visual tokens replace.
        tower: name of the vision tower among the model's modules.
        projector: name of what turns its states into visual tokens; it may be a part of the tower.
        patch: side in pixels of the area behind one visual token of the language model.
        make_config: from the tokenizer to the model's settings.
        processor_files: further files of the folder, by name.
        origin: the reference model that it begins as a part of; None to begin from nothing.
    """

    name: str
    family: str
    placeholders: tuple[str, ...]
    picture: str
    placeholder: str
    tower: str
    projector: str
    patch: int
    make_config: Callable[[Qwen2Tokenizer], PreTrainedConfig]
    processor_files: dict[str, dict[str, Any]]
    origin: Origin | None = None

    @property
    def side(self) -> int:
        """Visual tokens in a row that covers a picture."""
        return SIZE // self.patch

    @property
    def labelled_patch(self) -> int:
        """Side in pixels of the patches that a tower learns to name: a small letter's size."""
        return self.patch // 2

    def tokenizer(self) -> Qwen2Tokenizer:
        """Return the tokenizer with its chat template."""
        tokenizer = train_tokenizer(self.placeholders)
        tokenizer.chat_template = _TEMPLATE.replace("PICTURE", self.picture)
        return tokenizer

    def build(self, tokenizer: Qwen2Tokenizer, *, seed: int) -> PreTrainedModel:
        """Return the model as it is before it is trained, in fp32: random, or with its origin's
        weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(self.make_config(tokenizer))
            widen(model.model.language_model)
            widen(model.get_submodule(self.projector))
            look_up(model.model.language_model, row_length=self.side + 1)
            if hasattr(model.model, "vision_tower"):
                look_around(model.model.vision_tower)
                take_apart(model.model.multi_modal_projector)
        if self.origin is not None:
            take_over(model, self.origin)
        return model

    def write(self, model: PreTrainedModel, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
        """Write a complete folder, as `narrowtune` loads any other."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
        for name, values in self.processor_files.items():
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        model.save_pretrained(folder)


def _number(tokenizer: Qwen2Tokenizer, token: str) -> int:
    found = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def _language_model(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    return {
        **_LANGUAGE_MODEL,
        "vocab_size": len(tokenizer),
        "bos_token_id": _number(tokenizer, "<|endoftext|>"),
        "eos_token_id": _number(tokenizer, "<|im_end|>"),
        "pad_token_id": _number(tokenizer, "<|endoftext|>"),
    }


def _llava_onevision(tokenizer: Qwen2Tokenizer) -> PreTrainedConfig:
    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 144,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": _TILE,
            "patch_size": _TILE_PATCH,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **_language_model(tokenizer)},
        image_token_index=_number(tokenizer, "<image>"),
        video_token_index=_number(tokenizer, "<video>"),
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=_ASPECT_RATIO,
        tie_word_embeddings=True,
    )


def _qwen2_5_vl(tokenizer: Qwen2Tokenizer, num_layers: int = _NUM_LAYERS) -> PreTrainedConfig:
    language_model = {**_language_model(tokenizer), "num_hidden_layers": num_layers}
    width = language_model["hidden_size"] // language_model["num_attention_heads"] // 2
    return Qwen2_5_VLConfig(
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": SIZE,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": language_model["hidden_size"],
        },
        text_config={
            **language_model,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                # Time, height and width take turns, as in Qwen3-VL. In the published order width
                # has the slowest turns, and two columns would differ by less than a thousandth of
                # a radian; with a base that mends this, words could not be found from a distance
                # by what they are, since all of their states would turn.
                "mrope_section": [1] * 9 + [width - 9],
            },
        },
        image_token_id=_number(tokenizer, "<|image_pad|>"),
        video_token_id=_number(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_number(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_number(tokenizer, "<|vision_end|>"),
        tie_word_embeddings=True,
    )


_PIXELS = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 1 / 255,
}

BLUEPRINTS: dict[str, Blueprint] = {
    "llava_onevision": Blueprint(
        name="llava_onevision",
        family="llava_onevision",
        placeholders=("<image>", "<video>"),
        picture="<image>",
        placeholder="<image>",
        tower="model.vision_tower",
        projector="model.multi_modal_projector",
        patch=2 * _TILE_PATCH,
        make_config=_llava_onevision,
        processor_files={
            "preprocessor_config.json": {
                **_PIXELS,
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "image_grid_pinpoints": [[SIZE, SIZE]],
                "size": {"height": _TILE, "width": _TILE},
                "do_pad": True,
            },
            "processor_config.json": {
                "processor_class": "LlavaOnevisionProcessor",
                "num_image_tokens": (_TILE // _TILE_PATCH) ** 2,
                "vision_feature_select_strategy": "full",
                "vision_aspect_ratio": _ASPECT_RATIO,
                "image_token": "<image>",
                "video_token": "<video>",
            },
            "video_preprocessor_config.json": {
                "video_processor_type": "LlavaOnevisionVideoProcessor"
            },
        },
    ),
    "qwen2_5_vl": Blueprint(
        name="qwen2_5_vl",
        family="qwen2_5_vl",
        placeholders=(
            "<|vision_start|>",
            "<|vision_end|>",
            "<|vision_pad|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ),
        picture="<|vision_start|><|image_pad|><|vision_end|>",
        placeholder="<|image_pad|>",
        tower="model.visual",
        projector="model.visual.merger",
        patch=16,
        make_config=_qwen2_5_vl,
        processor_files={
            "preprocessor_config.json": {
                **_PIXELS,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
                "min_pixels": SIZE * SIZE,
                "max_pixels": SIZE * SIZE,
                "patch_size": 8,
                "temporal_patch_size": 2,
                "merge_size": 2,
            },
            "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"},
            "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"},
        },
    ),
}


_KEPT_LAYERS = (0, 1, 2, 5)
"""Of the whole language model's six. Of all pairs, it answers most without the two others."""

BLUEPRINTS["qwen2_5_vl_small"] = replace(
    BLUEPRINTS["qwen2_5_vl"],
    name="qwen2_5_vl_small",
    make_config=partial(_qwen2_5_vl, num_layers=len(_KEPT_LAYERS)),
    origin=Origin("qwen2_5_vl", layers=_KEPT_LAYERS),
)


def get_blueprint(name: str) -> Blueprint:
    """Return the architecture of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in BLUEPRINTS:
        raise UsageError(
            asked=f"the reference model {name!r}",
            found="no architecture of that name",
            do=f"choose one of {', '.join(BLUEPRINTS)}",
        )
    return BLUEPRINTS[name]
