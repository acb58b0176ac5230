"""A comparison has the runs that were asked for, with equal work, and a trial leaves half out."""

from __future__ import annotations

import gc
import io
import json
import weakref
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import (
    DataError,
    DeltaError,
    ProofError,
    SelectionError,
    TrainingError,
    UsageError,
)
from narrowtune.core.run_folder import RunFolder
from narrowtune.data.examples import Example, Message, Text
from narrowtune.evaluate.tasks import Task
from narrowtune.pipeline import compare
from narrowtune.pipeline.compare import run_comparison
from narrowtune.pipeline.ways import contenders, parse_rates


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


def changes(settings, *names):
    return [way.changes for way in contenders(settings, names, [])]


def test_mitigations_stand_behind_a_recipe_in_any_number(tmp_path):
    plain, projected, dense = changes(
        config(tmp_path), "sa_proj", "sa_proj+mlp_gate_up+projection", "mlp+density+anchor"
    )
    assert plain["anchor"] is None
    assert projected["recipe"] == "sa_proj+mlp_gate_up"
    assert projected["anchor"] == {"projection": 10.0}
    assert dense["anchor"] is True
    assert [way["training.density"] for way in (plain, projected, dense)] == [1.0, 1.0, 0.5]
    own = config(tmp_path, anchor={"weight": 3.0}, training={"density": 0.3})
    (_, both) = changes(own, "sa_proj", "sa_proj+projection+density")
    assert (both["anchor"]["weight"], both["anchor"]["projection"]) == (3.0, 10.0)
    assert both["training.density"] == 0.3
    (pictures,) = changes(config(tmp_path), "sa_proj", "sa_proj+pictures")[1:]
    assert pictures["anchor"] == {"skill_pictures": 40}
    own = config(tmp_path, anchor={"skill_pictures": 7, "projection": 4.0})
    assert changes(own, "sa_proj", "sa_proj+pictures")[1]["anchor"]["skill_pictures"] == 7
    own = config(tmp_path, anchor={"projection": 4.0})
    assert changes(own, "sa_proj", "sa_proj+projection")[1]["anchor"]["projection"] == 4.0


def test_a_pull_that_a_way_names_is_of_that_way_alone(tmp_path):
    def pulls(settings, *names):
        return [way.get("training.pull_to_base") for way in changes(settings, *names)]

    assert pulls(config(tmp_path), "mlp", "mlp+pull") == [0.0, 2.0]
    own = config(tmp_path, training={"pull_to_base": 4.0})
    assert pulls(own, "mlp", "mlp+pull") == [0.0, 4.0]
    assert pulls(own, "mlp", "sa_proj") == [None, None]


def test_a_dial_that_a_way_names_is_of_that_way_alone(tmp_path):
    own = config(tmp_path, dial={"num_steps": 20})
    plain, dialled = changes(own, "sa_proj", "sa_proj+dial")
    assert plain["dial"] is None
    assert dialled["dial"]["num_steps"] == 20
    assert changes(config(tmp_path), "sa_proj", "sa_proj+dial")[1]["dial"] is True
    # As before: without a way that names it, all have the file's.
    assert "dial" not in changes(own, "sa_proj", "mlp")[0]


def test_rows_are_mixed_in_where_that_is_equal_work(tmp_path):
    mix = [{"path": "general.jsonl", "share": 0.2}]
    steps = {"max_steps": 8}
    plain, mixed = changes(config(tmp_path, mix=mix, training=steps), "mlp", "mlp+mix")
    assert plain["mix"] == []
    assert (mixed["mix"][0]["path"], mixed["mix"][0]["share"]) == ("general.jsonl", 0.2)
    with pytest.raises(UsageError, match="a file without mix"):
        contenders(config(tmp_path, training=steps), ["mlp", "mlp+mix"], [])
    with pytest.raises(UsageError, match=r"(?s)by epochs.*give training\.max_steps"):
        contenders(config(tmp_path, mix=mix), ["mlp", "mlp+mix"], [])


