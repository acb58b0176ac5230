"""The miniature study's phases on a tiny model: what runs, what is taken over, and resuming."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.errors import UsageError
from narrowtune.study import phases as module
from narrowtune.study.chains import all_chains, open_chains
from narrowtune.study.phases import Protocol, Watch, take_over
from narrowtune.study.presets import (
    LORA,
    PRESETS,
    REFERENCE,
    SKILL_ORDERS,
    Preset,
    Sizes,
    make_arms,
)
from narrowtune.study.results import BASE, append_result, by_chain, read_results
from narrowtune.study.run import Study, known_arithmetic, remember_arithmetic
from narrowtune.study.summary import BEST, CHAINED, SECOND, SMALLER, summarise_study
from narrowtune.study.summary_page import summary_page
from narrowtune.study.workers import results_path
from narrowtune.study.world import World
from study_rows import WORDS, rows, write

ARMS = ("language_model", "sa_proj", LORA, "sa_proj + anchor", "mlp + WiSE-FT 0.5")

PRESET = Preset(
    name="tiny",
    model="one",
    second_model="two",
    smaller_model="three",
    sizes=Sizes(8, 0, 0, 0, 0, 4, 0, 0),
    arms=ARMS,
    main=("language_model", "sa_proj"),
    chained=ARMS,
    turned=("sa_proj",),
    rates=(1e-3, 3e-3),
    most_extensions=1,
    quarter=True,
    seeds=(0, 1),
    chain_seeds=(0,),
    batch_size=4,
    skill="last",
    second_skill="first",
    counting="last",
    orders={"default": ("first", "last"), "reversed": ("last", "first")},
)


SHORT = replace(
    PRESET,
    arms=PRESET.main,
    chained=PRESET.main,
    quarter=False,
    turned=(),
    most_extensions=0,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    skills = tuple(
        SkillSettings(
            name=kind,
            path=write(folder / f"{kind}.jsonl", rows(kind, 0, 24)),
            test_path=write(folder / f"{kind}_test.jsonl", rows(kind, 100, 4)),
            validation=0.25,
            max_new_tokens=4,
        )
        for kind in ("first", "last")
    )
    keep = DataSettings(
        name="say", path=write(folder / "say.jsonl", rows("say", 200, 4)), max_new_tokens=4
    )
    prompts = [{"prompt": f"Tell me about the {word}."} for word in WORDS]
    free = write(folder / "free.jsonl", prompts)
    return World(skills, (keep,), free, free, write(folder / "more.jsonl", rows("say", 300, 9)))


class InOneProcess:
    """Runs studies without workers: starting a process takes longer than a tiny chain."""

    def __init__(self, stop_after=None):
        self.stop_after, self.ran = stop_after, []

    def __call__(self, settings, report, *, num_workers):
        path = results_path(settings)
        chains = open_chains(list(all_chains(settings)), read_results(path))
        if not chains:
            return

        def told(result):
            append_result(path, result)
            report(result, 0)
            if self.stop_after is not None:
                self.stop_after -= 1
                if not self.stop_after:
                    raise KeyboardInterrupt

        folder = Path(settings.output_dir)
        study = Study(settings, arithmetic=known_arithmetic(folder), threads=1)
        remember_arithmetic(folder, study.arithmetic)
        if not any(result.chain.arm == BASE for result in read_results(path)):
            told(study.score_base())
        for chain in chains:
            self.ran.append((folder, chain.key))
            done = by_chain(read_results(path)).get(chain.key, ())
            study.run(chain, len(done), told)


@pytest.fixture(autouse=True, scope="module")
def in_one_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_study", InOneProcess())
        yield


class Seen:
    """Collects what a protocol says."""

    def __init__(self, done=None):
        self.said, self.stages, self.done = [], [], []
        self.watch = Watch(
            self.said.append, self._stage, done or (lambda p: self.done.append(p.name))
        )

    def _stage(self, result, missing):
        self.stages.append(result)


def protocol(world, folder, seen, tiny, models=("one",), preset=PRESET):
    names = {name: tiny("llama", torch.bfloat16) for name in models}
    return Protocol(preset, world, names, folder, seen.watch)


@pytest.fixture(scope="module")
def finished(world, tiny, tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("miniature"), Seen()
    made = protocol(world, folder, seen, tiny)
    made.run()
    return made, seen


def keys(phase):
    return [(r.chain, r.stage) for r in phase.results if r.chain.arm != BASE]


def test_phases_run_in_order_and_a_model_that_does_not_ship_is_named(finished):
    made, seen = finished
    assert seen.done == ["frontier", "quarter", "chosen", "chains", "orders"]
    assert any("two does not ship" in text for text in seen.said)
    assert {result.chain.seed for result in made.phases["frontier"].results} == {0}
    assert {chain.seed for chain, _ in keys(made.phases["chosen"])} == {0, 1}
    assert {r.steps for r in made.phases["quarter"].results if r.stage} == {1}
    assert {r.steps for r in made.phases["chosen"].results if r.stage} == {2}
    chains = made.phases["chains"].results
    assert [r.skill for r in chains if r.chain.arm == "sa_proj"] == ["first", "last"]
    orders = made.phases["orders"].results
    assert [r.skill for r in orders if r.stage] == ["last", "first"]


def test_every_arm_has_as_many_trials_and_every_run_its_chosen_rate(finished):
    made, _ = finished
    grids = {}
    for chain, _ in keys(made.phases["frontier"]):
        grids.setdefault(chain.arm, []).append(chain.learning_rate)
    assert set(grids) == set(ARMS)
    assert {len(rates) for rates in grids.values()} == {3}  # two rates always have an edge
    # No rate of the plain grid but one that was a step away: adapters' lie ten times higher.
    assert {1e-2, 3e-2} <= set(grids[LORA])
    written = json.loads((made.folder / "choices.json").read_text())["frontier"]
    assert written["made_from"] == "frontier/results.jsonl"
    for arm, choice in written["arms"].items():
        tried = {float(rate): value for rate, value in choice["tried"].items()}
        assert sorted(tried) == sorted(grids[arm])
        assert tried[choice["best"]] == max(tried.values())
        ran = {chain.learning_rate for chain, _ in keys(made.phases["chosen"]) if chain.arm == arm}
        assert ran == {choice["best"], choice["paper"], *choice["near"].values()}
        chained = {c.learning_rate for c, _ in keys(made.phases["chains"]) if c.arm == arm}
        assert chained == {choice["near"]["0.75"]}
    averages = {c.arm for c, _ in keys(made.phases["chosen"])} - set(ARMS)
    assert averages == {"mlp + WiSE-FT 0.1", "mlp + WiSE-FT 0.9"}


def test_what_was_run_is_taken_over_bit_for_bit(finished):
    made, _ = finished
    frontier = dict.fromkeys(keys(made.phases["frontier"]))
    both = [key for key in keys(made.phases["chosen"]) if key in frontier]
    assert both
    old = {(r.chain, r.stage): r for r in made.phases["frontier"].results}
    new = {(r.chain, r.stage): r for r in made.phases["chosen"].results}
    for key in both:
        assert new[key] == old[key]
    ran = {name: [] for name in made.phases}
    for folder, chain in module.run_study.ran:
        if folder.parent == made.folder:
            ran[folder.name].append(chain)
    assert not {chain for chain, _ in both} & set(ran["chosen"])
    # A quarter's chains have the keys of the frontier's, but other rows: all of them ran.
    assert set(ran["quarter"]) == {chain for chain, _ in keys(made.phases["quarter"])}
    assert set(ran["chains"]) == {chain for chain, _ in keys(made.phases["chains"])}
    arithmetic = {(made.folder / phase / "arithmetic.json").read_text() for phase in made.phases}
    assert len(arithmetic) == 1


def test_nothing_is_taken_over_from_other_rows_or_steps(finished, tmp_path):
    made, _ = finished
    chosen, frontier = made.phases["chosen"], made.phases["frontier"]
    for number, (update, taken) in enumerate(
        (
            ({}, len(frontier.results)),
            ({"num_samples": 4}, 1),  # the base alone
            ({"training": frontier.settings.training.model_copy(update={"max_steps": 1})}, 1),
            ({"keep": []}, 0),
            ({"constrained": False}, 0),
        )
    ):
        update = {
            **update,
            "output_dir": str(tmp_path / str(number)),
            "arms": frontier.settings.arms,
        }
        later = replace(chosen, settings=chosen.settings.model_copy(update=update))
        take_over(frontier, later)
        assert len(later.results) == taken
        # Noise is measured on the rows that are scored.
        assert (Path(later.settings.output_dir) / "tolerance.json").exists() == bool(taken)
        take_over(frontier, later)
        assert len(results_path(later.settings).read_text().splitlines() if taken else []) == taken


def test_a_stopped_study_goes_on_and_ends_alike(finished, world, tiny, tmp_path, monkeypatch):
    made, _ = finished
    seen = Seen()
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_study", InOneProcess(stop_after=20))
        with pytest.raises(KeyboardInterrupt):
            protocol(world, tmp_path, seen, tiny).run()
    first = {(r.chain, r.stage, r.steps) for r in seen.stages}
    assert len(first) == 20
    again = Seen()
    resumed = protocol(world, tmp_path, again, tiny)
    resumed.run()
    assert resumed.choices == made.choices
    for name, phase in made.phases.items():
        old = {(r.chain, r.stage): r.tasks for r in phase.results}
        assert {(r.chain, r.stage): r.tasks for r in resumed.phases[name].results} == old
    third = Seen()
    protocol(world, tmp_path, third, tiny).run()
    assert third.stages == []
    assert third.done == again.done


def test_other_models_have_searches_of_their_own(world, tiny, tmp_path):
    main = PRESET.main
    preset = replace(PRESET, arms=main, chained=main, turned=main, quarter=False, most_extensions=0)
    seen = Seen()
    made = protocol(world, tmp_path, seen, tiny, ("one", "two", "three"), preset)
    made.run()
    others = ["second_model", "second_model_chosen", "smaller_model", "smaller_model_chosen"]
    assert seen.done == ["frontier", "chosen", "chains", "orders", *others]
    assert set(made.choices) == {"frontier", "second_model", "smaller_model"}
    taught = {
        name: {result.skill for result in phase.results if result.stage}
        for name, phase in made.phases.items()
    }
    assert taught["chosen"] == taught["smaller_model"] == {"last"}
    assert taught["second_model"] == taught["second_model_chosen"] == {"first"}
    arms = {result.chain.arm for result in made.phases["smaller_model"].results if result.stage}
    assert arms == set(main)
    summary = summarise_study("tiny", made.phases, made.choices, "last")
    assert list(summary.settings)[-2:] == [SECOND, SMALLER]
    assert {"second_model", "smaller_model_chosen"} <= set(summary.matched)


def test_the_summary_has_every_claim_setting_and_seed(finished):
    made, _ = finished
    summary = summarise_study("tiny", made.phases, made.choices, "last")
    assert [claim.number for claim in summary.claims] == [f"C{n}" for n in range(1, 13)]
    arms = {arm.arm: arm for arm in summary.settings[BEST]}
    assert set(arms) >= set(ARMS)
    assert all(len(arm.learned.seeds) == 2 for arm in arms.values())
    assert all(len(arm.recovery[0]) == 1 for arm in summary.settings[CHAINED])
    assert summary.phases["chains"] == 2 * len(ARMS)
    # What isn't run can't be told.
    assert {c.number: c.verdict for c in summary.claims}["C9"] == "can't be told here"
    json.dumps(json.loads(summary.model_dump_json()), allow_nan=False)
    page = summary_page(summary, made.choices)
    for name in (*summary.settings, *ARMS, "Rates chosen: frontier", "### C12"):
        assert name in page
    again = type(summary).model_validate_json(summary.model_dump_json())
    assert again.claims == summary.claims


def test_what_cannot_be_drawn_does_not_stop_the_protocol(finished, world, tiny):
    made, _ = finished

    def fail(phase):
        raise ValueError("no figure")

    seen = Seen(fail)
    again = protocol(world, made.folder, seen, tiny)
    again.run()
    assert set(again.phases) == set(made.phases)
    assert any("chosen: what was found could not be shown" in said for said in seen.said)


def test_presets_name_arms_that_there_are():
    arms = make_arms("prompts.jsonl", "replay.jsonl")
    for preset in PRESETS.values():
        assert set(preset.main) | set(preset.turned) <= set(preset.arms) <= set(arms)
        assert REFERENCE in preset.chained
        assert set(preset.chained) <= set(preset.arms)
        assert preset.second_model is None or REFERENCE in preset.main
        assert preset.smaller_model is None or REFERENCE in preset.turned
        assert sorted(preset.orders["alternative"]) == sorted(SKILL_ORDERS["default"])
        assert preset.orders["reversed"] == preset.orders["default"][::-1]
        assert preset.sizes.samples <= preset.sizes.pool
        # Where claims about counting's stage, and about the next one's, are read.
        assert preset.orders["default"].index(preset.counting) == 1
    assert len(PRESETS["miniature"].arms) == 19


def test_the_command_refuses_flags_that_a_preset_has_no_use_for(tmp_path):
    found = CliRunner().invoke(app, ["study", "miniature", "--set", "seeds=[1]", "--model", "m"])
    assert isinstance(found.exception, UsageError)
    assert "--model and --set" in found.exception.asked


def test_a_missing_package_is_said_before_anything_runs(tmp_path, monkeypatch):
    from narrowtune.core import extras
    from narrowtune.study import miniature

    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match="peft is not installed"):
        miniature.run_miniature(PRESETS["miniature"], tmp_path / "out", Seen().watch)
    assert not (tmp_path / "out").exists()


def test_the_command_runs_a_preset(world, tiny, tmp_path, monkeypatch):
    from narrowtune.study import miniature, presets

    def folder(name):
        if name != "one":
            raise UsageError(asked=name, found="nothing", do="nothing")
        return tiny("llama", torch.bfloat16)

    monkeypatch.setitem(presets.PRESETS, "tiny", SHORT)
    monkeypatch.setattr(miniature, "reference_folder", folder)
    monkeypatch.setattr(miniature, "write_world", lambda *_: world)
    run = partial(CliRunner().invoke, app)
    found = run(["study", "tiny", "--output-dir", str(tmp_path)])
    assert found.exit_code == 0, found.output
    said = found.output.replace("\n", " ")
    assert "two does not ship" in said
    assert "three does not ship" in said
    assert (tmp_path / "summary.md").read_text().startswith("# tiny")
    assert (tmp_path / "chains" / "figures" / "stages.png").exists()
    assert "C12" in found.output
    stages = len(read_results(tmp_path / "chains" / "results.jsonl"))
    found = run(["study", "tiny", "--output-dir", str(tmp_path), "--json"])
    assert json.loads(found.stdout)["phases"]["chains"] == stages - 1
    assert json.loads(found.stdout) == json.loads((tmp_path / "summary.json").read_text())


def test_what_was_run_so_far_is_summed_up_without_running_anything(
    finished, world, tiny, tmp_path, monkeypatch
):
    from narrowtune.study import miniature, presets

    made, _ = finished
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "chains" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text("{}")
    path.write_text("".join(lines[:-2]))
    monkeypatch.setitem(presets.PRESETS, "tiny", PRESET)
    monkeypatch.setattr(miniature, "reference_folder", lambda _: tiny("llama", torch.bfloat16))
    monkeypatch.setattr(miniature, "write_world", lambda *_: world)
    monkeypatch.setattr("narrowtune.study.phases.run_study", lambda *_, **__: pytest.fail("runs"))
    command = ["study", "tiny", "--summary", "--json", "--output-dir", str(tmp_path)]
    done = CliRunner().invoke(app, command)
    assert done.exception is None, done.output
    found = json.loads(done.stdout)
    assert found["phases"]["chains"] == found["planned"]["chains"] - 2
    arms = {arm["arm"] for arm in found["settings"][CHAINED]}
    assert arms == set(PRESET.arms) - {json.loads(lines[-1])["chain"]["arm"]}
    assert f"of {found['planned']['chains']}" in (tmp_path / "summary.md").read_text()
    assert len(path.read_text().splitlines()) == len(lines) - 2
    found = CliRunner().invoke(app, ["study", "some.yaml", "--summary"])
    assert isinstance(found.exception, UsageError)
    nowhere = ["study", "tiny", "--summary", "--output-dir", str(tmp_path / "nowhere")]
    assert "no such study" in str(CliRunner().invoke(app, nowhere).exception)
    assert not (tmp_path / "nowhere").exists()


def test_a_grid_that_is_half_extended_is_read_as_far_as_it_is_whole(
    finished, world, tiny, tmp_path
):
    made, _ = finished
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "frontier" / "results.jsonl"
    rates = made.choices["frontier"].arms["sa_proj"].tried
    (added,) = set(rates) - set(PRESET.rates)
    kept = [
        line
        for line in path.read_text().splitlines(keepends=True)
        if (chain := json.loads(line)["chain"])["arm"] != "sa_proj"
        or chain["learning_rate"] != added
    ]
    path.write_text("".join(kept))
    seen = Seen()
    folders = {"one": tiny("llama", torch.bfloat16)}
    read = Protocol(PRESET, world, folders, tmp_path, seen.watch, only_read=True)
    read.run()
    assert any("the last rates of its grids are not all run" in said for said in seen.said)
    assert set(read.choices["frontier"].arms["sa_proj"].tried) == set(PRESET.rates)
    assert seen.stages == []


def test_a_summary_is_there_after_each_phase(world, tiny, tmp_path, monkeypatch):
    from narrowtune.study import miniature

    folder = tiny("llama", torch.bfloat16)
    preset = replace(SHORT, second_model=None, smaller_model=None)
    monkeypatch.setattr(miniature, "reference_folder", lambda _: folder)
    monkeypatch.setattr(miniature, "write_world", lambda *_: world)
    known = []

    def done(phase):
        page = tmp_path / "summary.json"
        known.append(list(json.loads(page.read_text())["phases"]) if page.exists() else [])

    miniature.run_miniature(preset, tmp_path, Seen(done).watch)
    assert known == [[], ["frontier"], ["frontier", "chosen"]]
