"""What the held-out tasks are put together from: options by letter, rows, small words, arrows.

Owns: the questions that come between the first levels and the held-out tasks, each asking for one
step of theirs.
"""

from __future__ import annotations

from functools import partial
from random import Random

from narrowtune.miniature.arrows import arrow_in_words, draw_arrow, draw_word_node, word_box
from narrowtune.miniature.canvas import SIZE, Canvas, fitting_height
from narrowtune.miniature.glyphs import FACES, PRINTED, text_width
from narrowtune.miniature.ground import plain_canvas
from narrowtune.miniature.item import (
    LETTERED,
    Item,
    lettered,
    listed,
    shuffled,
    spelt,
    told,
    told_or_spelt,
)
from narrowtune.miniature.marks import SHAPES, THINGS
from narrowtune.miniature.palette import BRIGHT, OBJECT_COLOURS, Ink, ink_on, mix, shade
from narrowtune.miniature.pretraining.objects import (
    PLACES,
    SIDE,
    Placed,
    draw_objects,
    paint_objects,
    tell_objects,
)
from narrowtune.miniature.shapes import draw_shape
from narrowtune.miniature.words import ANIMALS, SMALL

LAYOUTS = ("{question}\n{lines}\n{suffix}", "{question}\nOptions: {inline}\n{suffix}")
SUFFIXES = {"both": "Name it, then its letter.", "each": "Name each, then its letter."}
"""Of forms that don't ask for the letter alone."""

SUFFIX = LETTERED
PICK_WORDING = "Which letter stands before {value}?"
EACH_WORDING = "Which letters stand before {values}?"

LISTS_WORDING = "Which words are written here?"
ROWS_WORDINGS = ("What is beside {label}?", "What stands in the row of {label}?")
WORDS_WORDINGS = ("Which word is written here?", "What word is this?")
SPELLING_WORDINGS = ("Spell the word.", "Which letters are written here?")
ARROWS_WORDINGS = {
    "tip": ("What does the arrow lead to?", "Where does the arrow end?"),
    "tail": ("Where does the arrow come from?", "Where does the arrow start?"),
}


def make_choices(draw: Random) -> Item:
    """Return a question of the level `binding`, to be answered with an option's letter.

    To find the answer and to find its letter are two steps, and together they stay at chance for
    long. Some of the further questions need no picture: they ask for the letter of one option or of
    each. Some ask for the answer and then its letter.
    """
    return _ask_choice(draw_objects(draw, draw.randint(1, 3)), ("letter",), draw)


def _ask_choice(objects: tuple[Placed, ...], forms: tuple[str, ...], draw: Random) -> Item:
    # The one that is asked about comes first.
    objects = tuple(draw.sample(objects, len(objects)))
    kind, asked = draw.choice(("colour_of", "what_is", "where")), objects[0]
    question, values, pool = {
        "colour_of": (
            f"What colour is the {asked.name}?",
            [item.colour for item in objects],
            OBJECT_COLOURS,
        ),
        "what_is": (
            f"What is {asked.colour}?",
            [item.name for item in objects],
            (*SHAPES, *THINGS),
        ),
        "where": (
            f"Where is the {asked.name}?",
            [PLACES[item.row * SIDE + item.column] for item in objects],
            PLACES,
        ),
    }[kind]
    right, *others = values
    number = draw.randint(1, 3)
    # What else is in the picture is among the options, as far as there is room.
    rest = [value for value in pool if value not in values]
    wrong = [*others, *draw.sample(rest, 3)][:number]
    options, letter = shuffled(draw, right, wrong)
    form = draw.choice(forms)
    if form != "letter":
        kind = form
    mixed = draw.sample(options, len(options))
    if form == "pick":
        question = PICK_WORDING.format(value=right)
    elif form == "each":
        question = EACH_WORDING.format(values=", ".join(mixed))
    text = draw.choice(LAYOUTS).format(
        question=question,
        lines=listed(options),
        inline=listed(options, "{letter}: {text}", ", "),
        suffix=SUFFIXES.get(form, SUFFIX),
    )
    named = {text: f"{text} {'ABCD'[place]}" for place, text in enumerate(options)}
    answer = {"both": named[right], "each": ", ".join(named[text] for text in mixed)}
    again = partial(_ask_choice, objects, ("letter", "pick", "both", "each"))
    paint, tell = partial(paint_objects, objects), partial(tell_objects, objects)
    said = (answer[form],) if form in answer else lettered(options, letter)
    return Item(kind, text, said, paint, options, again, tell)


