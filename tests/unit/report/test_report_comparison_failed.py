"""Runs that could not be trained stand on the comparison's page, and are not compared."""

from __future__ import annotations

import json

from report_runs import write_run

from narrowtune.report.comparison import build_comparison


def test_runs_that_failed_are_named_with_the_reason(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        write_run(folder, items=5, steps=2)
    failed = {"mlp <b>at 0.1</b>": "a loss of nan (optimiser step 3)"}
    page = build_comparison(folders, tmp_path / "out", failed=failed)
    html = page.read_text(encoding="utf-8")
    assert "<strong>mlp &lt;b&gt;at 0.1&lt;/b&gt;</strong> could not be trained" in html
    assert "not compared: a loss of nan (optimiser step 3)" in html
    markdown = (page.parent / "comparison.md").read_text(encoding="utf-8")
    assert "a loss of nan (optimiser step 3)" in markdown
    assert "**Failed:** mlp" in markdown
    values = json.loads((page.parent / "comparison.json").read_text(encoding="utf-8"))
    assert values["failed"] == [
        {"name": "mlp <b>at 0.1</b>", "found": "a loss of nan (optimiser step 3)"}
    ]
    assert len(values["runs"]) == 2


def test_where_none_failed_none_is_named(tmp_path):
    write_run(tmp_path / "a", items=5, steps=2)
    page = build_comparison([tmp_path / "a"], tmp_path / "out")
    assert "could not be trained" not in page.read_text(encoding="utf-8")
    values = json.loads((page.parent / "comparison.json").read_text(encoding="utf-8"))
    assert values["failed"] == []
