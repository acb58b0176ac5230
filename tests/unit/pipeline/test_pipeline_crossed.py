"""An anchor's questions about the pictures that a skill is taught with."""

from __future__ import annotations

import io
import json
from collections import Counter

import PIL.Image
import pytest

from narrowtune.core.config import DriftSettings, parse_config
from narrowtune.core.errors import DataError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.models.load import load_model
from narrowtune.pipeline.crossed import ask_of_skill_pictures, probes_of_skill_pictures
from narrowtune.pipeline.inputs import make_encoder, read_inputs
from narrowtune.pipeline.probes import read_drift_prompts


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), (number, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def row(number: int, question: str = "What time is it?", answer: str | None = "09:15") -> Example:
    turns = [Message("user", (Image(data=png(number)), Text(question)))]
    turns += [Message("assistant", (Text(answer),))] if answer is not None else []
    return Example(f"row {number} {question}", tuple(turns), (answer,) if answer else ())


def encoder_of(folder: str) -> ChatEncoder:
    loaded = load_model(folder, device="cpu")
    return ChatEncoder(loaded.tokenizer, loaded.processor)


@pytest.fixture
def seeing(tiny) -> ChatEncoder:
    return encoder_of(str(tiny("qwen2_5_vl")))


PROMPTS = [row(200 + i, text, None).messages for i, text in enumerate(("what?", "where?", "who?"))]
SKILL = [row(number) for number in range(5)]


def ask(encoder, number=4, *, prompts=PROMPTS, skill=SKILL, asked=SKILL, measured=(), seed=0):
    return ask_of_skill_pictures(
        prompts, skill, number, encoder, asked=asked, measured=list(measured), seed=seed
    )


def pairs(found):
    """Which picture is asked what."""
    return [(message.images[0].data, message.text) for (message,) in found.messages]


def test_general_questions_are_asked_of_the_skills_pictures(seeing):
    asked = pairs(ask(seeing))
    pictures = {each.images[0].data for each in SKILL}
    assert len(asked) == 4
    assert {picture for picture, _ in asked} < pictures
    assert len({picture for picture, _ in asked}) == 4
    assert {text for _, text in asked} == {"what?", "where?", "who?"}


def test_a_picture_is_asked_again_once_all_were_and_no_pair_comes_twice(seeing):
    found = ask(seeing, 100)
    asked = pairs(found)
    assert len(asked) == len(set(asked)) == len(SKILL) * len(PROMPTS)
    assert len({picture for picture, _ in asked[:5]}) == 5
    (note,) = found.notes
    assert "15 of its questions" in note
    assert "where 100 were wanted" in note


def test_the_draw_is_of_the_seed_and_not_of_the_order(seeing):
    first = pairs(ask(seeing, 3))
    for number in range(2, 5):
        reversed_ = ask(seeing, number, skill=SKILL[::-1], prompts=PROMPTS[::-1])
        assert pairs(reversed_) == pairs(ask(seeing, number))
    assert any(pairs(ask(seeing, 3, seed=seed)) != first for seed in range(1, 5))


def test_what_many_prompts_ask_is_asked_as_often(seeing):
    prompts = [row(100 + i, "what?", None).messages for i in range(30)] + PROMPTS[1:]
    skill = [row(number) for number in range(32)]
    asked = Counter(text for _, text in pairs(ask(seeing, 32, prompts=prompts, skill=skill)))
    assert asked == {"what?": 30, "where?": 1, "who?": 1}
    many = pairs(ask(seeing, 1000, prompts=prompts, skill=skill))
    assert len(many) == len(set(many)) == 32 * 3, "no picture is asked the same twice"


def test_what_the_skill_asks_is_not_asked(seeing):
    prompts = [*PROMPTS[:1], row(210, "what  TIME is it?", None).messages]
    assert {text for _, text in pairs(ask(seeing, 10, prompts=prompts))} == {"what?"}
    with pytest.raises(DataError, match="asks something else than the skill"):
        ask(seeing, prompts=prompts[1:])


def test_measured_pictures_are_left_out(seeing):
    asked = pairs(ask(seeing, 100, measured=[row(1, "is it late?"), row(3, "is it late?")]))
    left = {SKILL[number].images[0].data for number in (0, 2, 4)}
    assert {picture for picture, _ in asked} == left
    with pytest.raises(DataError, match="5 pictures, 5 of them measured"):
        ask(seeing, measured=[row(number, "is it late?") for number in range(5)])


def test_pairs_that_fit_nowhere_are_not_all_tried(tiny):
    loaded, tried = load_model(str(tiny("qwen2_5_vl")), device="cpu"), []
    short = ChatEncoder(loaded.tokenizer, loaded.processor, max_length=2)
    encode = short.encode_prompt
    short.encode_prompt = lambda prompt: tried.append(1) or encode(prompt)
    with pytest.raises(DataError, match="that can't be encoded"):
        ask(short, 1, prompts=[row(200, f"what {i}?", None).messages for i in range(90)])
    assert len(tried) < 20


def test_text_alone_gives_nothing_to_ask_about(seeing):
    text = Example(
        "a", (Message("user", (Text("2 + 2?"),)), Message("assistant", (Text("4"),))), ("4",)
    )
    with pytest.raises(DataError, match="no row that the skill is taught with shows one picture"):
        ask(seeing, skill=[text])
    with pytest.raises(DataError, match="no prompt among the anchor's 1 that shows one picture"):
        ask(seeing, prompts=[text.prompt])


def test_a_run_asks_of_its_own_pictures(tiny, tmp_path):
    def write(name, rows):
        path = tmp_path / f"{name}.jsonl"
        lines = []
        for each in rows:
            (tmp_path / f"{abs(hash(each.id))}.png").write_bytes(each.images[0].data)
            made = {"image": f"{abs(hash(each.id))}.png", "question": each.messages[0].text}
            lines.append(json.dumps(made | ({"answer": each.answers[0]} if each.answers else {})))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    prompts = [row(200 + i, text, None) for i, text in enumerate(("what?", "where?"))]
    values = {
        "model": str(tiny("qwen2_5_vl")),
        "skill": {"path": write("skill", [row(number) for number in range(10)])},
        "keep": [{"path": write("keep", [row(100, "who?", "me"), row(101, "who?", "you")])}],
        "anchor": {"prompts": write("prompts", prompts), "skill_pictures": 5},
        "output_dir": str(tmp_path / "run"),
    }
    config = parse_config(values, "this")
    inputs = read_inputs(config, make_encoder(load_model(config.model, device="cpu"), config))
    assert len(inputs.anchor_prompts) == 7
    asked = [Example("", prompt, ()) for prompt in inputs.anchor_prompts[2:]]
    shown = {image for example in asked for image in example.image_hashes}
    assert len(shown) == 5
    assert shown <= {image for example in inputs.learned for image in example.image_hashes}
    assert any("5 of its questions" in note for note in inputs.notes)
    # Without a skill, as a plan for a model alone is made, there is nothing to ask about.
    alone = read_inputs(
        config, make_encoder(load_model(config.model, device="cpu"), config), with_skill=False
    )
    assert len(alone.anchor_prompts) == 2


def test_questions_for_the_probe_that_do_not_fit_are_told(tiny):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    short = ChatEncoder(loaded.tokenizer, loaded.processor, max_length=2)
    found = probes_of_skill_pictures(PROMPTS, SKILL, 4, short, asked=SKILL, seed=0)
    assert found.messages == []
    assert "4 of 4 questions about the skill's pictures" in found.notes[0]
    assert probes_of_skill_pictures(PROMPTS, [], 4, short, asked=SKILL, seed=0).notes == []


def test_drift_is_probed_on_questions_about_the_skills_pictures(tiny, tmp_path):
    folder = str(tiny("qwen2_5_vl"))
    encoder = encoder_of(folder)
    skill = [row(number) for number in range(3)]
    keep = {"keep": [row(100, "who?", "me"), row(101, "who?", "you")]}

    def read(**more):
        settings = DriftSettings.model_validate({"max_prompts": 20, **more})
        asked = [*skill, row(50, "What  colour?")] if more else skill
        return read_drift_prompts(
            settings, encoder, [], keep=keep, skill=skill, asked=asked, seed=0
        )

    found = read()
    names = [name for name, _ in found.prompts]
    assert [names.count(name) for name in dict.fromkeys(names)] == [9, 9, 2]
    assert len(found.about_skill) == 20
    pictures = {each.images[0].data for each in skill}
    assert {message.images[0].data for (message,) in found.about_skill} == pictures
    assert all("time" not in message.text for (message,) in found.about_skill)
    # Of the user's own what asks about a picture; a skill without pictures has none to ask about.
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "Tell me."}\n', encoding="utf-8")
    assert read(prompts=str(own)).about_skill == []
    (tmp_path / "a.png").write_bytes(png(7))
    lines = [{"prompt": text, "image": "a.png"} for text in ("What colour?", "What shape?")]
    own.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    # What is asked in training, though in no tested row, is none of these.
    assert {m.text for (m,) in read(prompts=str(own)).about_skill} == {"What shape?"}
    skill[:] = []
    assert read().about_skill == []
