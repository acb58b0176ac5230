"""What a study keeps of its results, and what is computed from them."""

import numpy as np
import pytest

from narrowtune.core.errors import UsageError
from narrowtune.study.formulas import forgetting_at, rank_correlation, score_chain
from narrowtune.study.results import (
    BASE,
    ChainKey,
    Shown,
    StageResult,
    TaskScores,
    append_result,
    base_of,
    by_chain,
    pack_scores,
    read_results,
    unpack_scores,
)

KEY = ChainKey(arm="sa_proj", learning_rate=1e-4, order="default", seed=0)
NONE = ChainKey(arm=BASE, learning_rate=0.0, order="", seed=0)


def scores(mean, role="held_out"):
    return TaskScores(role=role, mean=mean, lenient=mean, valid_format=1.0, items="")


def stage(number, skill, count, clock, charts, forms, key=KEY):
    tasks = {
        "count": scores(count, "target"),
        "clock": scores(clock, "target"),
        "charts": scores(charts),
        "forms": scores(forms),
    }
    return StageResult(chain=key, stage=number, skill=skill, tasks=tasks)


BEFORE = stage(0, "", 0.1, 0.0, 0.9, 0.8, NONE)
STAGES = [stage(1, "count", 0.7, 0.1, 0.5, 0.6), stage(2, "clock", 0.4, 0.5, 0.8, 0.7)]


def test_scores_of_items_come_back():
    values = [0.0, 1.0, 0.5, 0.07, 0.99]
    assert unpack_scores(pack_scores(values)) == values
    assert len(pack_scores(values)) == 10


def test_results_come_back_and_a_cut_line_is_run_again(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    for result in (BEFORE, *STAGES):
        append_result(path, result)
    assert read_results(path) == [BEFORE, *STAGES]
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert read_results(path) == [BEFORE, STAGES[0]]
    append_result(path, STAGES[1])
    assert read_results(path) == [BEFORE, *STAGES]
    assert base_of(read_results(path)) == BEFORE
    assert by_chain(read_results(path)) == {KEY: STAGES}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_texts_with_other_marks_of_a_lines_end_lose_no_stage(tmp_path, mark):
    path = tmp_path / "results.jsonl"
    shown = [Shown(prompt="Say.", base=f"a{mark}b", tuned="c")]
    told = STAGES[0].model_copy(update={"shown": shown})
    for result in (BEFORE, told, STAGES[1]):
        append_result(path, result)
    assert read_results(path) == [BEFORE, told, STAGES[1]]


def test_a_broken_line_that_is_not_the_last_is_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    for result in (BEFORE, *STAGES):
        append_result(path, result)
    first, second, third, _ = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([first, second[:-40], third, b""]))
    with pytest.raises(UsageError, match=f"line 2 of {path} is not JSON"):
        read_results(path)


def test_a_stage_that_ran_twice_counts_once(tmp_path):
    path = tmp_path / "results.jsonl"
    again = STAGES[0].model_copy(update={"seconds": 7.0})
    for result in (STAGES[0], again):
        append_result(path, result)
    assert read_results(path) == [again]


def test_lines_of_something_else_are_an_error(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"stage": 1}\n')
    with pytest.raises(UsageError, match="line 1 is none of this version's"):
        read_results(path)
    with pytest.raises(UsageError, match="scores the base first"):
        base_of(STAGES)


def test_a_chains_numbers():
    found = score_chain(BEFORE, STAGES)
    assert found.learning == pytest.approx((60, 50))
    assert found.overall == pytest.approx((30, 50))
    assert found.target_learning == pytest.approx(55)
    assert found.target_overall == pytest.approx(40)
    assert found.target_forgetting == pytest.approx(30)
    assert found.held_out == pytest.approx((30, 10))
    assert found.recovery == pytest.approx((20,))
    assert found.recovered_shares == (pytest.approx(2 / 3),)
    alone = score_chain(BEFORE, STAGES[:1])
    assert alone.target_forgetting is None
    assert alone.recovery == ()


def test_a_share_of_next_to_nothing_is_not_given():
    little = stage(1, "count", 0.7, 0.1, 0.88, 0.79)
    assert score_chain(BEFORE, [little, STAGES[1]]).recovered_shares == (None,)


def test_matched_learning_goes_in_straight_lines_from_nothing():
    points = [(20.0, 5.0), (40.0, 25.0), (10.0, 50.0)]
    assert forgetting_at(points, 10) == pytest.approx(2.5)
    assert forgetting_at(points, 30) == pytest.approx(15)
    assert forgetting_at(points, 40) == pytest.approx(25)
    assert forgetting_at(points, 41) is None


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3], [10, 20, 25]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ties share a rank: the formula on ranks (1, 2.5, 2.5, 4) and (2, 1, 3, 4).
    expected = np.corrcoef([1, 2.5, 2.5, 4], [2, 1, 3, 4])[0, 1]
    assert rank_correlation([0, 5, 5, 9], [2, 1, 3, 4]) == pytest.approx(expected)
    assert rank_correlation([1, 1], [1, 2]) is None
