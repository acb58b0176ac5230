"""The words that pictures carry.

Owns: the lists of them. What questions add is in `vocabulary`.
"""

from __future__ import annotations


def _words(*lines: str) -> tuple[str, ...]:
    return tuple(word for line in lines for word in line.split())


READING = _words(
    "apple arrow autumn baker basket beach bell bench bird bloom bottle brave bread brick",
    "bridge broom bucket button cabin cake camel candle canyon castle chair chalk cherry",
    "circus citrus clever cloud clover coal coast coffee copper coral corner cotton crane",
    "cream crown daisy dance desert dragon dream eagle early east engine falcon farm feather",
    "fern fiddle field flame flour forest fresh garden ginger glass gold grand grape hammer",
    "happy harbor hazel hill honey hotel island ivory jacket jelly jungle kettle kitten",
    "ladder lemon library light lily lion magic maple market meadow melon mill mint mirror",
    "museum music needle noble north ocean olive onion orchid otter oven palace paper park",
    "pearl pepper piano pilot pine planet plum pond poppy quick quiet rabbit radio river",
    "robin rocket rose saddle salad salt school shadow silver smile snow soup south spice",
    "spring stone storm sugar summer sunny swan table temple tiger toast tower train tulip",
    "turtle velvet violet wagon water west wheat wild willow window winter wonder wood zebra",
)
"""Words on signs: common, lower case, four to seven letters."""

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
"""Words of the held-out tasks; none is on the signs of the skill."""
