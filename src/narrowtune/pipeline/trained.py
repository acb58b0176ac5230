"""What is left when training has ended: it stands, whatever fails after it.

The delta is the tuned model, exactly, and trained.json beside it has what only training knew. A run
that fails while it is scored takes both up when it is resumed, and trains no more.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from pydantic import ValidationError

from narrowtune.core.errors import DeltaError, TrainingError
from narrowtune.core.results import Proof, TrainingSummary, Value
from narrowtune.core.run_folder import write_json
from narrowtune.delta.apply import apply
from narrowtune.delta.extract import OtherDtypeWarning, extract
from narrowtune.delta.store import Delta
from narrowtune.models.blended import set_between
from narrowtune.models.select import resolve
from narrowtune.pipeline.run import Run
from narrowtune.train.fit import FitResult
from narrowtune.train.masters import copy_tensors


class Trained(Value):
    """A finished training.

    Attributes:
        tuned_fingerprint: of the model that it left, and that its delta gives.
        summary: its numbers.
        proof: what moved.
        seconds: of the run's stages up to its end.
        notes: what the run says of it.
        model_notes: what is said of the model that was trained.
    """

    tuned_fingerprint: str
    summary: TrainingSummary
    proof: Proof
    seconds: dict[str, float]
    notes: list[str]
    model_notes: list[str]


def extract_delta(run: Run) -> Delta:
    """Return what was trained, or what a dial left of it, as a delta."""
    assert run.fitted is not None
    notes = list(run.loaded.notes)
    if run.config.chat_template_kwargs:
        notes.append(
            f"Taught with chat_template_kwargs {run.config.chat_template_kwargs}: whoever serves "
            "the model has to set them too."
        )
    if run.dial is not None:
        notes.append(f"The dial went to {run.dial.place}.")
    with warnings.catch_warnings():
        # The model's notes say so, and what to do is for those who call `extract`.
        warnings.simplefilter("ignore", OtherDtypeWarning)
        return extract(
            run.loaded.model,
            resolve(run.loaded.model, run.config.recipe),
            run.fitted.base,
            base_hashes=run.base_hashes,
            notes=notes,
        )


def keep(run: Run) -> None:
    """Write down what training left, before anything else can fail."""
    assert run.fitted is not None
    with run.watch.stage("delta"):
        _keep_largest(run)
        delta = extract_delta(run)
        known = Trained(
            tuned_fingerprint=delta.metadata.tuned_fingerprint,
            summary=run.fitted.summary,
            proof=run.fitted.proof,
            seconds=run.watch.seconds,
            notes=run.training_notes,
            model_notes=run.loaded.notes,
        )
        run.folder.trained.unlink(missing_ok=True)  # of a delta that is replaced now
        delta.save(_place(run), packed=run.config.pack_delta)
        write_json(run.folder.trained, known)
    run.tuned_fingerprint = known.tuned_fingerprint


def _keep_largest(run: Run) -> None:
    """Let only those elements stay as trained that moved furthest, where a run asks for it."""
    density = run.config.training.density
    if density == 1:
        return
    assert run.fitted is not None
    tuned = copy_tensors(run.loaded.model, run.fitted.base, run.loaded.dtype)
    set_between(run.loaded.model, run.fitted.base, tuned, density, "largest")
    note = (
        f"Of each trained tensor the {100 * density:g} % of elements that moved furthest stay as "
        "trained; the others are the base's (training.density). What the proof counts is all that "
        "was trained."
    )
    run.loaded.notes.append(note)


def take_up(run: Run, state: PartialState) -> bool:
    """Whether training had ended before; the model is then as it left it."""
    ended = [False]
    if state.is_main_process and run.folder.trained.exists():
        with run.watch.stage("take up what was trained"):
            known = _read(run)
        for stage, seconds in known.seconds.items():  # those that are not done again
            run.watch.seconds.setdefault(stage, seconds)
        run.loaded.notes += [note for note in known.model_notes if note not in run.loaded.notes]
        run.inputs.notes += [*known.notes, "Resumed after training, which had ended."]
        ended = [True]
    if state.num_processes > 1:
        broadcast_object_list(ended)
    return ended[0]


def _place(run: Run) -> Path:
    """Return where all that is trained goes: with a dial, beside what is left of it."""
    return run.folder.delta if run.halves is None else run.folder.whole_delta


def _read(run: Run) -> Trained:
    """Leave the base as its finished training left it.

    Raises:
        TrainingError: what is known of it can't be read, or its delta is gone, damaged or another.
    """
    model, path, about = run.loaded.model, _place(run), run.folder.trained
    selected = resolve(model, run.config.recipe).names
    try:
        known = Trained.model_validate_json(about.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise _lost(run, about, str(error)) from None
    try:
        delta = Delta.load(path)
        if delta.metadata.tuned_fingerprint != known.tuned_fingerprint:
            raise _lost(run, path, "another delta than was trained")
        base = copy_tensors(model, selected, run.loaded.dtype)
        apply(model, delta)
    except DeltaError as error:
        raise _lost(run, path, error.found) from None
    run.fitted = FitResult(known.summary, known.proof, base)
    run.tuned_fingerprint = known.tuned_fingerprint
    return known


def _lost(run: Run, path: Path, found: str) -> TrainingError:
    return TrainingError(
        asked=f"to go on after the training that ended in {run.folder.root}",
        found=f"{path.name}: {found}",
        do=f"put {path.name} back as it was; or delete {run.folder.trained} and train again",
    )
