"""scripts/preset_orders.py: when two studies show the same order of arms."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "preset_orders.py"
ARMS = {"low": [1.0, 2.0], "middle": [3.0, 4.0], "high": [9.0, 8.0]}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("preset_orders", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def summary(folder: Path, half, more=None):
    folder.mkdir()
    lost = [
        {"arm": arm, "lost": {"0.5": half[arm], "0.75": (more or half)[arm], "0.9": half[arm]}}
        for arm in half
    ]
    chains = [{"arm": arm, "lost": {"seeds": values}} for arm, values in ARMS.items()]
    text = {"matched": {"chosen": lost}, "settings": {"all skills in a row": chains}}
    (folder / "summary.json").write_text(json.dumps(text), encoding="utf-8")
    return str(folder)


def compare(script, monkeypatch, *folders):
    monkeypatch.setattr(sys, "argv", ["preset_orders.py", *folders])
    script.main()


def test_one_order_at_both_shares_is_the_same(script, tmp_path, monkeypatch, capsys):
    other = {arm: [2 * value for value in values] for arm, values in ARMS.items()}
    whole, quick = summary(tmp_path / "whole", ARMS), summary(tmp_path / "quick", other)
    compare(script, monkeypatch, whole, quick)
    told = capsys.readouterr().out
    assert "3 arms in one order" in told
    assert told.endswith("The same ordering, at 0.5 and 0.75, where it is decided.\n")


def test_one_swap_at_one_share_is_not(script, tmp_path, monkeypatch):
    swapped = {**ARMS, "low": ARMS["middle"], "middle": ARMS["low"]}
    whole = summary(tmp_path / "whole", ARMS)
    quick = summary(tmp_path / "quick", ARMS, more=swapped)
    with pytest.raises(SystemExit, match=r"it differs at 0\.75\."):
        compare(script, monkeypatch, whole, quick)


def test_arms_that_a_seed_misses_decide_nothing(script, tmp_path, monkeypatch, capsys):
    missed = {**ARMS, "high": [0.1, None]}
    whole, quick = summary(tmp_path / "whole", ARMS), summary(tmp_path / "quick", missed)
    compare(script, monkeypatch, whole, quick)
    told = capsys.readouterr().out
    assert "2 arms in one order" in told
    assert "high" in next(line for line in told.splitlines() if "not compared" in line)
    alone = {"low": [1.0, 2.0], "high": [None, 1.0]}
    with pytest.raises(SystemExit, match="Not the same ordering"):
        compare(script, monkeypatch, whole, summary(tmp_path / "alone", alone))
