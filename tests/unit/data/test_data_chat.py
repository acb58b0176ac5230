"""Only what the assistant says is labelled: every family, every layout, whatever users type."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AddedToken, AutoTokenizer

from narrowtune.core.errors import DataError, UsageError
from narrowtune.data.chat import ChatEncoder, Encoded
from narrowtune.data.collate import IGNORE_INDEX
from narrowtune.data.examples import Example, Image, Message, RowError, Text
from narrowtune.data.images import open_image
from narrowtune.data.literals import SpecialTokens
from narrowtune.data.rows import Rows
from narrowtune.models.load import LoadedModel, load_model
from tiny_models import FAMILIES, VISION_FAMILIES
from tiny_tokenizers import byte_level, chatml_tokenizer

END_OF_TURN = {
    "llama": "<|eot_id|>",
    "mistral": "</s>",
    "qwen2": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_moe": "<|im_end|>",
    "mixtral": "<|im_end|>",
    "gemma3_text": "<end_of_turn>",
    "granite": "<|im_end|>",
    "olmo2": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "phi3": "<|end|>",
    "llava": "</s>",
    "llava_next": "</s>",
    "llava_onevision": "<|im_end|>",
    "qwen2_vl": "<|im_end|>",
    "qwen2_5_vl": "<|im_end|>",
    "qwen3_vl": "<|im_end|>",
    "qwen3_vl_moe": "<|im_end|>",
    "qwen3_5": "<|im_end|>",
    "qwen3_5_moe": "<|im_end|>",
    "qwen3_5_text": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "internvl": "<|im_end|>",
    "idefics3": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
}
PLACEHOLDER = {
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "idefics3", "smolvlm"), "<image>"),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        "<|image_pad|>",
    ),
    "gemma3": "<start_of_image>",
    "internvl": "<IMG_CONTEXT>",
}
THOUGHT = "<think>\n\n</think>\n\n"
TEXT_FAMILIES = tuple(family for family in FAMILIES if family not in VISION_FAMILIES)

Loaded = Callable[[str], LoadedModel]


def _encoder(model: LoadedModel, **options: Any) -> ChatEncoder:
    return ChatEncoder(model.tokenizer, model.processor, **options)


def _labelled(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of each run of labelled tokens."""
    assert len(encoded.input_ids) == len(encoded.labels)
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORE_INDEX, token)
    runs = itertools.groupby(encoded.labels, key=lambda label: label != IGNORE_INDEX)
    return [tokenizer.decode(list(run)).lstrip(" ") for is_answer, run in runs if is_answer]


def _answer(family: str, text: str) -> str:
    return (THOUGHT if family == "qwen3" else "") + text + END_OF_TURN[family]


def _turn(role: str, *parts: str | Image) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def _example(*messages: Message) -> Example:
    return Example("x", messages, (messages[-1].text,))


