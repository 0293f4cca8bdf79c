"""Edits of what a model says about drawn flags, with every measure by construction.

A case makes the model call one country's flag another country's. It is asked with other words and
another picture of the flag; the flags of other countries, the question without a picture and
unrelated text must stay; the new country's capital should follow.
"""

from __future__ import annotations

import random

from easyeditor.data.flag_pictures import COUNTRIES, photograph
from easyeditor.edits import Case, Edit, ImageRef, Probe, Prompt
from easyeditor.pictures import distorted

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


def flag_cases(
    n: int,
    seed: int = 0,
    countries: tuple[str, ...] = COUNTRIES,
    *,
    pictures: int = 1,
    keep: int = 0,
    views: int = 0,
) -> list[Case]:
    """``n`` cases about different flags; equal seeds give equal cases.

    Args:
        n: at most one for each country.
        seed: of the choice of countries and pictures.
        countries: those that are asked about.
        pictures: so many other pictures of the flag, and of other countries' flags, are asked
            about with the edit's question; 4 at most.
        keep: so many prompts the edit keeps (:attr:`Edit.keep`), its question about flags of
            countries that no probe of the case shows; 8 at most.
        views: so many expansions the edit has, its question about its own picture distorted
            (:func:`~easyeditor.pictures.distorted`).

    Raises:
        MissingExtraError: pillow is not installed.
    """
    rng = random.Random(seed)
    order = rng.sample(countries, len(countries))
    start = FIRST_PICTURE + 100 * seed
    numbers = range(min(n, len(order)))
    return [_case(order, i, start, pictures, keep, views) for i in numbers]


def picture(country: str, seed: int) -> ImageRef:
    """A photograph of a flag, as an image in memory."""
    return ImageRef.of(photograph(country, seed))


def _case(order: list[str], i: int, start: int, pictures: int, keep: int, views: int) -> Case:
    old, new, far = order[i], order[(i + 1) % len(order)], order[(i + 13) % len(order)]
    near = [order[(i + k) % len(order)] for k in (7, 5, 9, 11)[:pictures]]
    distant = [order[(i + k) % len(order)] for k in range(15, 23)[:keep]]
    about = Prompt(QUESTION, (picture(old, start),))
    probes = (
        Probe(about.with_text(REPHRASE), (new,), "rephrase/text"),
        *(
            Probe(Prompt(QUESTION, (picture(old, start + 1 + k),)), (new,), "rephrase/image")
            for k in range(pictures)
        ),
        Probe(f"The capital of {far.removeprefix('the ')} is", (CAPITALS[far],), "locality/text"),
        Probe(Prompt(CAPITAL_QUESTION, (picture(far, start),)), (CAPITALS[far],), "locality/image"),
        *(
            Probe(Prompt(QUESTION, (picture(other, start),)), (other,), "locality/same_question")
            for other in near
        ),
        Probe(QUESTION, (old,), "locality/no_image"),
        Probe(about.with_text(CAPITAL_QUESTION), (CAPITALS[new],), "portability/capital"),
    )
    others = [Prompt(QUESTION, (picture(other, start),)) for other in distant]
    seen = [ImageRef.of(distorted(about.images[0].picture, seed)) for seed in range(views)]
    again = [Edit(Prompt(QUESTION, (image,)), new, SUBJECT) for image in seen]
    edit = Edit(about, new, subject=SUBJECT, ground_truth=old, keep=others, expansions=again)
    return Case(f"{old} → {new}", edit, probes)
