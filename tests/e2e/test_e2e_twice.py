"""A gate that flips when the same run is evaluated twice is a defect."""

from __future__ import annotations

import pytest
import torch
from runs import WORDS, counting_rows, write_rows, write_run

from narrowtune.core.config import ModelSettings, load_config
from narrowtune.pipeline.judge import judge
from narrowtune.pipeline.single import evaluate
from narrowtune.pipeline.teach import teach

NUMBERS = {"options": ["1", "2", "3", "4", "5"]}
THINGS = {"options": list(WORDS[:4])}


@pytest.fixture
def again(tiny, tmp_path, monkeypatch):
    """`again(batch_size)` scores base and tuned anew, with nothing kept; returns the folders."""
    model = tiny("llama", torch.bfloat16)

    def score(batch_size):
        made = tmp_path / f"again-{batch_size}"
        monkeypatch.setenv("NARROWTUNE_CACHE", str(made / "cache"))
        asked = [
            {"path": str(tmp_path / "tested/skill.jsonl"), "metric": "number", "mode": "options"},
            {"path": str(tmp_path / "keep.jsonl"), "max_new_tokens": 4},
            {"path": str(tmp_path / "things.jsonl"), "mode": "options"},
        ]
        for side, delta in (("before", None), ("after", tmp_path / "run/delta.safetensors")):
            found = evaluate(
                ModelSettings(model=str(model)),
                asked,
                delta,
                batch_size=batch_size,
                output=made / side,
            )
            assert not any(task.from_cache for task in found.tasks)
        return made / "before", made / "after"

    return score


def test_a_run_that_is_evaluated_again_has_the_same_items_scores_and_verdict(
    tiny, tmp_path, monkeypatch, again
):
    (tmp_path / "tested").mkdir()
    tested = [{**row, "question": f"Well? {row['question']}"} for row in counting_rows(60)]
    tested = write_rows(tmp_path / "tested/skill.jsonl", [{**row, **NUMBERS} for row in tested])
    things = write_rows(
        tmp_path / "things.jsonl",
        [
            {"question": f"What is it? {i}", "answer": WORDS[i % 4], "group": str(i // 3), **THINGS}
            for i in range(60)
        ],
    )
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    config = write_run(
        tmp_path,
        tiny("llama", torch.bfloat16),
        "run",
        skill={"mode": "options", "test_path": str(tested)},
        keep=[
            {"path": str(tmp_path / "keep.jsonl"), "max_new_tokens": 4},
            {"path": str(things), "mode": "options"},
        ],
        budget=20.0,
        training={"learning_rate": 3e-2},
    )
    write_rows(tmp_path / "skill.jsonl", [{**row, **NUMBERS} for row in counting_rows(40)])
    record = teach(load_config(config, {}))
    folders = [(tmp_path / "run/before", tmp_path / "run/after"), again(3), again(50)]
    for name in ("skill", "keep", "things"):
        for side in (0, 1):
            texts = {(folder[side] / f"{name}.jsonl").read_text() for folder in folders}
            assert len(texts) == 1, (name, side)
    judged = [judge(*folder, skills=["skill"], budget=20.0) for folder in folders]
    assert judged[0] == judged[1] == judged[2]
    assert judged[0].verdict == record.verdict
    # Something could have flipped.
    skill, things = (task for task in judged[0].tasks if task.name != "keep")
    assert skill.num_better > 10
    assert things.num_worse > 5
    assert things.num_better > 5
