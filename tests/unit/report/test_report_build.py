"""The report of a run folder: complete, self-contained, safe, repeatable."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from report_runs import write_run

from narrowtune.core.errors import ReportError
from narrowtune.core.path_results import Comparison, FastPath, SharingEstimate
from narrowtune.core.results import RunRecord
from narrowtune.core.values import SignTest
from narrowtune.report.build import SECTIONS, build_report
from narrowtune.report.sections import training_facts

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "{{7*7}} {% raw %}",
    '" onmouseover="alert(1)',
    "| a | `b` ** [x](javascript:alert(1)) \x00\x1b[31m\u202e\u2028",
]


class Page(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    write_run(folder)
    build_report(folder)
    return folder


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes most of the time; tests of what the pages say go without."""
    monkeypatch.setattr("narrowtune.report.plots.draw_run", lambda run, folder: [])


def read(folder: Path, name: str) -> str:
    return (folder / name).read_text(encoding="utf-8")


def test_every_part_is_written(built):
    names = {path.name for path in (built / "plots").iterdir()}
    for plot in ("verdict", "learning_forgetting", "training_curve", "drift"):
        assert {f"{plot}.png", f"{plot}.svg"} <= names
    page = Page(read(built, "report.html"))
    order = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert order == [name for name, _ in SECTIONS if name != "dial"]
    values = json.loads(read(built, "report.json"))
    assert RunRecord.model_validate(values["record"]).verdict.outcome == "over_budget"
    assert values["title"] == "Over budget"
    assert read(built, "report.md").startswith("# Over budget: counting, plain")


def test_html_loads_nothing(built):
    page = Page(read(built, "report.html"))
    for tag, attrs in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "poster"):
            value = attrs.get(name) or ""
            assert value == "" or value.startswith(("#", "data:image/")), (tag, value)
        assert not any(name.startswith("on") for name in attrs)
        assert "style" not in attrs
    assert "url(" not in read(built, "report.html")
    assert "@import" not in read(built, "report.html")
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy


