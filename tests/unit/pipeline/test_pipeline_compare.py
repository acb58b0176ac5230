"""A comparison has the runs that were asked for, with equal work, and a trial leaves half out."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import DeltaError, ProofError, TrainingError, UsageError
from narrowtune.core.run_folder import RunFolder
from narrowtune.pipeline import compare
from narrowtune.pipeline.compare import contenders, parse_rates, run_comparison


def config(tmp_path, **changes):
    values = {"model": "m", "skill": {"path": "a.jsonl"}, "keep": [{"path": "b.jsonl"}]}
    training = {"learning_rate": 1e-4, "num_train_epochs": 2.0}
    values |= {"output_dir": str(tmp_path / "all"), "budget": 5.0, "training": training}
    return RunConfig.model_validate({**values, **changes})


def test_every_recipe_at_every_rate(tmp_path):
    ways = contenders(config(tmp_path), ["sa_proj", "mlp+anchor"], [])
    assert [way.name for way in ways] == ["sa_proj", "mlp+anchor"]
    assert ways[0].changes == {"recipe": "sa_proj", "anchor": None, "training.learning_rate": 1e-4}
    assert ways[1].changes["anchor"] is True
    ways = contenders(config(tmp_path), ["sa_proj", "sa_proj+mlp_gate_up+anchor"], [1e-4, 1e-3])
    assert [way.name for way in ways] == [
        "sa_proj at 0.0001",
        "sa_proj at 0.001",
        "sa_proj+mlp_gate_up+anchor at 0.0001",
        "sa_proj+mlp_gate_up+anchor at 0.001",
    ]
    assert ways[2].changes["recipe"] == "sa_proj+mlp_gate_up"


def test_an_anchor_of_the_files_own_is_kept_and_left_out(tmp_path):
    own = config(tmp_path, anchor={"weight": 3.0})
    plain, anchored = contenders(own, ["sa_proj", "sa_proj+anchor"], [])
    assert plain.changes["anchor"] is None
    assert anchored.changes["anchor"]["weight"] == 3.0


@pytest.mark.parametrize(
    ("names", "found"),
    [(["sa_proj"], "fewer than two"), (["mlp", "mlp", "sa_o"], "mlp more than once")],
)
def test_what_is_no_comparison_is_refused(tmp_path, names, found):
    with pytest.raises(UsageError, match=found):
        contenders(config(tmp_path), names, [])
    with pytest.raises(UsageError, match="sa_porj"):
        contenders(config(tmp_path), ["sa_porj", "mlp"], [])


def test_rates():
    assert parse_rates("1e-4, 0.001") == [1e-4, 1e-3]
    assert parse_rates("") == []
    for text in ("1e-4,fast", "-1", "0", "inf"):
        with pytest.raises(UsageError, match="no number above 0"):
            parse_rates(text)


WORST = {"mlp_gate_up": 20.0}
LEARNED = {"sa_proj": 20, "mlp": 40, "mlp_gate_up": 30, "sa_qkv": 5, "sa_o": 10}


@pytest.fixture
def taught(monkeypatch):
    """Runs that are only written down; mlp loses more than the budget."""
    done = []

    def teach(settings, *, resume, console, shared):
        folder = RunFolder(settings_folder := compare.Path(settings.output_dir))
        known = folder.arithmetic.read_text() if folder.arithmetic.exists() else "measured here"
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.arithmetic.write_text(known)
        folder.resolved.write_text(compare.yaml.safe_dump(settings.model_dump(mode="json")))
        folder.record.write_text("{}")
        done.append((settings_folder, settings, known, shared))
        return record(settings)

    def record(settings):
        lost = 9.0 if settings.recipe == "mlp" else 1.0
        verdict = SimpleNamespace(
            budget=5.0,
            learning=SimpleNamespace(value=LEARNED[settings.recipe]),
            forgetting=SimpleNamespace(value=lost),
            worst_task_forgetting=SimpleNamespace(value=WORST.get(settings.recipe, 0.0)),
            budget_task=settings.budget_task,
        )
        return SimpleNamespace(verdict=verdict, name=compare.Path(settings.output_dir).name)

    def read(folder):
        name = json.loads(json.dumps(folder.name))
        settings = SimpleNamespace(recipe=name, output_dir=str(folder), budget_task=None)
        return record(settings)

    monkeypatch.setattr(compare, "teach", teach)
    monkeypatch.setattr(compare, "read_record", read)
    monkeypatch.setattr(compare, "build_comparison", lambda folders, out: (list(folders), out))
    monkeypatch.setattr(compare._Now, "check", lambda *_: None)
    return done


def say():
    return Console(file=io.StringIO(), width=200)


def test_all_runs_do_the_same_work_in_the_same_arithmetic(tmp_path, taught):
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp", "sa_o"], [])
    records, (folders, out) = run_comparison(settings, ways, trial=False, console=say())
    assert [each.name for each in records] == ["sa_proj", "mlp", "sa_o"]
    assert folders == [out / way.name for way in ways]
    same = [
        run.model_copy(update={"recipe": "x", "output_dir": "y"}).model_dump()
        for _, run, _, _ in taught
    ]
    assert same[0] == same[1] == same[2]
    assert [known for _, _, known, _ in taught] == ["measured here"] * 3
    assert (out / "sa_o" / "arithmetic.json").read_text() == "measured here"
    shared = [given for *_, given in taught]
    assert shared[0] is shared[1] is shared[2]
    assert shared[0]._several


def test_it_goes_on_where_it_was_stopped_and_refuses_other_settings(tmp_path, taught):
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp", "sa_o"], [])
    run_comparison(settings, ways, trial=False, console=say())
    run_comparison(settings, ways, trial=False, console=say())
    assert len(taught) == 3
    other = config(tmp_path, budget=1.0)
    with pytest.raises(UsageError, match="other settings"):
        run_comparison(other, ways, trial=False, console=say())


def test_a_trial_halves_the_field_by_what_is_learned_within_the_budget(tmp_path, taught):
    settings = config(tmp_path)
    console = say()
    ways = contenders(settings, list(LEARNED), [])
    records, (_, out) = run_comparison(settings, ways, trial=True, console=console)
    names = [folder.relative_to(out).as_posix() for folder, *_ in taught]
    assert names == [
        *(f"trial 0.25/{name}" for name in LEARNED),
        *(f"trial 0.5/{name}" for name in ("sa_proj", "mlp_gate_up", "sa_o")),
        *("sa_proj", "mlp_gate_up"),
    ]
    assert [each.name for each in records] == ["sa_proj", "mlp_gate_up"]
    epochs = [run.training.num_train_epochs for _, run, _, _ in taught]
    assert epochs == [0.5] * 5 + [1.0] * 3 + [2.0] * 2
    said = console.file.getvalue()
    assert "Left out after 25%: mlp" in said
    assert "Left out after 50%: sa_o" in said


def test_a_trial_of_steps_has_a_share_of_them(tmp_path, taught):
    settings = config(tmp_path, training={"max_steps": 10})
    ways = contenders(settings, ["sa_proj", "sa_o"], [])
    run_comparison(settings, ways, trial=True, console=say())
    assert [run.training.max_steps for _, run, _, _ in taught] == [2, 2, 5, 5, 10, 10]


def test_settings_that_one_way_can_not_have_are_said_before_another_is_trained(tmp_path, taught):
    settings = config(tmp_path, training={"quantize_frozen": "int8"})
    ways = contenders(settings, ["sa_proj", "language_model"], [])
    with pytest.raises(UsageError, match=r"language_model with training\.quantize_frozen"):
        run_comparison(settings, ways, trial=False, console=say())
    drift = {"every": 5, "budget": 1.0, "action": "raise_anchor"}
    settings = config(tmp_path, anchor=True, drift=drift)
    ways = contenders(settings, ["sa_proj+anchor", "sa_proj"], [])
    with pytest.raises(UsageError, match="raise_anchor needs an anchor"):
        run_comparison(settings, ways, trial=False, console=say())
    assert not taught


def test_a_trial_minds_the_budget_of_single_tasks(tmp_path, taught):
    settings = config(tmp_path, budget_task=3.0)
    ways = contenders(settings, ["sa_proj", "mlp_gate_up", "sa_o", "sa_qkv"], [])
    records, _ = run_comparison(settings, ways, trial=True, console=say())
    # mlp_gate_up learned most, and one of its tasks lost twenty points.
    assert [each.name for each in records] == ["sa_proj", "sa_o"]


@pytest.mark.parametrize("error", [TrainingError, ProofError, DeltaError])
def test_a_way_that_can_not_be_trained_leaves_the_others(tmp_path, taught, monkeypatch, error):
    teach, asked = compare.teach, []

    def fails(settings, **given):
        asked.append(settings.recipe)
        if settings.recipe == "sa_proj":
            raise error("to train", "a loss that is not finite", "lower the rate")
        return teach(settings, **given)

    monkeypatch.setattr(compare, "teach", fails)
    settings, console = config(tmp_path), say()
    ways = contenders(settings, ["sa_proj", "mlp", "sa_o"], [])
    records, (folders, _) = run_comparison(settings, ways, trial=False, console=console)
    assert [each.name for each in records] == ["mlp", "sa_o"]
    assert [folder.name for folder in folders] == ["mlp", "sa_o"]
    assert "sa_proj failed: a loss that is not finite" in console.file.getvalue()
    # Tried again the next time; the others are known.
    run_comparison(settings, ways, trial=False, console=say())
    assert asked == ["sa_proj", "mlp", "sa_o", "sa_proj"]
    only = contenders(settings, ["sa_proj"], [1e-4, 1e-3])
    with pytest.raises(error, match="not finite"):
        run_comparison(settings, only, trial=False, console=say())


def test_mistakes_stop_all_of_them(tmp_path, taught, monkeypatch):
    def fails(*_, **__):
        raise UsageError("a run", "no such rows", "give some")

    monkeypatch.setattr(compare, "teach", fails)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp"], [])
    with pytest.raises(UsageError, match="no such rows"):
        run_comparison(settings, ways, trial=False, console=say())


@pytest.mark.parametrize("changed", ["", "rows", "base"])
def test_finished_runs_are_held_to_the_base_and_the_rows(tmp_path, taught, monkeypatch, changed):
    monkeypatch.undo()
    loads = []

    def load(settings):
        loads.append(settings)
        return SimpleNamespace(model=None)

    def read(self, loaded, settings, refused, taught=()):
        digest = "other" if changed == "rows" else "same"
        part = SimpleNamespace(name="keep", path="b.jsonl", sha256=digest)
        return None, SimpleNamespace(summaries=[part])

    monkeypatch.setattr(compare, "load", load)
    monkeypatch.setattr(compare, "tensor_hashes", lambda _: {})
    base = "another" if changed == "base" else "base"
    monkeypatch.setattr(compare, "combine_hashes", lambda _: base)
    monkeypatch.setattr(compare.Shared, "read", read)
    now = compare._Now(compare.Shared())
    for name in ("one", "two"):
        folder = RunFolder(tmp_path / name)
        folder.root.mkdir()
        started = {"base": "base", "rows of keep (b.jsonl)": "same"}
        (folder.root / "started.json").write_text(json.dumps(started))
        own = config(tmp_path, output_dir=str(folder.root))
        if changed:
            with pytest.raises(UsageError, match="changed since it was started"):
                now.check(own)
        else:
            now.check(own)
    assert len(loads) == 1


def test_a_comparison_under_a_launcher_is_refused_at_once(tmp_path, taught, monkeypatch):
    state = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(compare, "PartialState", lambda: state)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp"], [])
    with pytest.raises(UsageError, match="several processes"):
        run_comparison(settings, ways, trial=False, console=say())
    assert not taught
