"""Does an anchored recipe learn what the whole language model learns, and lose a point at most?

    python benchmarks/anchor_goal.py --workers 2   # about half an hour on two cores
    python benchmarks/anchor_goal.py --table
    python benchmarks/anchor_goal.py --fresh       # twenty minutes: ten seeds on rows of their own
    python benchmarks/anchor_goal.py --wider       # 70 minutes: twenty seeds, more prompts
    python benchmarks/anchor_goal.py --closer      # ten minutes: four times as many kept items
    python benchmarks/anchor_goal.py --sequence    # an hour: five skills in a row
    python benchmarks/anchor_goal.py --unseen      # 15 minutes: kept kinds of no other use
    python benchmarks/anchor_goal.py --pulled      # 20 minutes: weights pulled back to the base's
    python benchmarks/anchor_goal.py --each        # 20 minutes: five skills, each alone
    python benchmarks/anchor_goal.py --near        # 40 minutes: kinds that look like the skills

Clocks on the reference model, 1,600 rows in 200 steps of 8, five seeds. The goal: learning not
below what `language_model` learns at its best rate (lower end of the difference at least -2
points), and an upper end of what is lost of at most one, over 3,200 kept items.

What is held with, and at which rates, was chosen on one seed of other rows (split `validation`, a
seed of their own): 512 prompts of eight forms, four rows a step, weight 0.3. Reported are rows of
the split `test` that no study and no choice has seen. Prompts are of kinds that are neither taught
nor kept; `choices` (options with letters about shapes) and `relations` (yes or no) are near some
that are kept, so that charts, forms and infographics, which have no kin among them, are told apart.
Blended are what was trained and the base, 88 to 12, which was chosen on another such seed, as were
their rates. Of the *larger half* half of each matrix's elements stay as trained, those that moved
furthest; shortened, they go 93 % of the way. *Projected* steps are kept off what the prompts use
(`anchor.projection`), at a strength and rates that were chosen on rows of `validation`; *alone*, no
prompts stand in a step. `prompts like those kept` are outside of the goal: 64 of each kept kind,
without answers, stand beside the others.
Results are lines of results.jsonl, so a stopped run goes on.

`--fresh` asks the goal once more of what came nearest to it there, `mlp` projected by 3 at 2.8e-3
and the larger half of that, beside `language_model` at its best rate, on test rows of another seed,
that decided nothing, and with ten training seeds.

`--wider` asks it of 1,040 prompts of thirteen forms, the eight and `reading` (letters), `pairs`,
`letters` and `orders` (text) and `pages` (rows of letters and digits), none of them taught or kept;
that more forms help was seen on what `--fresh` lost, and all settings were chosen on rows of
`validation` and two seeds (docs/LOG.md). Rows are of a seed that decided nothing, and there are
twenty training seeds. `mlp` alone says what the anchor's time is to be held against; one anchor row
a step in place of four was chosen on rows of `validation` once the others' results were known.

`--closer` asks of the better of the two what is lost alone, six training seeds, of 12,800 kept
items of yet another seed: with 3,200 it is they that decide how wide the interval is.

`--unseen` asks both, and what is lost also of four kinds that stand in no anchor, in no keep set
and in no choice that was made: arrows, counts, plumages and gauges, which the model was trained on
before, 800 items each (what is known by heart would be the fifth, but the base answers none of it).
Eight training seeds, rows of a seed that decided nothing. What is asked was chosen on rows of
`validation` and two seeds once `--pulled` was known, which held more than was asked and learned
less. Counts, plumages and gauges are near counting, birds and clocks.

`--pulled` asks both of recipes whose weights are pulled back to the base's
(`training.pull_to_base`), one of them without an anchor, on rows of a seed that decided nothing and
with eight training seeds. How far, and rates, are what two seeds of `validation` rows had shown
(docs/LOG.md). `--each` asks the same of five skills, each taught to the base, at these settings,
that were chosen for clocks, with two training seeds.

`--near` asks what is lost of the kind that is nearest to a skill: of gauges where clocks are
taught, of tallies where counting is, of plumage where birds are, each taught to the base, 400 items
of each kind, of none of which there is a prompt, four training seeds. *And skill pictures*: the
anchor also asks general questions about pictures that the skill is taught with
(`anchor.skill_pictures`); that it does, and of how many, was chosen on rows of `validation`, clocks
and gauges (docs/LOG.md), so that tallies and plumage decided nothing. Rows are of a seed that
decided nothing.

`--sequence` asks both of five skills that are taught one after another, each in 200 steps, with
three training seeds: learned is the mean of the skills, each after its own stage, lost the mean
over the stages and after the last, and the last stage's is what there is of all skills. Rows are
of a seed that decided nothing. *And earlier skills*: 64 prompts that each skill before was taught
with, answered by the model that a stage begins with, get every other place among the anchor's rows;
chosen on rows of `validation` once the others' results were known. `--further-seeds` trains three
more seeds of the last arm and of language_model at its best, asked for once the first three were
known.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from narrowtune.core.config import DriftSettings, TrainingSettings
from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.miniature.registry import tasks_of
from narrowtune.miniature.rows import write_rows
from narrowtune.study.effects import Effect, Interval, Items, Terms, learned, lost, remaining
from narrowtune.study.results import StageResult, base_of, by_chain, read_results
from narrowtune.study.workers import run_study
from narrowtune.study.world import write_general

SKILL = "clock"
SEED, ANCHOR_SEED, DRIFT_SEED = 6, 115, 116
NUM_TRAIN, NUM_SKILL, NUM_KEPT, NUM_PROMPTS = 3200, 500, 400, 512
FORMS = ("captions", "names", "binding", "relations", "rows", "words", "choices", "lists")
APART = ("charts", "forms", "infographics")
REFERENCE = "language_model"
SEEDS = (0, 1, 2, 3, 4)
NUM_LIKE, LIKE_SEED = 64, 145
BASE_SHARE, SHORTENED = 0.12, 0.07
LIKE = "prompts like those kept"


class Held(NamedTuple):
    """With what a recipe is trained, and what is done with it afterwards.

    Attributes:
        recipe: what trains.
        rates: learning rates.
        weight: of the anchor; None without one, 0 where no prompts stand in a step.
        projection: the strength with which steps are kept off what the prompts use.
        rows: prompts in a step.
        density: share of each matrix's elements that stays as trained.
        base_share: the base's share in the average that ends it.
        like_kept: whether prompts like what is kept stand beside the others.
        earlier: prompts of each skill that was taught before, beside the others.
        pull: back to the base's weights, in e-folds over the training.
        skill_pictures: questions of the anchor about pictures that the skill is taught with.
    """

    recipe: str
    rates: list[float]
    weight: float | None = 0.3
    projection: float = 0.0
    rows: int = 4
    density: float | None = None
    base_share: float | None = None
    like_kept: bool = False
    earlier: int = 0
    pull: float | None = None
    skill_pictures: int = 0


LARGER_HALF = 0.5
ARMS = {
    REFERENCE: Held(REFERENCE, [5.5e-4, 1e-3], weight=None),
    "mlp + anchor": Held("mlp", [1e-3, 1.7e-3]),
    "mlp_gate_up + anchor": Held("mlp_gate_up", [3e-3]),
    "mlp + anchor, blended": Held("mlp", [1.7e-3, 2.2e-3], base_share=BASE_SHARE),
    f"mlp + anchor, {LIKE}": Held("mlp", [2.4e-3], like_kept=True),
    f"mlp + anchor, {LIKE}, blended": Held("mlp", [2.4e-3], base_share=BASE_SHARE, like_kept=True),
    "mlp + anchor, larger half": Held("mlp", [1.7e-3, 2.2e-3], density=LARGER_HALF),
    "mlp + anchor, larger half, shortened": Held(
        "mlp", [2.2e-3], density=LARGER_HALF, base_share=SHORTENED
    ),
    "mlp + anchor, projected by 3": Held("mlp", [2.8e-3, 3.4e-3], projection=3.0),
    "mlp + anchor, projected by 3, larger half": Held(
        "mlp", [3.4e-3], projection=3.0, density=LARGER_HALF
    ),
    "mlp + anchor, projected by 10": Held("mlp", [5e-3], projection=10.0),
    "mlp_gate_up + anchor, projected by 3": Held("mlp_gate_up", [1e-2], projection=3.0),
    "mlp, projected by 3 alone": Held("mlp", [3.4e-3], weight=0.0, projection=3.0),
}

AT_BEST = Held(REFERENCE, [1e-3], weight=None)
FRESH_ARMS = {
    REFERENCE: AT_BEST,
    "mlp + anchor, projected by 3": Held("mlp", [2.8e-3], projection=3.0),
    "mlp + anchor, projected by 3, larger half": Held(
        "mlp", [2.8e-3], projection=3.0, density=LARGER_HALF
    ),
}
NEAREST = {
    "mlp + anchor, projected by 5, larger half": Held(
        "mlp", [4.2e-3], projection=5.0, density=LARGER_HALF
    )
}
WIDER_ARMS = {
    REFERENCE: AT_BEST,
    "mlp + anchor, projected by 5": Held("mlp", [3.6e-3], projection=5.0),
    **NEAREST,
    "mlp": Held("mlp", [1e-3], weight=None),
    "mlp + anchor of one row, projected by 5, larger half": Held(
        "mlp", [4.2e-3], projection=5.0, rows=1, density=LARGER_HALF
    ),
}
ALL_HELD = {
    "mlp + anchor of one row, projected by 5, pulled by 2": Held(
        "mlp", [5.5e-3], projection=5.0, rows=1, pull=2.0
    )
}
ALONE_HELD = {
    "mlp, pulled by 3, larger half": Held(
        "mlp", [5.5e-3], weight=None, pull=3.0, density=LARGER_HALF
    )
}
CHOSEN = {
    "mlp + anchor of one row, projected by 3, pulled by 0.8": Held(
        "mlp", [5.5e-3], projection=3.0, rows=1, pull=0.8
    )
}
PULLED_ARMS = {
    REFERENCE: AT_BEST,
    **ALL_HELD,
    **ALONE_HELD,
    "mlp_gate_up + anchor of one row, projected by 5, pulled by 2": Held(
        "mlp_gate_up", [1e-2], projection=5.0, rows=1, pull=2.0
    ),
}
SEQUENCE_ARMS = {
    REFERENCE: Held(REFERENCE, [5.5e-4, 1e-3], weight=None),
    "mlp + anchor, projected by 5, larger half": Held(
        "mlp", [2.8e-3], projection=5.0, density=LARGER_HALF
    ),
    "mlp + anchor and earlier skills, projected by 5, larger half": Held(
        "mlp", [2.8e-3], projection=5.0, density=LARGER_HALF, earlier=64
    ),
    "mlp + anchor of one row and earlier skills, projected by 5, pulled by 2": Held(
        "mlp", [5.5e-3], projection=5.0, rows=1, pull=2.0, earlier=64
    ),
}
FURTHER_ARMS = {
    REFERENCE: AT_BEST,
    **{name: held for name, held in SEQUENCE_ARMS.items() if held.pull},
}
"""Of the five skills in a row, those that get more seeds, of the trainings alone."""
NEAR_ARMS = {
    REFERENCE: AT_BEST,
    **CHOSEN,
    "mlp + anchor of one row and skill pictures, projected by 3, pulled by 0.8": Held(
        "mlp", [5.5e-3], projection=3.0, rows=1, pull=0.8, skill_pictures=260
    ),
}
EACH_ARMS = {REFERENCE: AT_BEST, **ALL_HELD, **ALONE_HELD}
FIVE = ("birds", "counting", "tissue", "signs", "clock")
KEPT = tuple(task.name for task in tasks_of("held_out"))
UNSEEN = ("arrows", "tallies", "plumage", "gauges")
NEAREST_KIND = {"clock": "gauges", "counting": "tallies", "birds": "plumage"}
WIDER = (*FORMS, "reading", "pairs", "letters", "orders", "pages")


class Question(NamedTuple):
    """What is asked, and of which rows.

    Attributes:
        arms: by name.
        seed: of the rows.
        seeds: of the trainings.
        forms: of the anchor's prompts.
        num_prompts: of all forms.
        num_kept, num_unseen, num_skill: items of each kept task, of each of no other use, and of
            each that is taught.
        skills: what is taught, one after another, or each alone.
        alone: whether each is taught to the base.
        kept: what is kept; the eight kinds of the study unless given.
    """

    arms: Mapping[str, Held]
    seed: int
    seeds: Sequence[int]
    forms: tuple[str, ...] = FORMS
    num_prompts: int = NUM_PROMPTS
    num_kept: int = NUM_KEPT
    num_unseen: int = 800
    num_skill: int = NUM_SKILL
    skills: tuple[str, ...] = (SKILL,)
    alone: bool = False
    kept: tuple[str, ...] = KEPT


QUESTIONS = {
    "anchor-goal": Question(ARMS, SEED, SEEDS),
    "anchor-goal-fresh": Question(FRESH_ARMS, 9, range(10)),
    "anchor-goal-wider": Question(WIDER_ARMS, 12, range(20), WIDER, 1040),
    "anchor-goal-sequence": Question(
        SEQUENCE_ARMS, 14, range(3), WIDER, 1040, num_skill=200, skills=FIVE
    ),
    "anchor-goal-pulled": Question(PULLED_ARMS, 18, range(8), WIDER, 1040),
    "anchor-goal-each": Question(
        EACH_ARMS, 19, range(2), WIDER, 1040, num_skill=300, skills=FIVE, alone=True
    ),
    "anchor-goal-closer": Question(NEAREST, 13, range(6), WIDER, 1040, num_kept=1600),
    "anchor-goal-unseen": Question(
        {REFERENCE: AT_BEST, **CHOSEN}, 20, range(8), WIDER, 1040, kept=(*UNSEEN, *KEPT)
    ),
    "anchor-goal-near": Question(
        NEAR_ARMS,
        21,
        range(4),
        WIDER,
        1040,
        num_kept=100,
        num_unseen=400,
        num_skill=300,
        skills=tuple(NEAREST_KIND),
        alone=True,
        kept=(*NEAREST_KIND.values(), *KEPT),
    ),
}
"""By the name of their folder."""


def make_settings(folder: Path, asked: Question) -> StudySettings:
    """Write the rows, the same each time, and return the study."""
    world = folder / "world"
    seed = asked.seed
    skills = []
    for name in asked.skills:
        train = write_rows(world, name, "train", NUM_TRAIN, seed)
        test = write_rows(world, name, "test", asked.num_skill, seed)
        skills.append(SkillSettings(**train.model_dump(), validation=0, test_path=test.path))
    keep: list[DataSettings] = []
    for kind in asked.kept:
        number = asked.num_unseen if kind in UNSEEN else asked.num_kept
        keep.append(write_rows(world, kind, "test", number, seed))
    write_general(world / "prompts.jsonl", asked.forms, asked.num_prompts, ANCHOR_SEED)
    write_general(world / "drift.jsonl", FORMS[:1], 32, DRIFT_SEED)
    _write_like_kept(world)
    return StudySettings(
        model=str(reference_folder("qwen2_5_vl")),
        skills=skills,
        keep=keep,
        arms=[make_arm(name, held, world) for name, held in asked.arms.items()],
        orders={name: [name] for name in asked.skills} if asked.alone else {},
        seeds=list(asked.seeds),
        num_samples=NUM_TRAIN // 2,
        training=TrainingSettings(global_batch_size=8, per_device_train_batch_size=8),
        drift=DriftSettings(prompts=str(world / "drift.jsonl"), max_prompts=32),
        output_dir=str(folder),
    )


def make_arm(name: str, held: Held, world: Path) -> ArmSettings:
    """Return a study's arm."""
    file = "prompts-like-kept" if held.like_kept else "prompts"
    anchor = {
        "prompts": str(world / f"{file}.jsonl"),
        "weight": held.weight,
        "projection": held.projection,
        "rows_per_step": held.rows,
        "earlier_skills": held.earlier,
        "skill_pictures": held.skill_pictures,
    }
    return ArmSettings.model_validate(
        {
            "name": name,
            "recipe": held.recipe,
            "learning_rates": held.rates,
            "anchor": None if held.weight is None else anchor,
            "density": held.density,
            "wise_ft": held.base_share,
            "pull": held.pull,
        }
    )


