"""Runs a study: every chain, stage by stage, from one loaded model.

Owns: the model between chains (it is put back to the base, bit for bit), and what lets a stopped
study go on: the results' file, and the weights of the chain at hand.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random

import torch
from transformers import set_seed

from narrowtune.core.config import RunConfig
from narrowtune.core.errors import DataError
from narrowtune.core.results import TaskResult
from narrowtune.core.run_folder import write_json, write_text
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.data.examples import Example
from narrowtune.data.room import Room
from narrowtune.data.spilled import Joined, pick
from narrowtune.data.splits import draw_general
from narrowtune.data.stored import StoredRows
from narrowtune.engine.arithmetic import Arithmetic, apply_arithmetic, measure_arithmetic
from narrowtune.engine.features import FeatureStore, changes_eyes
from narrowtune.engine.heap import return_freed_pages
from narrowtune.evaluate.constrained import evaluate_constrained
from narrowtune.evaluate.evaluate import evaluate
from narrowtune.evaluate.tasks import Task
from narrowtune.models.blended import set_between
from narrowtune.models.select import Selection, resolve
from narrowtune.models.swap import WeightSwap
from narrowtune.pipeline.inputs import (
    load,
    make_encoder,
)
from narrowtune.pipeline.layouts import check_packing, prompts_as_batches
from narrowtune.pipeline.prompts import DRIFT_KEY, read_free_prompts
from narrowtune.pipeline.sources import Source
from narrowtune.pipeline.stages import (
    make_store,
    measure_tolerance,
    measuring,
)
from narrowtune.probe.drift import measure_drift
from narrowtune.probe.layers import layer_contributions
from narrowtune.study.anchors import Anchors
from narrowtune.study.chains import Chain
from narrowtune.study.gallery import keep_shown
from narrowtune.study.mixture import Mixed, expert_mixture
from narrowtune.study.results import BASE, ChainKey, Shown, StageResult, TaskScores, summarise
from narrowtune.study.rows import read_study
from narrowtune.study.weights import put_back, relative_update, restore_chain, save_chain
from narrowtune.train.fit import FitResult, fit
from narrowtune.train.lora import low_rank
from narrowtune.train.masters import copy_tensors

logger = logging.getLogger(__name__)

_LEAST_ENCODED = 2
"""Sets of training rows held as tensors, or as many as there are skills: those of one skill and
seed serve every arm in turn."""

_REMEMBERED = 2**30
"""Bytes of encoded prompts: every arm is asked the same after every stage. And twice as many of the
pictures of all sets of training rows. Each worker has its own."""

TOLERANCE = "tolerance.json"
"""File of the noise that scores allow for, in the study's folder."""


