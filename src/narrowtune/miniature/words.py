"""The words that pictures carry.

Owns: the lists of them. What questions add is in `vocabulary`.
"""

from __future__ import annotations


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split())


READING = _words(
    "apple baker bell bloom bread broom cabin candle chair circus cloud coast coral",
    "crane daisy dragon early falcon fern flame fresh glass grape harbor honey ivory",
    "jungle ladder light magic meadow mint music north onion oven park piano planet",
    "poppy rabbit robin saddle school smile south stone summer table toast tulip",
    "violet west willow wonder",
)
"""Words that only signs carry: common, lower case, four to seven letters."""

NAMES = _words(
    "anna ben clara david emma felix greta hugo iris jonas karl lena maria nora oscar paul",
    "rosa simon tom vera",
)
"""People on forms."""

CITIES = _words(
    "berlin cairo delhi dublin geneva havana kyoto lima lisbon london madrid nairobi oslo",
    "paris prague quito rome seoul",
)
"""Places on forms."""

MONTHS = _words(
    "jan feb mar apr may jun jul aug sep oct nov dec",
)
"""Months as charts and dates abbreviate them."""

GOODS = _words(
    "book lamp desk shoes phone clock knife plate watch brush pencil carpet mug helmet guitar",
    "scarf",
)
"""Items on forms."""

TOPICS = _words(
    "tea milk rice corn fish meat eggs beans nuts oil wool gas wind solar steel sheep goats",
    "bikes buses trains",
)
"""What panels of an infographic are about."""

ANIMALS = _words(
    "ant bat bee cat cow crab crow deer dog duck fox frog goat hare hawk hen mole moth newt",
    "owl pig rat toad wolf worm yak",
)
"""Nodes of a diagram: short enough to be written small."""

SMALL = tuple(sorted({*ANIMALS, *CITIES, *GOODS, *MONTHS, *NAMES, *TOPICS}))
"""Words of the held-out tasks."""

SIGNS = (*READING, *ANIMALS, *GOODS)
"""Words on signs: those that nothing else carries, and some that a reader of the held-out tasks
knows, as published models read a part of such words before they are taught."""
