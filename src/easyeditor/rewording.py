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


def _set_of(words: str) -> frozenset[str]:
    """The words of a text with blanks between them."""
    return frozenset(words.split())


PREPOSITIONS = _set_of(
    "about after against around as at by for from in into near of on over since to under with"
)
AUXILIARIES = _set_of("is are was were be has have had does did can will")
VERBS = _set_of(
    "belongs comes contains competes consists depends derives descends dies flows hails holds lies "
    "lives makes originates owns participates plays practices premieres produces resides sells "
    "serves sits speaks specializes takes teaches wears wrote writes became won"
)
"""Verbs that follow the subject of a triple, whatever comes after them."""
VERBS_OR_NOUNS = _set_of(
    "airs begins borders dates ends leads opens orbits ranks refers reports rules runs shares "
    "stands stars starts studies supports uses works"
)
"""Words taken for verbs where a preposition, not "of", follows them or ends the relation."""
INTRANSITIVE = _set_of(
    "aired appeared arrived belonged competed debuted died emigrated ended evolved graduated "
    "happened hailed immigrated lived migrated moved occurred opened originated participated "
    "passed performed played premiered ranked remained resided retired served specialized starred "
    "started stayed studied worked"
)
"""Pasts that are no participles of a passive: "died in" follows the subject without "is"."""
IRREGULAR = _set_of(
    "born bred built buried bought brought caught cut drawn driven eaten found given grown heard "
    "held hidden kept known laid led lost made met paid run seen sent set shot shown sold spent "
    "spoken struck sung taken taught thrown told understood worn written"
)
EVENTS = _set_of("born founded written invented discovered painted directed educated")
"""Participles of what is over: "was born in"."""
MEMBERS = _set_of("citizen member native resident")
"""Nouns before "of" of which the subject is one: "Tim is a member of"."""
WHERE = _set_of(
    "based born buried built celebrated discovered established filmed formed found founded grown "
    "headquartered held invented killed located made manufactured married produced published "
    "raised set situated spoken stationed used written"
)
"""Participles at the end of a question with "where" that its sentence continues with "in"."""
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
    """The fact in other words, each to be continued by the answer.

    Those for which the smallest change is enough come first.
    """
    result = [f"Q: {question}\nA:"]
    if statement is not None and subject is not None:
        noun, inside = WHICH.search(statement.rstrip(" :")), _inside(subject)
        result.append(join(f"Here is a fact about {inside}:", statement))
        if noun:
            result.append(f"When it comes to {inside}, the {noun[1]} is")
    result.append(f"{question} The answer is")
    return result


def inverse_of(prompt: str, subject: str, target: str) -> str | None:
    """The sentence from the answer back to the subject, for relations that are one-to-one.

    "The capital of France is", "Lyon" → "Lyon is the capital of". None for any other relation.
    """
    match = re.match(rf"^The (?P<noun>.+) (?P<of>of|for) {re.escape(subject)} (?:is|was)$", prompt)
    if match and match["noun"] in ONE_TO_ONE:
        return f"{target} is the {match['noun']} {match['of']}"
    return None


def with_fact(prompt: str, target: str, text: str) -> str:
    """The text with a fact as a sentence before it.

    "Rome is the capital of", "Spain", "Paris is" → "Rome is the capital of Spain. Paris is"
    """
    fact = join(prompt, target.strip())
    return f"{fact if fact.endswith(('.', '!', '?')) else f'{fact}.'} {text}"


def is_question(prompt: str) -> bool:
    """Whether a prompt is a plain question."""
    return prompt.rstrip().endswith("?")


