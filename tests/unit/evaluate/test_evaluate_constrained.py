"""Held to the right form, a model shows what it still knows."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch

from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Example, Image, Message, Text
from narrowtune.engine.generate import generate_greedy, stop_tokens
from narrowtune.engine.trie import TokenTrie
from narrowtune.evaluate.constrained import (
    allowed_answers,
    answer_tries,
    evaluate_constrained,
)
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.tasks import Task
from narrowtune.models.load import LoadedModel, load_model

QUESTIONS = (
    "capital of France",
    "opposite of hot",
    "cat, dog, horse, table, mouse",
    "red?",
    "six",
    "What colour is the square in the picture? Answer with one word, please.",
    "plural of mouse",
)
ANSWERS = ("red", "red square", "blue", "three", "3", "30", "a horse")


@pytest.fixture
def loaded(tiny) -> LoadedModel:
    return load_model(str(tiny("llama")), device="cpu")


@pytest.fixture
def encoder(loaded: LoadedModel) -> ChatEncoder:
    return ChatEncoder(loaded.tokenizer, loaded.processor)


def task(answers: tuple[str, ...] = ANSWERS, options: tuple[str, ...] = (), **kwargs) -> Task:
    items = tuple(
        Example(f"i{n}", (Message("user", (Text(question),)),), (answer,), options)
        for n, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
    )
    fields = {"metric": "exact_match", "mode": "generate", "max_new_tokens": 6, **kwargs}
    return Task(name="t", role="held_out", examples=items, **fields)


def lean_to_a_number(loaded: LoadedModel) -> torch.utils.hooks.RemovableHandle:
    """Make "7" what the model says wherever it may."""
    token = loaded.tokenizer.encode("7", add_special_tokens=False)[-1]
    bias = torch.zeros(loaded.model.get_output_embeddings().weight.shape[0])
    bias[token] = 1e4
    return loaded.model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: logits + bias
    )


def plain_choice(loaded: LoadedModel, ids: list[int], trie: TokenTrie) -> list[int]:
    """Greedy decoding under a trie spelt out: no cache, no padding, no `generate`."""
    taken: list[int] = []
    with torch.no_grad():
        while following := trie.following(taken):
            logits = loaded.model(input_ids=torch.tensor([ids + taken])).logits[0, -1]
            taken.append(max(following, key=lambda token: float(logits[token])))
    return taken


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "qwen2_5_vl"])
def test_choices_are_those_of_plain_greedy_decoding(tiny, family: str):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    tries = answer_tries(loaded, task(), encoder)
    prompts = [encoder.encode_prompt(example.prompt) for example in task().examples]
    found = generate_greedy(
        loaded,
        prompts,
        max_new_tokens=12,
        batch_size=3,
        extra_stop_tokens=encoder.stop_tokens,
        allowed=list(tries.values()),
    )
    for prompt, answer, trie in zip(prompts, found, tries.values(), strict=True):
        assert list(answer.step_ids) == plain_choice(loaded, prompt.input_ids, trie)
        assert answer.stopped
        assert answer.text in ANSWERS


def test_a_free_answer_that_is_allowed_stays(loaded, encoder):
    prompts = [encoder.encode_prompt(example.prompt) for example in task().examples]
    sizes = {"batch_size": 3, "extra_stop_tokens": encoder.stop_tokens}
    free = generate_greedy(loaded, prompts, max_new_tokens=5, **sizes)
    stop = stop_tokens(loaded, encoder.stop_tokens)
    # Each answer's own beginning and a longer one are allowed too.
    answers = [ids for a in free for ids in (a.token_ids, a.token_ids[:2], (*a.token_ids, 40))]
    trie = TokenTrie(answers, stop)
    held = generate_greedy(
        loaded, prompts, max_new_tokens=5, allowed=[trie] * len(prompts), **sizes
    )
    assert [a.step_ids for a in held] == [a.step_ids for a in free]


def test_in_the_right_form_constrained_is_free(loaded, encoder):
    asked = task(max_new_tokens=3)
    said = [item.answer for item in evaluate(loaded, asked, encoder, batch_size=3).items]
    # What the model says as it would be trained on it; other spellings of the same text are lost.
    prompts = [encoder.encode_prompt(example.prompt) for example in asked.examples]
    found = generate_greedy(loaded, prompts, max_new_tokens=3, batch_size=3)
    given = [encoder.encode_answer(asked.examples[0].prompt, text).labels for text in said]
    same = [
        tuple(label for label in labels if label >= 0)[: len(answer.token_ids)] == answer.token_ids
        for labels, answer in zip(given, found, strict=True)
    ]
    right = tuple(text if ok else "red" for text, ok in zip(said, same, strict=True))
    assert len(set(right) - {"red"}) > 1
    known = task(right, max_new_tokens=3)
    free = evaluate(loaded, known, encoder, batch_size=3)
    held = evaluate_constrained(loaded, known, encoder, batch_size=3)
    for ok, before, after in zip(same, free.items, held.items, strict=True):
        assert not ok or before.answer == after.answer
        assert not ok or before.strict == after.strict == 1


def test_what_a_model_that_leans_to_numbers_knows_comes_back(loaded, encoder):
    words = ("red", "red square", "blue", "three", "green", "a dog", "a horse")
    before = evaluate_constrained(loaded, task(words), encoder, batch_size=3)
    # The task is what the model knows where it chooses among its words.
    known = tuple(item.answer for item in before.items)
    asked = task((*known[:-1], next(word for word in words if word != known[-1])))
    assert len(set(known)) > 1
    right = evaluate_constrained(loaded, asked, encoder, batch_size=3).strict.mean
    leaning = lean_to_a_number(loaded)
    free = evaluate(loaded, asked, encoder, batch_size=3)
    held = evaluate_constrained(loaded, asked, encoder, batch_size=3)
    leaning.remove()
    assert all(set(item.answer) == {"7"} for item in free.items)
    assert free.strict.mean == 0
    assert held.strict.mean == right == pytest.approx(6 / 7)
    assert held.valid_format == 1


def test_letters_are_the_most_likely_of_the_items_own(loaded, encoder):
    asked = task(("A",) * 7, ("one", "two", "three"), metric="option_letter")
    assert set(allowed_answers(asked).values()) == {("A", "B", "C")}
    lean_to_a_number(loaded)
    found = evaluate_constrained(loaded, asked, encoder, batch_size=3)
    for example, item in zip(asked.examples, found.items, strict=True):
        ids = encoder.encode_prompt(example.prompt).input_ids
        with torch.no_grad():
            logprobs = loaded.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        first = {
            letter: next(t for t in encoder.encode_answer(example.prompt, letter).labels if t >= 0)
            for letter in "ABC"
        }
        assert item.answer == max(first, key=lambda letter: float(logprobs[first[letter]]))
        assert item.strict == float(item.answer == "A")


def test_items_of_one_task_may_have_options_of_their_own():
    asked = task(("A",) * 7, ("one", "two"), metric="option_letter")
    more = Example("i9", asked.examples[0].messages, ("C",), ("one", "two", "three"))
    both = Task("t", "held_out", "option_letter", "generate", 4, (*asked.examples, more))
    assert allowed_answers(both)["i0"] == ("A", "B")
    assert allowed_answers(both)["i9"] == ("A", "B", "C")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_batch_size(tiny, dtype: torch.dtype):
    loaded = load_model(str(tiny("llama", dtype)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer)
    results = [
        evaluate_constrained(loaded, task(), encoder, batch_size=size).items for size in (1, 2, 7)
    ]
    for items in zip(*results, strict=True):
        assert items[0] == items[1] == items[2] or any(item.tie for item in items)


@pytest.mark.parametrize(
    "family",
    ["llava_onevision", "qwen2_5_vl", "qwen3_vl", "gemma3", "internvl", "smolvlm", "qwen3_5"],
)
def test_pictures_keep_their_items(tiny, family: str):
    loaded = load_model(str(tiny(family)), device="cpu")
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    items = []
    for n, colour in enumerate(["red", "white", "black", "blue", "green"]):
        file = io.BytesIO()
        PIL.Image.new("RGB", (28 + 28 * (n % 2), 28), colour).save(file, "png")
        turn = Message("user", (Image(data=file.getvalue()), Text("Which colour?" * (n + 1))))
        items.append(Example(f"i{n}", (turn,), (colour,)))
    asked = Task("t", "held_out", "exact_match", "generate", 6, tuple(items))
    one, two, five = (
        evaluate_constrained(loaded, asked, encoder, batch_size=size).items for size in (1, 2, 5)
    )
    assert one == two == five
    assert {item.answer for item in one} <= {"red", "white", "black", "blue", "green"}


def test_options_are_constrained_already(loaded, encoder):
    asked = task(("Paris",) * 7, ("Paris", "Kenya"), mode="options")
    free = evaluate(loaded, asked, encoder, batch_size=3)
    assert evaluate_constrained(loaded, asked, encoder, batch_size=3).items == free.items


def test_a_trie_allows_what_leads_to_an_answer():
    trie = TokenTrie([(5, 6), (5,), (7, 8, 9)], stop=(1, 2))
    assert trie.num_steps == 4
    assert set(trie.following(())) == {5, 7}
    assert set(trie.following((5,))) == {6, 1, 2}
    assert trie.following((7, 8)) == (9,)
    assert trie.following((5, 1)) == trie.following((5, 1, 0)) == ()
    logits = torch.arange(10.0)
    assert trie.allow(logits, (5,)).isfinite().nonzero().flatten().tolist() == [1, 2, 6]
    assert torch.equal(trie.allow(logits, (5, 1)), logits)


def test_only_what_was_not_answered_in_the_form_is_asked_again(loaded, encoder):
    lean_to_a_number(loaded)
    first = evaluate(loaded, task(), encoder, batch_size=3)
    # Two of seven items are answered with what is allowed, so that five are asked again.
    kept = [
        item.model_copy(update={"answer": "red", "strict": 1.0}) if n in (0, 4) else item
        for n, item in enumerate(first.items)
    ]
    done: list[int] = []
    held = evaluate_constrained(
        loaded,
        task(),
        encoder,
        batch_size=3,
        free=first.model_copy(update={"items": kept}),
        progress=done.append,
    )
    whole = evaluate_constrained(loaded, task(), encoder, batch_size=3)
    assert not {item.answer for item in first.items} & set(ANSWERS)
    assert sum(done) == 5
    assert [item.id for item in held.items] == [item.id for item in whole.items]
    for n, (after, plain) in enumerate(zip(held.items, whole.items, strict=True)):
        assert after == (kept[n] if n in (0, 4) else plain)
    assert held.strict.mean == pytest.approx(sum(item.strict for item in held.items) / 7)


def test_with_free_answers_in_the_form_nothing_is_asked_again(loaded, encoder):
    held = evaluate_constrained(loaded, task(), encoder, batch_size=3)

    def fail(_: int) -> None:
        pytest.fail("an item was asked again")

    again = evaluate_constrained(loaded, task(), encoder, batch_size=3, free=held, progress=fail)
    assert again.items == held.items
