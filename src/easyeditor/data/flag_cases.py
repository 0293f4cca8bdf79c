"""Edits of what a model says about drawn flags, with every measure by construction.

A case makes the model call one country's flag another country's. It is asked with other words and
another picture of the flag; the flags of other countries, the question without a picture and
unrelated text must stay; the new country's capital should follow.
"""

from __future__ import annotations

import random

from easyeditor.data.flag_pictures import COUNTRIES, photograph
from easyeditor.edits import Case, Edit, ImageRef, Probe, Prompt

QUESTION = "This is the flag of"
REPHRASE = "What you see is the flag of"
CAPITAL_QUESTION = "The capital of this country is"
SUBJECT = "flag"
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Ireland": "Dublin", "Belgium": "Brussels",
    "Romania": "Bucharest", "Nigeria": "Abuja", "Peru": "Lima", "Mali": "Bamako",
    "Germany": "Berlin", "the Netherlands": "Amsterdam", "Russia": "Moscow",
    "Hungary": "Budapest", "Bulgaria": "Sofia", "Austria": "Vienna", "Poland": "Warsaw",
    "Ukraine": "Kyiv", "Estonia": "Tallinn", "Lithuania": "Vilnius", "Colombia": "Bogotá",
    "Spain": "Madrid", "Thailand": "Bangkok", "Argentina": "Buenos Aires", "India": "New Delhi",
    "Sweden": "Stockholm", "Denmark": "Copenhagen", "Finland": "Helsinki", "Norway": "Oslo",
    "Iceland": "Reykjavik", "Japan": "Tokyo", "Bangladesh": "Dhaka", "Switzerland": "Bern",
    "Greece": "Athens", "Cuba": "Havana", "Sudan": "Khartoum", "Egypt": "Cairo",
    "Vietnam": "Hanoi", "China": "Beijing", "Morocco": "Rabat", "Turkey": "Ankara",
    "Brazil": "Brasília",
}  # fmt: skip
FIRST_PICTURE = 200_000
"""The seeds of these pictures; the tower was trained on those below 1,000."""


def flag_cases(n: int, seed: int = 0, countries: tuple[str, ...] = COUNTRIES) -> list[Case]:
    """``n`` cases about different flags; equal seeds give equal cases.

    Args:
        n: at most one for each country.
        seed: of the choice of countries and pictures.
        countries: those that are asked about.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    rng = random.Random(seed)
    order = rng.sample(countries, len(countries))
    return [_case(order, i, FIRST_PICTURE + 100 * seed) for i in range(min(n, len(order)))]


def picture(country: str, seed: int) -> ImageRef:
    """A photograph of a flag, as an image in memory."""
    return ImageRef.of(photograph(country, seed))


def _case(order: list[str], i: int, start: int) -> Case:
    old, new = order[i], order[(i + 1) % len(order)]
    near, far = order[(i + 7) % len(order)], order[(i + 13) % len(order)]
    about = Prompt(QUESTION, (picture(old, start),))
    probes = (
        Probe(about.with_text(REPHRASE), (new,), "rephrase/text"),
        Probe(Prompt(QUESTION, (picture(old, start + 1),)), (new,), "rephrase/image"),
        Probe(f"The capital of {far.removeprefix('the ')} is", (CAPITALS[far],), "locality/text"),
        Probe(Prompt(CAPITAL_QUESTION, (picture(far, start),)), (CAPITALS[far],), "locality/image"),
        Probe(Prompt(QUESTION, (picture(near, start),)), (near,), "locality/same_question"),
        Probe(QUESTION, (old,), "locality/no_image"),
        Probe(about.with_text(CAPITAL_QUESTION), (CAPITALS[new],), "portability/capital"),
    )
    edit = Edit(about, new, subject=SUBJECT, ground_truth=old)
    return Case(f"{old} → {new}", edit, probes)
