from __future__ import annotations

import pytest

from narrowtune.core.config import parse_config
from narrowtune.core.errors import UsageError
from narrowtune.core.overrides import override


def test_override_leaves_the_given_values_alone():
    values = {"training": {"max_steps": 1}, "anchor": True}
    assert override(values, {"training.max_steps": 2, "anchor.weight": 3.0}) == {
        "training": {"max_steps": 2},
        "anchor": {"weight": 3.0},
    }
    assert values == {"training": {"max_steps": 1}, "anchor": True}


def test_an_item_of_a_list_is_named_by_its_place():
    values = {"keep": ["a.jsonl", {"path": "b.jsonl", "metric": "number"}], "mix": ["g.jsonl:0.1"]}
    changes = {"keep.0.max_refused": 2, "mix.0.max_refused": 3}
    found = override(values, changes | {"keep.1.metric": "anls"})
    assert found["keep"] == [
        {"path": "a.jsonl", "max_refused": 2},
        {"path": "b.jsonl", "metric": "anls"},
    ]
    run = parse_config({"model": "m", "skill": "s.jsonl", **found}, "test")
    assert (run.mix[0].path, run.mix[0].share, run.mix[0].max_refused) == ("g.jsonl", 0.1, 3)
    assert values["keep"][0] == "a.jsonl"
    assert override(values, {"keep.0": "c.jsonl"})["keep"][0] == "c.jsonl"
    alone = override({"keep": "a.jsonl", "mix": "g.jsonl:0.1"}, changes | {"keep.0.metric": "anls"})
    assert alone["keep"] == [{"path": "a.jsonl", "max_refused": 2, "metric": "anls"}]
    assert alone["mix"] == [{"path": "g.jsonl", "share": "0.1", "max_refused": 3}]


def test_a_share_of_rows_to_mix_in_can_be_set():
    found = override(
        {"mix": ["a:b/g.jsonl:0.1", "h.jsonl"]}, {"mix.0.share": 0.2, "mix.1.share": 1}
    )
    assert found["mix"] == [{"path": "a:b/g.jsonl", "share": 0.2}, {"path": "h.jsonl", "share": 1}]
    other = override({"mix": ["g.jsonl:0.1"]}, {"mix.0.path": "h.jsonl:0.2"})
    assert other["mix"] == [{"path": "h.jsonl", "share": "0.2"}]
    other = override({"mix": ["g.jsonl:0.1"]}, {"mix.0.path": "h.jsonl"})
    assert other["mix"] == [{"path": "h.jsonl", "share": "0.1"}]
    named = override({"skill": "a:b.jsonl"}, {"skill.columns.mix": "x"})
    assert named["skill"] == {"path": "a:b.jsonl", "columns": {"mix": "x"}}
    in_a_study = override({"arms": [{"mix": ["g.jsonl:0.1"]}]}, {"arms.0.mix.0.share": 0.2})
    assert in_a_study["arms"][0]["mix"] == [{"path": "g.jsonl", "share": 0.2}]


@pytest.mark.parametrize("key", ["keep.1.metric", "keep.path", "keep.-1.path"])
def test_a_place_that_a_list_does_not_have(key):
    with pytest.raises(UsageError) as caught:
        override({"keep": ["a.jsonl"]}, {key: "x"})
    assert key in caught.value.asked
    assert caught.value.found == "1 items in keep"
    assert "keep.0" in caught.value.do


def test_what_can_not_hold_a_key_is_not_replaced_in_silence():
    assert override({"training": 5}, {"training.max_steps": 2}) == {"training": 5}


def test_true_keeps_a_section_only_where_it_switches_one_on():
    given = {"anchor": {"weight": 3.0}, "training": {"max_steps": 1}}
    assert override(given, {"anchor": True}) == given
    assert override(given, {"training": True})["training"] is True
    dialled = {"dial": {"num_steps": 20}}
    assert override(dialled, {"dial": True}) == dialled
    assert override({"dial": True}, {"dial.share": 0.3}) == {"dial": {"share": 0.3}}
    assert override({}, {"dial": True, "dial.share": 0.3}) == {"dial": {"share": 0.3}}
    assert override({"training": True}, {"training.max_steps": 2}) == {"training": True}
    assert override({"anchor": False}, {"anchor.weight": 2.0}) == {"anchor": {"weight": 2.0}}
    kwargs = {"chat_template_kwargs": {"think": {"budget": 1}}}
    found = override(kwargs, {"chat_template_kwargs.think": True})
    assert found == {"chat_template_kwargs": {"think": True}}


@pytest.mark.parametrize("key", ["skill.", ".skill", "", "skill..path", "keep.0."])
def test_a_name_with_an_empty_part_is_refused(key):
    with pytest.raises(UsageError, match="empty part"):
        override({"skill": {"path": "s.jsonl", "metric": "number"}, "keep": ["a"]}, {key: "x"})
