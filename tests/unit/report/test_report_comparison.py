"""Several runs side by side, and the summary on the terminal."""

from __future__ import annotations

import io
import json
import re

import pytest
from report_runs import write_run
from rich.console import Console

from narrowtune.core.errors import ReportError
from narrowtune.report.build import build_report
from narrowtune.report.comparison import build_comparison
from narrowtune.report.terminal import summary, summary_lines


def test_runs_side_by_side(tmp_path):
    plain, anchored = tmp_path / "runs" / "plain", tmp_path / "runs" / "with anchor"
    write_run(plain, items=20, steps=2)
    write_run(anchored, name="counting <b>anchored</b>", outcome="ship", items=20, steps=2)
    build_report(anchored, gallery=False)
    page = build_comparison([plain, anchored], tmp_path / "runs" / "all")
    html = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r'href="([^"]*)"', html) if not link.startswith("#")]
    assert links == ["../with%20anchor/report.html"]  # plain has no report yet
    assert "counting &lt;b&gt;anchored&lt;/b&gt;" in html
    assert "<b>anchored" not in html
    assert "1 of 2 runs may ship" in html
    assert (page.parent / "plots" / "learning_vs_forgetting.svg").exists()
    values = json.loads((page.parent / "comparison.json").read_text(encoding="utf-8"))
    assert [run["title"] for run in values["runs"]] == ["Over budget", "Ship"]
    assert values["differences"] == ["base scores"]
    rows = (page.parent / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")} == {4}


def test_runs_that_differ_say_so(tmp_path):
    record = write_run(tmp_path / "a", items=5, steps=2)
    write_run(tmp_path / "b", items=5, steps=2)
    other = record.model_copy(update={"seed": 7, "verdict": None, "drift": None})
    (tmp_path / "b" / "record.json").write_text(other.model_dump_json(), encoding="utf-8")
    page = build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert "These runs also differ in seed, budget." in html
    assert "No verdict" in html


def test_runs_without_both_estimates_have_no_chart(tmp_path):
    record = write_run(tmp_path / "a", items=5, steps=2)
    bare = record.model_copy(update={"verdict": None})
    (tmp_path / "a" / "record.json").write_text(bare.model_dump_json(), encoding="utf-8")
    page = build_comparison([tmp_path / "a"], tmp_path / "out")
    assert "learning_vs_forgetting" not in (page.parent / "comparison.md").read_text("utf-8")
    assert not (page.parent / "plots").exists()


def test_nothing_to_compare(tmp_path):
    with pytest.raises(ReportError, match="no run folder"):
        build_comparison([], tmp_path)


def printed(record, **console) -> str:
    output = io.StringIO()
    Console(file=output, width=100, **console).print(summary(record))
    return output.getvalue()


def test_terminal_summary_has_colours_on_terminals_only(tmp_path):
    record = write_run(tmp_path, items=20, steps=1, name="x")
    text = printed(record)
    assert "✕ Over budget" in text
    assert "\x1b" not in text
    assert [word in text for word in ("counting", "capitals", "budget 5 points", "Next:")]
    assert "\x1b[" in printed(record, force_terminal=True)


def test_terminal_summary_takes_no_orders_from_data(tmp_path):
    record = write_run(
        tmp_path, items=4, steps=1, task_name=lambda name: name + "[red]\x1b]0;title\x07"
    )
    record = record.model_copy(update={"notes": ["[bold]\x1b[2J note"]})
    text = printed(record)
    assert "capitals[red]" in text.replace("\n", "")
    assert "[bold]␛[2J note" in text
    assert "\x1b" not in text
    assert len(summary_lines(record)) == 6
