"""Tables of probes: token masses of every group, and what comes back in the right form."""

import io

import pytest
from rich.console import Console

from narrowtune.core.results import DriftResult, TokenGroupMass
from narrowtune.study.forms import form_loss
from narrowtune.study.probe_view import probe_tables
from narrowtune.study.results import BASE, ChainKey, StageResult, TaskScores


def scores(mean, role="held_out"):
    return TaskScores(role=role, mean=mean, lenient=mean, valid_format=1.0, items="")


def stage(arm, number, free, constrained=None, drift=None):
    tasks = {name: scores(mean) for name, mean in free.items()}
    return StageResult(
        chain=ChainKey(arm=arm, learning_rate=1e-3, order="default", seed=0),
        stage=number,
        skill="count",
        tasks={**tasks, "count": scores(0.5, "target")},
        constrained=constrained and {name: scores(mean) for name, mean in constrained.items()},
        drift=drift,
    )


def drift(**masses):
    groups = [
        TokenGroupMass(
            name=name,
            num_tokens_in_group=3,
            base_max=0.0,
            tuned_max=0.0,
            base_mass=base,
            tuned_mass=tuned,
        )
        for name, (base, tuned) in masses.items()
    ]
    return DriftResult(
        num_prompts=1,
        num_tokens=1,
        kl_base_tuned=0.1,
        kl_stderr=0.0,
        top1_agreement=1.0,
        token_groups=groups,
        tasks=[],
        seconds=0.0,
    )


BEFORE = stage(BASE, 0, {"charts": 0.9, "forms": 0.8}, {"charts": 0.95, "forms": 0.85})


def test_what_comes_back_is_measured_against_a_base_asked_alike():
    after = stage("mlp", 1, {"charts": 0.5, "forms": 0.6}, {"charts": 0.9, "forms": 0.8})
    lost = form_loss(BEFORE, after)
    assert lost.free == pytest.approx(30)
    assert lost.constrained == pytest.approx(5)
    assert lost.returned == pytest.approx(25 / 30)
    kept = form_loss(BEFORE, stage("mlp", 1, {"charts": 0.89, "forms": 0.8}, {"charts": 0.9}))
    assert kept.returned is None  # too little was lost for a share
    assert form_loss(BEFORE, stage("mlp", 1, {"charts": 0.5})) is None


def test_tables_show_every_group_and_loss(tmp_path):
    results = [
        BEFORE,
        stage(
            "mlp",
            1,
            {"charts": 0.5, "forms": 0.6},
            {"charts": 0.9, "forms": 0.8},
            drift(numbers=(0.1, 0.75), yes_no=(0.01, 0.02), skill_answers=(0.2, 0.9)),
        ),
        stage("sa_proj", 1, {"charts": 0.9, "forms": 0.8}, drift=drift(numbers=(0.1, 0.1))),
    ]
    out = io.StringIO()
    for table in probe_tables(results, "default"):
        Console(file=out, width=140).print(table)
    text = " ".join(out.getvalue().split())
    assert "numbers yes no skill answers" in text
    assert "mlp 0.001 0 0.100 → 0.750 0.0100 → 0.0200 0.200 → 0.900" in text
    assert "sa_proj 0.001 0 0.100 → 0.100 – –" in text
    assert "mlp 0.001 0 count 30.0 5.0 83 %" in text
    assert len(probe_tables(results, "default")) == 2
    assert probe_tables([BEFORE, stage("mlp", 1, {"charts": 0.5, "forms": 0.5})], "default") == []
