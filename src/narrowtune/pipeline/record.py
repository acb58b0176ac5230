"""What a finished run leaves behind for machines: its record."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from narrowtune.core import provenance
from narrowtune.core.results import RunRecord
from narrowtune.delta.store import info
from narrowtune.engine.cost import estimate_cost
from narrowtune.evaluate.verdict import compare_results, decide
from narrowtune.models.fingerprint import combine_hashes

if TYPE_CHECKING:
    from narrowtune.pipeline.run import Run


def make_record(run: Run) -> RunRecord:
    """Return the record of a run whose stages are all done."""
    assert run.fitted is not None
    assert run.before is not None
    assert run.after is not None
    config = run.config
    seen = run.features.notes if run.features is not None else []
    return RunRecord(
        name=run.folder.root.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        versions=provenance.versions(),
        hardware={**provenance.hardware(), "arithmetic": run.arithmetic.model_dump()},
        git=provenance.git_state(Path.cwd()),
        seed=config.seed,
        model={
            "source": config.model,
            # Folders are named as such: what else was there is a hub id.
            "is_folder": run.loaded.folder == Path(config.model).expanduser(),
            **({"revision": config.revision} if config.revision is not None else {}),
            "family": run.loaded.family.name,
            "dtype": str(run.loaded.dtype).removeprefix("torch."),
            "fingerprint": combine_hashes(run.base_hashes),
            **({"ledger": config.ledger} if config.ledger is not None else {}),
        },
        recipe=config.recipe,
        plan=run.plan,
        data=run.inputs.summaries,
        training=run.fitted.summary,
        proof=run.fitted.proof,
        delta=info(run.folder.delta),
        tasks=compare_results(run.before, run.after),
        drift=run.drift,
        verdict=decide(
            run.before,
            run.after,
            budget=config.budget,
            budget_task=config.budget_task,
            min_learning=config.min_learning,
        ),
        dial=run.dial,
        cost=estimate_cost(config.cost, sum(run.watch.seconds.values())),
        seconds={name: round(value, 2) for name, value in run.watch.seconds.items()},
        notes=[*run.loaded.notes, *run.inputs.notes, *run.encoder.notes, *seen],
    )