def test_two_names_of_one_way_and_unknown_words_are_refused(tmp_path):
    for names in (["mlp+dial+anchor", "mlp+anchor+dial"], ["mlp+projection", "mlp+anchor"]):
        with pytest.raises(UsageError, match="same settings"):
            contenders(config(tmp_path, anchor={"projection": 10.0}), names, [])
    contenders(config(tmp_path), ["mlp+projection", "mlp+anchor"], [])
    with pytest.raises(UsageError, match=r"\+anchor more than once"):
        contenders(config(tmp_path), ["mlp", "mlp+anchor+anchor"], [])
    with pytest.raises(UsageError, match=r"(?s)mlp\+anchr.*\+anchor, \+projection"):
        contenders(config(tmp_path), ["mlp", "mlp+anchr"], [])


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


class Base:
    """Stands for a loaded model."""

    def named_modules(self):
        return []


def kept(number):
    asked = [(Message("user", (Text(f"charts {k}?"),)),) for k in range(number)]
    examples = tuple(Example(id=str(k), messages=m, answers=("x",)) for k, m in enumerate(asked))
    return Task("b", "held_out", "exact_match", "generate", 4, examples)


@pytest.fixture
def now(monkeypatch):
    """The base and the rows as they are now, and how often they were looked at."""
    found = SimpleNamespace(
        base="base", rows="rows", metric="first 1", loaded=[], hashed=0, read=[], num_kept=400
    )

    def load(_):
        base = Base()
        found.loaded.append(weakref.ref(base))
        return SimpleNamespace(model=base, family=None)

    def fingerprint(_):
        found.hashed += 1
        return found.base

    def read(shared, loaded, settings, refused_path, taught=()):
        found.read.append((shared, settings.output_dir))
        part = SimpleNamespace(name="b", path="b.jsonl", sha256=found.rows, metric=found.metric)
        return None, SimpleNamespace(summaries=[part], tasks=[kept(found.num_kept)])

    monkeypatch.setattr(compare, "check_run", lambda _: None)
    monkeypatch.setattr(compare, "load", load)
    monkeypatch.setattr(compare, "resolve", lambda *_: None)
    monkeypatch.setattr(compare, "fingerprint", fingerprint)
    monkeypatch.setattr(compare.Shared, "read", read)
    return found


@pytest.fixture
def taught(monkeypatch, now):
    """Runs that are only written down; mlp loses more than the budget."""
    done = []

    def teach(settings, *, resume, console, shared):
        folder = RunFolder(settings_folder := compare.Path(settings.output_dir))
        known = folder.arithmetic.read_text() if folder.arithmetic.exists() else "measured here"
        folder.root.mkdir(parents=True, exist_ok=True)
        folder.arithmetic.write_text(known)
        folder.resolved.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        folder.record.write_text("{}")
        started = {"base": now.base, "rows of b (b.jsonl)": now.rows, "metric of b": now.metric}
        (folder.root / "started.json").write_text(json.dumps(started))
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
    monkeypatch.setattr(compare, "build_comparison", lambda folders, out, failed: (folders, out))
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


def test_mitigations_reach_their_runs_and_leave_the_work_alone(tmp_path, taught, now):
    mix = [{"path": "general.jsonl", "share": 0.2}]
    training = {"learning_rate": 1e-4, "max_steps": 8}
    settings = config(tmp_path, mix=mix, training=training, budget=60.0)
    names = ["mlp", "mlp+projection", "mlp+pull", "mlp+dial", "mlp+density", "mlp+mix"]
    ways = contenders(settings, names, [])
    run_comparison(settings, ways, trial=True, console=say())
    first = [run for folder, run, *_ in taught if folder.parent.name == "trial 0.25"]
    plain, projected, pulled, dialled, dense, mixed = first
    assert projected.anchor.projection == 10.0
    assert dialled.dial is not None
    assert dense.training.density == 0.5
    assert [entry.path for entry in mixed.mix] == ["general.jsonl"]
    for run in first:
        assert (run.dial is None) == (run is not dialled)
        assert (run.anchor is None) == (run is not projected)
        assert (run.mix == []) == (run is not mixed)
        assert run.training.pull_to_base == (2.0 if run is pulled else 0.0)
        assert (run.training.density == 1) == (run is not dense)
    assert {run.training.max_steps for run in first} == {2}
    assert {run.training.global_batch_size for run in first} == {plain.training.global_batch_size}


