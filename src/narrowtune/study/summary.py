"""The miniature study as one value: claims, comparisons and correlations over all phases.

Owns: which phase's runs each claim is read from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from narrowtune.core.results import Value
from narrowtune.study import claims, claims_compared
from narrowtune.study.chains import all_chains
from narrowtune.study.choices import Choices
from narrowtune.study.correlations import MEASURES, Correlation, correlate, points_in
from narrowtune.study.effects import Interval, over_seeds
from narrowtune.study.phases import Phase
from narrowtune.study.presets import AVERAGES, REFERENCE, WISE_FT, grid_factor
from narrowtune.study.readings import Part, Setting, setting_of
from narrowtune.study.results import StageResult
from narrowtune.study.rules import Claim, on_frontier
from narrowtune.study.tables import SHARES, best_point, frontier, matched, sequences

BEST = "one skill, each at its best rate"
ONE_RATE = "one skill, one rate for all"
CHAINED = "all skills in a row"
SECOND = "one skill on the second model, each at its best rate"
SMALLER = "one skill on the smaller model, each at its best rate"
OTHERS = {SECOND: "second_model", SMALLER: "smaller_model"}
"""Settings on other models → the phase in which their rates were searched."""


class ArmFigures(Value):
    """An arm in one setting, in points.

    Attributes:
        arm, rate: which runs.
        learned: of each skill at its own stage.
        lost: held-out, mean over stages.
        last: held-out, after the last stage.
        kept_skills: what is left of learning after the last stage, by seed.
        recovery: points regained at each stage after the first, by seed.
        shares: the same as shares of what was lost; None where that was 2 points or less.
    """

    arm: str
    rate: float
    learned: Interval
    lost: Interval
    last: Interval
    kept_skills: tuple[float, ...]
    recovery: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float | None, ...], ...]


class Matched(Value):
    """What an arm loses where it learns a share of the reference's best, by seed.

    Attributes:
        arm: whose.
        num_rates: how many it was run at, by seed.
        best: what it learned at the rate that is best on validation rows, by seed.
        lost: share → a value per seed, None where it is not reached.
        means: share → interval over seeds, None unless all reach it.
    """

    arm: str
    num_rates: tuple[int, ...]
    best: tuple[float, ...]
    lost: dict[float, tuple[float | None, ...]]
    means: dict[float, Interval | None]


class Summary(Value):
    """All that is computed over the phases.

    Attributes:
        preset: its name.
        phases: → number of stages that were run.
        planned: phases → number of stages that there are to be.
        left_out: setting → arm → why claims are not read from its runs there.
        skills: of the chains, by the order's name.
        settings: name → arms.
        matched: phase → arms.
        correlations: of which runs → one per measure.
        claims: C1 to C12.
    """

    preset: str
    phases: dict[str, int]
    planned: dict[str, int]
    left_out: dict[str, dict[str, str]]
    skills: dict[str, tuple[str, ...]]
    settings: dict[str, tuple[ArmFigures, ...]]
    matched: dict[str, tuple[Matched, ...]]
    correlations: dict[str, tuple[Correlation, ...]]
    claims: tuple[Claim, ...]


def summarise_study(
    preset: str, phases: Mapping[str, Phase], choices: Mapping[str, Choices], counting: str
) -> Summary:
    """Compute everything that the phases have numbers for.

    Args:
        preset: its name.
        phases: by name, finished or not.
        choices: of each search.
        counting: the skill that claims about counting's stage in a chain are read at.
    """
    results = {name: phase.results for name, phase in phases.items()}
    settings = make_settings(phases, results, choices)
    orders = {
        name: tuple(skills)
        for phase in ("chains", "orders")
        if phase in phases
        for name, skills in phases[phase].settings.all_orders.items()
    }
    single = [name for name in ("frontier", "chosen") if name in results]
    factors = {
        arm.label: grid_factor(arm) for phase in phases.values() for arm in phase.settings.arms
    }
    correlations = {}
    if single:
        points = points_in([results[name] for name in single])
        correlations["one skill alone"] = tuple(correlate(points, m, factors) for m in MEASURES)
    chained = [results[name] for name in ("chains", "orders") if name in results]
    if chained:
        points = points_in(chained)
        correlations["every stage of every chain"] = tuple(
            correlate(points, m, factors) for m in MEASURES
        )
    rates = _rates(settings)
    idle = {
        search: {arm for arm, choice in made.arms.items() if not choice.learns(made.base)}
        for search, made in choices.items()
    }
    seeds = _num_seeds(phases)
    singles = ("chosen", "frontier", "quarter", *OTHERS.values(), *map(chosen_at, OTHERS.values()))
    read = {
        name: found.readable(seeds[name], idle[OTHERS.get(name, "frontier")])
        for name, found in settings.items()
    }
    # That tower and projector alone learn little is a claim about arms that learn nothing.
    at_one_rate = settings[ONE_RATE].readable(seeds[ONE_RATE], ()) if ONE_RATE in settings else None
    return Summary(
        preset=preset,
        phases={name: sum(r.stage > 0 for r in found) for name, found in results.items()},
        planned={
            name: sum(len(chain.skills) for chain in all_chains(phase.settings))
            for name, phase in phases.items()
        },
        left_out={name: dict(found.left_out) for name, found in read.items() if found.left_out},
        skills=orders,
        settings={
            name: tuple(_figures(setting, arm, rates[name][arm]) for arm in setting.runs)
            for name, setting in settings.items()
        },
        matched={name: _matched(results[name]) for name in singles if name in results},
        correlations=correlations,
        claims=tuple(_claims(read, at_one_rate, phases, results, correlations, orders, counting)),
    )


def make_settings(
    phases: Mapping[str, Phase],
    results: Mapping[str, Sequence[StageResult]],
    choices: Mapping[str, Choices],
) -> dict[str, Setting]:
    """Return the settings that claims are read from, those that were run."""
    found = {}
    if "chosen" in phases:
        arms = choices["frontier"].arms
        best = _best(choices["frontier"])
        paper = {arm: choice.paper for arm, choice in arms.items()}
        found[BEST] = setting_of(BEST, results["chosen"], "default", 1, best)
        found[ONE_RATE] = setting_of(ONE_RATE, results["chosen"], "default", 1, paper)
    for phase in ("chains", "orders"):
        if phase in phases:
            rates = {arm: made.in_chains for arm, made in choices["frontier"].arms.items()}
            for order, skills in phases[phase].settings.all_orders.items():
                name = chained_name(order)
                found[name] = setting_of(name, results[phase], order, len(skills), rates)
    for name, search in OTHERS.items():
        if (phase := chosen_at(search)) in phases:
            best = _best(choices[search])
            found[name] = setting_of(name, results[phase], "default", 1, best)
    return found


def chosen_at(search: str) -> str:
    """Return the phase in which the rates that a search on another model chose are run."""
    return f"{search}_chosen"


def chained_name(order: str) -> str:
    """Return the name of a setting of chains."""
    return CHAINED if order == "default" else f"{CHAINED}, {order} order"


def _best(choices: Choices) -> dict[str, float]:
    best = {arm: choice.best for arm, choice in choices.arms.items()}
    if WISE_FT in best:
        stem = WISE_FT.rsplit(" ", 1)[0]
        best |= {f"{stem} {share:g}": best[WISE_FT] for share in AVERAGES}
    return best


def _num_seeds(phases: Mapping[str, Phase]) -> dict[str, int]:
    """Return how many seeds every arm of a setting is to have."""
    phase_of = {BEST: "chosen", ONE_RATE: "chosen"}
    phase_of |= {name: chosen_at(search) for name, search in OTHERS.items()}
    for name in ("chains", "orders"):
        if name in phases:
            phase_of |= {chained_name(o): name for o in phases[name].settings.all_orders}
    return {
        name: len(phases[phase].settings.seeds)
        for name, phase in phase_of.items()
        if phase in phases
    }


def _rates(settings: Mapping[str, Setting]) -> dict[str, dict[str, float]]:
    return {
        name: {
            arm: next(iter(runs.values()))[0].chain.learning_rate
            for arm, runs in setting.runs.items()
        }
        for name, setting in settings.items()
    }


def _claims(
    settings: Mapping[str, Setting],
    at_one_rate: Setting | None,
    phases: Mapping[str, Phase],
    results: Mapping[str, Sequence[StageResult]],
    correlations: Mapping[str, Sequence[Correlation]],
    orders: Mapping[str, Sequence[str]],
    counting: str,
) -> list[Claim]:
    single = [settings[name] for name in (BEST, ONE_RATE) if name in settings]
    chained = settings.get(CHAINED)
    every = [*single, *([chained] if chained is not None else [])]
    place = orders["default"].index(counting) + 1 if "default" in orders else 1
    chosen = results.get("chosen", ())
    seeds = phases["chosen"].settings.seeds if chosen else []

    def on(arm: str, shares: Sequence[float]) -> list[tuple[Part, ...]]:
        return [on_frontier(chosen, seeds, arm, share) for share in shares] if chosen else []

    families = [settings[name] for name in (BEST, SECOND) if name in settings]
    turned = [chained_name(order) for order in ("default", "alternative", "reversed")]
    return [
        claims.c1(single, chained, place),
        claims.c2(chained, place),
        claims.c3(every, on("sa_proj", SHARES[:1])),
        claims.c4(every, on("mlp_gate_up", SHARES[-1:])),
        claims.c5([at_one_rate if s.name == ONE_RATE and at_one_rate else s for s in every]),
        claims.c6(correlations),
        claims_compared.c7(single),
        claims_compared.c8(every),
        claims_compared.everywhere(
            "C9", "It holds across model families.", families, [BEST, SECOND]
        ),
        claims_compared.everywhere(
            "C10",
            "It holds across orders of the skills.",
            [settings[name] for name in turned if name in settings],
            turned,
        ),
        claims_compared.c11(every),
        claims_compared.c12(single, chained, place),
    ]


def _figures(setting: Setting, arm: str, rate: float) -> ArmFigures:
    runs = setting.runs[arm]
    number = len(next(iter(runs.values())))
    learned, lost, last = (
        effect.interval() if effect is not None else None
        for effect in (setting.learned(arm), setting.lost(arm), setting.lost(arm, number))
    )
    assert learned is not None
    assert lost is not None
    assert last is not None
    order = next(iter(runs.values()))[0].chain.order
    stages = [setting.base, *(stage for run in runs.values() for stage in run)]
    chains = sequences(stages, order, number)
    scores = [chains[run[0].chain] for run in runs.values()]
    return ArmFigures(
        arm=arm,
        rate=rate,
        learned=learned,
        lost=lost,
        last=last,
        kept_skills=tuple(score.target_overall for score in scores),
        recovery=tuple(score.recovery for score in scores),
        shares=tuple(score.recovered_shares for score in scores),
    )


def _matched(results: Sequence[StageResult]) -> tuple[Matched, ...]:
    seeds = sorted({result.chain.seed for result in results if result.stage})
    every = [
        points for seed in seeds if REFERENCE in (points := frontier(results, "default", seed))
    ]
    found = [matched(points, REFERENCE) for points in every]
    arms = dict.fromkeys(arm for arms in found for arm in arms)
    made = []
    for arm in arms:
        lost = {share: tuple(at.get(arm, {}).get(share) for at in found) for share in SHARES}
        means = {
            share: over_seeds([value for value in values if value is not None])
            if None not in values
            else None
            for share, values in lost.items()
        }
        own = [points[arm] for points in every if arm in points]
        made.append(
            Matched(
                arm=arm,
                num_rates=tuple(len(points) for points in own),
                best=tuple(best_point(points).learning for points in own),
                lost=lost,
                means=means,
            )
        )
    return tuple(made)