def statement_of(question: str) -> str | None:
    """A sentence that breaks off where the answer to the question stands; None: no rule fits.

    "What is the capital of France?" → "The capital of France is"
    """
    text = question.strip().rstrip("?").strip()
    match = re.match(rf"^(?:What|Which|Who) ({BE}) (.+)$", text)
    if match:
        return _after_what(match[1], match[2].split())
    match = re.match(rf"^(In|On|At|From) (?:which|what) (\w+) ({BE}) (.+) (\w+)$", text)
    if match and _is_participle(match[5]):
        return f"{_opening(match[4])} {match[3]} {match[5]} {match[1].lower()} the {match[2]} of"
    match = re.match(rf"^Where ({BE}) (.+)$", text)
    if match:
        *name, last = match[2].split()
        if last[:1].isupper():  # no verb ends it: "Where is the Louvre?"
            return f"{_opening(match[2])} {match[1]} in"
        if name and (last in WHERE or last == "from"):
            end = last if last == "from" else f"{last} in"
            return f"{_opening(' '.join(name))} {match[1]} {end}"
    return None


def _after_what(be: str, words: list[str]) -> str | None:
    """The sentence of "What {be} {words}?"."""
    *name, last = words
    if last in PREPOSITIONS:
        if len(name) > 1 and _is_participle(name[-1]):  # "What is the bridge made of?"
            return f"{_opening(' '.join(name[:-1]))} {be} {name[-1]} {last}"
        return None
    if name and last in {"called", "named"}:
        return f"{_opening(' '.join(name))} {be} {last}"
    if words[0] != "the" or last == "like" or _is_participle(last) or last.endswith("ing"):
        return None
    return f"{_opening(' '.join(words))} {be}"


def _is_participle(word: str) -> bool:
    """Whether a word in lower case is a participle of the passive: "named", not "speed"."""
    return word in IRREGULAR or re.fullmatch(r"[a-z]+[a-df-z]ed", word) is not None


def _opening(text: str) -> str:
    """``text`` as it is written where a sentence begins."""
    return f"{text[:1].upper()}{text[1:]}"


def sentence_of(subject: str, relation: str) -> str:
    """The sentence of a triple that breaks off where the object stands.

    A relation with ``{}`` is a sentence with a gap for the subject. One that begins with a form of
    "be" or "have" or with a verb of :data:`VERBS` follows the subject ("is located in", "plays
    for"); a participle with a preposition gets its "is" ("named after"). Any other is a noun: "The
    capital of {subject} is", and with a preposition at its end "The office of {subject} is in".

    Raises:
        EditError: the subject or the relation is blank, or the relation is a participle alone.
    """
    for name, value in (("subject", subject), ("relation", relation)):
        if not isinstance(value, str) or not value.strip():
            raise EditError(f"A triple needs its {name}, and {value!r} is none; write it as text.")
    words = relation.strip().replace("_", " ")
    if "{}" in words:
        return words.replace("{}", subject)
    first, *rest = words.split()
    start, last = first.casefold(), rest[-1].casefold() if rest else ""
    past = start in INTRANSITIVE or _is_participle(start)
    if past and not rest:
        raise EditError(
            f"The relation {relation!r} is a participle alone, and its sentence would be broken; "
            f"write what follows it ('{start} in') or a sentence with a gap: '{{}} is {start} in'."
        )
    leads = bool(PREPOSITIONS & {last, *(word.casefold() for word in rest[:1])})
    opening = _opening(subject)
    if start in VERBS or (rest and start in AUXILIARIES):
        return f"{opening} {words}"
    if leads and (start in INTRANSITIVE or (start in VERBS_OR_NOUNS and rest[0] != "of")):
        return f"{opening} {words}"
    if leads and past:
        return f"{opening} {'was' if start in EVENTS else 'is'} {words}"
    if last == "of" and (start == "part" or start in MEMBERS):
        return f"{opening} is {'' if start == 'part' else 'a '}{words}"
    noun, end = words.removesuffix(" of"), ""
    if last in PREPOSITIONS - {"of"}:
        noun, end = " ".join([first, *rest[:-1]]), f" {rest[-1]}"
    return f"The {noun} of {_inside(subject)} is{end}"


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