LAYOUTS: dict[str, dict[str, Any]] = {
    "messages": {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "A square."},
        ]
    },
    "blocks": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
        ]
    },
    "conversations": {
        "conversations": [
            {"from": "human", "value": "What is it?"},
            {"from": "gpt", "value": "A square."},
        ]
    },
    "prompt": {"prompt": "What is it?", "completion": "A square."},
    "question": {"question": "What is it?", "answer": "A square."},
    "instruction": {"instruction": "What", "input": "is it?", "output": "A square."},
    "query": {"query": "What is it?", "response": "A square."},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_answer_is_labelled_for_every_layout(
    family: str,
    loaded: Loaded,
    read: Callable[..., Rows],
    tmp_path: Path,
    png: Callable[..., bytes],
) -> None:
    model = loaded(family)
    encoder = _encoder(model)
    (tmp_path / "a.png").write_bytes(png(40, 30))
    rows = list(LAYOUTS.values())
    if family in VISION_FAMILIES:
        rows += [{**row, "image": "a.png"} for row in rows]
        tagged = [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "A square."},
        ]
        rows.append({"conversations": tagged, "image": ["a.png"]})
    examples = read(*rows).examples
    assert len(examples) == len(rows)
    for example in examples:
        encoded = encoder.encode(example)
        assert _labelled(model.tokenizer, encoded) == [_answer(family, "A square.")]
        assert bool(example.images) == ("pixel_values" in encoded.features)
    assert encoder.num_prefix_mismatches == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_is_labelled_and_the_system_turn_is_not(family: str, loaded: Loaded) -> None:
    model = loaded(family)
    turns = [
        _turn("system", "Be brief."),
        _turn("user", "One?"),
        _turn("assistant", "yes 1"),
        _turn("user", "Two?"),
        _turn("assistant", "no 2"),
    ]
    encoded = _encoder(model).encode(_example(*turns))
    # LLaVA-1.5's template ends no turn: only the last one gets the end of the text.
    first = "yes 1" + ("" if family == "llava" else END_OF_TURN[family])
    assert _labelled(model.tokenizer, encoded) == [first, _answer(family, "no 2")]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_that_is_not_learned_has_no_labels_and_all_its_tokens(
    family: str, loaded: Loaded
) -> None:
    model = loaded(family)
    turns = [
        _turn("user", "One?"),
        _turn("assistant", "yes 1"),
        _turn("user", "Two?"),
        _turn("assistant", "no 2"),
    ]
    whole = _encoder(model).encode(_example(*turns))
    turns[1] = replace(turns[1], is_learned=False)
    encoded = _encoder(model).encode(_example(*turns))
    assert encoded.input_ids == whole.input_ids
    assert _labelled(model.tokenizer, encoded) == [_answer(family, "no 2")]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ends_a_turn_ends_an_answer(family: str, loaded: Loaded) -> None:
    model = loaded(family)
    found = _encoder(model).stop_tokens
    assert model.tokenizer.convert_ids_to_tokens(list(found)) == [END_OF_TURN[family]]


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_tokens_are_those_of_transformers(family: str, loaded: Loaded) -> None:
    tokenizer = loaded(family).tokenizer
    turns = [
        _turn("user", "What is 1 2 ?"),
        _turn("assistant", "three"),
        _turn("user", "é 猫\n\n?"),
    ]
    messages = [{"role": m.role, "content": m.text} for m in turns]
    answer = {"role": "assistant", "content": "It is red."}
    encoder = ChatEncoder(tokenizer)
    whole = encoder.encode(_example(*turns, _turn("assistant", "It is red.")))
    assert whole.input_ids == tokenizer.apply_chat_template([*messages, answer])["input_ids"]
    prompt = encoder.encode_prompt(turns)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt.input_ids == expected["input_ids"]
    assert set(prompt.labels) == {IGNORE_INDEX}


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_tokens_and_features_are_those_of_the_processor(
    family: str, loaded: Loaded, png: Callable[..., bytes]
) -> None:
    model = loaded(family)
    pictures = [Image(data=png(40, 30)), Image(data=png(20, 60, "blue"))]
    encoded = _encoder(model).encode_prompt([_turn("user", *pictures, "Same?")])
    opened = [open_image(picture) for picture in pictures]
    blocks = [*({"type": "image", "image": picture} for picture in opened)]
    expected = model.processor.apply_chat_template(
        [{"role": "user", "content": [*blocks, {"type": "text", "text": "Same?"}]}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert encoded.input_ids == expected["input_ids"][0].tolist()
    if "pixel_attention_mask" in expected:
        assert encoded.features["pixel_attention_mask"].dtype == torch.bool
    for name in set(expected) - {"input_ids", "attention_mask", "mm_token_type_ids"}:
        assert (encoded.features[name] == expected[name]).all(), name
    if "mm_token_type_ids" in expected:
        kinds = expected["mm_token_type_ids"][0]
        assert (encoded.features["mm_token_type_ids"] == kinds).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_text_are_text(
    family: str, loaded: Loaded, png: Callable[..., bytes]
) -> None:
    model = loaded(family)
    tokenizer, encoder = model.tokenizer, _encoder(model)
    names = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    names += ["<image>", "<|image_pad|>", "<|im_end|>", "</s>", "<|im_<|im_end|>end|>"]
    typed = "a " + " b ".join(names) + "".join(names) + " c"
    parts: list[str | Image] = [typed]
    if family in VISION_FAMILIES:
        parts = [Image(data=png(40, 30)), typed]
    hostile = [_turn("user", *parts), _turn("assistant", f"no {typed}")]
    harmless = [_turn("user", *parts[:-1], "a"), _turn("assistant", "no")]
    encoded = encoder.encode(_example(*hostile))
    plain = encoder.encode(_example(*harmless))
    specials = {tokenizer.convert_tokens_to_ids(name) for name in names}
    specials -= {tokenizer.unk_token_id, None}
    for ids, expected in ((encoded.input_ids, plain.input_ids), (encoded.labels, plain.labels)):
        found = [i for i in ids if i in specials]
        assert found == [i for i in expected if i in specials]
    assert _labelled(tokenizer, encoded) == [_answer(family, f"no {typed}")]
    assert tokenizer.decode(encoded.input_ids).count(typed) == 2
    prompt = encoder.encode_prompt(hostile[:1]).input_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoder.num_prefix_mismatches == 0


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_typed_placeholder_never_takes_a_picture(
    family: str, loaded: Loaded, png: Callable[..., bytes]
) -> None:
    model = loaded(family)
    name = PLACEHOLDER[family]
    encoder = _encoder(model)
    picture = Image(data=png(40, 30))
    place = model.tokenizer.convert_tokens_to_ids(name)
    honest = encoder.encode_prompt([_turn("user", "before", picture, "after")])
    typed = encoder.encode_prompt(
        [_turn("user", f"before {name}", picture, f"{name} after {name}")]
    )
    assert typed.input_ids.count(place) == honest.input_ids.count(place) > 0
    assert typed.features.keys() == honest.features.keys()
    text = model.tokenizer.decode(typed.input_ids)
    assert f"before {name}" in text
    assert f"{name} after {name}" in text
    alone = encoder.encode_prompt([_turn("user", f"no picture {name}")])
    assert place not in alone.input_ids
    assert not alone.features


@pytest.mark.parametrize("question", ["\n\nWhat?", "\nWhat? ", " \n\n\n what <bos>?", "What?"])
def test_line_breaks_that_a_processor_writes_may_join_those_of_the_text(
    question: str, loaded: Loaded, png: Callable[..., bytes]
) -> None:
    model = loaded("gemma3")
    # This template trims what users write; those of others keep it.
    template = str(model.processor.chat_template).replace("b['text'] | trim", "b['text']")
    model.processor.chat_template = template
    try:
        encoder = _encoder(model)
        pictures = [Image(data=png(40, 30)), Image(data=png(20, 60, "blue"))]
        turns = [
            _turn("system", "Look."),
            _turn("user", "One:\n", pictures[0], question),
            _turn("assistant", "no"),
            _turn("user", "Two:", pictures[1], question),
        ]
        whole = encoder.encode(_example(*turns, _turn("assistant", "\nred ")))
        # The answer's line break is in one token with the template's, which is learned whole.
        answers = [_answer("gemma3", "no"), _answer("gemma3", "\n\nred ")]
        assert _labelled(model.tokenizer, whole) == answers
        prompt = encoder.encode_prompt(turns).input_ids
        assert whole.input_ids[: len(prompt)] != prompt
        assert encoder.num_prefix_mismatches == 1
        encoder = _encoder(model)
        whole = encoder.encode(_example(*turns, _turn("assistant", "red")))
        assert whole.input_ids[: len(prompt)] == prompt
        assert encoder.num_prefix_mismatches == 0
        kinds = whole.features["token_type_ids"]
        soft = encoder.image_token_id
        assert kinds.tolist() == [int(token == soft) for token in whole.input_ids]
        assert kinds.sum() == 2 * 16
        assert question.strip() in model.tokenizer.decode(whole.input_ids)
    finally:
        model.processor.chat_template = template.replace("b['text']", "b['text'] | trim")


def test_an_older_transformers_says_what_is_missing(
    loaded: Loaded, png: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded("gemma3")
    kind = type(model.processor)
    plain = kind.__call__

    def older(*args: Any, return_text_replacement_offsets: bool = False, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    monkeypatch.setattr(kind, "__call__", older)
    turns = [_turn("user", Image(data=png(40, 30)), "a"), _turn("assistant", "b")]
    with pytest.raises(DataError, match=r"install transformers 5\.12 or newer"):
        _encoder(model).encode(_example(*turns))


def test_a_special_token_in_two_pieces_is_refused(
    loaded: Loaded, png: Callable[..., bytes]
) -> None:
    turns = [_turn("user", "<|im_", "end|>"), _turn("assistant", "x")]
    with pytest.raises(RowError, match="together with its surroundings"):
        _encoder(loaded("qwen2_5_vl")).encode(_example(*turns))
    turns[0] = _turn("user", Image(data=png()), "<|image_", "pad|>")
    with pytest.raises(RowError, match="2 places for 1 pictures"):
        _encoder(loaded("qwen2_5_vl")).encode(_example(*turns))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_and_answer_agree(family: str, loaded: Loaded, png: Callable[..., bytes]) -> None:
    model = loaded(family)
    encoder = _encoder(model)
    parts: list[str | Image] = ["What is it?"]
    if family in VISION_FAMILIES:
        parts = [Image(data=png(60, 20)), "What is it?"]
    turns = [_turn("user", *parts), _turn("assistant", "first"), _turn("user", "And now?")]
    prompt = encoder.encode_prompt(turns)
    for answer in ("a", " b", "3", "é", "[x]", "\nline"):
        whole = encoder.encode(_example(*turns, _turn("assistant", answer)))
        given = encoder.encode_answer(turns, answer)
        assert given.input_ids == whole.input_ids
        first = next(i for i, label in enumerate(given.labels) if label != IGNORE_INDEX)
        assert given.labels[first:] == whole.labels[first:]
        same = prompt.input_ids == given.input_ids[:first]
        # A line break may join those of the template to one token: then the prefix differs.
        assert same or answer == "\nline"
        assert encoder.num_prefix_mismatches == (not same)
        for name, value in prompt.features.items():
            rows = len(prompt.input_ids) if name == "mm_token_type_ids" else len(value)
            assert (value == given.features[name][:rows]).all()


def test_a_prefix_mismatch_is_counted() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
    )
    encoder = ChatEncoder(tokenizer)
    encoded = encoder.encode(_example(_turn("user", "a"), _turn("assistant", "b")))
    assert encoder.num_prefix_mismatches == 1
    assert _labelled(tokenizer, encoded) == ["b<|im_end|>"]


def test_a_special_token_that_swallows_an_answers_first_space_is_not_learned() -> None:
    tokenizer = chatml_tokenizer()
    token = AddedToken("<|assistant|>", special=True, rstrip=True, normalized=False)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|assistant|>' if m['role'] == 'assistant' else m['role'] }}"
        "{{ '\n' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    encoder = ChatEncoder(tokenizer)
    for answer in (" b", "b"):
        encoded = encoder.encode(_example(_turn("user", "a"), _turn("assistant", answer)))
        assert tokenizer.convert_tokens_to_ids("<|assistant|>") in encoded.input_ids
        assert _labelled(tokenizer, encoded) == ["b<|im_end|>"]
    assert encoder.num_prefix_mismatches == 0


def test_onevision_answers_follow_the_generation_prompt(loaded: Loaded) -> None:
    model = loaded("llava_onevision")
    encoder = _encoder(model)
    encoded = encoder.encode(_example(_turn("user", "a"), _turn("assistant", "b")))
    assert model.tokenizer.decode(encoded.input_ids).endswith("assistant\nb<|im_end|>")
    assert encoder.num_prefix_mismatches == 0
    assert "generation prompt is used" in encoder.notes[0]


def test_a_mark_that_the_tokenizer_can_not_spell_stands_for_no_picture(tiny: Any) -> None:
    """SmolVLM's processor names a token for videos, which is the unknown one without them."""
    model = load_model(str(tiny("smolvlm")), device="cpu")
    model.tokenizer.unk_token = "<end_of_utterance>"
    specials = SpecialTokens(model.tokenizer, model.processor)
    assert specials.placeholders == {model.tokenizer.convert_tokens_to_ids("<image>")}
    assert specials.end_of_turn("<end_of_utterance>\n") == len("<end_of_utterance>")


def test_the_end_of_turn_may_be_the_pad_token() -> None:
    """SmolLM2: pad is <|im_end|>, a default system turn, no generation marks."""
    tokenizer = chatml_tokenizer(pad="<|im_end|>")
    tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    encoded = ChatEncoder(tokenizer).encode(_example(_turn("user", "a"), _turn("assistant", "b")))
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _labelled(tokenizer, encoded) == ["b<|im_end|>"]
    assert tokenizer.decode(encoded.input_ids).startswith("<|im_start|>system\nYou help.")
    assert encoded.labels[-1] == IGNORE_INDEX


def test_the_template_settings_are_passed_on(loaded: Loaded) -> None:
    tokenizer = loaded("qwen3").tokenizer
    turns = [_turn("user", "a")]
    encoder = ChatEncoder(tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(encoder.encode_prompt(turns).input_ids).endswith(THOUGHT)
    assert _labelled(tokenizer, encoder.encode_answer(turns, "b")) == ["b<|im_end|>"]
    assert encoder.num_prefix_mismatches == 0
    with pytest.raises(UsageError, match="enable_thoughts"):
        ChatEncoder(tokenizer, chat_template_kwargs={"enable_thoughts": False})


def test_a_thought_in_the_answer_is_found_by_prefix() -> None:
    """A template that takes answers apart, as Qwen3's does, still gives exact labels."""
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if '</think>' in m['content'] %}"
        "{{ '<think>' + m['content'].split('</think>')[0].split('<think>')[-1] | trim }}"
        "{{ '</think>\n' }}"
        "{{ m['content'].split('</think>')[-1] | trim }}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    turns = [
        _turn("user", "a"),
        _turn("assistant", "<think> hm </think> one <|im_end|>"),
        _turn("user", "b"),
        _turn("assistant", "<think>so</think>\n\ntwo"),
    ]
    encoded = ChatEncoder(tokenizer).encode(_example(*turns))
    assert _labelled(tokenizer, encoded) == [
        "<think>hm</think>\none <|im_end|><|im_end|>",
        "<think>so</think>\ntwo<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}"
            "{% endif %}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
            "no system turns",
        ),
        (
            "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + eos_token }}"
            "{% endfor %}",
            "leaves out or repeats",
        ),
        (
            "{% for m in messages %}{{ m['content'] | upper + eos_token }}"
            "{% if loop.last %}{{ loop.length }}{% endif %}{% endfor %}",
            "changes the text",
        ),
    ],
)
def test_what_a_template_does_not_take_is_refused(template: str, reason: str) -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = template
    turns = [_turn("system", "s"), _turn("user", "a"), _turn("assistant", "b")]
    with pytest.raises(RowError, match=reason) as error:
        ChatEncoder(tokenizer).encode(Example("the-id", tuple(turns), ("b",), row=12))
    assert (error.value.id, error.value.row) == ("the-id", 12)
    assert error.value.refused("f.jsonl").row == 12


