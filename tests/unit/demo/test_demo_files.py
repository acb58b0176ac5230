from __future__ import annotations

import pytest

from narrowtune.core.config import DataSettings
from narrowtune.core.errors import UsageError
from narrowtune.data.rows import read_rows
from narrowtune.data.splits import find_overlap
from narrowtune.demo.files import DEMO_KINDS, write_demo_data
from narrowtune.demo.keep import KINDS


def read(settings: DataSettings) -> list:
    return read_rows(settings).examples


@pytest.mark.parametrize("skill", ["counting", "pronunciation"])
def test_files_are_read_like_anyones_and_nothing_leaks(tmp_path, skill):
    data = write_demo_data(
        tmp_path, skill=skill, num_train=60, num_validation=20, num_test=30, kinds=(), seed=4
    )
    learn = read(data.skill)
    test = read(data.skill.model_copy(update={"path": data.skill.test_path}))
    assert (len(learn), len(test)) == (80, 30)
    assert data.skill.validation == 0.25
    assert not {row.group for row in learn} & {row.group for row in test}
    assert not find_overlap(learn, test)


def test_every_kind_is_read_with_its_own_settings(tmp_path):
    data = write_demo_data(tmp_path, num_train=8, num_validation=0, num_test=8, kinds=list(KINDS))
    assert [settings.name for settings in data.keep] == list(KINDS)
    for settings in data.keep:
        kind = KINDS[settings.name]
        examples = read(settings)
        assert (settings.metric, settings.mode) == (kind.metric, kind.mode)
        assert len(examples) == len(kind.generate(0))
        assert all(example.group is not None for example in examples)
        assert all(bool(example.options) == (kind.mode == "options") for example in examples)


def test_the_demo_keeps_at_least_four_kinds_and_400_items(tmp_path):
    data = write_demo_data(tmp_path, num_train=8, num_validation=0, num_test=8)
    assert len(data.keep) == len(DEMO_KINDS) >= 4
    assert sum(len(read(settings)) for settings in data.keep) >= 400


def test_few_items_are_of_different_entities(tmp_path):
    data = write_demo_data(tmp_path, num_train=8, num_validation=0, num_test=8, keep_items=50)
    for settings in data.keep:
        assert len({example.group for example in read(settings)}) == 50


def test_what_is_taught_is_not_kept(tmp_path):
    data = write_demo_data(tmp_path, num_train=200, num_validation=0, num_test=50)
    learn = read(data.skill)
    for settings in data.keep:
        assert not find_overlap(learn, read(settings))


def test_the_seed_decides_every_byte(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo_data(tmp_path / name, num_train=20, num_validation=4, num_test=8, seed=seed)
    files = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jsonl"))]
        for name in "abc"
    }
    assert files["a"] == files["b"]
    assert all(one != two for one, two in zip(files["a"], files["c"], strict=True))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"skill": "juggling"}, "does not exist"),
        ({"kinds": ["capitals", "rivers"]}, "does not exist"),
        ({"kinds": ["capitals"], "keep_items": 10_000}, "items"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, asked, message):
    with pytest.raises(UsageError, match=message):
        write_demo_data(tmp_path, num_train=8, num_validation=0, num_test=8, **asked)