def test_policy_allows_exactly_the_scripts_of_the_page(built):
    html = read(built, "report.html")
    for tag in ("script", "style"):
        bodies = re.findall(f"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in html


def test_accessible_structure(built):
    page = Page(read(built, "report.html"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags) > 5
    assert all(a.get("aria-label") for t, a in page.tags if t == "svg" and a.get("role") == "img")


def test_equal_input_gives_equal_files(built, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(built, copy)
    shutil.rmtree(copy / "plots")
    build_report(copy)
    for file in sorted(path for path in built.rglob("*") if path.is_file()):
        assert file.read_bytes() == (copy / file.relative_to(built)).read_bytes(), file


def test_the_sign_test_of_every_task_is_shown_where_a_record_has_one(tmp_path, no_plots):
    record = write_run(tmp_path / "run", items=10, steps=1)
    build_report(tmp_path / "run")
    assert "sign test" not in read(tmp_path / "run", "report.md")
    assert "sign test" not in read(tmp_path / "run", "report.html")
    test = SignTest(num_worse=7, num_better=0, p_value=0.015625, clustered=True)
    tasks = [task.model_copy(update={"sign_test": test}) for task in record.tasks]
    record = record.model_copy(update={"tasks": tasks})
    (tmp_path / "run/record.json").write_text(record.model_dump_json(), encoding="utf-8")
    build_report(tmp_path / "run")
    md, html = (read(tmp_path / "run", f"report.{kind}") for kind in ("md", "html"))
    assert md.count("| 0.016 |") == html.count("p&nbsp;0.016") == len(tasks)
    named = f"net change for {', '.join(task.name for task in tasks)})"
    assert named in md
    assert named in html


def test_hostile_text_stays_text(tmp_path):
    folder = tmp_path / "run"
    write_run(
        folder,
        name="run </title><script>alert(1)</script>",
        items=8,
        steps=3,
        text=lambda value: value + " ".join(HOSTILE),
        task_name=lambda value: value + " <script>$x_1$ |`{{7*7}}`",
    )
    html = build_report(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any("onmouseover" in attrs for _, attrs in page.tags)
    shown = "".join(page.text)
    assert "</script><script>alert(1)</script>" in shown
    assert "{{7*7}}" in shown
    assert "49" not in re.sub(r"\d[\d.,]*\d", "", shown)
    for content in (html, read(folder, "report.md")):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]", content)
    assert "␀␛[31m\\u202e\\u2028" in shown


def test_hostile_text_does_not_break_markdown(tmp_path, no_plots):
    folder = tmp_path / "run"
    write_run(folder, items=8, steps=3, text=lambda value: value + "\n# x\n" + " ".join(HOSTILE))
    build_report(folder)
    content = read(folder, "report.md")
    table = content[content.index("| task | question") :].splitlines()
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table if line.startswith("|")}
    assert columns == {7}
    assert "<script" not in content
    assert "\n# x" not in content
    assert "](javascript" not in content.replace("\\]", "")
    assert not re.search(r"(?<!\\)\{\{", content)


def test_hostile_text_reaches_json_unchanged(tmp_path, no_plots):
    folder = tmp_path / "run"
    write_run(folder, items=4, steps=1, text=lambda value: value + HOSTILE[4])
    build_report(folder)
    changed = json.loads(read(folder, "report.json"))["gallery"]["changed"]
    assert all(entry["before"]["answer"].endswith(HOSTILE[4]) for entry in changed)


def test_no_gallery_leaves_no_item_text(tmp_path, no_plots):
    folder = tmp_path / "run"
    write_run(folder, items=6, steps=2, text=lambda value: "SECRET " + value, name="x")
    # The record itself names the run; only items are private.
    record = json.loads(read(folder, "record.json"))
    record["name"] = "open"
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    build_report(folder)
    assert "SECRET" in read(folder, "report.html")
    shutil.rmtree(folder / "before")
    build_report(folder, gallery=False)
    for file in folder.iterdir():
        if file.name.startswith("report"):
            assert "SECRET" not in file.read_text(encoding="utf-8")
            assert "capital of" not in file.read_text(encoding="utf-8")
    assert json.loads(read(folder, "report.json"))["gallery"] is None


def test_pictures_are_inlined_small_and_only_from_their_folder(tmp_path, no_plots):
    folder, pictures = tmp_path / "run", tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (900, 600), "red").save(pictures / "0.png")
    record = write_run(folder, items=9, steps=1, images=True)
    roots = {task.name: pictures for task in record.tasks}
    html = build_report(folder, image_roots=roots).read_text(encoding="utf-8")
    page = Page(html)
    sources = {attrs["src"] for tag, attrs in page.tags if tag == "img"}
    assert len(sources) == 1
    assert sources.pop().startswith("data:image/jpeg;base64,")
    assert "does not exist" in html
    without = Page(build_report(folder).read_text(encoding="utf-8"))
    assert not any(tag == "img" for tag, _ in without.tags)
    assert "no folder is known for picture" in "".join(without.text)


def test_picture_folders_come_from_the_settings_of_the_run(tmp_path, no_plots):
    folder, pictures = tmp_path / "run", tmp_path / "data"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (30, 20), "blue").save(pictures / f"{number}.png")
    write_run(folder, items=4, steps=1, images=True)
    settings = {"model": "m", "skill": f"{pictures}/counting.jsonl", "keep": []}
    (folder / "resolved.yaml").write_text(json.dumps(settings), encoding="utf-8")
    page = Page(build_report(folder).read_text(encoding="utf-8"))
    tasks = {attrs["data-task"] for _, attrs in page.tags if "data-task" in attrs}
    assert len(tasks) > 1
    assert any(tag == "img" for tag, _ in page.tags)
    assert "no folder is known" in "".join(page.text)


def test_newer_record_is_refused(built, tmp_path):
    record = json.loads(read(built, "record.json"))
    record["schema_version"] = 2
    record["field_of_the_future"] = 1
    (tmp_path / "record.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(ReportError, match=r"schema version 2.*\n.*update narrowtune"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("record.json", "narrowtune teach"),
        ("train.jsonl", "narrowtune teach"),
        ("before/capitals.jsonl", "--no-gallery"),
        ("after/counting.jsonl", "narrowtune teach"),
    ],
)
def test_missing_file_names_the_command_that_makes_it(built, tmp_path, missing, command):
    folder = tmp_path / "run"
    shutil.copytree(built, folder)
    (folder / missing).unlink()
    with pytest.raises(ReportError) as caught:
        build_report(folder)
    assert missing in caught.value.asked
    assert command in caught.value.do


