"""What an answer says is what the picture shows: read off the plane of marks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import label

from narrowtune.core.errors import UsageError
from narrowtune.miniature.canvas import SIZE
from narrowtune.miniature.item import Item
from narrowtune.miniature.marks import HUES, SHAPES, WHAT, WRITTEN
from narrowtune.miniature.registry import TASKS
from narrowtune.miniature.sample import Sample
from narrowtune.miniature.words import READING


def _planes(sample) -> tuple[np.ndarray, np.ndarray]:
    return np.divmod(np.asarray(sample.scene.marks), len(HUES))


def _shown(sample) -> dict[tuple[str, str], int]:
    """How many pixels each pair of what and colour covers."""
    values, counts = np.unique(np.asarray(sample.scene.marks), return_counts=True)
    pairs = [divmod(int(value), len(HUES)) for value in values]
    return {(WHAT[w], HUES[h]): int(n) for (w, h), n in zip(pairs, counts, strict=True)}


def test_as_many_shapes_are_drawn_as_the_answer_says():
    checked = 0
    for sample in TASKS["counting"].samples("train", 150):
        item, (what, hue) = sample.item, _planes(sample)
        if item.kind == "thing":  # some things are drawn in several pieces
            continue
        words = item.answers[0].removesuffix(" in this image.").split()[3:]
        wanted = np.isin(what, [WHAT.index(name) for name in SHAPES])
        for word in words:
            if word in HUES:
                wanted &= hue == HUES.index(word)
            elif not word.startswith("shape"):
                name = next(n for n in SHAPES if word in (n, f"{n}s", f"{n}es"))
                wanted &= what == WHAT.index(name)
        # Different kinds may touch; shapes of one kind and colour are told apart by their gaps.
        pieces = 0
        for value in np.unique(what[wanted] * len(HUES) + hue[wanted]):
            same = wanted & (what * len(HUES) + hue == value)
            regions, number = label(same, structure=np.ones((3, 3)))
            # The tip of a moon may come off as a pixel of its own.
            pieces += sum((regions == region).sum() > 8 for region in range(1, number + 1))
        assert pieces == int(item.answers[1]), sample.id
        checked += 1
    assert checked > 80


def _asked(name: str, count: int) -> list[tuple[Sample, Item]]:
    """Samples of a task with each question about their pictures, the further ones included."""
    drawn = TASKS[name].samples("train", count)
    return [(sample, item) for sample in drawn for item in sample.questions(3)]


def test_the_longest_bar_is_the_answer():
    for sample, item in _asked("charts", 150):
        bars = {hue: n for (what, hue), n in _shown(sample).items() if what == "bar"}
        if item.kind == "highest":
            assert max(bars, key=bars.get) == item.answers[0], sample.id
        elif item.kind == "lowest":
            assert min(bars, key=bars.get) == item.answers[0], sample.id


def test_the_option_named_is_what_the_scene_shows():
    for sample, item in _asked("scenes", 200):
        shown = _shown(sample)
        right = item.options[ord(item.answers[-1]) - ord("A")]
        things = {what for what, _ in shown}
        if item.kind == "identity":
            offered = {text.split()[-1] for text in item.options}
            assert offered & things == {right.split()[-1]}
        elif item.kind == "attribute":
            asked = next(word for word in item.question.split() if word.strip("?") in things)
            assert (asked.strip("?"), right) in shown


def _middle(sample: Sample, name: str) -> tuple[float, float]:
    """Where in the picture, from 0 to 1, the marks of a thing are: x and y."""
    rows, columns = np.nonzero(_planes(sample)[0] == WHAT.index(name))
    return float(columns.mean()) / SIZE, float(rows.mean()) / SIZE


def test_what_is_said_of_places_is_so():
    """Corners of puzzles, edges of scenes, sides of streets and the star on a map."""
    checked: dict[str, int] = {}
    for task in ("puzzles", "scenes", "street", "science"):
        for sample, item in _asked(task, 120):
            said = item.answers[0].split(" (")[0]
            if item.kind == "corner":
                shape = item.question.split("?")[0].split()[-1]
                x, y = _middle(sample, shape)
                found = f"{'upper' if y < 0.5 else 'lower'} {'left' if x < 0.5 else 'right'}"
            elif item.kind == "edge":
                side = item.question.split("?")[0].split()[-1]
                there = {what for what, _ in _shown(sample)}.intersection(item.options)
                assert len(there) == 2
                xs = {name: _middle(sample, name)[0] for name in there}
                found = (min if side == "left" else max)(xs, key=xs.__getitem__)
            elif item.kind == "side":
                words = item.question.replace("?", "").split()
                a, b = [word for word in words if word in WHAT]
                a, b = (b, a) if words[0] == "On" else (a, b)
                found = "left" if _middle(sample, a)[0] < _middle(sample, b)[0] else "right"
            elif item.kind == "map":
                x, y = (part - 0.5 for part in _middle(sample, "star"))
                found = ("west", "east") if abs(x) > abs(y) else ("north", "south")
                found = found[(x if abs(x) > abs(y) else y) > 0]
            else:
                continue
            assert found == said, (sample.id, item.question)
            checked[item.kind] = checked.get(item.kind, 0) + 1
    assert set(checked) == {"corner", "edge", "side", "map"}
    assert min(checked.values()) > 20, checked


def test_two_options_of_a_diagram_are_not_there():
    for sample, item in _asked("diagrams", 60):
        if item.kind.endswith("shape"):
            shown = {" ".join((hue, what)) for what, hue in _shown(sample)}
            assert sum(option in shown for option in item.options) == 2
            assert item.answers[0].split(" (")[0] in shown


def test_the_hands_point_to_the_time():
    for sample in TASKS["clock"].samples("train", 60):
        what, _ = _planes(sample)
        rows, columns = np.nonzero(what == WHAT.index("hand"))
        dial = np.isin(what, [WHAT.index(name) for name in ("dial", "hand")])
        places = np.nonzero(dial)
        y, x = ((p.min() + p.max()) / 2 for p in places)
        distance = np.hypot(rows - y, columns - x)
        tip = distance.argmax()
        angle = math.atan2(columns[tip] - x, y - rows[tip]) / math.tau * 60
        minute = int(sample.item.answers[0][3:])
        assert abs((angle - minute + 30) % 60 - 30) < 2.5, sample.id


def test_letters_leave_marks_where_they_stand():
    for sample in TASKS["reading"].samples("train", 40):
        what, _ = _planes(sample)
        text = sample.item.answers[0].split()
        columns = [np.nonzero((what == WHAT.index(character)).any(0))[0] for character in text]
        firsts = [place.min() for place in columns if place.size]
        assert len(firsts) == len(text)
        assert all(0 <= first < SIZE for first in firsts)
        if len(set(text)) == len(text):
            assert firsts == sorted(firsts), sample.id


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_patches_are_labelled_by_what_covers_them(patch):
    for sample in TASKS["names"].samples("train", 20):
        labels, side = sample.scene.patch_labels(patch), SIZE // patch
        assert len(labels.what) == len(labels.hue) == side * side
        what, hue = _planes(sample)
        for place in range(side * side):
            row, column = divmod(place, side)
            area = np.s_[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            share = (what[area] > 0).mean()
            if share > 0.5:  # one thing per picture: what covers half of a patch is it
                assert labels.what[place] in what[area]
                assert labels.hue[place] in hue[area]
                assert labels.what[place] > 0
            if share == 0:
                assert labels.what[place] == 0


def test_patches_are_labelled_by_the_word_that_they_are_of():
    for sample in TASKS["lists"].samples("train", 20):
        words = sample.item.answers[0].split()
        labels = np.array(sample.scene.patch_labels(8).word).reshape(14, 14)
        found = [WRITTEN[value] for value in np.unique(labels) if value]
        assert sorted(found) == sorted(words)
        for place, word in enumerate(words):
            rows, columns = np.nonzero(labels == WRITTEN.index(word))
            assert int(rows.mean() * 8 + 4) * len(words) // SIZE == place
            assert len(columns) >= len(word) // 2
    # Words that only signs carry are not among them.
    assert not set(READING) & set(WRITTEN)


def test_patches_must_fill_the_picture():
    with pytest.raises(UsageError, match="divisor"):
        TASKS["names"].sample("train", 0, 0).scene.patch_labels(9)
