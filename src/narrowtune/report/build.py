"""One run folder becomes report.html, report.md, report.json and plots/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrowtune.core.config import load_config
from narrowtune.core.run_folder import RunFolder, write_text
from narrowtune.report import charts, plots, sections
from narrowtune.report.folder import RunFiles, read_run
from narrowtune.report.gallery import KINDS, Entry, Gallery, build_gallery, picture_roots
from narrowtune.report.render import render_html, render_json, render_markdown
from narrowtune.report.verdict import dial_sentence, drift_sentence, findings, headline

SECTIONS = (
    ("verdict", "Verdict"),
    ("tasks", "Tasks"),
    ("dial", "Dial"),
    ("broke", "What broke"),
    ("training", "Training"),
    ("drift", "Drift"),
    ("trained", "Proof"),
    ("delta", "Delta"),
    ("cost", "Cost"),
    ("data", "Data"),
    ("provenance", "Provenance"),
    ("notes", "Notes"),
    ("gallery", "Answers that changed"),
)

MARKDOWN_ITEMS = 40
"""Gallery rows in report.md."""

REPORT_SCHEMA = 1
"""Version of report.json."""


def build_report(
    run_folder: Path,
    *,
    gallery: bool | None = None,
    image_roots: Mapping[str, Path] | None = None,
) -> Path:
    """Write the report of `run_folder` into it.

    Args:
        run_folder: the folder of one run (docs/architecture.md, "The run folder").
        gallery: False leaves every item's text out of all files; as the run's resolved.yaml has
            it unless given.
        image_roots: by task name, the folder that its items' pictures lie under; those of the
            run's resolved.yaml unless given. A picture that is not there is named, not shown.

    Returns:
        The path of report.html. Equal input gives equal files.

    Raises:
        ReportError: a file of the folder is missing, damaged or newer than this version.
    """
    resolved = RunFolder(run_folder).resolved
    if gallery is None:
        gallery = load_config(resolved).gallery if resolved.exists() else True
    run = read_run(run_folder, items=gallery)
    found = None
    if run.pairs is not None:
        if image_roots is None:
            image_roots = picture_roots(resolved)
        found = build_gallery(run.pairs, image_roots)
    values = _values(run, found)
    html = run_folder / "report.html"
    pages = {
        html: render_html("report.html.j2", values),
        run_folder / "report.md": render_markdown("report.md.j2", values),
        run_folder / "report.json": render_json(_machine(run, found)),
    }
    plots.draw_run(run, run_folder / "plots")
    for file, content in pages.items():
        write_text(file, content)
    return html


def _short(model: str) -> str:
    """Return a hub id as it is, and of a folder its last part."""
    return Path(model).name if Path(model).is_absolute() else model


def _values(run: RunFiles, found: Gallery | None) -> dict[str, Any]:
    record = run.record
    model = record.model.get("source") or (run.plan.model if run.plan else "")
    return {
        "run": run,
        "head": headline(record),
        "model": model,
        "model_name": _short(model),
        "sections": [part for part in SECTIONS if part[0] != "dial" or record.dial],
        "gauges": charts.gauges(record.verdict) if record.verdict else [],
        "forest": charts.forest(record.tasks, record.verdict),
        "turned": charts.turned(record.dial, record.verdict.budget)
        if record.dial and record.verdict
        else None,
        "dial_sentence": dial_sentence(record.dial) if record.dial else "",
        "found": findings(record),
        "curves": charts.curves(run.steps),
        "training_facts": sections.training_facts(record),
        "drift_sentence": drift_sentence(run.drift) if run.drift else "",
        "groups": charts.token_groups(run.drift) if run.drift else [],
        "drift_bars": charts.drift_bars(run.drift) if run.drift else [],
        "components": sections.components(run.plan) if run.plan else [],
        "proof": sections.proof_view(record.proof) if record.proof else None,
        "delta_facts": sections.delta_facts(record.delta) if record.delta else [],
        "delta_commands": sections.delta_commands(record, record.delta) if record.delta else [],
        "cost_facts": sections.run_cost(record),
        "stages": sections.stage_seconds(record),
        "provenance": sections.provenance(record),
        "gallery": found,
        "kinds": KINDS,
        "md_limit": MARKDOWN_ITEMS,
    }


def _machine(run: RunFiles, found: Gallery | None) -> dict[str, Any]:
    """What report.json holds: everything shown, as values, and all changed items."""
    record = run.record
    head = headline(record)
    return {
        "schema_version": REPORT_SCHEMA,
        "title": head.title,
        "meaning": head.meaning,
        "next_step": head.next_step,
        "findings": [
            {"task": f.task, "label": f.label, "sentence": f.sentence} for f in findings(record)
        ],
        "record": record.model_copy(update={"plan": run.plan, "drift": run.drift}).model_dump(),
        "training_log": [step.model_dump(exclude_none=True) for step in run.steps],
        "gallery": None if found is None else _machine_gallery(found),
    }


def _machine_gallery(found: Gallery) -> dict[str, Any]:
    return {
        "num_items": found.num_items,
        "num_changed": len(found.changed),
        "counts": found.counts,
        "changed": [_machine_entry(entry) for entry in found.changed],
    }


def _machine_entry(entry: Entry) -> dict[str, Any]:
    return {
        "task": entry.task,
        "kind": entry.kind,
        "before": entry.before.model_dump(),
        "after": entry.after.model_dump(),
    }
