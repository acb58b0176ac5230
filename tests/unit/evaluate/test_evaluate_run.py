"""Evaluation asks every item once, scores it, and finds the same whatever the batch."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image
import pytest
import torch

from narrowtune.core.errors import EvaluationError
from narrowtune.core.results import ItemResult
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine.generate import generate_greedy
from narrowtune.evaluate import evaluate as module
from narrowtune.evaluate.cache import ScoreCache
from narrowtune.evaluate.evaluate import evaluate, evaluate_cached, write_items
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import LoadedModel, load_model

QUESTIONS = ["capital of France", "opposite of hot", "cat, dog, horse, table, mouse", "red?", "six"]


@pytest.fixture
def loaded(tiny) -> LoadedModel:
    return load_model(str(tiny("llama")), device="cpu")


@pytest.fixture
def encoder(loaded: LoadedModel) -> ChatEncoder:
    return ChatEncoder(loaded.tokenizer, loaded.processor)


def answers_of(loaded: LoadedModel, encoder: ChatEncoder) -> list[str]:
    prompts = [encoder.encode_prompt(e.prompt) for e in examples(["x"] * 5)]
    found = generate_greedy(loaded, prompts, max_new_tokens=4, batch_size=1)
    return [generation.text for generation in found]


def examples(answers: list[str], **kwargs) -> list[Example]:
    return [
        Example(
            id=f"i{n}",
            messages=(Message("user", (Text(q),)), Message("assistant", (Text(a),))),
            answers=(a,),
            **kwargs,
        )
        for n, (q, a) in enumerate(zip(QUESTIONS, answers, strict=True))
    ]


def task(items: list[Example], **kwargs) -> Task:
    fields = {"metric": "exact_match", "mode": "generate", "max_new_tokens": 4, **kwargs}
    return Task(name="t", role="held_out", examples=tuple(items), **fields)


def test_an_item_is_right_where_the_model_says_its_answer(loaded, encoder):
    said = answers_of(loaded, encoder)
    right = [True, False, True, True, False]
    wanted = [a if ok else "something else" for a, ok in zip(said, right, strict=True)]
    items = examples(wanted)
    result = evaluate(loaded, task(items), encoder, batch_size=2)
    assert [item.answer for item in result.items] == said
    assert [item.strict for item in result.items] == [float(ok) for ok in right]
    assert [item.id for item in result.items] == [e.id for e in items]
    assert [item.question for item in result.items] == QUESTIONS
    assert result.strict.mean == pytest.approx(0.6)
    assert result.strict.stderr > 0
    assert (result.num_items, result.num_groups, result.num_ties) == (5, 5, 0)
    assert not result.from_cache


def test_groups_are_counted_and_make_the_error_larger(loaded, encoder):
    said = answers_of(loaded, encoder)
    items = examples([*said[:3], "x", "x"])
    alone = evaluate(loaded, task(items), encoder, batch_size=5)
    grouped = [Example(e.id, e.messages, e.answers, group="ab"[n > 2]) for n, e in enumerate(items)]
    together = evaluate(loaded, task(grouped), encoder, batch_size=5)
    assert together.num_groups == 2
    assert together.strict.mean == alone.strict.mean
    assert together.strict.stderr > alone.strict.stderr
    assert [item.group for item in together.items] == list("aaabb")


@pytest.mark.parametrize("mode", ["generate", "options"])
def test_the_result_does_not_depend_on_the_batch_size(loaded, encoder, mode):
    items = examples(["Paris"] * 5, options=("Paris", "Kenya", "three animals"))
    results = [
        evaluate(loaded, task(items, mode=mode), encoder, batch_size=size) for size in (1, 2, 5)
    ]
    assert results[0].items == results[1].items == results[2].items


def test_options_are_chosen_by_likelihood(loaded, encoder):
    options = ("Paris", "Kenya")
    items = examples(["Paris"] * 5, options=options)
    result = evaluate(loaded, task(items, mode="options"), encoder, batch_size=4)
    for example, item in zip(items, result.items, strict=True):
        sums = []
        for option in options:
            row = encoder.encode_answer(example.prompt, option)
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([row.input_ids])).logits[0]
            scored = [i for i, label in enumerate(row.labels) if label >= 0]
            logprobs = logits.log_softmax(-1)
            sums.append(sum(float(logprobs[i - 1, row.labels[i]]) for i in scored))
        assert item.answer == options[sums.index(max(sums))]
        assert item.strict == float(item.answer == "Paris")
        assert item.valid_format
    assert {item.answer for item in result.items} <= set(options)


@pytest.mark.parametrize("metric", ["exact_match", "option_letter", "anls"])
def test_only_the_right_option_is_right_however_alike_others_are(loaded, encoder, metric):
    options = ("(0, 1)", "[0, 1]", "(0, 1]")

    def asked(answers, metric="exact_match"):
        chosen = task(examples(answers, options=options), mode="options", metric=metric)
        return evaluate(loaded, chosen, encoder, batch_size=4)

    said = asked(["[0, 1]"] * 5)
    right = asked([item.answer for item in said.items])
    assert right.strict.mean == 1
    other = [options[options.index(item.answer) - 1] for item in said.items]
    wrong = asked(other, metric)
    assert wrong.strict.mean == 0


def test_few_pictures_are_held_where_they_are_large(tiny, monkeypatch):
    loaded = load_model(str(tiny("qwen2_5_vl")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    items = []
    for n in range(5):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (56, 56), (40 * n, 0, 0)).save(buffer, format="PNG")
        turn = Message("user", (Image(data=buffer.getvalue()), Text("What?")))
        said = Message("assistant", (Text("red"),))
        items.append(Example(f"i{n}", (turn, said), ("red",), options=("red", "blue")))
    for mode in ("generate", "options"):
        whole = evaluate(loaded, task(items, mode=mode), encoder, batch_size=8)
        size = encoder.encode_prompt(items[0].prompt).features["pixel_values"].nbytes
        held = []
        name = "generate_greedy" if mode == "generate" else "option_logprobs"
        real = getattr(module, name)

        def counting(loaded, rows, real=real, held=held, **kwargs):
            held.append(len(rows))
            return real(loaded, rows, **kwargs)

        monkeypatch.setattr(module, name, counting)
        monkeypatch.setattr(module, "PIXEL_BYTES", 2 * size)
        parts = evaluate(loaded, task(items, mode=mode), encoder, batch_size=8)
        monkeypatch.undo()
        assert held == [2, 2, 1]
        assert [i.answer for i in parts.items] == [i.answer for i in whole.items]


def test_an_item_that_the_metric_can_not_score_is_refused(loaded, encoder):
    with pytest.raises(EvaluationError):
        evaluate(loaded, task(examples(["no"] * 5), metric="number"), encoder, batch_size=5)


def test_a_picture_is_seen(tiny, monkeypatch):
    loaded = load_model(str(tiny("llava")), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    items = []
    for n, colour in enumerate(["red", "white", "black", "blue"]):
        file = io.BytesIO()
        PIL.Image.new("RGB", (40, 30), colour).save(file, "png")
        turn = Message("user", (Image(data=file.getvalue()), Text("Which colour?")))
        items.append(Example(f"i{n}", (turn,), (colour,)))
    one, four = (
        evaluate(loaded, task(items, max_new_tokens=6), encoder, batch_size=n) for n in (1, 4)
    )
    assert one.items == four.items
    # Few pictures are held at a time, and no item is lost by it.
    monkeypatch.setattr(module, "PICTURES_AT_ONCE", 3)
    seen: list[int] = []
    portions = evaluate(
        loaded, task(items, max_new_tokens=6), encoder, batch_size=3, progress=seen.append
    )
    assert portions.items == one.items
    assert seen == [3, 1]
    assert len({item.answer for item in one.items}) > 1


def test_base_scores_are_computed_once(loaded, encoder, tmp_path: Path, monkeypatch):
    cache = ScoreCache(tmp_path)
    keys = {"cache": cache, "model_fingerprint": "f", "arithmetic": "float32"}
    first = evaluate_cached(loaded, task(examples(["x"] * 5)), encoder, batch_size=2, **keys)
    assert not first.from_cache
    calls = []
    real = module.evaluate
    monkeypatch.setattr(module, "evaluate", lambda *a, **k: calls.append(1) or real(*a, **k))
    renamed = Task("other", "target", "exact_match", "generate", 4, tuple(examples(["x"] * 5)))
    again = evaluate_cached(loaded, renamed, encoder, batch_size=5, **keys)
    assert again.from_cache
    assert (again.name, again.role) == ("other", "target")
    assert again.items == first.items
    assert not calls
    others = [
        {"task": task(examples(["y"] * 5))},
        {"model_fingerprint": "g"},
        {"arithmetic": "bfloat16"},
    ]
    for other in others:
        chosen = other.pop("task", task(examples(["x"] * 5)))
        evaluate_cached(loaded, chosen, encoder, batch_size=2, **{**keys, **other})
    assert len(calls) == 3


@pytest.mark.parametrize("why", ["rotary tables", "bf16"])
def test_scores_that_depend_on_the_batches_are_kept_by_their_size(
    loaded, encoder, tmp_path: Path, monkeypatch, why: str
):
    known = {"cache": ScoreCache(tmp_path), "model_fingerprint": "f", "arithmetic": "float32"}
    chosen = task(examples(["x"] * 5))
    assert not evaluate_cached(loaded, chosen, encoder, batch_size=2, **known).from_cache
    assert evaluate_cached(loaded, chosen, encoder, batch_size=5, **known).from_cache
    if why == "bf16":
        loaded.model.to(torch.bfloat16)
    else:
        monkeypatch.setattr(module, "recomputed_buffers", lambda model: {"rotary_emb.inv_freq"})
    assert not evaluate_cached(loaded, chosen, encoder, batch_size=2, **known).from_cache
    assert evaluate_cached(loaded, chosen, encoder, batch_size=2, **known).from_cache
    assert not evaluate_cached(loaded, chosen, encoder, batch_size=5, **known).from_cache
    assert evaluate_cached(loaded, chosen, encoder, batch_size=5, **known).from_cache


def test_other_code_misses_the_cache(loaded, encoder, tmp_path: Path, monkeypatch):
    known = {"cache": ScoreCache(tmp_path), "model_fingerprint": "f", "arithmetic": "float32"}
    known["batch_size"] = 2
    chosen = task(examples(["x"] * 5))
    assert not evaluate_cached(loaded, chosen, encoder, **known).from_cache
    assert evaluate_cached(loaded, chosen, encoder, **known).from_cache
    monkeypatch.setattr(module, "_code_hash", lambda: "another checkout")
    assert not evaluate_cached(loaded, chosen, encoder, **known).from_cache


def test_the_hash_of_the_code_follows_every_room_that_decides_a_score(tmp_path: Path, monkeypatch):
    for room in ("data", "engine", "evaluate", "report"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "a.py").write_text("one = 1\n", encoding="utf-8")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "evaluate" / "evaluate.py"))
    found = [module._code_hash.__wrapped__()]
    for room in ("report", "data", "engine", "evaluate"):
        (tmp_path / room / "a.py").write_text("one = 2\n", encoding="utf-8")
        found.append(module._code_hash.__wrapped__())
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_another_chat_template_misses_the_cache(loaded, encoder, tmp_path: Path):
    keys = {"cache": ScoreCache(tmp_path), "model_fingerprint": "f", "arithmetic": "float32"}
    chosen = task(examples(["x"] * 5))
    evaluate_cached(loaded, chosen, encoder, batch_size=5, **keys)
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("assistant", "helper")
    other = ChatEncoder(loaded.tokenizer)
    assert not evaluate_cached(loaded, chosen, other, batch_size=5, **keys).from_cache


def test_a_damaged_score_is_computed_anew(loaded, encoder, tmp_path: Path, caplog):
    keys = {"cache": ScoreCache(tmp_path), "model_fingerprint": "f", "arithmetic": "float32"}
    chosen = task(examples(["x"] * 5))
    first = evaluate_cached(loaded, chosen, encoder, batch_size=5, **keys)
    [path] = tmp_path.rglob("*.json")
    path.write_text(path.read_text().replace('"strict": {"mean": ', '"strict": {"mean": 0'))
    again = evaluate_cached(loaded, chosen, encoder, batch_size=5, **keys)
    assert not again.from_cache
    assert again.items == first.items
    assert "damaged" in caplog.text
    assert evaluate_cached(loaded, chosen, encoder, batch_size=5, **keys).from_cache


def test_items_come_back_from_their_file_as_they_were(loaded, encoder, tmp_path: Path):
    items = evaluate(loaded, task(examples(["x"] * 5)), encoder, batch_size=5).items
    odd = items[0].model_copy(update={"answer": "a\u2028b\u0085c\nd \N{SNOWMAN}"})
    path = tmp_path / "before" / "t.jsonl"
    write_items([odd, *items[1:]], path)
    # Not splitlines(): an answer may hold U+2028 and the like, which JSON leaves as they are.
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    assert [ItemResult.model_validate_json(line) for line in lines] == [odd, *items[1:]]
    assert rest == ""
    assert [p.name for p in path.parent.iterdir()] == ["t.jsonl"]
