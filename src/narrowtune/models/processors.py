"""Processors: their settings, and classes that work with pictures alone.

Owns: what `processor_kwargs` may change, and what stands in where transformers insists on video.

transformers' video processors need torchvision. The processors of Qwen's families, of
LLaVA-OneVision, InternVL and SmolVLM2 name one in their constructor, so they cannot be built
without it even where no video is ever seen. transformers reads a constructor's arguments to find a
processor's parts, so what stands in has to spell them out, without the video processor.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import PIL.Image
from transformers import (
    InternVLProcessor,
    LlavaOnevisionProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SmolVLMProcessor,
)

from narrowtune.core.errors import UsageError


class _WithoutVideo:
    """The constructor of Qwen's processors without their video processor."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        parent: Any = super()
        parent.__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)


class ImageOnlyQwen2VLProcessor(_WithoutVideo, Qwen2VLProcessor):
    """Qwen2-VL's processor for text and pictures."""


class ImageOnlyQwen2_5_VLProcessor(_WithoutVideo, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor for text and pictures."""


class ImageOnlyQwen3VLProcessor(_WithoutVideo, Qwen3VLProcessor):
    """Qwen3-VL's and Qwen3.5's processor, with experts or without, for text and pictures."""


class ImageOnlyLlavaOnevisionProcessor(LlavaOnevisionProcessor):
    """LLaVA-OneVision's processor for text and pictures."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        num_image_tokens: int | None = None,
        vision_feature_select_strategy: str | None = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        video_token: str = "<video>",
        vision_aspect_ratio: str = "anyres_max_9",
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            num_image_tokens=num_image_tokens,
            vision_feature_select_strategy=vision_feature_select_strategy,
            chat_template=chat_template,
            image_token=image_token,
            video_token=video_token,
            vision_aspect_ratio=vision_aspect_ratio,
            **kwargs,
        )


class ImageOnlySmolVLMProcessor(SmolVLMProcessor):
    """SmolVLM2's processor for text and pictures."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            None,
            image_seq_len=image_seq_len,
            chat_template=chat_template,
            **kwargs,
        )

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """As any processor's: what SmolVLM2's own adds are a video's settings."""
        return super(SmolVLMProcessor, self).apply_chat_template(*args, **kwargs)


class ImageOnlyInternVLProcessor(InternVLProcessor):
    """InternVL's processor for text and pictures."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 256,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            image_seq_length=image_seq_length,
            chat_template=chat_template,
            **kwargs,
        )


_TRIED = (64, 48)
"""Of a picture on which settings are tried, in pixels."""

_IN_SIZE = {"min_pixels", "max_pixels"}
"""Older names of what image processors keep in `size`."""


def check_kwargs(
    plain: Any, given: Mapping[str, Any], load: Callable[[Mapping[str, Any]], Any]
) -> None:
    """See that a processor takes settings: transformers passes over those that it does not know.

    Args:
        plain: the processor without them; a tokenizer where there is none.
        given: values by name.
        load: makes the processor with some of them.

    Raises:
        UsageError: one of them changes nothing, or is not what the processor takes.
    """
    before = _state(plain)
    for key, value in given.items():
        asked = f"processor_kwargs.{key}: {value}"
        try:
            # A copy: some processors write into what they are given.
            changed = load({key: copy.deepcopy(value)})
            same = before.get(key) == value
            same |= key in _IN_SIZE and value in dict(before.get("size") or {}).values()
            if _state(changed) == before and not same:
                raise UsageError(
                    asked=asked,
                    found=f"that nothing in {type(plain).__name__} changes by it; it has "
                    f"{', '.join(sorted(before)) or 'none'}",
                    do="correct the name, or leave it out",
                )
            if before:
                others = {k: v for k, v in _call_defaults(changed).items() if k != key}
                changed.image_processor(images=[PIL.Image.new("RGB", _TRIED)], **others)
        except UsageError:
            raise
        except Exception as error:  # validators of transformers and processors raise what they like
            raise UsageError(
                asked=asked,
                found=f"{type(error).__name__}: {' '.join(str(error).split())}",
                do="give a value that the model's image processor takes",
            ) from None


def leave_to_pictures(plain: Any, processor: Any, given: Iterable[str]) -> None:
    """Take from the tokenizer what was meant for pictures alone.

    transformers gives a processor's settings to all of its parts, and asks the tokenizer for
    pictures' settings at every call, which warns of limits of pixels each time. What a processor
    has a default of its own for stays: asking the tokenizer is how transformers comes by another.
    """
    kept = _call_defaults(processor)
    before = getattr(getattr(plain, "tokenizer", plain), "init_kwargs", {})
    after = getattr(getattr(processor, "tokenizer", processor), "init_kwargs", {})
    for key in given:
        if key not in before and key not in kept:
            after.pop(key, None)


def _call_defaults(processor: Any) -> dict[str, Any]:
    """Return what a processor gives its image processor at every call, unless told otherwise."""
    found = getattr(processor, "images_kwargs", None)
    if found is None:  # up to transformers 5.12
        kinds = getattr(processor, "valid_processor_kwargs", None)
        found = getattr(kinds, "_defaults", {}).get("images_kwargs")
    return dict(found or {})


def _state(processor: Any) -> dict[str, Any]:
    """Return a processor's settings by name; nothing for a tokenizer."""
    pictures = getattr(processor, "image_processor", None)
    if pictures is None:
        return {}
    plain = (bool, int, float, str, list, dict)
    own = {key: value for key, value in vars(processor).items() if isinstance(value, plain)}
    # What a call gives wins, and is asked of the tokenizer first.
    told = getattr(getattr(processor, "tokenizer", None), "init_kwargs", {})
    called = {key: told.get(key, value) for key, value in _call_defaults(processor).items()}
    return {**own, **pictures.to_dict(), **called}


def picture_settings(processor: Any) -> str:
    """Return what decides how a processor prepares pictures, as text; empty for a tokenizer."""
    return json.dumps(_state(processor), sort_keys=True, default=str)


IMAGE_ONLY: dict[str, type] = {
    "qwen2_vl": ImageOnlyQwen2VLProcessor,
    "qwen2_5_vl": ImageOnlyQwen2_5_VLProcessor,
    "qwen3_vl": ImageOnlyQwen3VLProcessor,
    "qwen3_vl_moe": ImageOnlyQwen3VLProcessor,
    "qwen3_5": ImageOnlyQwen3VLProcessor,
    "qwen3_5_moe": ImageOnlyQwen3VLProcessor,
    "llava_onevision": ImageOnlyLlavaOnevisionProcessor,
    "internvl": ImageOnlyInternVLProcessor,
    "smolvlm": ImageOnlySmolVLMProcessor,
}
"""By family."""

NEEDED: dict[str, tuple[str, ...]] = {"smolvlm": ("num2words",)}
"""What transformers imports for a family's processor, by family: the extra of that name."""
