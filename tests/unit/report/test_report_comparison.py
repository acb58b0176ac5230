"""Several runs side by side, and the summary on the terminal."""

from __future__ import annotations

import io
import json
import re

import pytest
from report_runs import estimate, write_run
from rich.console import Console

from narrowtune.core.errors import ReportError
from narrowtune.core.path_results import FastPath
from narrowtune.core.results import DriftTask, Score, TaskResult
from narrowtune.core.run_folder import COMPARISON
from narrowtune.report.build import build_report
from narrowtune.report.comparison import build_comparison
from narrowtune.report.plan_view import render_plan
from narrowtune.report.terminal import delta_table, drift_table, summary_lines, task_table


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
    written = {file.relative_to(page.parent).as_posix() for file in page.parent.rglob("*.*")}
    assert written == set(COMPARISON)
    values = json.loads((page.parent / "comparison.json").read_text(encoding="utf-8"))
    assert [run["title"] for run in values["runs"]] == ["Over budget", "Ship"]
    assert values["differences"] == ["base scores"]
    rows = (page.parent / "comparison.md").read_text(encoding="utf-8").splitlines()
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")} == {4}


def test_runs_that_differ_say_so(tmp_path):
    record = write_run(tmp_path / "b", items=5, steps=2)
    budget = record.verdict.model_copy(update={"budget": 0.25})
    write_run(tmp_path / "a", items=5, steps=2)
    first = record.model_copy(update={"verdict": budget})
    (tmp_path / "a" / "record.json").write_text(first.model_dump_json(), encoding="utf-8")
    other = record.model_copy(update={"seed": 7, "verdict": None, "drift": None})
    (tmp_path / "b" / "record.json").write_text(other.model_dump_json(), encoding="utf-8")
    page = build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    html = page.read_text(encoding="utf-8")
    assert "These runs also differ in seed, budget." in html
    assert '<td class="tabular">0.25</td>' in html
    assert "budget: 0.25 lost" in html
    assert "No verdict" in html


def test_runs_without_both_estimates_have_no_chart(tmp_path):
    record = write_run(tmp_path / "a", items=5, steps=2)
    bare = record.model_copy(update={"verdict": None})
    (tmp_path / "a" / "record.json").write_text(bare.model_dump_json(), encoding="utf-8")
    page = build_comparison([tmp_path / "a"], tmp_path / "out")
    assert "learning_vs_forgetting" not in (page.parent / "comparison.md").read_text("utf-8")
    assert not (page.parent / "plots").exists()


def test_what_looks_like_the_skill_has_a_row(tmp_path):
    record = write_run(tmp_path / "a", items=5, steps=2)
    near = DriftTask(
        name="about", num_prompts=9, num_tokens=40, kl_base_tuned=2.5, top1_agreement=0.4
    )
    drift = record.drift.model_copy(update={"about_skill": near})
    changed = record.model_copy(update={"drift": drift})
    (tmp_path / "a" / "record.json").write_text(changed.model_dump_json(), encoding="utf-8")
    write_run(tmp_path / "b", items=5, steps=2)
    page = build_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    text = (page.parent / "comparison.md").read_text("utf-8")
    assert re.search(r"KL about the skill's pictures \| 2\.5\d* \| – \|", text)


def test_nothing_to_compare(tmp_path):
    with pytest.raises(ReportError, match="no run folder"):
        build_comparison([], tmp_path)


def shown(*renderables, **console) -> str:
    output = io.StringIO()
    for renderable in renderables:
        Console(file=output, width=100, **console).print(renderable)
    return output.getvalue()


def printed(record, **console) -> str:
    return shown(*summary_lines(record), **console)


def test_terminal_summary_has_colours_on_terminals_only(tmp_path):
    record = write_run(tmp_path, items=20, steps=1, name="x")
    text = printed(record)
    assert "✕ Over budget" in text
    assert "\x1b" not in text
    assert all(word in text for word in ("counting", "capitals", "budget 5 points", "Next:"))
    assert "\x1b[" in printed(record, force_terminal=True)
    gained = estimate(-8.3, 20.0)
    verdict = record.verdict.model_copy(update={"forgetting": gained})
    text = printed(record.model_copy(update={"verdict": verdict})).replace("\n", " ")
    assert "tasks gained 8.3 points on average (95 %: 11.7 lost to 28.3 gained)" in text


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


def test_single_results_on_the_terminal(tmp_path):
    record = write_run(tmp_path, items=20, steps=1)
    assert "a1b2" in shown(delta_table(record.delta))
    assert record.delta.recipe in shown(delta_table(record.delta))
    drift = shown(drift_table(record.drift))
    assert "1.84 ± 0.153" in drift
    assert "98.0" in drift
    score = Score(mean=0.5, stderr=0.02)
    result = TaskResult(
        name="capitals[/]\x1b",
        role="held_out",
        metric="exact_match",
        num_items=400,
        num_groups=400,
        num_ties=3,
        strict=score,
        lenient=score,
        valid_format=1.0,
        seconds=1.0,
    )
    text = shown(task_table([result]))
    assert "capitals[/]␛" in text
    assert "50.0\u00a0% ± 2.0" in text


def test_plan_on_the_terminal(tmp_path):
    plan = write_run(tmp_path, items=2, steps=1).plan
    text = shown(render_plan(plan))
    assert "53,084,160 of 134,515,008 parameters" in text
    assert "layer 0 … layer 29 (30)" in text
    assert "1.5 GB" in text
    assert "1.9 points" in text
    assert "fast path" not in text
    path = FastPath(packing=True, products=False, pictures_kept=True, compiled=True)
    said = shown(render_plan(plan.model_copy(update={"fast_path": path}))).split()
    assert "anew where that is cheaper, pictures looked up, layers compiled" in " ".join(said)
    tight = plan.model_copy(update={"smallest_budget": 0.0412})
    assert "can prove  0.05 points" in shown(render_plan(tight))
    unlike = plan.layers[3].model_copy(update={"matrices": ["up"]})
    layers = [*plan.layers[:3], unlike, *plan.layers[4:]]
    bare = plan.model_copy(
        update={"layers": layers, "time": None, "excluded": {"tower.[x]": "never used"}}
    )
    text = shown(render_plan(bare))
    assert "layer 0 … layer 2 (3)" in text
    assert "layer 4 … layer 29 (26)" in text
    assert "tower.[x]" in text
    assert "time of training" not in text