def _write_like_kept(world: Path) -> None:
    """Write the general prompts with some of every kept kind, of rows that are never scored."""
    lines = (world / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    for task in tasks_of("held_out"):
        rows = write_rows(world, task.name, "train", NUM_LIKE, LIKE_SEED)
        for line in Path(rows.path).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            lines.append(json.dumps({key: row[key] for key in ("id", "image", "question")}))
    text = "".join(f"{line}\n" for line in lines)
    (world / "prompts-like-kept.jsonl").write_text(text, encoding="utf-8")


def print_tables(folder: Path, asked: Question) -> None:
    """Print what every arm learned and lost at each rate; of skills each alone, of each and all."""
    results = read_results(folder / "results.jsonl")
    base = base_of(results)
    for skill in asked.skills if asked.alone else ():
        print(f"{skill}:")
        _print_table(base, [result for result in results if result.chain.order == skill], 1, False)
    print("all:" if asked.alone else "", end="\n" * asked.alone)
    _print_table(base, results, len(asked.skills), not asked.alone)


def _print_table(
    base: StageResult, results: Sequence[StageResult], num_skills: int, in_row: bool
) -> None:
    """Print a table of chains; of skills each alone those of one seed stand for one chain."""
    stages: dict[tuple[str, float], dict[int, list[StageResult]]] = {}
    for key, found in by_chain(results).items():
        own = stages.setdefault((key.arm, key.learning_rate), {})
        own.setdefault(key.seed, []).extend(found)
    for own in stages.values():
        for seed in [seed for seed, found in own.items() if len(found) < num_skills]:
            del own[seed]  # a stop left it without its last stages
    stages = {which: own for which, own in stages.items() if own}
    learnings = {
        which: Effect({seed: learned(base, chain) for seed, chain in own.items()})
        for which, own in stages.items()
    }
    remainders = {
        which: Effect({seed: remaining(base, chain) for seed, chain in own.items()})
        for which, own in stages.items()
    }
    best = max(
        (which for which in learnings if which[0] == REFERENCE),
        key=lambda which: told(learnings[which]).mean,
        default=None,
    )
    print("points" + (f"; {REFERENCE}'s best of these rates is {best[1]:g}" if best else ""))
    for which, own in stages.items():
        losses = {seed: lost(base, chain) for seed, chain in own.items()}
        kinds = [name.removeprefix("lost ") for name in next(iter(losses.values()))]
        groups: list[tuple[str, ...]] = []
        if set(kinds) - set(KEPT):
            groups = [tuple(kind for kind in kinds if kind not in KEPT), KEPT]
            groups += [(kind,) for kind in groups[0]]
        groups += [APART] if set(APART) <= set(kinds) else [(kind,) for kind in kinds]
        apart = [f"of {', '.join(group)} {line(lost_of(losses, group))}" for group in groups]
        trained = [stage for chain in own.values() for stage in chain]
        seconds = sum(stage.seconds for stage in trained) / len(trained)
        at_end = Effect({seed: lost(base, chain[-1:]) for seed, chain in own.items()})
        ended = ""
        if in_row and len(trained) > len(own):
            ended = f" ({line(told(at_end))} at the end)"
            left = remainders[which]
            ended += f", at the end there is {line(told(left))} of all skills"
            if best is not None:
                beyond = left.plus(remainders[best], -1.0)
                ended += f", against the best {line(told(beyond))}"
        against = ""
        if best is not None:
            difference = told(learnings[which].plus(learnings[best], -1.0))
            against = f"against the best {line(difference)}; "
        print(
            f"{which[0]:46s} {which[1]:g}: learned {line(told(learnings[which]))}, "
            f"{against}lost {line(told(Effect(losses)))}{ended}, "
            f"{', '.join(apart)}; {seconds:.0f} s"
        )


def lost_of(losses: Mapping[int, Terms], kinds: Sequence[str]) -> Interval:
    """Return what is lost of some of the kinds alone."""
    share = len(next(iter(losses.values()))) / len(kinds)  # each counts in the whole by 1 of all
    own = {}
    for seed, terms in losses.items():
        chosen = {name: terms[name] for name in terms if name.removeprefix("lost ") in kinds}
        own[seed] = {
            name: Items(share * items.values, share * items.scale) for name, items in chosen.items()
        }
    return told(Effect(own))


def told(effect: Effect) -> Interval:
    """Return an effect's interval; there are runs of it."""
    found = effect.interval()
    assert found is not None
    return found


def line(found: Interval) -> str:
    """Return a mean, its interval and every seed."""
    ends = f" ({found.low:.2f} to {found.high:.2f})" if found.low is not None else ""
    return f"{found.mean:.2f}{ends} [{', '.join(f'{value:.1f}' for value in found.seeds)}]"


def main() -> None:
    """Run what is missing, or print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output-dir", type=Path, help="runs/anchor-goal, …-fresh, …")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fresh", action="store_true", help="what came nearest, on other rows")
    which.add_argument("--wider", action="store_true", help="prompts of more forms, on other rows")
    which.add_argument("--sequence", action="store_true", help="five skills one after another")
    which.add_argument("--closer", action="store_true", help="of these, what is lost alone")
    which.add_argument("--pulled", action="store_true", help="weights pulled back to the base's")
    which.add_argument("--near", action="store_true", help="of kinds that look like the skills")
    which.add_argument("--each", action="store_true", help="each of five skills, alone")
    which.add_argument("--unseen", action="store_true", help="the same, of kinds of no other use")
    parser.add_argument(
        "--further-seeds", action="store_true", help="of --sequence: six of what came nearest"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.further_seeds and not given.sequence:
        parser.error("--further-seeds are of --sequence")
    names = ("fresh", "wider", "sequence", "closer", "unseen", "pulled", "each", "near")
    chosen = [name for name in names if getattr(given, name)]
    name = "-".join(["anchor-goal", *chosen])
    folder = given.output_dir or Path("runs") / name
    asked = QUESTIONS[name]
    if given.further_seeds:
        asked = asked._replace(arms=FURTHER_ARMS, seeds=range(6))
    if not given.table:
        run_study(
            make_settings(folder, asked),
            lambda result, left: print(f"{result.chain}; {left} left", flush=True),
            num_workers=given.workers,
        )
    print_tables(folder, asked)


if __name__ == "__main__":
    main()
