"""Where things go so that they neither touch nor stand in rows.

Owns: jittered grids.
"""

from __future__ import annotations

from random import Random

from narrowtune.miniature.canvas import SIZE, Point


def scatter(draw: Random, number: int, columns: int, rows: int, *, loose: float) -> list[Point]:
    """Return `number` places, each in a cell of its own.

    Args:
        draw: source of chance.
        number: at most `columns` times `rows`.
        columns: of the grid.
        rows: of the grid.
        loose: how far a place may be from its cell's middle, in pixels.
    """
    wide, high = SIZE / columns, SIZE / rows
    cells = draw.sample(range(columns * rows), number)
    return [
        (
            (cell % columns + 0.5) * wide + draw.uniform(-loose, loose),
            (cell // columns + 0.5) * high + draw.uniform(-loose, loose),
        )
        for cell in cells
    ]
