"""The things of the made-up world: invented names, and a few real words for trades and goods."""

from __future__ import annotations

import random

FIRST_NAMES = (
    "Anna Boran Cilla Dorin Edda Falko Gerda Havel Ilma Joren "
    "Karin Ludek Marta Nevin Odile Petra Quill Runa Sorin Tilda"
)
STARTS = "b br d dr f g gr h k kr l m n p r s st t tr v w z"
VOWELS = "a e i o u ei au"
ENDS = "l m n r s nd rk lm nt sk"

WORDS = {
    "profession": (
        "painter, baker, bridge builder, dentist, fisherman, gardener, judge, librarian, "
        "night watchman, pilot, piano tuner, plumber, shoemaker, tailor, teacher, "
        "train driver, translator, watchmaker"
    ),
    "instrument": (
        "violin, cello, flute, harp, trumpet, drums, bassoon, glass harp, lute, accordion, "
        "alpine horn, bagpipes, guitar, tin whistle, church organ, zither"
    ),
    "product": (
        "shoes, sewing machines, umbrellas, bicycles, garden chairs, light bulbs, mirrors, "
        "fishing nets, pianos, steam engines, carpets, raincoats"
    ),
}
SUFFIXES = {
    "city": ("burg", "dale", "port", "mouth", "ford", "wick"),
    "country": ("ia", "land", "stan", "mark"),
    "language": ("ish", "ese", "ic"),
    "currency": ("o", "a", "el"),
}
AMOUNTS = {"person": 60, "city": 24, "company": 20, "country": 12, "language": 12, "currency": 10}


def invented(random_: random.Random, kind: str) -> str:
    """One invented name of a kind, not necessarily a new one."""

    def one_of(words: str) -> str:
        return random_.choice(words.split())

    def syllable() -> str:
        return one_of(STARTS) + one_of(VOWELS)

    if kind == "person":
        last = syllable() + syllable() + one_of(ENDS)
        return f"{one_of(FIRST_NAMES)} {last.title()}"
    if kind == "company":
        name = (syllable() + syllable() + one_of(ENDS)).title()
        return f"{name} {one_of('Works Brothers Trading Limited')}"
    name = (syllable() + one_of(ENDS) + random_.choice(SUFFIXES[kind])).title()
    if kind == "city" and random_.random() < 0.3:
        return f"{one_of('Port New Upper Saint')} {name}"
    return name.lower() if kind == "currency" else name


def things(random_: random.Random) -> dict[str, tuple[str, ...]]:
    """Every thing of the world by its kind; invented names differ in their last word."""
    found = {kind: tuple(words.split(", ")) for kind, words in WORDS.items()}
    taken: set[str] = set()
    for kind, amount in AMOUNTS.items():
        names: list[str] = []
        while len(names) < amount:
            name = invented(random_, kind)
            key = name.split()[0 if kind == "company" else -1]
            if key not in taken:
                taken.add(key)
                names.append(name)
        found[kind] = tuple(names)
    return found
