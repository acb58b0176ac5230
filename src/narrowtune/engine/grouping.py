"""Which rows of a batch share a line of a layout, and which pictures that line has.

Owns: rows as a tree of beginnings, in which a picture is a word of its own, the same for rows about
the same one; and how many lines are cheapest.

Shapes: B rows of T tokens, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from narrowtune.engine.lexical import LexicalOrder, in_order, shared_out
from narrowtune.engine.padding import TEXT, relative_cost
from narrowtune.engine.pictures import PICTURE_INPUTS, PICTURE_KINDS, pictures_of_rows

_PROBED = 64  # pixels by which pictures are told apart before all of them are compared


class Groups(NamedTuple):
    """Which rows share a line of the layout.

    Attributes:
        rows: numbers of the batch's rows, by line of the layout, in lexical order.
        starts: how many tokens each of them begins with like the one before it.
        length: L of the layout, the longest line's tokens.
        num_pictured: rows whose pictures are in it; of those about the same one, the first.
        pictures: what their pictures are given by, in the order of the lines.
    """

    rows: list[list[int]]
    starts: list[list[int]]
    length: int
    num_pictured: int
    pictures: dict[str, Tensor]


def group_rows(model: nn.Module, inputs: Mapping[str, Any], kind: str) -> Groups | None:
    """Lay rows end to end, each beginning once that several of a line share.

    In one line every token's scores are computed against all others', most of them of other rows
    and masked; more lines have shorter squares, but a common beginning in each, and are filled up
    to the longest. So many lines are taken as are cheapest. Rows that share a picture, and what is
    before it, are in one line, so that it goes through the tower once.

    Args:
        model: the unwrapped model that will see them.
        inputs: `input_ids` and `attention_mask` [B, T], padded on the right, and pictures.
        kind: of the device on which it will.

    Returns:
        None where a batch's pictures can't be told apart, or other features are in it.
    """
    ids, valid = inputs["input_ids"], inputs["attention_mask"].bool()
    pictures = _Pictures(model, inputs)
    if pictures.each is None:
        return None
    order = pictures.whole(in_order(pictures.as_words(ids), valid))
    tokens = valid.sum(dim=1).tolist()
    families = order.families(tokens, pictures.starts)
    own = [order.num_tokens(tokens, family) - min(order.alike[1:]) for family in families]
    # A line for each row would be the rows as they are; one for each picture's is not.
    shares = pictures.each and len(families) < len(ids)
    most = len(families) if shares else max(1, len(families) // 2)
    best: tuple[float, int, list[list[int]]] | None = None
    for number in range(1, most + 1):
        lines = [
            sorted(place for family in line for place in families[family])
            for line in shared_out(own, number)
        ]
        length = max(order.num_tokens(tokens, line) for line in lines)
        cost = relative_cost(model.config, number, length, masked=True, kind=kind)
        if best is None or cost < best[0]:
            best = cost, length, lines
        elif number > 2 * len(best[2]):
            break
    assert best is not None, "there are rows"
    return _groups(best[2], best[1], order, pictures)


def _groups(
    lines: Sequence[Sequence[int]], length: int, order: LexicalOrder, pictures: _Pictures
) -> Groups:
    rows = [[order.rows[place] for place in line] for line in lines]
    starts = [order.starts_of(line) for line in lines]
    chosen = [
        row
        for own, alike in zip(rows, starts, strict=True)
        for row, start in zip(own, alike, strict=True)
        if start <= pictures.starts.get(row, -1)
    ]
    return Groups(rows, starts, length, len(chosen), pictures.joined(chosen))


class _Pictures:
    """The pictures of a batch.

    Attributes:
        each: what each row's are given by, by the row's number; None where they can't be told
            apart.
        starts: where they begin, by the row's number.
        ends: behind the last of them.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Any]) -> None:
        self.each: dict[int, dict[str, Tensor]] | None = {}
        self.starts: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self._given: dict[str, Tensor] = {}
        if set(inputs) == TEXT:
            return
        known = {*TEXT, *PICTURE_INPUTS, "mm_token_type_ids", PICTURE_KINDS}
        placeholder = getattr(model.config, "image_token_id", None)
        if placeholder is None or not set(inputs) <= known:
            self.each = None
            return
        self._given = {name: inputs[name] for name in PICTURE_INPUTS if name in inputs}
        self._places = inputs["input_ids"] == placeholder
        found = pictures_of_rows(self._given, self._places, model.config)
        rows = self._places.any(dim=1).nonzero()[:, 0].tolist()
        self.each = None if found is None else dict(zip(rows, found, strict=True))
        first = self._places.int().argmax(dim=1).tolist()
        last = self._places.shape[1] - self._places.flip(1).int().argmax(dim=1)
        self.starts = {row: first[row] for row in rows}
        self.ends = {row: int(last[row]) for row in rows}

    def as_words(self, ids: Tensor) -> Tensor:
        """Return tokens [B, T] in which each picture's are a word that no other picture has."""
        if not self.each:
            return ids
        words = ids.clone()
        vocabulary = int(ids.max()) + 1
        for number, rows in enumerate(self._the_same()):
            words[rows] = words[rows].masked_fill(self._places[rows], vocabulary + number)
        return words

    def whole(self, order: LexicalOrder) -> LexicalOrder:
        """Return an order in which rows share all of their pictures or none.

        Between several pictures of a row there may be text in which it differs from its neighbour.
        """
        alike = [
            self.starts[row] if self.starts.get(row, same) < same < self.ends.get(row, 0) else same
            for row, same in zip(order.rows, order.alike, strict=True)
        ]
        return LexicalOrder(order.rows, alike)

    def _the_same(self) -> list[list[int]]:
        """Return the rows that have the same pictures.

        Sizes and some of the pixels are compared first, so that all pixels are looked at only where
        two pictures are likely the same.
        """
        assert self.each is not None
        alike: dict[Any, list[list[int]]] = {}
        for row, picture in self.each.items():
            pixels = picture["pixel_values"].flatten()
            some = pixels[:: max(1, len(pixels) // _PROBED)].tolist()
            sizes = str([tuple(value.shape) for value in picture.values()])
            groups = alike.setdefault((sizes, tuple(some)), [])
            for group in groups:
                other = self.each[group[0]]
                if all(torch.equal(other[name], value) for name, value in picture.items()):
                    group.append(row)
                    break
            else:
                groups.append([row])
        return [group for groups in alike.values() for group in groups]

    def joined(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the inputs of some rows' pictures alone, joined as a batch has them."""
        if not rows:
            return {}
        assert self.each is not None
        if "image_grid_thw" in self._given or set(self._given) == {"pixel_values"}:
            chosen = [self.each[row] for row in rows]
            return {name: torch.cat([each[name] for each in chosen]) for name in self._given}
        places = list(self.each)
        chosen_places = [places.index(row) for row in rows]
        return {name: value[chosen_places] for name, value in self._given.items()}
