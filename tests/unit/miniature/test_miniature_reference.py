"""Reference models: their quick paths are the real ones, and their training can be interrupted."""

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from narrowtune.core.errors import UsageError
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.collate import collate, padding_id
from narrowtune.engine.forward import to_device
from narrowtune.miniature.marks import HUES, WHAT, WRITTEN
from narrowtune.miniature.reference import pretrain
from narrowtune.miniature.reference.architectures import BLUEPRINTS, get_blueprint
from narrowtune.miniature.reference.batches import (
    Steps,
    Writer,
    collate_samples,
    collate_told,
    draw_samples,
    load_steps,
)
from narrowtune.miniature.reference.eyes import SEE
from narrowtune.miniature.reference.forward import (
    PatchHead,
    answer_lengths,
    answer_logits,
    hidden_states,
)
from narrowtune.miniature.reference.losses import (
    answer_loss,
    name_loss,
    place_codes,
    place_loss,
    place_word_loss,
)
from narrowtune.miniature.reference.optimizers import rate_factor
from narrowtune.miniature.reference.pretrain import Pretraining
from narrowtune.miniature.reference.schedule import (
    TOLD,
    Schedule,
    answering_shares,
    reading_shares,
)
from narrowtune.miniature.registry import TASKS, tasks_of
from narrowtune.models.load import load_model

TINY = Schedule(
    seeing_steps=3,
    reading_steps=2,
    answering_steps=4,
    seeing_batch=6,
    reading_batch=6,
    answering_batch=6,
    micro_batches=2,
)


