"""A verdict on scored items, whoever made them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.errors import DataError, EvaluationError, UsageError
from narrowtune.core.results import RunRecord
from narrowtune.pipeline.judge import judge


def scored(folder: Path, name: str, right: int, num_items: int = 400) -> None:
    """Write a task of which the first `right` items are right, as a scorer of one's own does."""
    folder.mkdir(exist_ok=True)
    lines = [{"id": f"{i}", "score": float(i < right)} for i in range(num_items)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def sides(tmp_path):
    """Two models: the second has learned invoices and lost a tenth of the charts."""
    before, after = tmp_path / "before", tmp_path / "after"
    for name, first, second in (("invoices", 40, 200), ("charts", 360, 320), ("forms", 380, 380)):
        scored(before, name, first)
        scored(after, name, second)
    return before, after


def test_what_is_kept_decides_alone_where_no_skill_is_named(sides):
    before, after = sides
    found = judge(before, after, skills=(), budget=1.0)
    # Invoices are a task like others then, and pay for the charts.
    assert found.verdict.outcome == "ship"
    assert found.verdict.learning is None
    assert not any("earn" in reason for reason in found.verdict.reasons)
    (before / "invoices.jsonl").unlink()
    (after / "invoices.jsonl").unlink()
    assert judge(before, after, skills=(), budget=1.0).verdict.outcome == "over_budget"
    assert judge(before, after, skills=(), budget=9.0).verdict.outcome == "ship"


def test_a_skill_must_be_learned(sides):
    before, after = sides
    found = judge(before, after, skills=["invoices"], budget=9.0)
    assert found.verdict.outcome == "ship"
    assert found.verdict.learning.value == pytest.approx(40.0)
    assert found.verdict.forgetting.value == pytest.approx(5.0)
    roles = {task.name: task.role for task in found.tasks}
    assert roles == {"invoices": "target", "charts": "held_out", "forms": "held_out"}
    found = judge(before, after, skills=["invoices"], budget=9.0, min_learning=60.0)
    assert found.verdict.outcome == "not_enough_evidence"
    found = judge(before, after, skills=["invoices"], budget=9.0, budget_task=5.0)
    assert found.verdict.outcome == "over_budget"
    assert found.verdict.worst_task == "charts"


def test_items_of_a_group_count_together(sides):
    before, after = sides
    alone = judge(before, after, skills=["invoices"], budget=6.0).verdict.forgetting
    for folder in (before, after):
        path = folder / "charts.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for number, line in enumerate(lines):
            line["group"] = f"page {number // 40}"
        path.write_text("\n".join(map(json.dumps, lines)))
    together = judge(before, after, skills=["invoices"], budget=6.0).verdict.forgetting
    assert together.value == alone.value
    assert together.upper_bound > alone.upper_bound + 1


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"id": "1"}', "strict"),
        ('{"id": "1", "score": 1.5}', "less than or equal to 1"),
        ('{"id": "1", "score": NaN}', "finite"),
        ('{"id": "", "score": 1}', "id"),
        ("[1]", "the whole line"),
        ("{", "Expecting"),
    ],
)
def test_a_line_that_is_no_item_is_named(sides, line, found):
    before, after = sides
    (before / "charts.jsonl").write_text('{"id": "0", "score": 1}\n\n' + line)
    with pytest.raises(DataError, match=found) as error:
        judge(before, after, skills=(), budget=1.0)
    assert "charts.jsonl, line 3" in error.value.asked


def test_sides_that_do_not_pair_up(sides, tmp_path):
    before, after = sides
    with pytest.raises(UsageError, match="invoice "):
        judge(before, after, skills=["invoice"], budget=1.0)
    scored(after, "charts", 320, 399)
    with pytest.raises(EvaluationError, match="one evaluation only"):
        judge(before, after, skills=(), budget=1.0)
    (after / "charts.jsonl").unlink()
    with pytest.raises(EvaluationError, match="same tasks"):
        judge(before, after, skills=(), budget=1.0)
    with pytest.raises(DataError, match="no such folder"):
        judge(before, tmp_path / "nowhere", skills=(), budget=1.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.jsonl"):
        judge(before, tmp_path / "empty", skills=(), budget=1.0)
    (after / "charts.jsonl").touch()
    with pytest.raises(DataError, match="no line"):
        judge(before, after, skills=(), budget=1.0)


@pytest.mark.parametrize(
    ("flags", "code", "outcome"),
    [
        (["--skill", "invoices", "--budget", "9"], 0, "ship"),
        (["--skill", "invoices"], 3, "over_budget"),
        (["--skill", "invoices", "--budget", "5"], 4, "not_enough_evidence"),
    ],
)
def test_the_command_leaves_with_the_verdict(sides, flags, code, outcome):
    command = ["judge", *map(str, sides), *flags]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == code, done.output
    assert json.loads(done.stdout)["verdict"]["outcome"] == outcome
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code
    assert "charts" in done.output


def test_the_command_says_what_a_run_decided(sides, tmp_path):
    found = judge(*sides, skills=["invoices"], budget=1.0)
    values = dict.fromkeys(("git", "plan", "training", "proof", "delta", "drift", "cost"))
    values |= {"versions": {}, "hardware": {}, "model": {}, "seconds": {}, "data": [], "notes": []}
    values |= {"name": "run", "created": "", "recipe": "sa_proj", "seed": 0}
    record = RunRecord(**values, tasks=found.tasks, verdict=found.verdict)
    (tmp_path / "record.json").write_text(record.model_dump_json())
    done = CliRunner().invoke(app, ["judge", str(tmp_path)])
    assert done.exit_code == 3, done.output
    assert "Over budget" in done.output
    done = CliRunner().invoke(app, ["judge", str(tmp_path), "--json"])
    assert done.exit_code == 3
    # As of two folders: whoever reads it need not know which it was.
    assert json.loads(done.stdout) == json.loads(found.model_dump_json())
    done = CliRunner().invoke(app, ["judge", str(tmp_path), "--budget", "9"])
    assert isinstance(done.exception, UsageError)
    anew = f"narrowtune judge {tmp_path}/before {tmp_path}/after --skill invoices,"
    assert anew in done.exception.do
    done = CliRunner().invoke(app, ["judge", str(tmp_path), "b", "c"])
    assert isinstance(done.exception, UsageError)
    (tmp_path / "record.json").write_text(
        record.model_copy(update={"verdict": None}).model_dump_json()
    )
    done = CliRunner().invoke(app, ["judge", str(tmp_path)])
    assert "not held against a budget" in done.exception.found
