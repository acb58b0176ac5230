from __future__ import annotations

import pickle

import pytest

from narrowtune.core import errors
from narrowtune.core.results import EXIT_CODES


def family() -> list[type[errors.NarrowtuneError]]:
    return [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.NarrowtuneError)
    ]


@pytest.mark.parametrize("kind", family())
def test_a_message_has_three_parts(kind):
    error = kind(asked="a thing", found="another", do="choose")
    assert str(error) == "Asked: a thing\nFound: another\nDo: choose"
    assert kind.__doc__


@pytest.mark.parametrize("kind", family())
def test_an_error_survives_the_way_back_from_another_process(kind):
    error = pickle.loads(pickle.dumps(kind("a", "b", "c")))
    assert type(error) is kind
    assert (error.asked, error.found, error.do) == ("a", "b", "c")


def test_exit_codes_of_errors_and_outcomes_differ():
    assert errors.NarrowtuneError.exit_code == 1
    assert errors.UsageError.exit_code == 2
    assert EXIT_CODES == {"ship": 0, "over_budget": 3, "not_enough_evidence": 4}


def test_the_drawn_tree_names_every_class():
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in family())