def make_rows(draw: Random) -> Item:
    """Return two or three labels with a word or number beside each, one of which is asked for."""
    words = draw.sample(SMALL, 6)
    rows = tuple(
        (label, word if draw.random() < 0.5 else str(draw.randint(10, 99)))
        for label, word in zip(words[:3], words[3:], strict=True)
    )[: draw.randint(2, 3)]
    return _ask_row(rows, draw)


def _ask_row(rows: tuple[tuple[str, str], ...], draw: Random) -> Item:
    label, value = draw.choice(rows)
    question = draw.choice(ROWS_WORDINGS).format(label=label)
    kind = "number" if value.isdigit() else "word"
    paint, again = partial(_paint_rows, rows), partial(_ask_row, rows)
    tell = partial(told_or_spelt, [f"{label}: {value}" for label, value in rows])
    return Item(kind, question, (value,), paint, again=again, tell=tell)


def make_words(draw: Random) -> Item:
    """Return one word, written small to middling, to be named as a whole."""
    return _ask_word(draw.choice(SMALL), draw)


def _ask_word(word: str, draw: Random) -> Item:
    """Ask for the word as a whole; only further questions ask for its letters."""
    paint, again = partial(_paint_word, word), partial(_ask_spelling, word)
    tell = partial(_tell_letters, word)
    return Item("word", draw.choice(WORDS_WORDINGS), (word,), paint, again=again, tell=tell)


def _tell_letters(word: str, draw: Random) -> str:
    return spelt(word)


def _ask_spelling(word: str, draw: Random) -> Item:
    paint = partial(_paint_word, word)
    return Item("spelling", draw.choice(SPELLING_WORDINGS), (" ".join(word),), paint)


def make_lists(draw: Random) -> Item:
    """Return a few words below each other, to be read out in order."""
    words = tuple(draw.sample(SMALL, draw.randint(3, 6)))
    tell = partial(_tell_list, words)
    return Item("list", LISTS_WORDING, (" ".join(words),), partial(_paint_list, words), tell=tell)


def _tell_list(words: tuple[str, ...], draw: Random) -> str:
    return " ".join(words)


def make_arrows(draw: Random) -> Item:
    """Return two or three nodes of which two are joined by an arrow."""
    number, words = draw.randint(2, 3), draw.random() < 0.5
    if words:
        nodes = draw.sample(ANIMALS, number)
    else:
        shapes, colours = draw.sample(SHAPES, number), draw.sample(BRIGHT, number)
        nodes = [f"{colour} {shape}" for colour, shape in zip(colours, shapes, strict=True)]
    return _ask_arrow(tuple(nodes), words, draw)


def _ask_arrow(nodes: tuple[str, ...], words: bool, draw: Random) -> Item:
    kind = draw.choice(list(ARROWS_WORDINGS))
    answer = nodes[0] if kind == "tail" else nodes[1]
    question = draw.choice(ARROWS_WORDINGS[kind])
    paint, again = partial(_paint_arrow, nodes, words), partial(_ask_arrow, nodes, words)
    tell = partial(told, [arrow_in_words(nodes[0], nodes[1]), *nodes[2:]])
    return Item(kind, question, (answer,), paint, again=again, tell=tell)


