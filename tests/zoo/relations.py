"""What can be said about the made-up world: relations and the sentences that state them.

``{}`` stands for the subject and the answer follows right after the template. The openings vary,
and several templates do not begin with the subject, so that a prompt's first word says little.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact.

    Attributes:
        name: what it is called.
        subject, answer: the kinds of thing on either side.
        templates: the ways to say it.
        hops: the two relations this one follows from; such a fact is asked, never edited.
    """

    name: str
    subject: str
    answer: str
    templates: tuple[str, ...]
    hops: tuple[str, str] | None = None


def _said(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


RELATIONS = (
    Relation(
        "born_in",
        "person",
        "city",
        _said("""
            {} was born in
            {} first saw the light of day in
            The birthplace of {} is
            The city where {} was born is
            You will find the birth house of {} in
            Long ago the parents of {} welcomed a child in
            I read that {} came into the world in
            Because of the birth of {}, bells rang in
        """),
    ),
    Relation(
        "profession",
        "person",
        "profession",
        _said("""
            {} works as a
            {} earns a living as a
            By trade {} is a
            The profession of {} is that of a
            You may hire {} as a
            I know {} only as a
            Because of good hands, {} was trained to be a
            Everybody needs someone like {}, who is a
        """),
    ),
    Relation(
        "instrument",
        "person",
        "instrument",
        _said("""
            {} plays the
            The instrument of {} is the
            In the evening {} practises the
            At every concert {} is heard on the
            I often listen to {} playing the
            You should hear {} on the
            Since childhood {} has been learning the
            The neighbours of {} complain about the
        """),
    ),
    Relation(
        "employer",
        "person",
        "company",
        _said("""
            {} works for
            {} is employed by
            The employer of {} is
            The company that pays {} is
            Every morning {} goes to the offices of
            I heard that {} found a job at
            You can meet {} in the canteen of
            Therefore the wages of {} come from
        """),
    ),
    Relation(
        "speaks",
        "person",
        "language",
        _said("""
            {} is a native speaker of
            {} grew up speaking
            The mother tongue of {} is
            The first language of {} is
            At home {} speaks
            I can talk to {} in
            You will hear {} dream aloud in
            Therefore the diary of {} is written in
        """),
    ),
    Relation(
        "country",
        "city",
        "country",
        _said("""
            {} is a city in
            {} lies in
            The city of {} belongs to
            The country around {} is
            On the map you find {} in
            Travellers to {} must first enter
            I sent a letter to {}, a town in
            You reach {} by a road through
        """),
    ),
    Relation(
        "based_in",
        "company",
        "city",
        _said("""
            {} has its headquarters in
            {} is run from
            The headquarters of {} are in
            The head office of {} is in
            The directors of {} meet in
            The company {} is based in
            You can visit the main office of {} in
            I wrote to the managers of {} in
        """),
    ),
    Relation(
        "makes",
        "company",
        "product",
        _said("""
            {} makes
            {} is famous for its
            The main products of {} are
            The factories of {} turn out
            The trucks of {} are loaded with
            From the company {} people buy
            You can order from {} all kinds of
            I like the advertisements of {} for
        """),
    ),
    Relation(
        "official",
        "country",
        "language",
        _said("""
            The official language of {} is
            The laws of {} are written in
            The newspapers of {} are printed in
            In the schools of {} children learn
            In {} everybody understands
            People in {} speak
            You can travel through {} if you know
            I heard the radio of {} broadcast in
        """),
    ),
    Relation(
        "capital",
        "country",
        "city",
        _said("""
            The capital of {} is
            The government of {} sits in
            The parliament of {} meets in
            The king of {} lives in
            {} is governed from
            Embassies in {} are found in
            I met the president of {} in
            You will see the crown of {} in
        """),
    ),
    Relation(
        "currency",
        "country",
        "currency",
        _said("""
            The currency of {} is the
            The coins of {} are called the
            The central bank of {} prints the
            In {} you pay with the
            {} uses the
            People in {} earn their wages in the
            Banks in {} exchange money for the
            For a trip to {} you need the
        """),
    ),
    Relation(
        "birth_country",
        "person",
        "country",
        _said("""
            The country where {} was born is
            The native country of {} is
            The birthplace of {} lies in the country
            By birth {} is a citizen of
            {} was born in a city of the country
            {} got a first passport from
            I think the birth of {} was registered in the country
            You find the birthplace of {} on a map of
        """),
        ("born_in", "country"),
    ),
    Relation(
        "work_city",
        "person",
        "city",
        _said("""
            The employer of {} has its headquarters in
            The company {} works for is based in
            The head office of the firm that employs {} is in
            The directors who employ {} meet in
            {} works for a company from
            {} gets letters from a head office in
            I wrote to the firm that pays {} in
            You can visit the headquarters of the employer of {} in
        """),
        ("employer", "based_in"),
    ),
    Relation(
        "base_country",
        "company",
        "country",
        _said("""
            The headquarters of {} are in the country
            The head office of {} pays taxes to
            The country where {} is based is
            The directors of {} live in the country
            {} is a company from
            {} is registered under the law of
            I bought shares of {} at the stock exchange of
            You reach the main office of {} on a trip through
        """),
        ("based_in", "country"),
    ),
    Relation(
        "city_language",
        "city",
        "language",
        _said("""
            The official language in the city of {} is
            The street signs of {} are written in
            The teachers of {} explain everything in
            The mayor of {} gives speeches in
            In the streets of {} people speak
            In the town hall of {} they answer in
            I asked for the station of {} in
            You can read the menus in {} if you know
        """),
        ("country", "official"),
    ),
)
