"""Results are held to what they were made with; what is added later binds nothing."""

import json
from pathlib import Path

import pytest

from narrowtune.core.errors import UsageError
from narrowtune.core.study_settings import StudySettings
from narrowtune.evaluate.own_metrics import load_own
from narrowtune.study.identity import check_metrics, describe, hold_to


def settings(folder, **update):
    names = ("count", "count_test", "clock", "clock_test", "charts", "free", "anchor", "replay")
    for name in names:
        path = folder / f"{name}.jsonl"
        if not path.exists():
            path.write_text(json.dumps({"question": name, "answer": "1"}))
    skills = [
        {"path": str(folder / f"{name}.jsonl"), "test_path": str(folder / f"{name}_test.jsonl")}
        for name in ("count", "clock")
    ]
    arms = [
        {"recipe": "mlp", "learning_rates": [1e-3]},
        {
            "recipe": "mlp",
            "learning_rates": [1e-3],
            "anchor": {"prompts": str(folder / "anchor.jsonl")},
            "mix": [f"{folder / 'replay.jsonl'}:0.5"],
            "name": "held",
        },
    ]
    values = {
        "model": "m",
        "skills": skills[:1],
        "keep": [str(folder / "charts.jsonl")],
        "arms": arms,
        "drift": {"prompts": str(folder / "free.jsonl")},
        "output_dir": str(folder / "out"),
    }
    added = update.pop("added", {})
    if added:
        values["skills"] = skills
        values["arms"] = [*arms, {"recipe": "sa_proj", "learning_rates": [1.0]}]
    return StudySettings.model_validate({**values, **added, **update})


def test_what_is_added_is_allowed_and_binds_from_then_on(tmp_path):
    hold_to(settings(tmp_path), "w", begun=False)
    first = settings(tmp_path)
    rates = [arm.model_copy(update={"learning_rates": [1e-3, 1.0]}) for arm in first.arms]
    hold_to(first.model_copy(update={"arms": rates, "seeds": [0, 1]}), "w", begun=True)
    more = settings(tmp_path, added={"seeds": [0, 1, 2]})
    hold_to(more, "w", begun=True)
    hold_to(settings(tmp_path, added={"orders": {"other": ["clock"]}}), "w", begun=True)
    hold_to(first.model_copy(update={"skills": more.skills}), "w", begun=True)
    (tmp_path / "clock.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"skills\.clock\.sha256"):
        hold_to(more, "w", begun=True)


@pytest.mark.parametrize("name", ["count", "count_test", "charts", "free", "anchor", "replay"])
def test_every_file_binds(tmp_path, name):
    hold_to(settings(tmp_path), "w", begun=False)
    hold_to(settings(tmp_path), "w", begun=True)
    (tmp_path / f"{name}.jsonl").write_text("another")
    with pytest.raises(UsageError, match="now"):
        hold_to(settings(tmp_path), "w", begun=True)
    hold_to(settings(tmp_path), "w", begun=False)  # no results yet: nothing binds


def test_a_study_from_before_columns_goes_on_and_columns_bind(tmp_path):
    hold_to(settings(tmp_path), "w", begun=False)
    path = tmp_path / "out" / "study.json"
    known = json.loads(path.read_text())
    # As written before these were settings.
    assert known.pop("drift.columns") == known.pop("drift.defaults") == {}
    assert known.pop("training.torch_compile") is False
    assert "columns" not in json.dumps(known)
    assert "defaults" not in json.dumps(known)
    assert "top_k" not in json.dumps(known)
    earlier = json.dumps(known)
    path.write_text(json.dumps(known))
    hold_to(settings(tmp_path), "w", begun=True)
    base = settings(tmp_path)
    more = {"columns": {"answer": "label"}, "defaults": {"system": "Be brief."}}
    keep = base.keep[0].model_copy(update=more)
    drift = base.drift.model_copy(update={"columns": {"question": "text"}})
    told = r"(?s)drift\.columns.*keep\.charts\.columns.*charts\.defaults"
    with pytest.raises(UsageError, match=told):
        hold_to(base.model_copy(update={"keep": [keep], "drift": drift}), "w", begun=True)
    held = base.arms[1].model_copy(
        update={"anchor": base.arms[1].anchor.model_copy(update={"top_k": 16})}
    )
    with pytest.raises(UsageError, match=r"arms\.held\.anchor\.top_k"):
        hold_to(base.model_copy(update={"arms": [base.arms[0], held]}), "w", begun=True)
    # What came later is held to what it was before, too.
    drift = base.drift.model_copy(update={"defaults": {"system": "Be brief."}})
    training = base.training.model_copy(update={"torch_compile": True})
    for changes in ({"drift": drift}, {"training": training}):
        path.write_text(earlier)
        with pytest.raises(UsageError, match="results made with other"):
            hold_to(base.model_copy(update=changes), "w", begun=True)


def test_the_content_of_a_metric_of_ones_own_binds(tmp_path):
    path = tmp_path / "scoring.py"
    path.write_text("def first(answer, accepted): return 1")
    base = settings(tmp_path)
    keep = base.keep[0].model_copy(update={"metric": f"{path}:first"})
    now = base.model_copy(update={"keep": [keep]})
    hold_to(now, "w", begun=False)
    hold_to(now, "w", begun=True)
    check_metrics(now)
    path.write_text("def first(answer, accepted): return 0")
    load_own.cache_clear()
    with pytest.raises(UsageError, match=r"keep\.charts\.metric"):
        hold_to(now, "w", begun=True)
    # And the study's workers, which load it later.
    with pytest.raises(UsageError, match="another file than the study was begun with"):
        check_metrics(now)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"torch_compile": True}}, "torch_compile is for a run of `teach`"),
        ({"training": {"eval_steps": 5}}, "eval_steps and load_best_model_at_end are for a run"),
        ({"drift": {"every": 5}}, "drift.every and drift.budget are for a run of `teach`"),
        ({"drift": {"budget": 0.1}}, "drift.every and drift.budget are for a run of `teach`"),
    ],
)
def test_a_study_refuses_what_only_a_run_does(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, **changes)


