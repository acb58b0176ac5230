"""What time a clock shows, HH:MM: mirrors TimeClock.

Owns: the times, whole steps of `STEP` minutes; the hour hand moves on with the minutes, as on a
real clock.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.canvas import Canvas, around
from narrowtune.miniature.dials import draw_dial, draw_hand
from narrowtune.miniature.item import Item
from narrowtune.miniature.palette import mix

STEP = 15
"""Minutes between times: quarters of an hour."""

WORDINGS = (
    "What time does the clock show in this image?",
    "What time is it?",
    "What time does the clock show?",
)


def make(draw: Random) -> Item:
    """Return one clock to read."""
    hour, minute = draw.randint(1, 12), draw.randrange(0, 60, STEP)
    answer = f"{hour:02}:{minute:02}"
    answers = tuple(dict.fromkeys((answer, f"{hour}:{minute:02}")))
    return Item("time", draw.choice(WORDINGS), answers, partial(_paint, hour, minute))


def _paint(hour: int, minute: int, draw: Random) -> Canvas:
    canvas, centre, radius, hands, face = draw_dial(draw)
    turn = minute / 60
    short, long = radius * draw.uniform(0.42, 0.5), radius * draw.uniform(0.74, 0.84)
    thick = draw.uniform(3.8, 5)
    draw_hand(canvas, centre, (hour + turn) / 12, short, hands, thick)
    minute_ink = mix(draw, "red") if face.name == "white" and draw.random() < 0.3 else hands
    draw_hand(canvas, centre, turn, long, minute_ink, thick * draw.uniform(0.45, 0.6))
    canvas.ellipse(around(centre, 6), hands, "hand")
    return canvas