def test_pictures_need_a_place(loaded: Loaded, png: Callable[..., bytes]) -> None:
    turns = [_turn("user", Image(data=png()), "a"), _turn("assistant", "b")]
    with pytest.raises(RowError, match="it has pictures, and this model reads none"):
        _encoder(loaded("qwen2")).encode(_example(*turns))


def test_a_picture_that_the_processor_refuses(loaded: Loaded, png: Callable[..., bytes]) -> None:
    turns = [_turn("user", Image(data=png(4000, 2)), "a"), _turn("assistant", "b")]
    with pytest.raises(RowError, match="does not accept the pictures"):
        _encoder(loaded("qwen2_5_vl")).encode(_example(*turns))


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl"])
def test_max_length_is_an_error(family: str, loaded: Loaded, png: Callable[..., bytes]) -> None:
    model = loaded(family)
    parts: list[str | Image] = ["a"] if model.processor is None else [Image(data=png(80, 80)), "a"]
    example = _example(_turn("user", *parts), _turn("assistant", "b"))
    length = len(_encoder(model).encode(example).input_ids)
    assert len(_encoder(model, max_length=length).encode(example).input_ids) == length
    short = _encoder(model, max_length=length - 1)
    with pytest.raises(RowError, match=f"{length} tokens, and max_length is {length - 1}"):
        short.encode(example)
    with pytest.raises(RowError, match="max_length"):
        _encoder(model, max_length=3).encode_prompt(example.prompt)


