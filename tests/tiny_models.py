"""Tiny models with real parts: every family as a Hugging Face folder that trains in milliseconds.

Owns: building, from each family's real configuration, model and tokenizer classes, a folder with
`config.json`, `model.safetensors` (names as published checkpoints have them), tokenizer, chat
template and, for multimodal families, the image processor's files. Weights are random and seeded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from tiny_tokenizers import (
    CAPITALISED,
    CHATML,
    CHATML_CONTEXT,
    CHATML_IMAGES,
    CHATML_IMAGES_FIRST,
    CHATML_THINKING,
    GEMMA,
    GEMMA_IMAGES,
    HEADERS,
    INST,
    INST_IMAGES,
    PHI,
    VICUNA,
    byte_level,
    chatml_tokenizer,
    llama_tokenizer,
    metaspace,
)

VISION_FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "internvl",
    "idefics3",
    "smolvlm",
)
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "qwen3_5_text",
    "gemma3_text",
    "granite",
    "olmo2",
    "smollm3",
    "phi3",
    *VISION_FAMILIES,
)

WITH_STATE = ("qwen3_5_text", "qwen3_5", "qwen3_5_moe")
"""Of which some layers keep a state in place of attending, so that rows can share nothing."""

_LM: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
}
_CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 32,
}
_SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}
_HYBRID: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_GRID = [[28, 28], [28, 56], [56, 28], [56, 56]]
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def _ids(tokenizer: PreTrainedTokenizerBase, **names: str) -> dict[str, int]:
    return {key: tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def _llama() -> tuple[Any, Any, str]:
    tokenizer = byte_level(
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ],
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|eot_id|>",
    )
    ids = _ids(tokenizer, bos_token_id="<|begin_of_text|>", eos_token_id="<|eot_id|>")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=True, pad_token_id=None, **ids, **_LM
    )
    return config, tokenizer, HEADERS


def _mistral() -> tuple[Any, Any, str]:
    tokenizer = llama_tokenizer("[INST]", "[/INST]", pad_token="<unk>")
    config = transformers.MistralConfig(
        vocab_size=len(tokenizer), tie_word_embeddings=False, sliding_window=None, **_LM
    )
    return config, tokenizer, INST


def _qwen2() -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer()
    ids = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>")
    # Rows that no token uses, as Qwen's padded vocabulary has.
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer) + 5, tie_word_embeddings=True, **ids, **_LM
    )
    return config, tokenizer, CHATML


def _qwen3() -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer("<think>", "</think>")
    ids = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>")
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), tie_word_embeddings=False, head_dim=16, **ids, **_LM
    )
    return config, tokenizer, CHATML_THINKING


def _qwen3_moe() -> tuple[Any, Any, str]:
    # The first layer has an MLP, the second experts.
    settings = {**_EXPERTS, "mlp_only_layers": [0], "decoder_sparse_step": 1}
    return _chatml(transformers.Qwen3MoeConfig, **settings)


def _mixtral() -> tuple[Any, Any, str]:
    return _chatml(transformers.MixtralConfig, num_local_experts=4, num_experts_per_tok=2)


def _qwen3_5_text() -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer("<think>", "</think>")
    ids = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>")
    rope = {**_MROPE, "partial_rotary_factor": 1.0, "mrope_interleaved": True}
    config = transformers.Qwen3_5TextConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        rope_parameters=rope,
        **ids,
        **_HYBRID,
        **_LM,
    )
    return config, tokenizer, CHATML


def _gemma_tokenizer(*more: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    tokenizer = metaspace(
        transformers.GemmaTokenizer,
        ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        ["<start_of_turn>", "<end_of_turn>", *more],
        add_bos_token=True,
        **kwargs,
    )
    # Line breaks are joined, also those that a processor writes with those of the text.
    breaks = [AddedToken("\n" * number, special=False, normalized=False) for number in (2, 3, 4)]
    tokenizer.add_tokens(breaks)
    return tokenizer


def _gemma3_text_config(tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> Any:
    return transformers.Gemma3TextConfig(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"]),
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        head_dim=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"],
        **_ids(tokenizer, pad_token_id="<pad>", bos_token_id="<bos>"),
        **kwargs,
        **_LM,
    )


def _chatml(kind: Any, **settings: Any) -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer()
    ids = _ids(
        tokenizer,
        bos_token_id="<|endoftext|>",
        eos_token_id="<|im_end|>",
        pad_token_id="<|endoftext|>",
    )
    config = kind(vocab_size=len(tokenizer), tie_word_embeddings=False, **settings, **ids, **_LM)
    return config, tokenizer, CHATML


def _granite() -> tuple[Any, Any, str]:
    return _chatml(
        transformers.GraniteConfig,
        attention_multiplier=0.2,
        embedding_multiplier=2.0,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    )


def _olmo2() -> tuple[Any, Any, str]:
    return _chatml(transformers.Olmo2Config)


def _smollm3() -> tuple[Any, Any, str]:
    return _chatml(transformers.SmolLM3Config, no_rope_layers=[1, 0])


def _gemma3_text() -> tuple[Any, Any, str]:
    tokenizer = _gemma_tokenizer()
    return _gemma3_text_config(tokenizer, sliding_window=16), tokenizer, GEMMA


def _gemma3() -> tuple[Any, Any, str]:
    marks = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = _gemma_tokenizer(*marks.values(), extra_special_tokens=marks)
    config = transformers.Gemma3Config(
        text_config=_gemma3_text_config(tokenizer, sliding_window=512).to_dict(),
        vision_config={**_SIGLIP, "image_size": 56, "patch_size": 7},
        mm_tokens_per_image=16,
        **_ids(
            tokenizer,
            image_token_index="<image_soft_token>",
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
        ),
    )
    return config, tokenizer, GEMMA_IMAGES


def _phi3() -> tuple[Any, Any, str]:
    tokenizer = llama_tokenizer(
        "<|endoftext|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.eos_token = "<|endoftext|>"
    ids = _ids(tokenizer, bos_token_id="<s>", pad_token_id="<|endoftext|>")
    config = transformers.Phi3Config(
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"]),
        vocab_size=len(tokenizer),
        tie_word_embeddings=False,
        original_max_position_embeddings=1024,
        **ids,
        **_LM,
    )
    return config, tokenizer, PHI


def _llava() -> tuple[Any, Any, str]:
    tokenizer = llama_tokenizer("<image>", "<pad>", pad_token="<pad>")
    config = transformers.LlavaConfig(
        vision_config=dict(_CLIP),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **_LM},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return config, tokenizer, VICUNA


def _llava_next() -> tuple[Any, Any, str]:
    tokenizer = llama_tokenizer("<image>", "<pad>", "[INST]", "[/INST]", pad_token="<pad>")
    config = transformers.LlavaNextConfig(
        vision_config=dict(_CLIP),
        text_config={
            "model_type": "mistral",
            "vocab_size": len(tokenizer),
            "sliding_window": None,
            **_LM,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=_GRID[1:],
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    return config, tokenizer, INST_IMAGES


def _llava_onevision() -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer("<image>", "<video>")
    ids = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>")
    config = transformers.LlavaOnevisionConfig(
        vision_config=dict(_SIGLIP),
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **ids, **_LM},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, tokenizer, CHATML_IMAGES_FIRST


def _qwen_vl(
    kind: Any, vision: dict[str, Any], *, text: dict[str, Any] | None = None, **rope: Any
) -> tuple[Any, Any, str]:
    tokenizer = chatml_tokenizer(
        "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"
    )
    config = kind(
        text_config={
            "vocab_size": len(tokenizer),
            "rope_parameters": {**_MROPE, **rope},
            **(text or {}),
            **_ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>"),
            **_LM,
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        **_ids(
            tokenizer,
            image_token_id="<|image_pad|>",
            video_token_id="<|video_pad|>",
            vision_start_token_id="<|vision_start|>",
            vision_end_token_id="<|vision_end|>",
        ),
    )
    return config, tokenizer, CHATML_IMAGES


def _qwen2_vl() -> tuple[Any, Any, str]:
    # The tower's own width is `embed_dim`, that of the language model `hidden_size`.
    return _qwen_vl(
        transformers.Qwen2VLConfig, {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    )


def _qwen2_5_vl() -> tuple[Any, Any, str]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
    }
    return _qwen_vl(transformers.Qwen2_5_VLConfig, vision)


_DEEPSTACK = {
    "hidden_size": 16,
    "intermediate_size": 48,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "out_hidden_size": 32,
}


def _qwen3_vl() -> tuple[Any, Any, str]:
    config, tokenizer, template = _qwen_vl(
        transformers.Qwen3VLConfig, _DEEPSTACK, mrope_interleaved=True
    )
    config.text_config.head_dim = 8
    return config, tokenizer, template


def _qwen3_vl_moe() -> tuple[Any, Any, str]:
    # Its published experts are [E, H, 2 I], so the two must not be the same.
    return _qwen_vl(
        transformers.Qwen3VLMoeConfig,
        _DEEPSTACK,
        text={**_EXPERTS, "moe_intermediate_size": 24},
        mrope_interleaved=True,
    )


def _internvl() -> tuple[Any, Any, str]:
    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = chatml_tokenizer(*marks.values(), extra_special_tokens=marks)
    ids = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|im_end|>")
    config = transformers.InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **ids, **_LM},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [7, 7],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return config, tokenizer, CHATML_CONTEXT


def _tiled_siglip(kind: Any) -> tuple[Any, Any, str]:
    places = [f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3)]
    tokenizer = byte_level(
        [
            "<|im_start|>",
            "<end_of_utterance>",
            "<fake_token_around_image>",
            "<image>",
            "<global-img>",
            *places,
        ],
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_start|>",
    )
    ids = _ids(tokenizer, bos_token_id="<|im_start|>", eos_token_id="<end_of_utterance>")
    config = kind(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **ids, **_LM},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 7,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    return config, tokenizer, CAPITALISED


def _idefics3() -> tuple[Any, Any, str]:
    return _tiled_siglip(transformers.Idefics3Config)


def _smolvlm() -> tuple[Any, Any, str]:
    return _tiled_siglip(transformers.SmolVLMConfig)


def _qwen3_5(kind: Any = transformers.Qwen3_5Config, **text: Any) -> tuple[Any, Any, str]:
    vision = {
        "hidden_size": 16,
        "intermediate_size": 48,
        "num_position_embeddings": 16,
        "out_hidden_size": 32,
    }
    return _qwen_vl(
        kind,
        vision,
        text={**_HYBRID, **text},
        mrope_interleaved=True,
        partial_rotary_factor=1.0,
    )


def _qwen3_5_moe() -> tuple[Any, Any, str]:
    return _qwen3_5(
        transformers.Qwen3_5MoeConfig, **{**_EXPERTS, "shared_expert_intermediate_size": 24}
    )


_BUILDERS: dict[str, Callable[[], tuple[Any, Any, str]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "mixtral": _mixtral,
    "qwen3_5_text": _qwen3_5_text,
    "gemma3_text": _gemma3_text,
    "granite": _granite,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
    "phi3": _phi3,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
    "qwen3_5": _qwen3_5,
    "qwen3_5_moe": _qwen3_5_moe,
    "gemma3": _gemma3,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}

_CLIP_STEPS: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": 28, "width": 28},
    "size": {"shortest_edge": 28},
    "do_center_crop": True,
}
_CLIP_TOKENS: dict[str, Any] = {
    "patch_size": 14,
    "num_additional_image_tokens": 1,
    "vision_feature_select_strategy": "default",
    "image_token": "<image>",
}
_QWEN_STEPS: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 28 * 28,
    "max_pixels": 28 * 28 * 6,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}
_TILED_STEPS: dict[str, Any] = {
    "image_processor_type": "Idefics3ImageProcessor",
    "size": {"longest_edge": 56},
    "max_image_size": {"longest_edge": 28},
    "do_image_splitting": True,
    "do_pad": True,
}
# preprocessor_config.json and processor_config.json as published checkpoints have them.
_PROCESSORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": (
        _CLIP_STEPS,
        {"processor_class": "LlavaProcessor", **_CLIP_TOKENS},
    ),
    "llava_next": (
        {
            **_CLIP_STEPS,
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": _GRID[1:],
            "do_pad": True,
        },
        {"processor_class": "LlavaNextProcessor", **_CLIP_TOKENS},
    ),
    "llava_onevision": (
        {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": _GRID,
            "size": {"height": 28, "width": 28},
            "do_pad": True,
        },
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "image_token": "<image>",
            "video_token": "<video>",
        },
    ),
    "qwen2_vl": (_QWEN_STEPS, {"processor_class": "Qwen2VLProcessor"}),
    "qwen2_5_vl": (_QWEN_STEPS, {"processor_class": "Qwen2_5_VLProcessor"}),
    "qwen3_vl": (_QWEN_STEPS, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_vl_moe": (_QWEN_STEPS, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_5_moe": (_QWEN_STEPS, {"processor_class": "Qwen3VLProcessor"}),
    "qwen3_5": (_QWEN_STEPS, {"processor_class": "Qwen3VLProcessor"}),
    "gemma3": (
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 56, "width": 56},
            "do_pan_and_scan": None,
        },
        {"processor_class": "Gemma3Processor", "image_seq_length": 16},
    ),
    "internvl": (
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 28, "width": 28},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 3,
        },
        {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    ),
    "idefics3": (_TILED_STEPS, {"processor_class": "Idefics3Processor", "image_seq_len": 4}),
    "smolvlm": (
        {**_TILED_STEPS, "image_processor_type": "SmolVLMImageProcessor"},
        {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    ),
}
_VIDEO = {
    "llava_onevision": {"video_processor_type": "LlavaOnevisionVideoProcessor"},
    "qwen2_vl": {"video_processor_type": "Qwen2VLVideoProcessor"},
    "qwen2_5_vl": {"video_processor_type": "Qwen2VLVideoProcessor"},
    "qwen3_vl": {"video_processor_type": "Qwen3VLVideoProcessor"},
    "qwen3_vl_moe": {"video_processor_type": "Qwen3VLVideoProcessor"},
    "qwen3_5_moe": {"video_processor_type": "Qwen3VLVideoProcessor"},
    "qwen3_5": {"video_processor_type": "Qwen3VLVideoProcessor"},
    "internvl": {"video_processor_type": "InternVLVideoProcessor"},
    "smolvlm": {"video_processor_type": "SmolVLMVideoProcessor"},
}


def _publish_names(path: Path) -> None:
    """Name the tower's tensors as published checkpoints do: `vision_tower.vision_model.…`.

    Recent transformers has no such level in memory and leaves it out for a model made from scratch.
    """
    tensors = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
            tower, rest = "vision_tower.", name.removeprefix("vision_tower.")
            if name.startswith(tower) and not rest.startswith("vision_model."):
                tensors[f"{tower}vision_model.{rest}"] = file.get_tensor(name)
            else:
                tensors[name] = file.get_tensor(name)
    save_file(tensors, path, metadata={"format": "pt"})


def _widen(path: Path) -> None:
    """Store in fp32 what published checkpoints of Qwen3.5 store so, in whatever the rest is."""
    wide = ("linear_attn.A_log", "linear_attn.norm.weight")
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = {n: t.float() if n.endswith(wide) else t for n, t in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _transpose_experts(path: Path) -> None:
    """Store experts as [E, H, 2 I] and [E, I, H], as published checkpoints of Qwen3-VL MoE do."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    turned = {n: t.mT.contiguous() if ".mlp.experts." in n else t for n, t in tensors.items()}
    save_file(turned, path, metadata={"format": "pt"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def build_model(config: Any, *, seed: int = 0) -> torch.nn.Module:
    """A model of `config`'s own class in fp32 with seeded random weights, biases and norms."""
    auto = (
        transformers.AutoModelForImageTextToText
        if getattr(config, "vision_config", None) is not None
        else transformers.AutoModelForCausalLM
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Zero biases and unit norms would hide a tensor that is never used.
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def build(family: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Write a tiny checkpoint of `family` to `folder` and return `folder`."""
    config, tokenizer, template = _BUILDERS[family]()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    build_model(config, seed=seed).to(dtype).save_pretrained(folder)
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if tower in ("clip_vision_model", "siglip_vision_model"):
        _publish_names(folder / "model.safetensors")
    if family in WITH_STATE:
        _widen(folder / "model.safetensors")
    if family == "qwen3_vl_moe":
        _transpose_experts(folder / "model.safetensors")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if family in _PROCESSORS:
        image, processor = _PROCESSORS[family]
        shared = {
            "processor_class": processor["processor_class"],
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "image_mean": _MEAN,
            "image_std": _STD,
            "resample": 3,
            "rescale_factor": 1 / 255,
        }
        _write_json(folder / "preprocessor_config.json", {**shared, **image})
        _write_json(folder / "processor_config.json", processor)
    if family in _VIDEO:
        _write_json(folder / "video_preprocessor_config.json", _VIDEO[family])
    return folder
