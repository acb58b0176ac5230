"""Skills taught in a row through a ledger, as users would: kept, shown, gone back in, written."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
from rich.console import Console
from runs import WORDS, run_cli, write_rows, write_run

from delta_cases import load
from narrowtune.core.config import load_config
from narrowtune.core.errors import LedgerError, UsageError
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.ledger.book import Book
from narrowtune.models.fingerprint import fingerprint
from narrowtune.pipeline import shared
from narrowtune.pipeline import teach as teaching
from narrowtune.pipeline.compare import run_comparison
from narrowtune.pipeline.ledger import add_run
from narrowtune.pipeline.ways import contenders
from narrowtune.train import anchor as anchors
from narrowtune.train.anchor import build_anchor
from narrowtune.train.fit import fit


def spelling_rows(count):
    return [
        {"question": f"First letter of {WORDS[i % 10]} {i}?", "answer": WORDS[i % 10][0]}
        for i in range(count)
    ]


@pytest.fixture
def lessons(tiny, tmp_path, monkeypatch):
    """`lessons(name, recipe, **changes)` teaches one more skill; its folder has the ledger."""
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    model = tiny("llama", torch.bfloat16)
    spelling = write_rows(tmp_path / "spelling.jsonl", spelling_rows(30))

    def run(name, recipe, console=None, **changes):
        path = write_run(tmp_path, model, name, recipe=recipe)
        run.last_of_all()
        own = (
            {}
            if name == "counting"
            else {"skill.path": str(spelling), "skill.metric": "exact_match"}
        )
        settings = {
            "anchor": None,
            "ledger": str(tmp_path / "ledger"),
            "skill.name": name,
            "training.max_steps": 3,
        }
        config = load_config(path, {**settings, **own, **changes})
        return teaching.teach(config, console=console)

    run.folder, run.model, run.last_of_all = tmp_path, model, lambda: None
    return run


def test_a_second_skill_starts_from_the_first_and_keeps_it(lessons):
    first = lessons("counting", "sa_proj")
    second = lessons("spelling", "mlp_gate_up", seed=7)
    assert second.model["fingerprint"] == first.delta.tuned_fingerprint
    kept = {task.name: task for task in second.tasks if task.role == "held_out"}
    assert set(kept) == {"keep", "counting"}
    # The very items that it was tested on, though this run's seed is another.
    rows = [lessons.folder / run / f"{when}/counting.jsonl" for run, when in
            (("counting", "after"), ("spelling", "before"))]  # fmt: skip
    answers = [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in rows]
    assert [item["id"] for item in answers[0]] == [item["id"] for item in answers[1]]
    assert [item["answer"] for item in answers[0]] == [item["answer"] for item in answers[1]]
    assert "Taught before, and kept" in " ".join(second.notes)

    ledger, cache = lessons.folder / "ledger", lessons.folder / "cache"
    shown = run_cli("ledger", "show", ledger, cache=cache)
    assert shown.returncode == 0, shown.stderr
    for word in ("base", "counting", "spelling", "keep", "sa_proj", "mlp_gate_up", "learned"):
        assert word in shown.stdout
    entries = json.loads(run_cli("ledger", "show", ledger, "--json", cache=cache).stdout)["skills"]
    assert [entry["name"] for entry in entries] == ["counting", "spelling"]

    built = run_cli("ledger", "build", ledger, "--output", lessons.folder / "all", cache=cache)
    assert built.returncode == 0, built.stderr
    assert fingerprint(load(lessons.folder / "all")) == second.delta.tuned_fingerprint
    one = run_cli(
        "ledger", "build", ledger, "--after", "1", "--output", lessons.folder / "one", cache=cache
    )
    assert one.returncode == 0, one.stderr
    assert fingerprint(load(lessons.folder / "one")) == first.delta.tuned_fingerprint

    out = run_cli("ledger", "remove", ledger, "counting", cache=cache)
    assert "to be evaluated again without it: spelling" in " ".join(out.stdout.split())
    assert "nobody has scored" in run_cli("ledger", "show", ledger, cache=cache).stdout
    back = run_cli("ledger", "rollback", ledger, "0", cache=cache)
    assert first.model["fingerprint"] in back.stdout
    none = run_cli("ledger", "build", ledger, "--output", lessons.folder / "no", cache=cache)
    assert none.returncode == 1
    assert "0 skills; without any it is the base itself" in " ".join(none.stderr.split())


def test_that_nothing_holds_earlier_skills_is_said(lessons, capsys):
    lessons("counting", "sa_proj")
    console = Console(width=200)
    lessons("spelling", "mlp_gate_up", console=console)
    told = " ".join(capsys.readouterr().out.split())
    assert "Nothing holds what the model was taught before (counting)" in told
    assert told.count("Nothing holds") == 1
    assert "an anchor (--anchor) does" in told


def test_an_anchor_that_leaves_earlier_skills_out_is_not_advised_again(lessons, capsys):
    lessons("counting", "sa_proj")
    anchor = {"earlier_skills": 0, "max_new_tokens": 2, "max_prompts": 2}
    lessons("spelling", "mlp_gate_up", anchor=anchor, console=Console(width=200))
    told = " ".join(capsys.readouterr().out.split())
    assert "(counting): anchor.earlier_skills above 0 does" in told


def test_an_anchor_holds_what_the_skill_before_was_taught_with(lessons, tmp_path, monkeypatch):
    free = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in WORDS])
    anchor = {"prompts": str(free), "max_new_tokens": 2}
    lessons("counting", "sa_proj", anchor=anchor)
    first = lessons.folder / "counting" / "record.json"
    named = [part["name"] for part in json.loads(first.read_text("utf-8"))["data"]]
    assert [name for name in named if name.startswith("anchor")] == ["anchor.prompts"]
    seen = []

    def watched(*args, anchor, **kwargs):
        seen.append(anchor)
        return fit(*args, anchor=anchor, **kwargs)

    monkeypatch.setattr(teaching, "fit", watched)
    second = lessons("spelling", "mlp_gate_up", anchor={**anchor, "earlier_skills": 5})
    assert (len(seen[0].encoded), seen[0].num_general) == (len(WORDS) + 5, len(WORDS))
    assert {place < len(WORDS) for place in seen[0].indices(0)} == {True, False}
    assert "The anchor holds 5 prompts that they were taught with." in second.notes
    held = {part.name: part.num_used for part in second.data if part.role == "anchor"}
    assert held == {"anchor.prompts": len(WORDS), "anchor.prompts (skill counting)": 5}
    report = (lessons.folder / "spelling" / "report.html").read_text("utf-8")
    assert "anchor.prompts (skill counting)" in report


def test_general_prompts_are_answered_by_the_ledgers_base(lessons, tmp_path, monkeypatch):
    free = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in WORDS])
    anchor = {"prompts": str(free), "max_new_tokens": 2, "earlier_skills": 3}
    first = lessons("counting", "sa_proj")
    asked = []

    def watched(loaded, encoder, prompts, *args, **kwargs):
        # In fp32, which answers are computed in; bf16 has the same values.
        state = fingerprint(deepcopy(loaded.model).to(torch.bfloat16))
        asked.append((len(prompts), state, kwargs["share"]))
        return build_anchor(loaded, encoder, prompts, *args, **kwargs)

    monkeypatch.setattr(shared, "build_anchor", watched)
    second = lessons("spelling", "mlp_gate_up", anchor=anchor)
    base, state = first.model["fingerprint"], first.delta.tuned_fingerprint
    every = len(WORDS) + 3
    assert asked == [(len(WORDS), base, len(WORDS) / every), (3, state, 3 / every)]
    # The state, and not the base, is what trains.
    model = load(lessons.model)
    Book.open(lessons.folder / "ledger").put_on(model)
    assert fingerprint(model) == second.delta.tuned_fingerprint
    assert any("general prompts at the ledger's base's answers" in note for note in second.notes)


def test_the_next_skill_takes_the_top_of_what_the_ledgers_base_answered(
    lessons, tmp_path, monkeypatch
):
    free = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in WORDS])
    anchor = {"prompts": str(free), "max_new_tokens": 2, "earlier_skills": 3, "top_k": 5}
    exact = Arithmetic(compute_dtype="float32", threads=1)
    monkeypatch.setattr(teaching, "choose_arithmetic", lambda *_, **__: exact)
    answered = []
    plain = anchors.generate_greedy

    def generate(loaded, prompts, **options):
        answered.append(len(prompts))
        return plain(loaded, prompts, **options)

    monkeypatch.setattr(anchors, "generate_greedy", generate)
    first = lessons("counting", "sa_proj", anchor=anchor)
    second = lessons("spelling", "mlp_gate_up", anchor=anchor)
    assert first.training.anchor_top_k == second.training.anchor_top_k == 5
    assert answered == [len(WORDS), 3]


def test_a_quantised_run_answers_all_prompts_as_it_starts(lessons, tmp_path, monkeypatch):
    pytest.importorskip("torchao")
    free = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in WORDS])
    lessons("counting", "sa_proj")
    asked = []

    def watched(loaded, encoder, prompts, *args, **kwargs):
        asked.append(len(prompts))
        return build_anchor(loaded, encoder, prompts, *args, **kwargs)

    monkeypatch.setattr(shared, "build_anchor", watched)
    changes = {"training.quantize_frozen": "int8", "anchor": {"prompts": str(free)}}
    second = lessons("spelling", "mlp_gate_up", **changes)
    assert len(asked) == 1
    assert asked[0] > len(WORDS)
    assert any("general prompts at the answers of what it starts from" in n for n in second.notes)


def kill_before_it_is_entered(lessons, name):
    """Teach a skill whose run is finished, and whose ledger never hears of it."""

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(teaching, "enter", killed)
        with pytest.raises(KeyboardInterrupt):
            lessons(name, "sa_proj")


def test_a_first_run_that_was_killed_before_it_was_entered_can_be_added(lessons):
    kill_before_it_is_entered(lessons, "counting")
    run, ledger = lessons.folder / "counting", lessons.folder / "ledger"
    assert (run / "report.html").exists()
    assert "narrowtune ledger build" in (run / "report.md").read_text("utf-8")
    assert add_run(ledger, run).name == "counting"


def test_a_comparison_does_not_fill_a_ledger(lessons):
    path = write_run(lessons.folder, lessons.model, "several")
    config = load_config(path, {"ledger": str(lessons.folder / "ledger")})
    ways = contenders(config, ["sa_proj", "mlp"], [])
    with pytest.raises(UsageError, match="a comparison with a ledger"):
        run_comparison(config, ways, trial=False, console=Console(quiet=True))


def test_a_run_that_was_killed_before_it_was_entered_can_be_added(lessons):
    lessons("counting", "sa_proj")
    kill_before_it_is_entered(lessons, "spelling")
    ledger = lessons.folder / "ledger"
    assert [entry.name for entry in Book.open(ledger).ledger.skills] == ["counting"]
    assert add_run(ledger, lessons.folder / "spelling").name == "spelling"
    model = load(lessons.model)
    Book.open(ledger).put_on(model)
    assert fingerprint(model) == Book.open(ledger).ledger.fingerprint
    with pytest.raises(LedgerError, match="one of that name"):
        add_run(ledger, lessons.folder / "spelling")


def test_what_does_not_belong_to_the_ledger_is_refused_before_training(lessons, tiny):
    lessons("counting", "sa_proj")
    with pytest.raises(LedgerError, match="another base than the ledger's"):
        lessons("spelling", "sa_proj", model=str(tiny("qwen2", torch.bfloat16)))
    with pytest.raises(LedgerError, match="whose test rows are kept without being named"):
        lessons("spelling", "sa_proj", **{"keep.0.name": "counting"})
    with pytest.raises(LedgerError, match="one of that name among counting"):
        lessons("spelling", "sa_proj", **{"skill.name": "counting"})
    rows = lessons.folder / "skill.jsonl"
    changed = rows.read_text("utf-8").replace("How many", "Count the")
    lessons.last_of_all = lambda: rows.write_text(changed, "utf-8")
    with pytest.raises(LedgerError, match=r"rows in .* that changed since"):
        lessons("spelling", "sa_proj")
    assert not (lessons.folder / "spelling" / "train.jsonl").exists()