def test_damaged_rows_are_named(built, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(built, folder)
    file = folder / "after" / "capitals.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")
    lines[2] = lines[2][:40]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ReportError, match=r"capitals\.jsonl, line 3"):
        build_report(folder)
    lines[2] = lines[1]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ReportError, match="59 items with names of their own"):
        build_report(folder)
    lines[2] = lines[1].replace('"capitals:2"', '"other"')
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ReportError, match="on one side only"):
        build_report(folder)


def test_a_task_name_can_not_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "run"
    write_run(folder, items=3, steps=1)
    content = (folder / "record.json").read_text(encoding="utf-8")
    content = content.replace('"name": "capitals"', '"name": "../../capitals"')
    (folder / "record.json").write_text(content, encoding="utf-8")
    with pytest.raises(ReportError, match="leads out of"):
        build_report(folder)


def test_a_run_of_evaluation_alone(tmp_path):
    folder = tmp_path / "run"
    record = write_run(folder, items=3, steps=1)
    bare = record.model_copy(
        update=dict.fromkeys(("plan", "training", "proof", "delta", "drift", "verdict", "cost"))
        | {"data": [], "seconds": {}, "git": None, "notes": []}
    )
    (folder / "record.json").write_text(bare.model_dump_json(), encoding="utf-8")
    (folder / "train.jsonl").unlink()
    text = "".join(Page(build_report(folder).read_text(encoding="utf-8")).text)
    assert "No verdict" in text
    for sentence in ("Drift was not measured", "There is no proof", "left no delta"):
        assert sentence in text


@pytest.mark.parametrize("model", ["/models/of a team/small", "Qwen/Qwen2.5-VL-7B-Instruct"])
def test_a_folder_is_named_by_its_last_part(tmp_path, no_plots, model):
    folder = tmp_path / "run"
    record = write_run(folder, items=3, steps=1)
    given = record.model_copy(update={"model": {"source": model}})
    (folder / "record.json").write_text(given.model_dump_json(), encoding="utf-8")
    html = build_report(folder).read_text(encoding="utf-8")
    assert f'<b title="{model}">{"small" if model.startswith("/") else model}</b>' in html


def test_a_run_without_tasks(tmp_path):
    folder = tmp_path / "run"
    record = write_run(folder, items=3, steps=1)
    verdict = record.verdict.model_copy(
        update={"learning": None, "forgetting": None, "outcome": "not_enough_evidence"}
    )
    bare = record.model_copy(update={"tasks": [], "verdict": verdict})
    (folder / "record.json").write_text(bare.model_dump_json(), encoding="utf-8")
    text = "".join(Page(build_report(folder).read_text(encoding="utf-8")).text)
    assert "No task was evaluated" in text


def test_plan_and_drift_files_are_read_where_the_record_has_none(tmp_path, no_plots):
    folder = tmp_path / "run"
    record = write_run(folder, items=3, steps=1)
    bare = record.model_copy(update={"plan": None, "drift": None})
    (folder / "record.json").write_text(bare.model_dump_json(), encoding="utf-8")
    (folder / "plan.json").write_text(record.plan.model_dump_json(), encoding="utf-8")
    (folder / "drift.json").write_text(record.drift.model_dump_json(), encoding="utf-8")
    build_report(folder)
    values = json.loads(read(folder, "report.json"))["record"]
    assert values["plan"] == json.loads(record.plan.model_dump_json())
    assert values["drift"]["num_prompts"] == record.drift.num_prompts