def test_a_dial_that_can_not_be_held_is_said_before_another_way_is_trained(tmp_path, taught, now):
    settings = config(tmp_path)
    now.num_kept = 40
    ways = contenders(settings, ["mlp", "mlp+dial"], [])
    with pytest.raises(UsageError, match="a dial within a budget of 5 points"):
        run_comparison(settings, ways, trial=False, console=say())
    both = contenders(settings, ["mlp", "mlp+dial+density"], [])
    with pytest.raises(UsageError, match="a dial finds how much may stay"):
        run_comparison(settings, both, trial=False, console=say())
    assert not taught


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


@pytest.mark.parametrize("changed", ["rows", "base", "metric"])
@pytest.mark.parametrize("trial", [False, True])
def test_finished_runs_are_held_to_the_base_and_the_rows(tmp_path, taught, now, changed, trial):
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "sa_o"], [])
    run_comparison(settings, ways, trial=trial, console=say())
    console, num_taught = say(), len(taught)
    assert (len(now.loaded), now.hashed, now.read) == (1, 0, [])
    run_comparison(settings, ways, trial=trial, console=console)
    # All are held to one reading, by rows that runs to come would share.
    assert (len(now.loaded), now.hashed, len(now.read)) == (2, 1, num_taught)
    assert len({id(shared) for shared, _ in now.read}) == 1
    for name in ("sa_proj", "sa_o"):
        said = f"{name}: finished before, taken as it is"
        assert console.file.getvalue().count(said) == (3 if trial else 1)
    setattr(now, changed, "another")
    with pytest.raises(UsageError, match=f"(?s)finished run.*{changed}.*another --output-dir"):
        run_comparison(settings, ways, trial=trial, console=say())
    assert len(taught) == num_taught


def test_rows_that_changed_are_said_before_what_is_missing_is_trained(tmp_path, taught, now):
    settings = config(tmp_path)
    run_comparison(
        settings, contenders(settings, ["sa_proj", "sa_o"], []), trial=False, console=say()
    )
    now.rows = "others"
    ways = contenders(settings, ["mlp", "sa_o"], [])
    with pytest.raises(UsageError, match="changed since it was started"):
        run_comparison(settings, ways, trial=False, console=say())
    assert len(taught) == 2


def test_a_finished_run_that_does_not_say_what_it_began_with_is_refused(tmp_path, taught):
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "sa_o"], [])
    _, (folders, _) = run_comparison(settings, ways, trial=False, console=say())
    (folders[0] / "started.json").unlink()
    with pytest.raises(UsageError, match=r"no started\.json"):
        run_comparison(settings, ways, trial=False, console=say())


def test_what_a_recipe_lacks_is_said_before_another_is_trained(tmp_path, taught, monkeypatch, now):
    def resolve(model, recipe):
        if recipe == "vision_tower":
            raise SelectionError("vision_tower", "a text model", "choose another")

    monkeypatch.setattr(compare, "resolve", resolve)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "vision_tower"], [])
    with pytest.raises(SelectionError, match="a text model"):
        run_comparison(settings, ways, trial=True, console=say())
    assert len(now.loaded) == 1
    assert not taught


def test_eyes_that_see_nothing_are_said_before_another_way_is_trained(
    tmp_path, taught, monkeypatch, now
):
    def check(family, settings, inputs):
        assert inputs.tasks, "rows are there"
        if settings.recipe == "full":
            raise DataError("full", "no pictures", "give some")

    monkeypatch.setattr(compare, "check_eyes", check)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "full"], [])
    with pytest.raises(DataError, match="no pictures"):
        run_comparison(settings, ways, trial=False, console=say())
    assert not taught
    now.read.clear()
    run_comparison(
        settings, contenders(settings, ["sa_proj", "mlp"], []), trial=False, console=say()
    )
    assert not now.read, "rows are read by the first run, where nothing trains eyes"


