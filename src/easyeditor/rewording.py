"""A fact in other words, by stated templates: questions, rewordings, a sentence from a triple.

All of it is text (English); no model is asked. A sentence that no rule fits still has its echo
question ("The Louvre is located in which city?"), which is grammatical for any sentence.
"""

from __future__ import annotations

import re

from easyeditor.errors import EditError
from easyeditor.joining import join
from easyeditor.subjects import SubjectSpan, locate_subject

WHICH = re.compile(
    r"\bthe (city|country|state|continent|month|year|language|sport|religion|planet|instrument"
    r"|company|county|province|town|region|island|river|team|club|league|party|position|genre"
    r"|field|industry|network|label|university|school|century|decade|day)(?: of)?$"
)
"""Nouns before the answer that a question asks for by "which"."""
ONE_TO_ONE = frozenset({"capital", "capital city", "chemical symbol", "atomic number"})
"""Relations in which an object belongs to one subject only."""
BE = r"(?:is|are|was|were)"
RELATIVE = re.compile(r",|\b(?:that|which|who|whose|where)\b")
FRONTED = re.compile(
    rf"^(?P<subject>.+?) (?P<be>{BE}) (?P<rest>.+?) "
    r"(?P<in>in|on|at|from|of|to) (?P<which>which \w+)\?$"
)
WHAT_IS = re.compile(rf"^(?P<noun>.+) (?P<be>{BE})(?P<rest> called)? what\?$")
BY_WHOM = re.compile(rf"^(?P<subject>.+) (?P<be>{BE}) (?P<rest>.+ by) whom\?$")


def echo_question(prompt: str) -> str:
    """The sentence as a question whose last words ask for what follows it.

    "The Louvre is located in the city of" → "The Louvre is located in which city?"
    """
    text = prompt.rstrip(" :")
    noun = WHICH.search(text)
    if noun:
        return f"{text[: noun.start()]}which {noun[1]}?"
    text = re.sub(r" (?:the|a|an)$", "", text)
    last = text.rpartition(" ")[2]
    return f"{text} whom?" if last == "by" else f"{text} what?"


def question_of(prompt: str) -> str:
    """A question that the answer to ``prompt`` answers: fronted where a rule fits, else the echo.

    "The Louvre is located in the city of" → "In which city is the Louvre located?"
    """
    echo = echo_question(prompt)
    match = BY_WHOM.match(echo)
    if match and not RELATIVE.search(match["rest"]):
        return f"Who {match['be']} {_inside(match['subject'])} {match['rest']}?"
    match = WHAT_IS.match(echo)
    if match and not RELATIVE.search(match["noun"]):
        rest = match["rest"] or ""
        return f"What {match['be']} {_inside(match['noun'])}{rest}?"
    match = FRONTED.match(echo)
    if match and not RELATIVE.search(match["rest"]):
        where = f"{match['in'].capitalize()} {match['which']}"
        return f"{where} {match['be']} {_inside(match['subject'])} {match['rest']}?"
    return echo


def _inside(text: str) -> str:
    """``text`` as it is written inside a sentence: an article at its beginning is lower-case."""
    return re.sub(r"^(?:The|A|An|In)\b(?= )", lambda match: match[0].lower(), text)


def rewordings_of(statement: str | None, subject: str | None, question: str) -> list[str]:
    """The fact in other words, each to be continued by the answer; most different first."""
    result = [f"{question} The answer is", f"Q: {question}\nA:"]
    if statement is not None and subject is not None:
        noun, inside = WHICH.search(statement.rstrip(" :")), _inside(subject)
        if noun:
            result.append(f"When it comes to {inside}, the {noun[1]} is")
        result.append(join(f"Here is a fact about {inside}:", statement))
    return result


def inverse_of(prompt: str, subject: str, target: str) -> str | None:
    """The sentence from the answer back to the subject, for relations that are one-to-one.

    "The capital of France is", "Lyon" → "Lyon is the capital of". None for any other relation.
    """
    match = re.match(rf"^The (?P<noun>.+) (?P<of>of|for) {re.escape(subject)} (?:is|was)$", prompt)
    if match and match["noun"] in ONE_TO_ONE:
        return f"{target} is the {match['noun']} {match['of']}"
    return None


def is_question(prompt: str) -> bool:
    """Whether a prompt is a plain question."""
    return prompt.rstrip().endswith("?")


def statement_of(question: str) -> str | None:
    """A sentence that breaks off where the answer to the question stands; None: no rule fits.

    "What is the capital of France?" → "The capital of France is"
    """
    text = question.strip().rstrip("?").strip()
    match = re.match(rf"^(?:What|Which|Who) ({BE}) (the .+)$", text)
    if match:
        return f"{match[2][:1].upper()}{match[2][1:]} {match[1]}"
    match = re.match(
        rf"^(In|On|At|From) (?:which|what) (\w+) ({BE}) (.+?) (\w+(?:ed|en|rn))$", text
    )
    if match:
        where = f"{match[1].lower()} the {match[2]} of"
        return f"{match[4][:1].upper()}{match[4][1:]} {match[3]} {match[5]} {where}"
    match = re.match(rf"^Where ({BE}) (.+?)( located| born)?$", text)
    if match:
        return f"{match[2][:1].upper()}{match[2][1:]} {match[1]}{match[3] or ''} in"
    match = re.match(rf"^Who ({BE}) (.+ \w+(?:ed|en)) by$", text)
    if match:
        words = match[2].rpartition(" ")
        return f"{words[0][:1].upper()}{words[0][1:]} {match[1]} {words[2]} by"
    return None


def sentence_of(subject: str, relation: str) -> str:
    """The sentence of a triple that breaks off where the object stands.

    A relation with ``{}`` is a sentence with a gap for the subject; one that begins with a verb in
    the third person or in the past ("is located in", "plays for", "died in") follows the subject;
    any other is a noun ("capital") and gives "The capital of {subject} is".

    Raises:
        EditError: the subject or the relation is blank.
    """
    for name, value in (("subject", subject), ("relation", relation)):
        if not isinstance(value, str) or not value.strip():
            raise EditError(f"A triple needs its {name}, and {value!r} is none; write it as text.")
    words = relation.strip().replace("_", " ")
    if "{}" in words:
        return words.replace("{}", subject)
    first = words.split()[0]
    verb = re.fullmatch(rf"{BE}|has|had|does|did|can|will|\w+(?:ed|[^s]s)", first)
    if verb and len(words.split()) > 1:
        return f"{subject[:1].upper()}{subject[1:]} {words}"
    return f"The {words.removesuffix(' of')} of {_inside(subject)} is"


def with_name(prompt: str, subject: str, alias: str) -> str:
    """The prompt with another name in the subject's place.

    Raises:
        EditError: the name is blank.
        SubjectNotFoundError: the subject does not occur in the prompt.
    """
    if not isinstance(alias, str) or not alias.strip():
        raise EditError(f"An alias must be a name, and {alias!r} is none; write it as text.")
    place: SubjectSpan = locate_subject(prompt, subject)
    return f"{prompt[: place.start]}{alias.strip()}{prompt[place.end :]}"
