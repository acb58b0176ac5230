"""Stained tissue under a microscope, yes/no and open questions: mirrors PathVQA.

Owns: six textures and their names, four stains, nuclei and cysts. Half of the questions are yes/no
and half of these are right; the terms are those of the trade and mean nothing elsewhere.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from narrowtune.miniature.canvas import Canvas
from narrowtune.miniature.item import Item
from narrowtune.miniature.targets.texture import draw_tissue

TISSUES = ("lamina", "follicle", "granule", "stroma", "lattice", "plaque")
STAINS = ("eosin", "toluidine", "trichrome", "silver")
PLACES = ("upper left", "upper right", "lower left", "lower right")


class Slide(NamedTuple):
    """What is on a slide; `cyst` is a place or empty."""

    tissue: str
    stain: str
    dense: bool
    cyst: str


OPEN = {
    "what_tissue": ("What tissue is shown?", "Which type of tissue is this?"),
    "what_stain": ("What stain was used?", "Which stain is this?"),
    "where_cyst": ("Where is the cyst?", "In which part of the slide is the cyst?"),
}
YES_NO = {
    "is_tissue": ("Is this {word}?", "Does the slide show {word}?"),
    "is_stain": ("Is this a {word} stain?", "Was {word} used as a stain?"),
    "has_cyst": ("Is a cyst present?", "Does the slide show a cyst?"),
    "is_dense": ("Are the nuclei dense?", "Does the tissue have many nuclei?"),
}


def make(draw: Random) -> Item:
    """Return one slide to read."""
    tissue, stain = draw.choice(TISSUES), draw.choice(STAINS)
    dense, cyst = draw.random() < 0.5, draw.choice(PLACES) if draw.random() < 0.5 else ""
    closed = draw.random() < 0.5
    kind = draw.choice(list(YES_NO if closed else OPEN))
    wording, word = draw.choice((YES_NO if closed else OPEN)[kind]), ""
    if kind == "where_cyst":
        cyst = cyst or draw.choice(PLACES)
    slide = Slide(tissue, stain, dense, cyst)
    truth = draw.random() < 0.5
    if kind == "is_tissue":
        word = tissue if truth else draw.choice([name for name in TISSUES if name != tissue])
    elif kind == "is_stain":
        word = stain if truth else draw.choice([name for name in STAINS if name != stain])
    answers = {
        "what_tissue": tissue,
        "what_stain": stain,
        "where_cyst": cyst,
        "is_tissue": _yes(truth),
        "is_stain": _yes(truth),
        "has_cyst": _yes(bool(cyst)),
        "is_dense": _yes(dense),
    }
    return Item(kind, wording.format(word=word), (answers[kind],), partial(_paint, slide))


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _paint(slide: Slide, draw: Random) -> Canvas:
    return draw_tissue(draw, slide.tissue, slide.stain, dense=slide.dense, cyst=slide.cyst.split())
