"""Writes docs/configuration.md from the settings themselves; a test checks that it is up to date.

python scripts/write_configuration.py
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from narrowtune.core import config, study_settings
from narrowtune.core.mistakes import allowed_values

PATH = Path(__file__).parent.parent / "docs" / "configuration.md"
SECTIONS = {
    "(top level)": config.RunConfig,
    "skill": config.SkillSettings,
    "keep (each)": config.DataSettings,
    "mix (each)": config.MixSettings,
    "anchor": config.AnchorSettings,
    "training": config.TrainingSettings,
    "drift": config.DriftSettings,
    "dial": config.DialSettings,
    "cost": config.CostSettings,
}
STUDY = {
    "a study": study_settings.StudySettings,
    "arms (each)": study_settings.ArmSettings,
    "arms.lora": study_settings.LoraSettings,
    "arms.distillation": study_settings.DistillationSettings,
}
STUDY_HEAD = """
# Studies

The file of `narrowtune study` ([studies](study.md)). `skills`, `keep`, `mix`, `anchor`,
`training` and `drift` are as above.
"""
HEAD = """# Configuration

Made by `python scripts/write_configuration.py`. A run is one YAML file; an unknown key is an
error, and all mistakes are reported at once. On the command line the common settings are flags, and
every other one is `--set key=value` (`--set training.optim=adamw_torch`). A path may stand in place
of a section's keys: `skill: rows.jsonl`, `keep: [a.jsonl, b.jsonl]` or `keep: a.jsonl`,
`mix: general.jsonl:0.1`. `anchor` and `dial` take true.

Flags are laid over the file, `--set` over both. `--skill PATH` replaces `skill.path` and leaves the
section's other keys. `--keep` and `--mix` replace the file's whole list: each is a path (with its
share for `--mix`) whose other keys have their defaults, so a list with metrics of its own is better
kept in the file, or changed item by item (`--set keep.0.metric=number`, counted from 0).

What a run writes is in [the run folder](run-folder.md). What can be made again (scores and
answers of every model that was evaluated, answers to an anchor's prompts, what a frozen tower makes
of pictures, the demo's model) is kept in `$NARROWTUNE_CACHE`, else in
`~/.cache/narrowtune`; that folder may be deleted at any time.
"""


def comments(kind: type[BaseModel]) -> dict[str, str]:
    """Return what the class docstrings say of each attribute, bases first."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for name, words in re.findall(
            r"^    (\w+): (.*?)(?=^    \w+: |\Z)", attributes, re.M | re.S
        ):
            found[name] = " ".join(words.split())
    return found


def render() -> str:
    """Return the page."""
    return "".join([HEAD, *tables(SECTIONS), STUDY_HEAD, *tables(STUDY)])


def tables(sections: dict[str, type[BaseModel]]) -> list[str]:
    """Return one table per section."""
    parts = []
    for title, kind in sections.items():
        said = comments(kind)
        parts.append(f"\n## {title}\n\n| key | takes | default | |\n|---|---|---|---|\n")
        for name, field in kind.model_fields.items():
            if field.default is not PydanticUndefined:
                default = field.default
            else:
                default = field.default_factory() if field.default_factory else "required"
            shown = "section" if isinstance(default, BaseModel) else default
            shown = "" if shown is None or shown in ("", "section") or shown == [] else f"`{shown}`"
            text = said.get(name, field.description or "")
            parts.append(f"| `{name}` | {allowed_values(field)} | {shown} | {text} |\n")
    return parts


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
