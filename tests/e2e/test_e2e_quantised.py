"""A run over a quantised base: scores, hashes and delta are those of the checkpoint."""

from __future__ import annotations

import pytest
import torch
from runs import counting_rows, saying_rows, write_rows

from narrowtune.core.config import parse_config
from narrowtune.delta.apply import apply
from narrowtune.delta.store import Delta
from narrowtune.engine.quantised import LIBRARIES
from narrowtune.models.fingerprint import fingerprint
from narrowtune.models.load import load_model
from narrowtune.pipeline import teach as pipeline
from narrowtune.pipeline.teach import teach
from quantisers import quantise_by_hand


@pytest.fixture(params=["by hand", "int8", "nf4"])
def kind(request, monkeypatch):
    if request.param == "by hand":
        return quantise_by_hand(monkeypatch)
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


def test_a_run_scores_and_records_full_precision(tiny, tmp_path, kind, monkeypatch):
    """Drift is watched meanwhile, so the quantised model answers too."""
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    folder = tiny("llama", torch.bfloat16)
    skill = write_rows(tmp_path / "skill.jsonl", counting_rows(40))
    keep = write_rows(tmp_path / "keep.jsonl", saying_rows(8))
    general = write_rows(tmp_path / "general.jsonl", [{"prompt": f"Tell {i}."} for i in range(6)])

    def run(name, *, resume=False, **training):
        drift = {"prompts": str(general), "max_new_tokens": 3, "every": 4}
        values = {
            "model": str(folder),
            "skill": {"path": str(skill), "metric": "number", "max_new_tokens": 3},
            "keep": [{"path": str(keep), "max_new_tokens": 3}],
            "anchor": {"prompts": str(general), "max_new_tokens": 3, "rows_per_step": 2},
            "drift": drift,
            "training": {
                "learning_rate": 1e-3,
                "global_batch_size": 4,
                "per_device_train_batch_size": 4,
                "compute_dtype": "float32",
                **training,
            },
            "output_dir": str(tmp_path / name),
        }
        return teach(parse_config(values, "a test"), resume=resume)

    plain, record = run("plain"), run("quantised", quantize_frozen=kind)
    (note,) = [each for each in record.notes if each.startswith("Trained over a base")]
    assert kind in note
    assert note in record.delta.notes
    assert record.model["fingerprint"] == plain.model["fingerprint"]
    assert [t.before for t in record.tasks] == [t.before for t in plain.tasks]
    assert record.proof.frozen_identical
    assert record.delta.tuned_fingerprint != plain.delta.tuned_fingerprint
    assert note in (tmp_path / "quantised/report.md").read_text()
    # Stopped after its training, it says the same when it has gone on.
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "make_record", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("parts", quantize_frozen=kind)
    parts = run("parts", resume=True, quantize_frozen=kind)
    assert note in parts.notes
    assert parts.delta.tuned_fingerprint == record.delta.tuned_fingerprint
    assert "quantise the frozen part" in parts.seconds
    # What is scored as the tuned model is the delta on the checkpoint.
    base = load_model(str(folder), device="cpu")
    apply(base.model, Delta.load(tmp_path / "quantised/delta.safetensors"))
    assert fingerprint(base.model) == record.delta.tuned_fingerprint
