"""The miniature study, phase after phase, each a study of its own in a folder of its own.

Owns: which phases there are, in which order, and what one takes over from another. What a phase
depends on is computed from the results of earlier ones each time, so that a stopped study goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrowtune.core.config import DriftSettings, TrainingSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.run_folder import write_text
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.study.chains import all_chains, open_chains
from narrowtune.study.choices import Choices, choose, extend, points_of, rounded, trials
from narrowtune.study.presets import AVERAGES, REFERENCE, WISE_FT, Preset, grid_factor, make_arms
from narrowtune.study.results import BASE, StageResult, append_result, read_results
from narrowtune.study.run import TOLERANCE
from narrowtune.study.workers import RESULTS, Report, results_path, run_study
from narrowtune.study.world import World

_AVERAGED = WISE_FT.rsplit(" ", 1)[0]  # the label without its share

_SCORED = ("skills", "keep", "drift", "constrained")
"""Settings of which one that differs means other scores."""


@dataclass(frozen=True)
class Phase:
    """A phase, finished or not.

    Attributes:
        name: of the phase and its folder.
        settings: what was run.
    """

    name: str
    settings: StudySettings

    @property
    def results(self) -> list[StageResult]:
        """What it found."""
        return read_results(results_path(self.settings))


@dataclass(frozen=True)
class Watch:
    """Who is told.

    Attributes:
        say: of plain sentences.
        stage: of every stage.
        done: of every finished phase.
    """

    say: Callable[[str], None]
    stage: Report
    done: Callable[[Phase], None]


class Protocol:
    """All phases of a preset.

    Args:
        preset: arms, rates, seeds.
        world: rows.
        models: folders of the reference models that ship, by name.
        folder: gets a folder per phase, and choices.json.
        watch: who is told.
        num_workers: chains at a time.
        only_read: run nothing; phases are what was run of them so far.

    Attributes:
        phases: those that are finished, or read, by name.
        choices: of each model's search, by the phase's name.
    """

    def __init__(
        self,
        preset: Preset,
        world: World,
        models: Mapping[str, Path],
        folder: Path,
        watch: Watch,
        *,
        num_workers: int = 1,
        only_read: bool = False,
    ) -> None:
        self.only_read = only_read
        self.preset, self.world, self.models = preset, world, models
        self.folder, self.watch, self.num_workers = folder, watch, num_workers
        self.arms = make_arms(world.anchor_prompts, world.replay)
        self.phases: dict[str, Phase] = {}
        self.choices: dict[str, Choices] = {}

    def run(self) -> None:
        """Run what is missing of every phase.

        Raises:
            NarrowtuneError: of the first chain that fails; results of others stay.
        """
        preset = self.preset
        grids = self._search("frontier", preset.model, preset.arms)
        if preset.quarter:
            few = {arm: grids[arm] for arm in preset.main}
            self._run("quarter", self._single(preset.model, few, [0], preset.sizes.samples // 4))
        self._chosen("chosen", "frontier", preset.model)
        rates = {arm: [made.in_chains] for arm, made in self.choices["frontier"].arms.items()}
        chained = {arm: rates[arm] for arm in preset.chained}
        self._run("chains", self._chained(chained, ["default"]))
        if preset.turned:
            turned = {arm: rates[arm] for arm in preset.turned}
            others = [name for name in preset.orders if name != "default"]
            self._run("orders", self._chained(turned, others))
        self._other("second_model", preset.second_model, preset.main)
        self._other("smaller_model", preset.smaller_model, preset.turned)

    def _other(self, name: str, model: str | None, arms: Sequence[str]) -> None:
        """Search and run the chosen rates on another model, where there is one."""
        if model is None:
            return
        if model not in self.models:
            self.watch.say(f"{name} is left out: {model} does not ship with this installation.")
            return
        if self.only_read and not (self.folder / name / RESULTS).exists():
            return
        try:
            self._search(name, model, arms)
        except UsageError as error:
            if not self.only_read:
                raise
            self.watch.say(f"{name} is left out so far: {error.found}")
            return
        self._chosen(f"{name}_chosen", name, model)

    def best_rates(self, search: str) -> dict[str, list[float]]:
        """Return each arm's best rate, as a grid of one."""
        return {arm: [choice.best] for arm, choice in self.choices[search].arms.items()}

    def _search(self, name: str, model: str, arms: Sequence[str]) -> dict[str, list[float]]:
        """Run grids of rates, extended until no best is at an edge; write down what was chosen."""
        grids = {label: self._grid(self.arms[label]) for label in arms}
        known: dict[str, list[float]] | None = None
        for left in range(self.preset.most_extensions, -1, -1):
            phase = self._start(name, self._single(model, grids, [0]))
            try:
                points = points_of(phase.results, grids, 0)
            except UsageError:
                if not self.only_read or known is None:
                    raise
                self.watch.say(
                    f"{name}: the last rates of its grids are not all run, and left out."
                )
                grids, points = known, points_of(phase.results, known, 0)
                break
            known = grids
            further = extend(points) if left else None
            if further is None:
                break
            grids = further
        path = results_path(phase.settings).relative_to(self.folder)
        self.choices[name] = choose(
            points, phase.results, self.arms, reference=REFERENCE, made_from=path.as_posix()
        )
        self._write_choices()
        self.watch.say(f"{name}: {trials(grids)} rates for every arm; choices.json has the chosen.")
        self._finish(phase)
        return grids

    def _chosen(self, name: str, search: str, model: str) -> None:
        """Run the chosen rates with every seed, and WiSE-FT's other shares at its best rate."""
        grids = {arm: choice.rates for arm, choice in self.choices[search].arms.items()}
        if WISE_FT in grids:
            best = self.best_rates(search)[WISE_FT]
            labels = (f"{_AVERAGED} {share:g}" for share in AVERAGES)
            grids |= {label: best for label in labels if label != WISE_FT}
        self._run(name, self._single(model, grids, self.preset.seeds))

    def _run(self, name: str, settings: StudySettings) -> None:
        self._finish(self._start(name, settings))

    def _start(self, name: str, settings: StudySettings) -> Phase:
        update = {"output_dir": str(self.folder / name)}
        phase = Phase(name, settings.model_copy(update=update))
        if self.only_read:
            return phase
        for earlier in self.phases.values():
            if earlier.settings.model == settings.model:
                take_over(earlier, phase)
        missing = open_chains(list(all_chains(phase.settings)), phase.results)
        self.watch.say(f"{name}: {len(missing)} chains to run.")
        run_study(phase.settings, self.watch.stage, num_workers=self.num_workers)
        return phase

    def _finish(self, phase: Phase) -> None:
        if self.only_read and not any(result.stage for result in phase.results):
            return
        self.phases[phase.name] = phase
        if self.only_read:
            return
        try:
            self.watch.done(phase)
        except Exception as error:  # hours of phases are still to come, and figures can be redrawn
            self.watch.say(f"{phase.name}: what was found could not be shown: {error!r}")

    def _write_choices(self) -> None:
        text = {name: made.model_dump(mode="json") for name, made in self.choices.items()}
        write_text(self.folder / "choices.json", json.dumps(text, indent=2) + "\n")

    def _grid(self, arm: ArmSettings) -> list[float]:
        return [rounded(rate * grid_factor(arm)) for rate in self.preset.rates]

    def _settings(
        self, model: str, grids: Mapping[str, Sequence[float]], skills: Sequence[str]
    ) -> StudySettings:
        preset, sizes = self.preset, self.preset.sizes
        rows = preset.batch_size
        return StudySettings(
            model=str(self.models[model]),
            skills=[skill for skill in self.world.skills if skill.label in skills],
            keep=list(self.world.keep),
            arms=[
                self.arms[arm].model_copy(update={"learning_rates": list(rates)})
                for arm, rates in grids.items()
            ],
            num_samples=sizes.samples,
            training=TrainingSettings(global_batch_size=rows, per_device_train_batch_size=rows),
            drift=DriftSettings(prompts=self.world.drift_prompts, max_prompts=sizes.drift),
        )

    def _single(
        self,
        model: str,
        grids: Mapping[str, Sequence[float]],
        seeds: Sequence[int],
        samples: int | None = None,
    ) -> StudySettings:
        """Return a study of the one skill that a model's rates are chosen on."""
        update = {
            "num_samples": samples or self.preset.sizes.samples,
            "seeds": list(seeds),
            "constrained": True,  # for C12; chains would take too long with it
        }
        second = model == self.preset.second_model
        skill = self.preset.second_skill if second else self.preset.skill
        return self._settings(model, grids, [skill]).model_copy(update=update)

    def _chained(
        self, grids: Mapping[str, Sequence[float]], orders: Sequence[str]
    ) -> StudySettings:
        """Return a study of all skills in these orders."""
        update = {
            "orders": {name: list(self.preset.orders[name]) for name in orders},
            "seeds": list(self.preset.chain_seeds),
        }
        skills = self.preset.orders["default"]
        return self._settings(self.preset.model, grids, skills).model_copy(update=update)


def take_over(earlier: Phase, later: Phase) -> None:
    """Give a phase what an earlier one of the same model has measured already.

    The arithmetic, so that both compute alike; and where both score the same rows, the base's
    scores and the runs that differ in nothing.
    """
    old, new = earlier.settings, later.settings
    known = Path(old.output_dir) / "arithmetic.json"
    target = Path(new.output_dir) / known.name
    if known.exists() and not target.exists():
        write_text(target, known.read_text("utf-8"))
    if any(getattr(old, name) != getattr(new, name) for name in _SCORED):
        return
    noise = Path(old.output_dir) / TOLERANCE
    if noise.exists() and not (target := Path(new.output_dir) / TOLERANCE).exists():
        write_text(target, noise.read_text("utf-8"))
    done = {(result.chain, result.stage) for result in later.results}
    wanted = {chain.key for chain in all_chains(new)}
    if (old.num_samples, old.training) != (new.num_samples, new.training):
        wanted = set()
    for result in earlier.results:
        asked = result.chain.arm == BASE or result.chain in wanted
        if asked and (result.chain, result.stage) not in done:
            append_result(results_path(new), result)
