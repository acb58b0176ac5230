"""What a study's results were made with, so that none are taken for those of other settings.

Owns: `study.json`. Arms, rates, orders, seeds and skills may be added: only what both an earlier
start and this one know is compared. Pictures are not hashed, nor is what answers don't depend on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from narrowtune.core.data_settings import DataSettings, SkillSettings
from narrowtune.core.errors import UsageError
from narrowtune.core.provenance import sha256_file
from narrowtune.core.run_folder import write_json
from narrowtune.core.study_settings import ArmSettings, StudySettings
from narrowtune.data.rows import read_rows
from narrowtune.evaluate.own_metrics import identity, is_own
from narrowtune.pipeline.prompts import DRIFT_KEY, anchor_files, free_files
from narrowtune.version import __version__

_DEVICES = {"fsdp", "fsdp_config"}
"""How a model is shared out is no part of what it learns."""

_OF_TEACH = {"eval_steps", "load_best_model_at_end"}
"""What a study never does; earlier versions took these without a word."""

_PLACES = {"path", "test_path", "name", "image_root", "max_refused"}
"""Where rows are and what they are called is no part of what they are."""


_SINCE = {
    "drift.columns": {},
    "drift.defaults": {},
    "training.torch_compile": False,
    "training.density": 1.0,
    "training.pull_to_base": 0.0,
}
"""What earlier studies did not know, as it was for them."""


def hold_to(settings: StudySettings, weights: str, *, begun: bool) -> None:
    """Hold a start to what earlier ones wrote down, and write down what it adds.

    Args:
        settings: of this start.
        weights: the base's fingerprint.
        begun: whether there are results; without any, nothing binds.

    Raises:
        UsageError: something differs; it names everything that does.
    """
    path, now = Path(settings.output_dir) / "study.json", describe(settings, weights)
    known = json.loads(path.read_text("utf-8")) if begun and path.exists() else {}
    known = {**_SINCE, **known} if known else known
    other = [key for key in now if key in known and not _same(key, known[key], now[key])]
    if other:
        raise UsageError(
            asked=f"to go on with the study in {path.parent}",
            found="results made with other "
            + "; ".join(_difference(key, known[key], now[key]) for key in other),
            do="give it what it was begun with, or choose another output_dir",
        )
    if known != {**known, **now} or not path.exists():
        write_json(path, {**known, **now})


def check_metrics(settings: StudySettings) -> None:
    """See that metrics of the user's own are those that the study is held to.

    For its workers, which load them later than the start that hashed them.

    Raises:
        UsageError: one of their files has changed.
    """
    known = json.loads((Path(settings.output_dir) / "study.json").read_text("utf-8"))
    rows = [(f"keep.{each.label}", each) for each in settings.keep]
    rows += [(f"skills.{each.label}", each) for each in settings.skills]
    for key, each in rows:
        if is_own(each.metric) and known[key]["metric"] != identity(each.metric):
            raise UsageError(
                asked=f"to score {each.label} by {each.metric}",
                found="another file than the study was begun with",
                do="put it back, or choose another output_dir",
            )


def describe(settings: StudySettings, weights: str) -> dict[str, Any]:
    """Return everything that results depend on, by the setting's key."""
    training = settings.training.model_dump(
        mode="json", exclude={"learning_rate", *_DEVICES, *_OF_TEACH}
    )
    drift = settings.drift
    free, *pictured = free_files(drift, DRIFT_KEY, pictures=True)
    return {
        "version": __version__,
        "weights": weights,
        "max_length": settings.max_length,
        "chat_template_kwargs": settings.chat_template_kwargs,
        "processor_kwargs": settings.processor_kwargs,
        "num_samples": settings.num_samples,
        **{f"training.{name}": value for name, value in training.items()},
        "drift.prompts": _file(free),
        "drift.pictures": ", ".join(map(_file, pictured)),  # where the model reads any
        "drift.columns": drift.columns,
        "drift.defaults": drift.defaults,
        "drift.max_prompts": drift.max_prompts,
        "drift.max_new_tokens": drift.max_new_tokens,
        "keep": [keep.label for keep in settings.keep],
        **{f"keep.{keep.label}": _rows(keep) for keep in settings.keep},
        **{f"skills.{skill.label}": _rows(skill) for skill in settings.skills},
        **{f"arms.{arm.label}": _arm(arm) for arm in settings.arms},
        **{f"pictures.{arm.label}": _file(file) for arm, file in _pictured(settings.arms)},
        **{f"orders.{name}": list(order) for name, order in settings.all_orders.items()},
    }


def _rows(settings: DataSettings) -> dict[str, Any]:
    made = settings.model_dump(mode="json", exclude=_PLACES) | {"sha256": _file(settings)}
    made["metric"] = identity(settings.metric)
    _without_unused(made)
    if isinstance(settings, SkillSettings) and settings.test_path is not None:
        made["test_sha256"] = _file(settings.tested())
    return made


def _arm(arm: ArmSettings) -> dict[str, Any]:
    made = arm.model_dump(mode="json", exclude={"learning_rates", "name"})
    for name in ("density", "pull", "training"):  # earlier studies did not know them
        if made[name] is None:
            del made[name]
    if arm.anchor is not None:
        made["anchor"]["prompts"] = _file(anchor_files(arm.anchor, pictures=False)[0])
        del made["anchor"]["image_root"]
        _without_unused(made["anchor"])
    for mix, values in zip(arm.mix, made["mix"], strict=True):
        values["path"] = _file(mix.rows())
        del values["image_root"]
        _without_unused(values)
    return made


def _without_unused(values: dict[str, Any]) -> None:
    """Leave out what is not given and what earlier studies did not know."""
    for name in ("columns", "defaults", "projection", "earlier_skills", "skill_pictures", "top_k"):
        if not values.get(name, True):
            del values[name]


def _pictured(arms: Sequence[ArmSettings]) -> Iterator[tuple[ArmSettings, DataSettings]]:
    """Yield the anchors that have shipped pictures too, if the model reads them."""
    for arm in arms:
        if arm.anchor is not None:
            for file in anchor_files(arm.anchor, pictures=True)[1:]:
                yield arm, file


def _file(settings: DataSettings) -> str:
    """Return the hash of a file, or of the rows where they are in no single one."""
    path = Path(settings.path)
    return sha256_file(path) if path.is_file() else read_rows(settings).sha256


def _same(key: str, before: Any, now: Any) -> bool:
    if key.startswith("orders."):  # skills at its end are added ones
        return bool(now[: len(before)] == before)
    return bool(before == now)


def _difference(key: str, before: Any, now: Any) -> str:
    """Return what differs, with both values; of a hash, its beginning."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return "; ".join(
            _difference(f"{key}.{name}", before.get(name), now.get(name)) for name in names
        )
    was, new = (text[:12] if len(text) == 64 else text for text in (str(before), str(now)))
    return f"{key} ({was}, now {new})"
