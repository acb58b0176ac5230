"""The training of reference models can be interrupted, and every stage of it learns."""

import json
from dataclasses import replace

import pytest
import torch

from narrowtune.core.errors import UsageError
from narrowtune.miniature.reference import pretrain
from narrowtune.miniature.reference.architectures import get_blueprint
from narrowtune.miniature.reference.batches import (
    Steps,
    draw_samples,
    load_steps,
)
from narrowtune.miniature.reference.optimizers import rate_factor
from narrowtune.miniature.reference.pretrain import Pretraining
from narrowtune.miniature.reference.schedule import (
    TOLD,
    Schedule,
    answering_shares,
    finishing_shares,
    reading_shares,
)
from narrowtune.miniature.registry import tasks_of
from narrowtune.models.load import load_model

TINY = Schedule(
    seeing_steps=3,
    reading_steps=2,
    answering_steps=4,
    finishing_steps=2,
    seeing_batch=6,
    reading_batch=6,
    answering_batch=6,
    finishing_batch=6,
    micro_batches=2,
)


def test_steps_are_the_same_from_wherever_they_start(writer):
    settings = {
        "batch_size": 6,
        "micro_batches": 2,
        "seed": 1,
        "questions": 3,
        "told": False,
        "labelled_patch": 8,
    }
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
    ((_, level),) = finishing_shares()
    assert not skills & set(level)
    assert sum(level.values()) == pytest.approx(1)
    for _, level in reading_shares(Schedule()):
        assert not skills & set(level)
        assert set(level) <= set(TOLD)


def test_words_are_asked_once_letters_are_known():
    schedule = Schedule(seeing_steps=100, word_start=0.4, word_weight=0.3)
    weights = [schedule.word_weight_at("seeing", step) for step in range(100)]
    assert weights == [0.0] * 40 + [0.3] * 60
    assert schedule.word_weight_at("answering", 0) == 0.3


def test_the_rate_rises_stays_and_falls():
    factors = [rate_factor(step, 1000, decay_share=0.25) for step in range(1000)]
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
    "stopped",
    [
        ("seeing", 2),
        ("seeing", 3),
        ("reading", 1),
        ("reading", 2),
        ("answering", 2),
        ("answering", 4),
        ("finishing", 1),
    ],
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
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 1, 2, 1, 2, 3, 4, 1, 2]


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
    done = {"seeing": 3, "reading": 3, "answering": 4, "finishing": 2}
    assert [line["stage"] for line in stages] == [s for s, n in done.items() for _ in range(n)]
    whole = weights(tmp_path / "from_nothing", longer, name)
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, whole[key]), key


def test_all_stages_learn(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "_NUM_CHECKED", 2)
    steps = {"seeing_steps": 12, "reading_steps": 12, "answering_steps": 12}
    # Words are never asked while seeing: their loss would be added in the middle of the stage.
    schedule = replace(TINY, **steps, seeing_rate=1e-2, reading_rate=1e-2, word_start=1.0)
    lines = []
    training = Pretraining(get_blueprint("llava_onevision"), tmp_path, schedule, compiled=False)
    training.run(lines.append, log_every=4)
    for stage in ("seeing", "reading", "answering"):
        losses = [line.loss for line in lines if line.stage == stage]
        assert min(losses[1:]) < losses[0]
    seen = {name.removesuffix(" words") for name in lines[2].accuracy}
    assert seen == {"pages", "reading", "captions", "forms", "diagrams"}
    assert set(lines[5].accuracy) == set(TOLD)
    assert {task.name for task in tasks_of("held_out")} <= set(lines[-1].accuracy)
    again = load_model(str(training.save()))
    assert again.dtype == torch.bfloat16
