"""`narrowtune check`: the rows of a run without its model, as a run would read them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
from rich.console import Console
from typer.testing import CliRunner

from narrowtune.cli.app import app
from narrowtune.core.config import parse_config
from narrowtune.core.errors import DataError, ModelError, NarrowtuneError, UsageError
from narrowtune.core.row_check import Piece
from narrowtune.data.collate import IGNORE_INDEX, Encoded
from narrowtune.models import hub
from narrowtune.models.load import load_model, load_reader
from narrowtune.pipeline.inputs import make_encoder, read_inputs
from narrowtune.pipeline.preview import check_rows, count_tokens, pieces
from narrowtune.pipeline.single import plan
from narrowtune.pipeline.teach import teach
from narrowtune.report.check_view import as_text, render_check
from study_rows import write


def rows_about(what, count):
    return [{"question": f"Which {what} is {i}?", "answer": f"{what} {i}"} for i in range(count)]


@pytest.fixture
def without_weights(tiny, tmp_path):
    """`without_weights(family)` is a folder of settings and tokenizer alone."""

    def make(family: str):
        folder = tmp_path / f"no-weights-{family}"
        shutil.copytree(tiny(family), folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        return folder

    return make


@pytest.fixture
def config(tmp_path):
    def make(model, **changes):
        values = {
            "model": str(model),
            "skill": write(tmp_path / "skill.jsonl", rows_about("dog", 20)),
            "keep": [write(tmp_path / "keep.jsonl", rows_about("tree", 6))],
            "output_dir": str(tmp_path / "out"),
            **changes,
        }
        return parse_config(values, "a test")

    return make


def test_what_is_found_is_what_a_run_reads(tiny, without_weights, config):
    made = config(without_weights("llama"), anchor=True)
    found = check_rows(made)
    loaded = load_model(str(tiny("llama")), device="cpu")
    inputs = read_inputs(made, make_encoder(loaded, made))
    assert found.data == inputs.summaries
    assert found.tokens.num_rows == len(inputs.rows) == 16
    lengths = sorted(len(row.input_ids) for row in inputs.rows)
    assert (found.tokens.total, found.tokens.longest) == (sum(lengths), lengths[-1])
    labels = [label for row in inputs.rows for label in row.labels]
    assert found.tokens.labelled == sum(label != IGNORE_INDEX for label in labels)
    assert found.tokens.pictures == found.tokens.num_pictured == 0
    assert (found.num_anchor, found.num_drift) == (160, len(inputs.drift_prompts))
    assert [(task.name, task.role, task.num_items) for task in found.tasks] == [
        ("skill", "target", 4),
        ("keep", "held_out", 6),
    ]
    assert not Path(made.output_dir).exists()


def test_the_smallest_budget_is_the_plans(tiny, config, tmp_path):
    many = write(tmp_path / "many.jsonl", rows_about("tree", 80))
    for changes in ({}, {"keep": [many], "dial": True, "budget": 20}):
        made = config(tiny("llama"), **changes)
        planned = plan(made, with_skill=True, measure_time=False)
        assert check_rows(made).smallest_budget == planned.smallest_budget
    few = check_rows(config(tiny("llama")))
    assert any("can't prove a loss" in note for note in few.notes)
    assert check_rows(config(tiny("llama"), keep=[])).smallest_budget is None


def test_pictures_are_counted_and_shown_once_with_how_often(without_weights, config, tmp_path):
    PIL.Image.new("RGB", (56, 84), "red").save(tmp_path / "one.png")
    rows = [{**row, "image": "one.png"} for row in rows_about("cat", 10)]
    plain = rows_about("pen", 10)
    skill = write(tmp_path / "seen.jsonl", [*rows, *plain])
    found = check_rows(config(without_weights("qwen2_5_vl"), skill=skill), num_shown=16)
    assert 0 < found.tokens.num_pictured < found.tokens.num_rows == 16
    each = found.tokens.pictures / found.tokens.num_pictured
    shown = ["".join(piece.text for piece in row) for row in found.shown]
    assert sum(f"<|image_pad|> × {each:g}" in text for text in shown) == found.tokens.num_pictured
    learned = [[piece.text for piece in row if piece.learned] for row in found.shown]
    assert all(len(parts) == 1 for parts in learned)
    assert {parts[0][:3] for parts in learned} == {"cat", "pen"}


def test_eyes_without_pictures_are_refused_before_anything_is_measured(
    tiny, without_weights, config, tmp_path, monkeypatch
):
    blind = {"recipe": "full"}
    with pytest.raises(DataError, match="none of which has a picture"):
        check_rows(config(without_weights("qwen2_5_vl"), **blind))
    folder = tiny("qwen2_5_vl")
    with pytest.raises(DataError, match="none of which has a picture"):
        plan(config(folder, **blind), with_skill=True, measure_time=False)
    for name in ("choose_arithmetic", "score_tasks"):
        monkeypatch.setattr(f"narrowtune.pipeline.teach.{name}", None)
    with pytest.raises(DataError, match="none of which has a picture"):
        teach(config(folder, device="cpu", **blind))


def test_rows_that_cannot_be_used_are_an_error_without_a_model_too(
    without_weights, config, tmp_path
):
    folder = without_weights("llama")
    with pytest.raises(DataError, match="max_length is 3"):
        check_rows(config(folder, max_length=3))
    same = write(tmp_path / "again.jsonl", rows_about("dog", 2))
    both = config(folder, keep=[same])
    with pytest.raises(DataError, match="the same"):
        check_rows(both)


def test_weights_are_neither_read_nor_fetched(without_weights, monkeypatch):
    folder = without_weights("llama")
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_model(str(folder))
    asked = []

    def snapshot(source, **kwargs):
        asked.append(kwargs["allow_patterns"])
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert load_reader("some/model").family.name == "llama"
    assert len(asked) == 1
    assert not any("safetensors" in pattern for pattern in asked[0])


def test_a_row_that_is_tolerated_is_named(without_weights, config, tmp_path):
    rows = [*rows_about("dog", 20), {"question": "Which dog?"}]
    skill = {"path": write(tmp_path / "some.jsonl", rows), "max_refused": 1}
    found = check_rows(config(without_weights("llama"), skill=skill))
    assert [(row.path, row.row) for row in found.refused] == [(skill["path"], 21)]
    console = Console(width=200, record=True)
    console.print(render_check(found))
    told = console.export_text()
    assert "1 row can't be used" in told
    assert f"row 21: {found.refused[0].reason}" in told
    assert "16 train" in told
    assert found.num_steps == 1


def test_a_dial_that_cannot_be_held_is_refused_as_teach_refuses_it(without_weights, config):
    folder = without_weights("llama")
    with pytest.raises(UsageError, match="a dial within a budget of 1 points"):
        check_rows(config(folder, dial=True))


class Letters:
    """Drops the space that tokens begin with, as sentencepiece's decoders do."""

    def decode(self, ids):
        return "".join(" " if token == 9 else chr(97 + token) for token in ids).removeprefix(" ")


