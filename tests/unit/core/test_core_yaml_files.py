"""Settings as YAML: numbers as people write them, and texts that stay texts."""

import pytest
import yaml

from narrowtune.cli.settings import run_settings
from narrowtune.core.config import load_config
from narrowtune.core.yaml_files import dump_yaml, parse_yaml

RUN = "model: m\nskill: s.jsonl\n"


@pytest.mark.parametrize("text", ["1e-6", "-1e6", "+2E3", "1.e+2", ".5e1", "1.5e3", "1.0e-6"])
def test_powers_of_ten_are_numbers(text):
    assert parse_yaml(text) == float(text)
    assert isinstance(parse_yaml(text), float)


@pytest.mark.parametrize("text", ["'1e-6'", "e6", "1e", "1e-", "v1e6", "1e6 tokens", "0x1e6z"])
def test_other_texts_are_not(text):
    assert parse_yaml(text) == yaml.safe_load(text)
    assert isinstance(parse_yaml(text), str)


@pytest.mark.parametrize("text", ["3", "0.5", "yes", "null", ".inf", "2026-01-01", "[a, {b: 1}]"])
def test_all_else_is_as_it_was(text):
    assert parse_yaml(text) == yaml.safe_load(text)


def test_what_is_written_is_read_back():
    values = {"text": ["1e-6", "2E3", "a"], "number": [1e-6, 1e30, 0.5], "more": {"1e5": None}}
    text = dump_yaml(values)
    assert parse_yaml(text) == values
    assert yaml.safe_load(text) == values  # as a narrowtune from before does
    assert list(parse_yaml(text)) == list(values)


def test_free_settings_are_numbers_in_files_and_behind_set(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(RUN + "training:\n  lr_scheduler_kwargs: {min_lr: 1e-6}\n")
    assert load_config(path).training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    path.write_text(RUN)
    for pair in ("lr_scheduler_kwargs={min_lr: 1e-6}", "lr_scheduler_kwargs.min_lr=1e-6"):
        found = run_settings(path, {}, [f"training.{pair}"])
        assert found.training.lr_scheduler_kwargs == {"min_lr": 1e-6}
