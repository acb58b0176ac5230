"""Skills that nobody was taught, with the runs that would have been left behind."""

from __future__ import annotations

from pathlib import Path

from delta_cases import disturb, load
from ledger_entries import score
from narrowtune.core.data_settings import SkillSettings
from narrowtune.core.ledger import Entry
from narrowtune.core.provenance import sha256_file
from narrowtune.delta.extract import extract
from narrowtune.models.fingerprint import fingerprint, tensor_hashes
from narrowtune.models.select import resolve

SKILLS = ("birds", "counting", "tissue", "signs", "clock")


def entry_of(run: Path, name: str, recipe: str, base: str, tuned: str) -> Entry:
    return Entry(
        number=0,
        name=name,
        recipe=recipe,
        created="",
        run=run.name,
        delta="",
        sha256=sha256_file(run / "delta.safetensors"),
        base_fingerprint=base,
        tuned_fingerprint=tuned,
        skill=SkillSettings(path=f"{name}.jsonl"),
        seed=0,
        rows_sha256="0" * 64,
        before={name: score(0.1, "target")},
        after={name: score(0.6, "target")},
    )


def lesson(model, run, name, recipe, seed):
    """Disturb what a recipe trains, and write the run that would have done so."""
    selection = resolve(model, recipe)
    base, before = load_copy(model, selection.names), fingerprint(model)
    hashes = tensor_hashes(model)
    disturb(model, selection.names, seed)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(next(iter(base.values())).dtype)
    delta = extract(model, selection, base, base_hashes=hashes)
    delta.save(run / "delta.safetensors", packed=seed % 2 == 0)
    for when in ("before", "after"):
        (run / when).mkdir()
        (run / when / f"{name}.jsonl").write_text('{"id": 1}\n', encoding="utf-8")
    return entry_of(run, name, recipe, before, fingerprint(model)), run


def load_copy(model, names):
    return {
        name: tensor.detach().clone() for name, tensor in model.named_parameters() if name in names
    }


def state(folder, book):
    model = load(folder)
    book.put_on(model)
    return fingerprint(model)