class Study:
    """The model, its data and its base, ready for any chain.

    Args:
        settings: of the study.
        arithmetic: what an earlier start measured; measured now unless given.
        threads: of this process; all unless given.
        checked: as for `read_study`.
    """

    def __init__(
        self,
        settings: StudySettings,
        *,
        arithmetic: Arithmetic | None = None,
        threads: int | None = None,
        checked: bool = False,
    ) -> None:
        """Load and read everything.

        Raises:
            NarrowtuneError: the model or rows can't be used, or rows are both taught and measured.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.settings = settings
        self.folder = Path(settings.output_dir)
        self.loaded = load(settings)
        self.encoder = make_encoder(self.loaded, settings, remembered_bytes=_REMEMBERED)
        names = {
            name for arm in settings.arms for name in resolve(self.loaded.model, arm.recipe).names
        }
        self.base = copy_tensors(self.loaded.model, names)
        self.skills = {skill.label: skill for skill in settings.skills}
        rows = read_study(settings, self.encoder, checked=checked)
        self.pools, self.validation, self.tasks = rows.pools, rows.validation, rows.tasks
        batch_size = settings.eval_batch_size
        self._anchors = Anchors(
            self.loaded, self.encoder, rows.anchors, rows.measured, self.base, batch_size
        )
        drift = settings.drift
        self.drift_prompts = read_free_prompts(drift, self.encoder, drift.max_prompts, DRIFT_KEY)
        self.arithmetic = arithmetic or self._choose_arithmetic()
        self._shown = keep_shown([prompt for _, prompt in self.drift_prompts], self.folder)
        self._encoded: dict[tuple[str, int], StoredRows] = {}
        self._tolerance: float | None = None
        self._store = make_store(self.loaded, remember=settings.remember_pictures)
        self._features = self._store

    def _choose_arithmetic(self) -> Arithmetic:
        """Measure which arithmetic is fastest here, and whether rows may be packed."""
        training = self.settings.training
        items = (example.prompt for task in self.tasks for example in task.examples)
        asked = chain(items, (prompt for _, prompt in self.drift_prompts))
        found = check_packing(
            measure_arithmetic(self.loaded.model, requested=training.compute_dtype),
            self.loaded,
            prompts_as_batches(asked, self.encoder),
            allowed=training.packing,
        )
        if training.packing and not found.packing:
            logger.warning(found.note)
        return found

    def score_base(self) -> StageResult:
        """Return the base's scores; with a single skill, on its validation rows too."""
        with apply_arithmetic(self.arithmetic):
            self._measure_tolerance()
            single = next(iter(self.validation.values())) if len(self.validation) == 1 else None
            asked = {task.name: self._ask(task) for task in self.tasks}
            return StageResult(
                chain=ChainKey(arm=BASE, learning_rate=0.0, order="", seed=0),
                stage=0,
                skill="",
                tasks={name: summarise(result) for name, result in asked.items()},
                constrained=self._constrained(asked),
                validation=summarise(self._ask(single)) if single is not None else None,
            )

    def run(self, chain: Chain, num_done: int, report: Callable[[StageResult], None]) -> None:
        """Run what is missing of a chain; the model is the base before and after.

        Args:
            chain: which one.
            num_done: stages whose results are known. The weights after the last of them are read
                back; where they are not there, the chain is run again from its beginning.
            report: is given each stage's result before the next begins.
        """
        state = self.folder / "chains" / f"{_digest(chain.key)}.safetensors"
        with apply_arithmetic(self.arithmetic):
            self._measure_tolerance()
            if chain.arm.anchor is not None:
                self._anchors.general(chain.arm.anchor, self._store)
        try:
            with self._tuned(chain) as tuned:
                if self._store is not None and changes_eyes(self.loaded, tuned.selection.names):
                    # Pictures one at a time, as for the base, and none of them kept: it would be
                    # looked at but once, and take the room of what all other arms share.
                    self._features = FeatureStore(max_bytes=0)
                known = num_done and restore_chain(self.loaded.model, state, num_done)
                first = num_done if known else 0
                for stage in range(first, len(chain.skills)):
                    result = self._stage(chain, stage, tuned)
                    report(result)
                    if stage + 1 < len(chain.skills):
                        names = tuned.selection.names
                        save_chain(self.loaded.model, state, stage + 1, names)
        finally:
            self._features = self._store
            put_back(self.loaded.model, self.base)
        state.unlink(missing_ok=True)

    @contextmanager
    def _tuned(self, chain: Chain) -> Iterator[Mixed]:
        """Give the model the form that an arm trains; tensors → those of the base they began as."""
        selection = resolve(self.loaded.model, chain.arm.recipe)
        if chain.arm.experts:
            with expert_mixture(self.loaded.model, selection, chain.key.seed) as mixed:
                yield mixed
        else:
            yield Mixed(selection, {name: name for name in selection.names})

    def _stage(self, chain: Chain, stage: int, tuned: Mixed) -> StageResult:
        """Teach one skill, and score everything."""
        skill, arm = chain.skills[stage], chain.arm
        with tempfile.TemporaryDirectory() as folder, apply_arithmetic(self.arithmetic):
            fitted = self._fit(chain, stage, folder, tuned.selection)
            return_freed_pages()
            if arm.density is not None:
                after = copy_tensors(self.loaded.model, fitted.base, self.loaded.dtype)
                set_between(self.loaded.model, fitted.base, after, arm.density, "largest")
            if arm.wise_ft is not None:
                self._average(fitted, arm.wise_ft)
            base = {name: self.base[twin] for name, twin in tuned.twins.items()}
            with measuring(self.loaded, self._features):
                swap = WeightSwap(self.loaded.model, base)
                drift = measure_drift(
                    self.loaded,
                    swap,
                    self.drift_prompts,
                    self.encoder,
                    max_new_tokens=self.settings.drift.max_new_tokens,
                    batch_size=self.settings.eval_batch_size,
                    skill_answers={example.answers[0] for example in self.pools[skill]},
                )
                layers = layer_contributions(self.loaded, swap, drift.base)
            pairs = zip(drift.base.generations, drift.tuned, strict=True)
            shown = [
                Shown(prompt=prompt, picture=picture, base=before.text, tuned=after.text)
                for (prompt, picture), (before, after) in zip(self._shown, pairs, strict=False)
            ]
            asked = {task.name: self._ask(task) for task in self.tasks}
            kept_back = self.validation.get(skill)
            return StageResult(
                chain=chain.key,
                stage=stage + 1,
                skill=skill,
                tasks={name: summarise(result) for name, result in asked.items()},
                constrained=self._constrained(asked),
                validation=summarise(self._ask(kept_back)) if kept_back is not None else None,
                drift=drift.result,
                layers=layers,
                shown=shown,
                steps=fitted.summary.num_steps,
                seconds=fitted.summary.seconds,
                final_loss=fitted.summary.final_loss,
                relative_update=relative_update(self.loaded.model, base),
            )

    def _fit(self, chain: Chain, stage: int, folder: str, selection: Selection) -> FitResult:
        arm, seed, skill = chain.arm, chain.key.seed, chain.skills[stage]
        training = {**arm.changed_training, "learning_rate": chain.key.learning_rate}
        if arm.pull is not None:
            training["pull_to_base"] = arm.pull
        config = RunConfig(
            model=self.settings.model,
            recipe=arm.recipe,
            skill=self.skills[skill],
            training=self.settings.training.model_copy(update=training),
            output_dir=folder,
            seed=seed,
        )
        parts = [self._rows(skill, seed), *self._replayed(arm, skill, seed)]
        anchor = None
        if arm.anchor is not None:
            general = self._anchors.about_skill(
                self._anchors.general(arm.anchor, self._store),
                arm.anchor,
                parts[0].examples,
                self._asked(skill),
                seed,
                self._store,
            )
            taught = [self._drawn(earlier, seed) for earlier in chain.skills[:stage]]
            now = Joined(part.examples for part in parts)
            anchor = self._anchors.with_taught(
                general, arm.anchor, taught, now, seed, self._features
            )
        # Adapters are drawn from the global generator: whatever ran before must not matter.
        set_seed(seed)
        adapters = (
            low_rank(self.loaded.model, selection, arm.lora)
            if arm.lora is not None
            else nullcontext(selection)
        )
        with adapters as selected:
            return fit(
                self.loaded,
                selected,
                Joined(parts),
                config,
                arithmetic=self.arithmetic,
                anchor=anchor,
                distillation=arm.distillation,
                features=self._features,
            )

    def _asked(self, skill: str) -> Sequence[Example]:
        """Return all rows of a skill, tested ones too."""
        tested = [task.examples for task in self.tasks if task.name == skill]
        return Joined([self.pools[skill], *tested])

    def _drawn(self, skill: str, seed: int) -> Sequence[Example]:
        pool, number = self.pools[skill], self.settings.num_samples
        if number is None:
            return pool
        if number > len(pool):
            raise DataError(
                asked=f"{number} rows of {skill} for every stage (num_samples)",
                found=f"{len(pool)} to learn from",
                do="give more rows, or lower num_samples",
            )
        return pick(pool, Random(f"{skill} {seed}").sample(range(len(pool)), number))

    def _rows(self, skill: str, seed: int) -> StoredRows:
        """Return the rows of a stage, the same for every arm."""
        key = skill, seed
        if key not in self._encoded:
            most = max(_LEAST_ENCODED, len(self.skills))
            while len(self._encoded) >= most:
                del self._encoded[next(iter(self._encoded))]
            room = Room(2 * _REMEMBERED // most)
            self._encoded[key] = StoredRows(self._drawn(skill, seed), self.encoder, room)
        return self._encoded[key]

    def _replayed(self, arm: ArmSettings, skill: str, seed: int) -> list[StoredRows]:
        own = self._drawn(skill, seed) if arm.mix else ()
        found = []
        for number, mix in enumerate(arm.mix):
            source = Source(mix.rows(), [], key=f"mix.{number}", seed=seed)
            drawn = draw_general(source.examples, len(own), mix.share, seed)
            found.append(StoredRows(drawn, self.encoder, Room(_REMEMBERED), source.refuse))
            source.check()
        return found

    def _constrained(self, free: Mapping[str, TaskResult]) -> dict[str, TaskScores] | None:
        """Score the held-out tasks with answers held to the right form, if that is asked for."""
        if not self.settings.constrained:
            return None
        return {
            task.name: summarise(
                self._ask(task, partial(evaluate_constrained, free=free[task.name]))
            )
            for task in self.tasks
            if task.role == "held_out"
        }

    def _ask(self, task: Task, ask: Callable[..., TaskResult] = evaluate) -> TaskResult:
        with measuring(self.loaded, self._features):
            return ask(
                self.loaded,
                task,
                self.encoder,
                batch_size=self.settings.eval_batch_size,
                tolerance=self._tolerance,
            )

    def _measure_tolerance(self) -> None:
        """Measure the tolerance of scores while the model is the base, once for all processes."""
        path = self.folder / TOLERANCE
        if self._tolerance is None and path.exists():
            self._tolerance = json.loads(path.read_text("utf-8"))["tolerance"]
        if self._tolerance is None:
            # Without a store: noise of the tower is in it, as in an arm's that trains the tower.
            with measuring(self.loaded):
                self._tolerance = measure_tolerance(self.loaded, self.tasks, self.encoder)
            write_json(path, {"tolerance": self._tolerance})

    @torch.no_grad()
    def _average(self, fitted: FitResult, share: float) -> None:
        """Replace the tuned weights by their average with those before the stage (WiSE-FT)."""
        for name, parameter in self.loaded.model.named_parameters():
            before = fitted.base.get(name)
            if before is not None:
                mean = torch.lerp(parameter.float(), before.to(parameter.device).float(), share)
                parameter.copy_(mean)


def remember_arithmetic(folder: Path, arithmetic: Arithmetic) -> None:
    """Keep what was measured, so that all chains compute alike however often they are stopped."""
    write_text(folder / "arithmetic.json", arithmetic.to_json())


def known_arithmetic(folder: Path) -> Arithmetic | None:
    """Return what an earlier start measured, if there was one."""
    path = folder / "arithmetic.json"
    return Arithmetic.from_json(path.read_text(encoding="utf-8")) if path.exists() else None


def _digest(key: ChainKey) -> str:
    return hashlib.sha256(key.model_dump_json().encode()).hexdigest()[:16]