def _paint_rows(rows: tuple[tuple[str, str], ...], draw: Random) -> Canvas:
    canvas = plain_canvas(draw)
    high = draw.uniform(17, SIZE / len(rows) - 4)
    top = draw.uniform(2, SIZE - 2 - high * len(rows))
    apart = draw.random() < 0.5
    ground, face, value_face = _carrier(draw), draw.choice(PRINTED), draw.choice(FACES)
    for place, (label, value) in enumerate(rows):
        if apart and place:
            ground = _carrier(draw)
        box = (3, top + place * high, SIZE - 3, top + (place + 1) * high - (2 if apart else 0))
        canvas.rectangle(box, ground, draw.choice(("board", "panel")))
        ink, y = ink_on(ground, draw), (box[1] + box[3]) / 2
        tall = draw.uniform(6.5, 11)
        height = fitting_height(face, label, 46, tall, 6.5)
        left = 7 + text_width(face, round(2 * height), label) / 4
        canvas.text((left, y), label, ink, height, face=face)
        shown = _cased(draw, value)
        height = fitting_height(value_face, shown, 46, tall, 6.5)
        canvas.text((82, y), shown, ink, height, face=value_face)
    return canvas


def _paint_word(word: str, draw: Random) -> Canvas:
    canvas, face = plain_canvas(draw), draw.choice(FACES)
    height = fitting_height(face, word.upper(), 100, draw.uniform(6.5, 16), 6.5)
    wide = text_width(face, round(2 * height), word.upper()) / 4 + 4
    x = SIZE / 2 + draw.uniform(-1, 1) * max(0.0, SIZE / 2 - wide - 2)
    y = SIZE / 2 + draw.uniform(-1, 1) * (SIZE / 2 - height - 3)
    ground: Ink = canvas.ground
    if draw.random() < 0.6:
        ground = _carrier(draw)
        box = (x - wide, y - height, x + wide, y + height)
        canvas.rounded(box, draw.choice((1, 4)), ground, draw.choice(("board", "panel")))
    canvas.text((x, y), _cased(draw, word), ink_on(ground, draw), height, face=face)
    return canvas


def _paint_list(words: tuple[str, ...], draw: Random) -> Canvas:
    canvas, face = plain_canvas(draw), draw.choice(FACES)
    high, ink = SIZE / len(words), ink_on(canvas.ground, draw)
    tall = draw.uniform(6.5, min(12.0, high - 6))
    for place, word in enumerate(words):
        shown = _cased(draw, word)
        height = fitting_height(face, shown, 100, tall, 6.5)
        room = SIZE / 2 - text_width(face, round(2 * height), shown) / 4 - 2
        x = SIZE / 2 + draw.uniform(-1, 1) * max(0.0, room)
        canvas.text((x, (place + 0.5) * high), shown, ink, height, face=face)
    return canvas


def _paint_arrow(nodes: tuple[str, ...], words: bool, draw: Random) -> Canvas:
    inks = [] if words else [mix(draw, node.split()[0]) for node in nodes]
    canvas = plain_canvas(draw, inks, tones=("pale", "pale", "dark"))
    boxes = [word_box(node) if words else (22.0, 22.0) for node in nodes]
    # Two that are joined stand above each other or, where there is room for an arrow, side by side.
    # Arrows go down or to the right, as in diagrams.
    line, aside = draw.sample((30, SIZE - 30), 2)
    corners = [(line, 26), (line, SIZE - 26), (aside, draw.choice((26, SIZE - 26)))]
    if not words and draw.random() < 0.5:
        corners = [(y, x) for x, y in corners]
    places = [(x + draw.uniform(-5, 5), y + draw.uniform(-8, 8)) for x, y in corners]
    ink = ink_on(canvas.ground, draw)
    draw_arrow(canvas, places[0], places[1], boxes[0], boxes[1], ink)
    face = draw.choice(PRINTED)
    for place, (node, at) in enumerate(zip(nodes, places, strict=False)):
        if words:
            draw_word_node(canvas, draw, node, at, boxes[place], face)
        else:
            draw_shape(canvas, draw, node.split()[1], at, 9.5, inks[place])
    return canvas


def _carrier(draw: Random) -> Ink:
    """Return a ground to write on: pale, bright or dark."""
    return shade(mix(draw, draw.choice((*BRIGHT, "white", "black"))), draw.choice((1.0, 2.5)))


def _cased(draw: Random, text: str) -> str:
    return draw.choice((text, text.upper(), text.capitalize()))