def test_pieces_are_cut_where_labels_begin_and_end():
    row = Encoded([0, 1, 1, 1, 1, 1, 2, 3, 4], [IGNORE_INDEX] * 7 + [3, IGNORE_INDEX])
    found = pieces(Letters(), row)
    assert found == [
        Piece(text="ab × 5c", learned=False),
        Piece(text="d", learned=True),
        Piece(text="e", learned=False),
    ]
    assert as_text(found).plain == "ab × 5c[[d]]e"


def test_a_space_that_a_piece_begins_with_is_shown():
    row = Encoded([0, 1, 9, 2, 9, 3], [IGNORE_INDEX] * 2 + [9, 2] + [IGNORE_INDEX] * 2)
    assert as_text(pieces(Letters(), row)).plain == "ab[[ c]] d"


def test_counts_of_lengths():
    rows = [Encoded([7] * n, [IGNORE_INDEX] * (n - 1) + [7]) for n in range(1, 101)]
    found = count_tokens(rows, placeholder=7)
    assert (found.median, found.high, found.longest) == (50, 95, 100)
    assert (found.labelled, found.total, found.pictures) == (100, 5050, 5050)
    [alone] = [count_tokens(rows[:1], placeholder=None)]
    assert (alone.median, alone.high, alone.longest, alone.pictures) == (1, 1, 1, 0)


def test_the_command_prints_rows_or_json(without_weights, config, tmp_path):
    made = config(without_weights("llama"))
    flags = [
        "check",
        "--model",
        made.model,
        "--skill",
        made.skill.path,
        "--keep",
        made.keep[0].path,
    ]
    told = CliRunner().invoke(app, [*flags, "--show", "2"])
    assert told.exit_code == 0, told.output
    assert "16 rows to learn from" in told.output
    assert "Row 2" in told.output
    assert "Row 3" not in told.output
    assert "[[dog" in told.output
    found = json.loads(CliRunner().invoke(app, [*flags, "--json", "--show", "0"]).stdout)
    assert found["shown"] == []
    assert found["tokens"]["num_rows"] == 16
    refused = CliRunner().invoke(app, [*flags, "--set", "ledger=taught"])
    assert isinstance(refused.exception, NarrowtuneError)
    assert "ledger" in str(refused.exception)


def test_all_rows_that_can_not_be_used_go_to_a_file_if_wanted(without_weights, config, tmp_path):
    made, path = config(without_weights("llama")), tmp_path / "new" / "refused.jsonl"
    flags = ["check", "--model", made.model, "--skill", made.skill.path, "--refused", str(path)]
    flags += ["--keep", made.keep[0].path]
    ran = CliRunner().invoke(app, [*flags, "--max-length", "3"])
    assert isinstance(ran.exception, DataError)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 20 + 6
    assert f"Rows that can't be used: {path}" in ran.output
    ran = CliRunner().invoke(app, flags)
    assert isinstance(ran.exception, UsageError)
    assert "--overwrite" not in str(ran.exception)
    path.unlink()
    ran = CliRunner().invoke(app, flags)
    assert ran.exit_code == 0, ran.output
    assert not path.exists()


def test_rows_are_not_replaced_by_those_that_are_refused(without_weights, config):
    made = config(without_weights("llama"))
    rows = Path(made.skill.path)
    before = rows.read_bytes()
    flags = ["check", "--model", made.model, "--skill", str(rows), "--keep", made.keep[0].path]
    ran = CliRunner().invoke(app, [*flags, "--refused", str(rows)])
    assert isinstance(ran.exception, UsageError)
    assert rows.read_bytes() == before
