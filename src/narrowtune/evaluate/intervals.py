"""The two ways to bound a mean change over tasks of clusters.

Owns the mathematics of `narrowtune.evaluate.statistics`; works in shares of 1, never in points.
A side is (above, level): the one-sided bound of that level above or below the mean.

Sources: Clopper and Pearson 1934; Fay and Feuer 1997 (bounds of weighted sums of rare events);
Zou and Donner 2008 (MOVER: bounds of a difference from bounds of its parts); Kish 1965 (effective
number of clusters); Efron 1979, Hall 1992 (studentised bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv

from narrowtune.evaluate.clusters import Clusters, Floats

Side = tuple[bool, float]

SEED = 20251008

FEW_DISTINCT = 100
"""Up to this many distinct clusters, resamples are drawn as counts, which is faster."""


def exact_margin(
    clusters: Sequence[Clusters], level: float, *, above: bool, num_items: int | None = None
) -> float:
    """Distance from the mean change to its one-sided bound, by weighted Clopper-Pearson.

    Clusters that moved towards the bound and clusters that moved away from it are bounded apart
    and joined by MOVER (Zou and Donner 2008) with the correlation of multinomial counts. With
    `num_items` every task is taken to have that many items like those seen.
    """
    sign = 1.0 if above else -1.0
    num_tasks = sum(c.num_tasks for c in clusters)
    towards = away = towards_var = away_var = weight = 0.0
    for c in clusters:
        total = float(c.size.sum())
        scale = 1.0 if num_items is None else c.num_items / num_items
        part = c.num_tasks / num_tasks
        share = sign * c.change / total * part
        towards += float(share[share > 0].sum())
        away -= float(share[share < 0].sum())
        towards_var += scale * float((share[share > 0] ** 2).sum())
        away_var += scale * float((share[share < 0] ** 2).sum())
        weight = max(weight, c.weight(num_items) * part)
    rise = upper_share(towards, towards_var, weight, level) - towards
    fall = away - _lower_share(away, away_var, level)
    crossed = 0.0
    if towards and away:
        odds = towards / (1 - towards) * away / (1 - away)
        crossed = 2 * min(1.0, math.sqrt(odds)) * rise * fall
    return math.sqrt(rise**2 + fall**2 + crossed)


def upper_share(share: float, variance: float, weight: float, level: float) -> float:
    """Upper bound of a weighted sum of rare events, as a share of 1.

    Clopper-Pearson's beta quantile with the counts of Fay and Feuer (1997): one more event of
    weight `weight` than was seen. Equal weights 1/n give Clopper-Pearson exactly, and no event
    gives 1 − (1 − level)^weight.
    """
    mean = share + weight
    events = mean**2 / (variance + weight**2)
    rest = events / mean + 1 - events
    return 1.0 if rest <= 0 else max(share, float(betaincinv(events, rest, level)))


def _lower_share(share: float, variance: float, level: float) -> float:
    """Lower bound of the same sum; 0 where there was no event."""
    if share == 0:
        return 0.0
    events = share**2 / variance
    return min(share, float(betaincinv(events, events / share + 1 - events, 1 - level)))


def bootstrap_margins(
    clusters: Sequence[Clusters], sides: Sequence[Side], num_resamples: int
) -> Floats:
    """Distances from the mean over `clusters` to its bounds, by the studentised bootstrap."""
    rng = np.random.default_rng(SEED)
    moved, variance, observed = np.zeros(num_resamples), np.zeros(num_resamples), 0.0
    for c in clusters:
        change = c.change if c.level is None else c.level
        means, variances = _resample(change, c.size, rng, num_resamples)
        moved += c.num_tasks * (means - c.mean)
        variance += c.num_tasks**2 * variances
        spread = ((change - c.mean * c.size) ** 2).sum() / c.size.sum() ** 2
        observed += c.num_tasks**2 * float(spread)
    with np.errstate(divide="ignore", invalid="ignore"):
        studentised = np.where(moved == 0, 0.0, moved / np.sqrt(np.maximum(variance, 0.0)))
    # A bound above comes from resamples that fell too low for their own spread, and vice versa.
    quantiles = np.quantile(studentised, [1 - level if above else level for above, level in sides])
    signs = np.array([-1.0 if above else 1.0 for above, _ in sides])
    margins: Floats = np.maximum(0.0, signs * quantiles) * math.sqrt(observed)
    return margins / sum(c.num_tasks for c in clusters)


def _resample(
    changes: Floats, sizes: Floats, rng: np.random.Generator, num_resamples: int
) -> tuple[Floats, Floats]:
    """Means and squared standard errors [num_resamples] of clusters drawn with replacement."""
    # Rounded: what differs by the noise of a sum alone is one row.
    pairs = np.round(np.stack([changes, sizes], axis=1), 12)
    rows, counts = np.unique(pairs, axis=0, return_counts=True)
    d, m = rows[:, 0], rows[:, 1]
    moments = np.stack([d, m, d * d, d * m, m * m], axis=1)
    num_clusters, num_rows = len(sizes), len(rows)
    sums: Floats
    if num_rows <= FEW_DISTINCT:
        drawn = rng.multinomial(num_clusters, counts / num_clusters, size=num_resamples)
        sums = drawn.astype(np.float64) @ moments
    else:
        sums = np.empty((num_resamples, 5))
        step = max(1, 200_000 // num_clusters)  # what is gathered at once stays in the cache
        for start in range(0, num_resamples, step):
            part = slice(start, min(start + step, num_resamples))
            index = rng.integers(
                num_clusters, size=(part.stop - start, num_clusters), dtype=np.int32
            )
            change, size = changes[index], sizes[index]
            products = (change, size, change * change, change * size, size * size)
            sums[part] = np.stack([product.sum(axis=1) for product in products], axis=1)
    means = sums[:, 0] / sums[:, 1]
    squares = sums[:, 2] - 2 * means * sums[:, 3] + means**2 * sums[:, 4]
    return means, squares / sums[:, 1] ** 2