def test_a_model_without_a_template_is_an_error() -> None:
    tokenizer = byte_level(["<eos>"], eos_token="<eos>")
    with pytest.raises(DataError, match="no chat template"):
        ChatEncoder(tokenizer)
    tokenizer.chat_template = "{{ 'hello' }}"
    with pytest.raises(DataError, match="neither text nor content blocks"):
        ChatEncoder(tokenizer)


def test_no_end_of_turn_anywhere_is_refused() -> None:
    tokenizer = byte_level(["<x>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    )
    with pytest.raises(RowError, match="end of turn"):
        ChatEncoder(tokenizer).encode(_example(_turn("user", "a"), _turn("assistant", "b")))


def test_offsets_that_leave_spaces_out(tmp_path: Path, loaded: Loaded) -> None:
    """GPT-2's post-processor trims spaces from offsets; labels must be the same without it."""
    tokenizer = loaded("qwen2").tokenizer
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    file.write_text(json.dumps(content), encoding="utf-8")
    trimmed = AutoTokenizer.from_pretrained(tmp_path)
    # The prompt ends in a space that is a token of its own, with no characters once trimmed.
    spaced = chatml_tokenizer()
    spaced.chat_template = trimmed.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    ends = _example(_turn("user", "a"), _turn("assistant", " what"))
    assert ChatEncoder(trimmed).encode(ends) == ChatEncoder(spaced).encode(ends)
    assert _labelled(spaced, ChatEncoder(spaced).encode(ends)) == ["what<|im_end|>"]
    trimmed.chat_template = tokenizer.chat_template
    example = _example(_turn("user", "a  b"), _turn("assistant", "   what  is <|im_end|> it  "))
    assert ChatEncoder(trimmed).encode(example) == ChatEncoder(tokenizer).encode(example)


def test_prompts_are_remembered_up_to_the_bytes_allowed(
    loaded: Loaded, png: Callable[..., bytes]
) -> None:
    model = loaded("qwen2_5_vl")
    asked = [
        (Message("user", (Image(data=png(colour=colour)), Text("What?"))),)
        for colour in ("red", "blue")
    ]
    plain = ChatEncoder(model.tokenizer, model.processor)
    first = plain.encode_prompt(asked[0])
    assert plain.encode_prompt(asked[0]) is not first
    size = 44 * len(first.input_ids) + sum(value.nbytes for value in first.features.values())

    one = ChatEncoder(model.tokenizer, model.processor, remembered_bytes=size)
    for prompt in (*asked, *asked):
        found, right = one.encode_prompt(prompt), plain.encode_prompt(prompt)
        assert found.input_ids == right.input_ids
        for name, value in right.features.items():
            assert value.equal(found.features[name])
    assert one.encode_prompt(asked[0]) is one.encode_prompt(asked[0])
    assert one.encode_prompt(asked[1]) is not one.encode_prompt(asked[1])
