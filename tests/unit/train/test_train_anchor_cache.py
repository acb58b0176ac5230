"""Answers to an anchor's prompts that an earlier run kept, and when they are not taken."""

from __future__ import annotations

import logging

import pytest
import torch

from narrowtune.core.anchor_settings import AnchorSettings
from narrowtune.data.chat import ChatEncoder
from narrowtune.data.examples import Message, Text
from narrowtune.models.load import load_model
from narrowtune.train import anchor as anchor_module
from narrowtune.train.anchor import Anchor, build_anchor
from narrowtune.train.anchor_cache import AnchorCache

ORIGIN = {"model": "one", "arithmetic": "fp32"}
SETTINGS = {"max_new_tokens": 4, "top_k": 7}


@pytest.fixture
def base(tiny):
    return load_model(str(tiny("llama")), device="cpu")


@pytest.fixture(autouse=True)
def answered(monkeypatch, tmp_path):
    """How many prompts were answered, each time that the base was asked."""
    monkeypatch.setenv("NARROWTUNE_CACHE", str(tmp_path / "cache"))
    seen: list[int] = []
    plain = anchor_module.generate_greedy

    def generate(loaded, prompts, **options):
        seen.append(len(prompts))
        return plain(loaded, prompts, **options)

    monkeypatch.setattr(anchor_module, "generate_greedy", generate)
    return seen


def build(base, origin=None, number=3, cache=None, **changes) -> Anchor:
    return build_anchor(
        base,
        ChatEncoder(base.tokenizer),
        [(Message("user", (Text(f"Tell me about {i} stones."),)),) for i in range(number)],
        AnchorSettings(**{**SETTINGS, **changes}),
        batch_size=2,
        seed=1,
        cache=cache or AnchorCache(origin or ORIGIN),
    )


def files(tmp_path):
    return sorted((tmp_path / "cache").glob("anchors/*/*"))


def test_a_second_run_answers_nothing_and_holds_the_same(base, answered):
    first, second = build(base), build(base, rows_per_step=2, weight=0.3)
    assert answered == [3]
    assert [row.input_ids for row in second.encoded] == [row.input_ids for row in first.encoded]
    assert [row.labels for row in second.encoded] == [row.labels for row in first.encoded]
    for kept, read in zip(first.distributions, second.distributions, strict=True):
        assert torch.equal(kept.log_probs, read.log_probs)
        assert torch.equal(kept.tokens, read.tokens)
        assert kept.tokens.dtype == read.tokens.dtype == torch.int32
    assert second.rows_per_step == 2


@pytest.mark.parametrize(
    "other",
    [
        {"origin": {**ORIGIN, "model": "two"}},
        {"origin": {**ORIGIN, "arithmetic": "bf16"}},
        {"number": 2},
        {"max_new_tokens": 3},
        {"top_k": 8},
    ],
)
def test_what_decides_an_answer_has_answers_of_its_own(base, answered, tmp_path, other):
    build(base)
    build(base, **other)
    assert len(answered) == len(files(tmp_path)) == 2
    build(base, **other)
    assert len(answered) == 2


def test_whole_distributions_are_not_kept(base, answered, tmp_path):
    for top_k in (None, 10**6):
        build(base, top_k=top_k)
        build(base, top_k=top_k)
    assert answered == [3] * 4
    assert files(tmp_path) == []


def test_answers_that_can_not_be_trusted_are_made_anew(base, answered, tmp_path, caplog):
    first = build(base)
    [file] = files(tmp_path)
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1]), b""):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            again = build(base)
        assert "damaged and made anew" in caplog.text
        caplog.clear()
        assert [row.input_ids for row in again.encoded] == [row.input_ids for row in first.encoded]
        assert file.read_bytes() == whole
    assert answered == [3] * 4


def test_a_folder_without_room_or_that_can_not_be_written_is_a_warning(
    base, answered, tmp_path, caplog
):
    with caplog.at_level(logging.WARNING):
        build(base, cache=AnchorCache(ORIGIN, max_bytes=100))
        assert "it would grow beyond 0 MiB" in caplog.text
        (tmp_path / "cache" / "anchors").rmdir()
        (tmp_path / "cache" / "anchors").write_text("")
        caplog.clear()
        build(base)
        assert "are not kept" in caplog.text
    assert answered == [3, 3]