def test_pictures_that_are_not_there_are_said_before_another_way_is_trained(
    tmp_path, taught, monkeypatch
):
    def read(shared, loaded, settings, refused_path, taught=()):
        assert settings.anchor.skill_pictures, "others read their rows when they are run"
        raise DataError("questions about pictures", "no picture", "leave it out")

    monkeypatch.setattr(compare.Shared, "read", read)
    ways = contenders(config(tmp_path), ["mlp", "mlp+pictures"], [])
    with pytest.raises(DataError, match="no picture"):
        run_comparison(config(tmp_path), ways, trial=False, console=say())
    assert not taught


def test_paths_of_one_way_are_checked_before_another_is_trained(tmp_path, taught, monkeypatch):
    def check(settings):
        if settings.anchor is not None:
            raise DataError("what this path leads to", "anchor.prompts: no such file", "correct it")

    monkeypatch.setattr(compare, "check_run", check)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "sa_proj+anchor"], [])
    with pytest.raises(DataError, match=r"anchor\.prompts"):
        run_comparison(settings, ways, trial=False, console=say())
    assert not taught


def test_the_model_that_is_looked_at_is_let_go_before_a_run_loads_its_own(
    tmp_path, taught, monkeypatch, now
):
    teach, alive = compare.teach, []

    def looks(settings, **given):
        gc.collect()
        alive.extend(base() is not None for base in now.loaded)
        return teach(settings, **given)

    monkeypatch.setattr(compare, "teach", looks)
    settings = config(tmp_path)
    for names in (["sa_proj", "sa_o"], ["sa_proj", "mlp"]):
        ways = contenders(settings, names, [])
        run_comparison(settings, ways, trial=False, console=say())
    assert alive == [False] * 4
    assert now.hashed == 1


def test_a_way_that_fails_leaves_its_memory_and_its_arithmetic(tmp_path, taught, monkeypatch):
    teach, models, alive = compare.teach, [], []

    def fails(settings, **given):
        gc.collect()
        alive.extend(model() is not None for model in models)
        if settings.recipe != "sa_proj":
            return teach(settings, **given)
        model = Base()
        models.append(weakref.ref(model))
        folder = RunFolder(compare.Path(settings.output_dir))
        folder.root.mkdir(parents=True)
        folder.arithmetic.write_text("measured for the first")
        raise TrainingError("step 3", "a loss of nan", "lower the rate")

    monkeypatch.setattr(compare, "teach", fails)
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp", "sa_o"], [])
    run_comparison(settings, ways, trial=False, console=say())
    assert alive == [False, False]
    # Tried again, it computes as the others did.
    assert [known for _, _, known, _ in taught] == ["measured for the first"] * 2


def test_the_page_names_the_ways_that_failed_and_in_which_round(tmp_path, taught, monkeypatch):
    teach, pages = compare.teach, []

    def fails(settings, **given):
        on_trial = "trial" in settings.output_dir
        if settings.recipe == "mlp_gate_up" or (settings.recipe == "sa_o" and not on_trial):
            raise TrainingError("step 3", "a loss of nan", "lower the rate")
        return teach(settings, **given)

    monkeypatch.setattr(compare, "teach", fails)
    monkeypatch.setattr(
        compare,
        "build_comparison",
        lambda folders, out, failed: pages.append((folders, failed)) or out,
    )
    settings, console = config(tmp_path), say()
    ways = contenders(settings, ["sa_proj", "mlp_gate_up", "sa_o"], [])
    records, out = run_comparison(settings, ways, trial=True, console=console)
    assert [record.name for record in records] == ["sa_proj"]
    reason = "a loss of nan (step 3)"
    failed = {"mlp_gate_up, trial on 25%": reason, "sa_o": reason}
    assert pages == [([out / "sa_proj"], failed)]
    said = console.file.getvalue()
    assert "Do: lower the rate" in said
    assert "Could not be trained: mlp_gate_up, trial on 25%; sa_o" in said


def test_a_comparison_under_a_launcher_is_refused_at_once(tmp_path, taught, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    settings = config(tmp_path)
    ways = contenders(settings, ["sa_proj", "mlp"], [])
    with pytest.raises(UsageError, match="several processes"):
        run_comparison(settings, ways, trial=False, console=say())
    assert not taught