def test_what_an_earlier_version_took_without_using_it_does_not_bind(tmp_path):
    hold_to(settings(tmp_path), "w", begun=False)
    path = Path(settings(tmp_path).output_dir) / "study.json"
    known = json.loads(path.read_text())
    assert "training.eval_steps" not in known
    path.write_text(json.dumps({**known, "training.eval_steps": 50}))
    hold_to(settings(tmp_path), "w", begun=True)


def test_settings_and_weights_bind_and_all_that_differ_are_named(tmp_path, monkeypatch):
    hold_to(settings(tmp_path), "w", begun=False)
    base = settings(tmp_path)
    keep = base.keep[0].model_copy(update={"max_new_tokens": 5, "metric": "number"})
    arm = base.arms[0].model_copy(update={"wise_ft": 0.5, "name": "mlp"})
    training = base.training.model_copy(update={"global_batch_size": 7})
    drift = base.drift.model_copy(update={"max_new_tokens": 3})
    update = {
        "keep": [keep],
        "arms": [arm],
        "training": training,
        "drift": drift,
        "num_samples": 9,
    }
    monkeypatch.setattr("narrowtune.study.identity.__version__", "9")
    with pytest.raises(UsageError) as error:
        hold_to(base.model_copy(update=update), "v", begun=True)
    for named in (
        "version (",
        "weights (w, now v)",
        "num_samples (None, now 9)",
        "training.global_batch_size (",
        "drift.max_new_tokens (32, now 3)",
        "keep.charts.max_new_tokens (32, now 5)",
        "keep.charts.metric (exact_match, now number)",
        "arms.mlp.wise_ft (None, now 0.5)",
    ):
        assert named in error.value.found


def test_an_arm_is_described_without_what_earlier_studies_did_not_know(tmp_path):
    arm = describe(settings(tmp_path), "w")["arms.mlp"]
    assert not {"pull", "training", "density"} & set(arm)
    first = settings(tmp_path)
    arms = [first.arms[0].model_copy(update={"pull": 1.0, "name": "mlp"})]
    assert describe(first.model_copy(update={"arms": arms}), "w")["arms.mlp"]["pull"] == 1.0
