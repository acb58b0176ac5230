"""The whole study in miniature: world, models, phases, summary.

Owns: the layout of the output folder: `world/`, a folder per phase, choices.json, summary.md and
summary.json.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from narrowtune.core.errors import UsageError
from narrowtune.core.extras import require
from narrowtune.core.run_folder import write_text
from narrowtune.miniature.reference.shipped import reference_folder
from narrowtune.study.phases import Phase, Protocol, Watch
from narrowtune.study.presets import LORA, Preset
from narrowtune.study.summary import Summary, summarise_study
from narrowtune.study.summary_page import summary_page
from narrowtune.study.world import write_world


def run_miniature(
    preset: Preset, folder: Path, watch: Watch, *, num_workers: int = 1, only_read: bool = False
) -> tuple[Summary, Path]:
    """Run what is missing of a preset, and write its summary: after each phase, what is known then.

    Args:
        preset: which.
        folder: of everything.
        watch: is told what happens.
        num_workers: chains at a time.
        only_read: run nothing, and write the summary of what was run so far.

    Returns:
        The summary, and its page.

    Raises:
        UsageError: the model does not ship, peft is missing, or the folder is another preset's.
        NarrowtuneError: of the first chain that fails.
    """
    if only_read and not (folder / "world" / "world.json").exists():
        raise UsageError(
            asked=f"the summary of {preset.name} in {folder}",
            found="no such study there",
            do="give its folder (--output-dir), or leave --summary out to run it",
        )
    if LORA in preset.arms and not only_read:
        require("lora", "peft", asked=f"the study {preset.name}, which has an arm with LoRA")
    models = {preset.model: reference_folder(preset.model)}
    for other in (preset.second_model, preset.smaller_model):
        if other is not None:
            with suppress(UsageError):  # the protocol says which phases are left out
                models[other] = reference_folder(other)
    watch.say(f"Rows of the small world: {folder / 'world'}")
    world = write_world(folder / "world", preset)

    def done(phase: Phase) -> None:
        watch.done(phase)
        _write_summary(protocol)

    watched = replace(watch, done=done)
    protocol = Protocol(
        preset, world, models, folder, watched, num_workers=num_workers, only_read=only_read
    )
    protocol.run()
    return _write_summary(protocol)


def _write_summary(protocol: Protocol) -> tuple[Summary, Path]:
    """Write summary.json and summary.md of the phases that are finished."""
    preset, folder = protocol.preset, protocol.folder
    summary = summarise_study(preset.name, protocol.phases, protocol.choices, preset.counting)
    write_text(folder / "summary.json", summary.model_dump_json(indent=2) + "\n")
    page = folder / "summary.md"
    write_text(page, summary_page(summary, protocol.choices))
    return summary, page
