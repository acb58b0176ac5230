"""Reference models: their quick paths are the real ones."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from narrowtune.core.errors import UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.engine.forward import to_device
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.batches import (
    collate_samples,
    collate_told,
)
from narrowtune.miniature.reference.eyes import SEE, covering, place
from narrowtune.miniature.reference.forward import (
    answer_lengths,
    answer_logits,
    hidden_states,
)
from narrowtune.miniature.reference.schedule import (
    TOLD,
)
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import TASKS
from narrowtune.models.load import load_model


def samples_of_all(split="pretrain"):
    return [task.sample(split, 5, number) for task in TASKS.values() for number in range(2)]


def test_a_folder_is_loaded_like_any_other(loaded):
    assert loaded.processor is not None
    num_parameters = sum(p.numel() for p in loaded.model.parameters())
    assert 2 * num_parameters < 8 * 2**20  # what ships


def test_a_writer_writes_what_the_chat_template_makes(loaded, writer):
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    picture = loaded.model.config.image_token_id
    for sample in samples_of_all():
        row, text = encoder.encode(sample.example()), writer.write(sample.item)
        first = row.input_ids.index(picture)
        last = len(row.input_ids) - row.input_ids[::-1].index(picture)
        assert text.before == row.input_ids[:first]
        # The template ends a turn with a line break, which nothing is learned from.
        length = len(text.after)
        assert text.after == row.input_ids[last:][:length]
        assert text.labels == row.labels[last:][:length]
        assert all(label == -100 for label in row.labels[last:][length:])


def test_frequent_words_and_every_digit_are_one_token(loaded):
    for word in (" letters", " heart", "yes", "no", "red", " image", " shapes", "user", "A"):
        assert len(loaded.tokenizer.encode(word, add_special_tokens=False)) == 1, word
    assert len(loaded.tokenizer.encode("1234", add_special_tokens=False)) == 4


def test_the_quick_forward_pass_is_the_models_own(loaded, writer):
    samples = [TASKS[name].sample("pretrain", 2, 4) for name in ("counting", "forms", "puzzles")]
    encoder = ChatEncoder(loaded.tokenizer, loaded.processor)
    rows = collate([encoder.encode(s.example()) for s in samples], padding_id(loaded.tokenizer))
    batch = to_device(rows, loaded.model.device)
    labels = batch.pop("labels")
    own = collate_samples(samples, writer, padding_id(loaded.tokenizer))
    with torch.no_grad():
        expected = loaded.model(**batch).logits[:, :-1][labels[:, 1:] != -100]
        states = SEE[loaded.family.name](loaded.model, own.pixels)
        found, wanted = answer_logits(
            loaded.model, hidden_states(loaded.model, own, states).last, own.labels
        )
    assert torch.equal(wanted, labels[:, 1:][labels[:, 1:] != -100])
    # Of an overview's values, one in two thousand is rounded to the next of 256.
    rounded = 5e-3 if loaded.family.name == "llava_onevision" else 2e-5
    assert torch.allclose(found, expected, atol=rounded, rtol=1e-4)
    assert expected.std() > 0.01


def test_tokens_that_cover_a_picture_are_those_of_its_places(loaded, writer):
    pixels = collate_samples(samples_of_all()[:1], writer, 0).pixels
    with torch.no_grad():
        number = SEE[loaded.family.name](loaded.model, pixels).shape[1]
    found = covering(loaded.model, torch.arange(number)[None, :, None])[0, :, 0].tolist()
    if loaded.family.name == "llava_onevision":
        # The overview's 64, then rows of eight and their end.
        assert number == 64 + 8 * 9
        assert found == [64 + 9 * row + column for row in range(8) for column in range(8)]
    else:
        assert found == list(range(49))


def test_questions_about_one_picture_are_answered_as_if_asked_alone(loaded, writer):
    samples = [TASKS[name].sample("pretrain", 2, 4) for name in ("charts", "forms", "street")]
    together = collate_samples(samples, writer, padding_id(loaded.tokenizer), questions=3)
    lengths = answer_lengths(together.labels)
    assert len(lengths) == sum(len(sample.questions(3)) for sample in samples) > len(samples)
    with torch.no_grad():
        states = SEE[loaded.family.name](loaded.model, together.pixels)
        found, labels = answer_logits(
            loaded.model, hidden_states(loaded.model, together, states).last, together.labels
        )
        expected = []
        for row, sample in enumerate(samples):
            for item in sample.questions(3):
                alone = collate_samples(
                    [replace(sample, item=item)], writer, padding_id(loaded.tokenizer)
                )
                hidden = hidden_states(loaded.model, alone, states[row : row + 1])
                expected.append(answer_logits(loaded.model, hidden.last, alone.labels))
    assert torch.equal(labels, torch.cat([wanted for _, wanted in expected]))
    assert lengths.tolist() == [len(wanted) for _, wanted in expected]
    assert torch.allclose(found, torch.cat([logits for logits, _ in expected]), atol=2e-5)


def test_questions_about_words_are_answered_as_if_asked_alone(loaded, writer):
    samples = [TASKS[name].sample("pretrain", 2, 4) for name in ("charts", "letters", "street")]
    together = collate_told(samples, writer, padding_id(loaded.tokenizer), questions=3)
    nothing = torch.empty(1, 0, loaded.model.config.get_text_config().hidden_size)
    with torch.no_grad():
        hidden = hidden_states(loaded.model, together, nothing.expand(len(samples), -1, -1))
        found, labels = answer_logits(loaded.model, hidden.last, together.labels)
        expected = []
        for sample in samples:
            for item in sample.questions(3):
                text = writer.write(item)
                ids = [*text.before, *writer.tell(sample), *text.after]
                wanted = [label for label in text.labels if label != -100]
                logits = loaded.model(input_ids=torch.tensor([ids])).logits[0]
                expected.append((logits[-len(wanted) - 1 : -1], torch.tensor(wanted)))
    assert torch.equal(labels, torch.cat([wanted for _, wanted in expected]))
    assert torch.allclose(found, torch.cat([logits for logits, _ in expected]), atol=2e-5)


def test_a_hint_is_how_the_answer_begins(writer):
    for name in ("scenes", "street", "charts", "forms"):
        item = TASKS[name].sample("pretrain", 2, 4).item
        begins = writer.tokenizer.encode(f" {item.answers[0]}", add_special_tokens=False)
        assert writer.write(item).hint == begins[0]


def test_hints_stand_where_answers_begin(writer):
    samples = [TASKS[name].sample("pretrain", 2, 4) for name in ("charts", "scenes", "street")]
    batch = collate_samples(samples, writer, 0, questions=3)
    begins = (batch.labels != -100) & (batch.labels.roll(1, 1) == -100)
    assert bool(((batch.hints != -100) <= begins).all())
    assert int((batch.hints != -100).sum()) > len(samples)


@pytest.mark.parametrize("name", TOLD)
def test_what_is_told_is_enough_to_answer(name):
    """No two pictures that are told alike have different answers to one question."""
    answers = {}
    for sample in TASKS[name].samples("pretrain", 2000, 3):
        words = tuple(sorted(sample.item.tell(random.Random(0)).split(". ")))
        for item in sample.questions(3):
            assert answers.setdefault((words, item.question), item.answers[0]) == item.answers[0]


def test_a_model_begins_with_looking_up(loaded, writer):
    """The word behind the same word is what a head of the second layer looks at first."""
    text = "red circle. blue star. green moon.\nWhat comes after blue"
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    language_model = loaded.model.model.language_model
    language_model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = language_model(input_ids=torch.tensor([ids]), output_attentions=True).attentions[
            1
        ][0, 0, -1]
    language_model.set_attn_implementation("sdpa")
    star = loaded.tokenizer.encode(" star", add_special_tokens=False)[0]
    assert ids[int(weights.argmax())] == star
    assert float(weights.max()) > 0.3


def test_a_model_with_two_axes_begins_with_looking_along_rows_and_columns(loaded):
    if loaded.family.name != "qwen2_5_vl":
        pytest.skip("one axis has no rows")
    language_model = loaded.model.model.language_model
    language_model.set_attn_implementation("eager")
    # Four tokens of text, a picture of seven by seven, three of text; drawn states, as of an
    # untrained tower.
    ids = torch.tensor([loaded.tokenizer.encode("red blue green star", add_special_tokens=False)])
    text = language_model.embed_tokens(ids)[:, :4]
    drawn = torch.randn(1, 49, text.shape[-1], generator=torch.Generator().manual_seed(0))
    states = torch.cat((text, drawn, text[:, :3]), dim=1)
    positions = place(loaded.model, 4, 49, torch.arange(3)[None])
    with torch.no_grad():
        seen = language_model(
            inputs_embeds=states, position_ids=positions, output_attentions=True
        ).attentions
    language_model.set_attn_implementation("sdpa")
    row, column = torch.arange(49) // 7, torch.arange(49) % 7
    for layer, head, axis in ((0, 2, row), (2, 0, column)):
        picture = seen[layer][0, head, 4:53, 4:53]
        same = (axis[:, None] == axis[None, :]).float()
        # The first row and the first columns look at the text before.
        inside = (row > 0) & (column > 1)
        assert float((picture * same).sum(1)[inside].mean()) > 0.8, layer
        # All that stands before it there, not one place alone.
        assert float(picture[48].max()) < 0.4
        # The last token of text looks at the one before.
        assert int(seen[layer][0, head, 55].argmax()) == 54


def test_a_model_with_one_axis_begins_with_looking_at_the_token_above(loaded):
    if loaded.family.name != "llava_onevision":
        pytest.skip("with two axes, heads look along the column")
    language_model = loaded.model.model.language_model
    language_model.set_attn_implementation("eager")
    drawn = torch.randn(1, 60, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = language_model(inputs_embeds=drawn, output_attentions=True).attentions[2][0, 0]
    language_model.set_attn_implementation("sdpa")
    # Eight tokens of a row and its end.
    assert seen[20:].argmax(-1).tolist() == list(range(11, 51))


def test_no_more_questions_are_asked_together_than_there_is_room_for(writer):
    samples = [TASKS["puzzles"].sample("pretrain", 2, number) for number in range(8)]
    batch = collate_samples(samples, writer, 0, questions=6)
    assert batch.after.shape[1] <= 128
    asked = [len(set(row[row < 6].tolist())) for row in batch.question]
    assert min(asked) >= 1
    assert max(asked) > 1


def test_a_batch_holds_what_its_samples_show(writer):
    samples = samples_of_all()[:5]
    batch = collate_samples(samples, writer, 0, labelled_patch=8)
    for row, sample in enumerate(samples):
        image = np.asarray(sample.scene.image)
        assert np.array_equal(batch.pixels[row].permute(1, 2, 0).numpy(), image)
        assert tuple(batch.what[row].tolist()) == sample.scene.patch_labels(8).what
        assert tuple(batch.hue[row].tolist()) == sample.scene.patch_labels(8).hue
        assert tuple(batch.word[row].tolist()) == sample.scene.patch_labels(8).word


def test_an_unknown_architecture():
    with pytest.raises(UsageError, match="choose one of"):
        get_blueprint("alexnet")


def test_the_smaller_one_is_a_part_of_the_one_that_ships():
    blueprint = get_blueprint("qwen2_5_vl_small")
    whole = load_model(str(reference_folder(blueprint.origin.name)), dtype="float32").model
    part = blueprint.build(blueprint.tokenizer(), seed=0)
    kept = blueprint.origin.layers
    layers = part.model.language_model.layers
    assert len(layers) == len(kept) < len(whole.model.language_model.layers)
    for own, layer in zip(layers, kept, strict=True):
        other = whole.model.language_model.layers[layer].state_dict()
        assert all(torch.equal(value, other[name]) for name, value in own.state_dict().items())
    elsewhere = {n: p for n, p in whole.named_parameters() if "language_model.layers." not in n}
    named = dict(part.named_parameters())
    assert len(named) == len(elsewhere) + sum(len(list(own.parameters())) for own in layers)
    assert all(torch.equal(named[name], value) for name, value in elsewhere.items())
    ids = torch.arange(5, 25)[None]
    # What is left is a model of its own, not the whole one.
    with torch.no_grad():
        assert not torch.allclose(part(input_ids=ids).logits, whole(input_ids=ids).logits)