@pytest.fixture(scope="module", params=sorted(BLUEPRINTS))
def loaded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    blueprint = BLUEPRINTS[request.param]
    tokenizer = blueprint.tokenizer()
    blueprint.write(blueprint.build(tokenizer, seed=3), tokenizer, folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def writer(loaded):
    blueprint = BLUEPRINTS[loaded.family.name]
    return Writer(loaded.tokenizer, blueprint.picture, blueprint.placeholder)


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
    assert torch.allclose(found, expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.01


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


def test_places_are_told_by_row_and_column():
    codes = place_codes(6, 3, seed=1)
    directions = torch.linalg.pinv(codes)  # [6, 6]: one state per score
    right = torch.stack([directions[i // 3] + directions[3 + i % 3] for i in range(9)])
    states = torch.cat((50 * right, torch.zeros(4, 6)))[None]  # what follows is not asked
    assert float(place_loss(states, codes)) == pytest.approx(0, abs=1e-3)
    assert float(place_loss(states.flip(1)[:, 4:], codes)) > 5
    assert float(place_loss(0 * states, codes)) == pytest.approx(2 * math.log(3), abs=1e-5)


class Scored(torch.nn.Module):
    """A model whose head scores words by the state's own numbers."""

    def lm_head(self, states):
        return states


def test_places_are_told_in_words():
    words = torch.arange(5)  # upper, middle, lower, left, right
    states = torch.zeros(1, 9, 5)
    for place in range(9):
        states[0, place, [0, 1, 2][place // 3]] = 30
        states[0, place, [3, 1, 4][place % 3]] = 30
    # Two words share a token's probability, but for the one in the middle of both.
    right = float(place_word_loss(Scored(), states, words, 3))
    assert right == pytest.approx(8 / 9 * math.log(2), abs=1e-5)
    assert float(place_word_loss(Scored(), 0 * states, words, 3)) == pytest.approx(math.log(5))
    assert float(place_word_loss(Scored(), states.flip(1), words, 3)) > 5


def test_patches_are_told_in_words_below_their_token():
    # One token over four patches: two show 1, one shows 2, one nothing; 3 has no word of its own.
    labels = torch.tensor([[1, 1, 2, 0]])
    words = torch.tensor([-1, 7, 4, -1])
    states = torch.zeros(1, 1, 8)
    states[0, 0, 7], states[0, 0, 4] = math.log(2), 0.0
    expected = (2 * -math.log(2 / 3) - math.log(1 / 3)) / 3
    assert float(name_loss(Scored(), states, labels, words, 1)) == pytest.approx(expected)
    # Of four tokens, the one at the lower left has the four patches there below it.
    grid = torch.zeros(4, 4, dtype=torch.long)
    grid[2:, :2] = 1
    states = torch.zeros(1, 4, 8)
    states[0, 2, 7] = 30
    assert float(name_loss(Scored(), states, grid.view(1, -1), words, 2)) == pytest.approx(
        0, abs=1e-6
    )


def test_no_more_questions_are_asked_together_than_there_is_room_for(writer):
    samples = [TASKS["puzzles"].sample("pretrain", 2, number) for number in range(8)]
    batch = collate_samples(samples, writer, 0, questions=6)
    assert batch.after.shape[1] <= 128
    asked = [len(set(row[row < 6].tolist())) for row in batch.question]
    assert min(asked) >= 1
    assert max(asked) > 1


def test_every_answer_weighs_the_same_however_long_it_is():
    labels = torch.tensor([[-100, 3, -100, -100], [-100, 1, 2, 0]])
    logits = torch.randn(4, 5, dtype=torch.float64)
    each = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 1, 2, 0]), reduction="none")
    found = answer_loss(logits, torch.tensor([3, 1, 2, 0]), labels)
    assert float(found) == pytest.approx(float(each[0] + each[1:].mean()), abs=1e-6)


def test_patches_are_named_where_they_are():
    head = PatchHead(5, 7, 2, (len(WHAT), len(HUES), len(WRITTEN)))
    states = torch.zeros(1, 56, 5)  # the last of a second view
    with torch.no_grad():
        head.norm = torch.nn.Identity()
        head.classify.weight.zero_()
        head.classify.bias.zero_()
        # The lower left of the four patches below a token says 7 where the token's state is 1.
        width = len(WHAT) + len(HUES) + len(WRITTEN)
        head.classify.weight[2 * width + 7, 0] = 1
        states[0, 7 * 3 + 5, 0] = 1
        what, hue, word = head(states)
    assert what.shape == (1, 196, len(WHAT))
    assert hue.shape == (1, 196, len(HUES))
    assert word.shape == (1, 196, len(WRITTEN))
    row, column = divmod(int(what[0, :, 7].argmax()), 14)
    assert (row, column) == (2 * 3 + 1, 2 * 5)
    assert what.sum() == 1


def test_a_batch_holds_what_its_samples_show(writer):
    samples = samples_of_all()[:5]
    batch = collate_samples(samples, writer, 0, patches=True)
    for row, sample in enumerate(samples):
        image = np.asarray(sample.scene.image)
        assert np.array_equal(batch.pixels[row].permute(1, 2, 0).numpy(), image)
        assert tuple(batch.what[row].tolist()) == sample.scene.patch_labels(8).what
        assert tuple(batch.hue[row].tolist()) == sample.scene.patch_labels(8).hue
        assert tuple(batch.word[row].tolist()) == sample.scene.patch_labels(8).word


def test_steps_are_the_same_from_wherever_they_start(writer):
    settings = {"batch_size": 6, "micro_batches": 2, "seed": 1, "questions": 3, "told": False}
    shares = [(0, {"names": 1.0}), (2, {"street": 1.0, "names": 1.0})]
    every = list(
        load_steps(Steps(writer, 0, shares, first=0, last=4, **settings), in_background=False)
    )
    late = list(
        load_steps(Steps(writer, 0, shares, first=2, last=4, **settings), in_background=True)
    )
    assert len(late) == 2
    for expected, found in zip(every[2:], late, strict=True):
        for left, right in zip(expected, found, strict=True):
            assert torch.equal(left.pixels, right.pixels)
            assert torch.equal(left.after, right.after)


def test_no_sample_comes_twice_and_no_skill_is_asked():
    shares = answering_shares(Schedule())[-1][1]
    drawn = [sample.id for step in range(40) for sample in draw_samples(shares, 8, 0, step)]
    assert len(set(drawn)) == len(drawn)
    skills = {task.name for task in tasks_of("target")}
    for _, level in answering_shares(Schedule()):
        assert not skills & set(level)
        assert sum(level.values()) == pytest.approx(1)
    for _, level in reading_shares(Schedule()):
        assert not skills & set(level)
        assert set(level) <= set(TOLD)


def test_the_rate_rises_stays_and_falls():
    factors = [rate_factor(step, 1000) for step in range(1000)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[99] == factors[700] == 1
    assert factors[-1] == pytest.approx(1 / 250)


def weights(folder, schedule, name, stop_after=None):
    """Train; stop at a line of the log if asked to, as a kill would."""
    training = Pretraining(get_blueprint(name), folder, schedule, compiled=False)

    def report(progress):
        if stop_after == (progress.stage, progress.step):
            raise KeyboardInterrupt

    training.run(report, log_every=1)
    return training.model.state_dict()


@pytest.mark.parametrize(
    "stopped", [("seeing", 2), ("seeing", 3), ("reading", 1), ("reading", 2), ("answering", 2)]
)
def test_what_was_stopped_goes_on_as_if_nothing_had_happened(tmp_path, stopped, monkeypatch):
    monkeypatch.setattr(Pretraining, "_accuracy", lambda *_: {})
    name = "llava_onevision"
    expected = weights(tmp_path / "whole", TINY, name)
    with pytest.raises(KeyboardInterrupt):
        weights(tmp_path / "cut", TINY, name, stopped)
    found = weights(tmp_path / "cut", TINY, name)
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    lines = (tmp_path / "cut" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 1, 2, 1, 2, 3, 4]


def test_other_settings_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "_accuracy", lambda *_: {})
    weights(tmp_path, TINY, "llava_onevision")
    with pytest.raises(UsageError, match="it was started for llava_onevision with"):
        weights(tmp_path, replace(TINY, seeing_rate=1.0), "llava_onevision")


def test_a_first_stage_is_taken_over_and_what_reads_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "_accuracy", lambda *_: {})
    name = "llava_onevision"
    expected = weights(tmp_path / "whole", TINY, name)
    longer = replace(TINY, reading_steps=3)
    training = Pretraining(
        get_blueprint(name), tmp_path / "own", longer, compiled=False, seen_in=tmp_path / "whole"
    )
    assert not torch.equal(training.model.lm_head.weight, expected["lm_head.weight"])
    training.run(lambda _: None, log_every=1)
    stages = [json.loads(line) for line in (tmp_path / "own" / "log.jsonl").open()]
    done = {"seeing": 3, "reading": 3, "answering": 4}
    assert [line["stage"] for line in stages] == [s for s, n in done.items() for _ in range(n)]
    whole = weights(tmp_path / "from_nothing", longer, name)
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_all_stages_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_NUM_CHECKED", 2)
    steps = {"seeing_steps": 12, "reading_steps": 12, "answering_steps": 12}
    schedule = replace(TINY, **steps, seeing_rate=1e-2, reading_rate=1e-2)
    lines = []
    training = Pretraining(get_blueprint("llava_onevision"), tmp_path, schedule, compiled=False)
    training.run(lines.append, log_every=4)
    for stage in ("seeing", "reading", "answering"):
        losses = [line.loss for line in lines if line.stage == stage]
        assert losses[-1] < losses[0]
    assert set(lines[2].accuracy) == {"pages", "reading", "captions", "forms", "diagrams"}
    assert set(lines[5].accuracy) == set(TOLD)
    assert {task.name for task in tasks_of("held_out")} <= set(lines[-1].accuracy)
    again = load_model(str(training.save()))
    assert again.dtype == torch.bfloat16


def test_an_unknown_architecture():
    with pytest.raises(UsageError, match="choose one of"):
        get_blueprint("alexnet")