def test_building_a_report_imports_no_ml_library(built, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(built, folder)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from narrowtune.report.build import build_report\n"
        "from narrowtune.report.comparison import build_comparison\n"
        "import narrowtune.report.terminal\n"
        "folder = Path(sys.argv[1])\n"
        "build_report(folder)\n"
        "build_comparison([folder], folder / 'all')\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'accelerate', 'safetensors'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=120)


def test_measured_energy_stands_beside_the_estimate_and_names_its_source(tmp_path, no_plots):
    write_run(tmp_path)
    record = RunRecord.model_validate_json(read(tmp_path, "record.json"))
    for update, words in (
        (
            {"energy_kwh": 0.0123, "energy_source": "codecarbon 3, the whole machine: CPU(RAPL)"},
            ("0.0123 kWh", "0.00340 kWh", "CPU(RAPL)"),
        ),
        ({"energy_source": "not measured: no counters"}, ("not measured: no counters",)),
    ):
        training = record.training.model_copy(update=update)
        changed = record.model_copy(update={"training": training})
        (tmp_path / "record.json").write_text(changed.model_dump_json(), encoding="utf-8")
        build_report(tmp_path)
        for page in ("report.html", "report.md"):
            assert all(word in read(tmp_path, page) for word in words)


@pytest.mark.parametrize(
    ("epochs", "words"), [(1.0, "1,280 (1 epoch)"), (0.5, "(0.5 epochs)"), (2.0, "(2 epochs)")]
)
def test_one_epoch_is_one(tmp_path, epochs, words):
    record = write_run(tmp_path, items=2, steps=1)
    assert record.training is not None
    training = record.training.model_copy(update={"num_epochs": epochs})
    facts = training_facts(record.model_copy(update={"training": training}))
    assert next(fact.value for fact in facts if fact.name == "samples").endswith(words)


FAST = FastPath(packing=True, products=True, pictures_kept=False, compiled=False)
AGREES = Comparison(used=True, error=3.1e-7, limit=1e-4, seconds=0.1)


@pytest.mark.parametrize(
    ("path", "first", "told"),
    [
        (FAST, AGREES, ["anew", "by products; 2.5 × fewer", "plain path's by 3.10e−7"]),
        (FAST, None, ["not compared"]),
        (FAST, AGREES.model_copy(update={"used": False, "error": 0.7}), ["not taken", "0.7"]),
        (FAST.model_copy(update={"packing": False, "products": False}), None, ["off: the plain"]),
    ],
)
def test_the_fast_path_is_one_line(tmp_path, no_plots, path, first, told):
    record = write_run(tmp_path, items=2, steps=1)
    assert record.training is not None
    assert record.plan is not None
    sharing = SharingEstimate(
        positions=2, positions_plain=5, pictures=0, pictures_plain=0, factor=2.5
    )
    plan = record.plan.model_copy(
        update={"fast_path": path, "sharing": sharing if path.packing else None}
    )
    training = record.training.model_copy(update={"first_step": first})
    changed = record.model_copy(update={"plan": plan, "training": training})
    facts = [fact.value for fact in training_facts(changed) if fact.name == "fast path"]
    (said,) = facts
    assert all(word in said for word in told)
    (tmp_path / "record.json").write_text(changed.model_dump_json(), encoding="utf-8")
    build_report(tmp_path)
    for page in ("report.html", "report.md"):
        assert "fast path" in read(tmp_path, page)
    # Records of earlier versions say nothing of it.
    assert not [fact for fact in training_facts(record) if fact.name == "fast path"]


def test_what_the_run_was_told_about_its_answers_holds_for_its_reports(tmp_path, no_plots):
    folder = tmp_path / "run"
    write_run(folder, items=4, steps=1)
    settings = {"model": "m", "skill": "counting.jsonl", "keep": [], "gallery": False}
    (folder / "resolved.yaml").write_text(json.dumps(settings), encoding="utf-8")
    build_report(folder)
    assert json.loads(read(folder, "report.json"))["gallery"] is None
    build_report(folder, gallery=True)
    assert json.loads(read(folder, "report.json"))["gallery"] is not None


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("some/model", ["hf download some/model --local-dir base_model", "apply base_model "]),
        ("~/a model", ["apply '{home}/a model' "]),
        ("/folder", ["apply /folder "]),
    ],
)
def test_commands_work_as_they_stand(tmp_path, no_plots, monkeypatch, source, lines):
    monkeypatch.setenv("HOME", "/home/me")
    folder = tmp_path / "run"
    write_run(folder, items=4, steps=1)
    record = json.loads(read(folder, "record.json"))
    record["model"] |= {"source": source, "is_folder": source != "some/model"}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    build_report(folder)
    page = read(folder, "report.md")
    for line in lines:
        assert line.format(home="/home/me") in page
    assert ("hf download" in page) == (source == "some/model")
