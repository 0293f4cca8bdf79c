"""Keep the shipped facts honest: check their rules, record which of them a model knows.

    python scripts/worldfacts.py check
    python scripts/worldfacts.py known [--model smollm2-135m]

``check`` prints what breaks a rule (and then ends with 1) and the counts per relation and kind of
probe. ``known`` lets the model continue every prompt greedily and writes into each record whether
the continuation starts with the ground truth.
"""

# ruff: noqa: T201 - a command prints.

from __future__ import annotations

import argparse
import json
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "src" / "easyeditor" / "data" / "worldfacts.json"
FIELDS = {
    "id",
    "relation",
    "prompt",
    "subject",
    "target_new",
    "ground_truth",
    "rephrase_prompts",
    "locality",
    "portability",
    "generation_prompts",
    "known",
}
LOCALITY = {"neighborhood": 3, "distracting": 1, "other_attribution": 1}
PORTABILITY = {"one_hop": 0.8, "alias": 0.4, "inverse": 0.25}
ALONE = {
    "capital_of_country",
    "chemical_symbol",
    "element_of_symbol",
    "event_year",
    "founder",
    "inventor",
    "record_holder",
    "young_of",
}
"""Relations in which (nearly) no two subjects share an answer, so that neighbours cannot either."""
RARE = {"author", "god_of", "moon_of"}
"""Relations in which some answers have one or two subjects only, as the moons of Mars."""

Record = dict[str, Any]


def read(path: Path = FILE) -> list[Record]:
    """The records, in the order of the file."""
    records: list[Record] = json.loads(path.read_text(encoding="utf-8"))
    return records


def write(records: list[Record], path: Path = FILE) -> None:
    """Write the records so that equal records give equal bytes."""
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def normalise(text: str) -> str:
    """Lower case, no accents, no punctuation, single spaces."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.sub(r"[^\w\s]|_", " ", plain.casefold()).split())


def starts_with(continuation: str, answer: str) -> bool:
    r"""Whether the continuation starts with the answer, as whole words.

    >>> starts_with(" Au.\n\nThe", "Au"), starts_with(" Autumn", "Au")
    (True, False)
    """
    return f"{normalise(continuation)} ".startswith(f"{normalise(answer)} ")


def holds(text: str, subject: str) -> bool:
    """Whether the text speaks of the subject, in whole words and its own capitals.

    >>> holds("The chemical symbol Na stands for", "N"), holds("To see the Louvre", "The Louvre")
    (False, True)
    """
    name = re.escape(subject.removeprefix("The ").removeprefix("the "))
    return re.search(rf"(?<!\w){name}(?!\w)", text, re.ASCII) is not None


def probes(record: Record) -> list[tuple[str, str, str]]:
    """``(kind, prompt, answer)`` of every probe, rephrases included."""
    found = [("rephrase", prompt, record["target_new"]) for prompt in record["rephrase_prompts"]]
    for group in ("locality", "portability"):
        for name, items in record[group].items():
            found += [(f"{group}/{name}", item["prompt"], item["answer"]) for item in items]
    return found


def faults_of(record: Record) -> list[str]:
    """What is wrong with one record taken by itself."""
    if set(record) != FIELDS:
        return [f"fields {sorted(set(record) ^ FIELDS)} are missing or unknown"]
    prompt, subject = record["prompt"], record["subject"]
    target, truth = record["target_new"], record["ground_truth"]
    faults: list[str] = []

    def want(right: bool, fault: str) -> None:
        if not right:
            faults.append(fault)

    want(prompt.count(subject) == 1, "the subject does not occur exactly once in the prompt")
    want(normalise(target) != normalise(truth), "the target is the ground truth")
    want(not starts_with(truth, target), "the ground truth starts with the target")
    want(not starts_with(target, truth), "the target starts with the ground truth")

    asked = probes(record)
    want(len(record["rephrase_prompts"]) == 2, "there are not two rephrases")
    for text in record["rephrase_prompts"]:
        want(prompt not in text, f"{text!r} only prefixes the prompt")
    want(len(record["generation_prompts"]) == 2, "there are not two generation prompts")
    name = normalise(subject).removeprefix("the ")
    for text in record["rephrase_prompts"] + record["generation_prompts"]:
        want(name in normalise(text), f"{text!r} does not speak of the subject")
    texts = [prompt, *record["generation_prompts"], *(text for _, text, _ in asked)]
    for text in [*texts, subject, target, truth, *(answer for _, _, answer in asked)]:
        want(bool(text) and text == " ".join(text.split()), f"{text!r} has stray spaces")
        want(unicodedata.is_normalized("NFC", text), f"{text!r} is not NFC")
    for text in texts:
        want(text[:1].upper() == text[:1], f"{text!r} does not start with a capital")
        want(text[-1:] not in ".!?:;", f"{text!r} does not wait for its answer")
    want(len(set(texts)) == len(texts), "a prompt is asked twice")

    locality = record["locality"]
    counts = {kind: len(items) for kind, items in locality.items()}
    if counts != LOCALITY:
        return [*faults, f"locality holds {counts}, not {LOCALITY}"]
    neighbours = locality["neighborhood"]
    for item in neighbours:
        want(not holds(item["prompt"], subject), f"{item['prompt']!r} holds the subject")
        want(item["answer"] != target, f"{item['prompt']!r} has the target as its answer")
    if record["relation"] not in ALONE:
        same = sum(item["answer"] == truth for item in neighbours)
        want(same >= 2 or record["relation"] in RARE, "under two neighbours share the ground truth")
    far = locality["distracting"][0]
    want(far["prompt"].startswith(f"{prompt} {target}"), "the distraction is not the edit")
    want(
        any(
            far["prompt"].endswith(f". {item['prompt']}") and far["answer"] == item["answer"]
            for item in neighbours
        ),
        "the distraction does not end with a neighbour",
    )
    other = locality["other_attribution"][0]
    want(name in normalise(other["prompt"]), "the other attribution is not of the subject")
    want(other["answer"] != target, "the other attribution answers with the target")

    want(set(record["portability"]) <= set(PORTABILITY), "unknown kind of portability")
    for kind, items in record["portability"].items():
        want(bool(items), f"portability/{kind} is empty")
    for item in record["portability"].get("alias", []):
        want(item["answer"] == target, f"{item['prompt']!r} does not answer with the target")
        want(prompt not in item["prompt"], f"{item['prompt']!r} names the subject itself")
    for item in record["portability"].get("inverse", []):
        answer = normalise(item["answer"]).removeprefix("the ")
        want(answer == name, f"{item['prompt']!r} does not ask for the subject")
        want(not holds(item["prompt"], subject), f"{item['prompt']!r} holds its answer")
    for item in record["portability"].get("one_hop", []):
        want(item["answer"] != truth, f"{item['prompt']!r} answers with the ground truth")
    known = record["known"]
    want(
        known is None or all(isinstance(value, bool) for value in known.values()),
        "known is neither null nor {model: true or false}",
    )
    return faults


def faults(records: list[Record]) -> list[str]:
    """Every broken rule, as ``id: fault``."""
    found = [f"{r.get('id')}: {fault}" for r in records for fault in faults_of(r)]
    if found:
        return found
    for name in ("id", "prompt"):
        twice = [value for value, n in Counter(r[name] for r in records).items() if n > 1]
        found += [f"{value}: {name} is used twice" for value in twice]
    edited = {r["prompt"]: r["id"] for r in records}
    subjects: dict[str, list[str]] = {}
    for r in records:
        subjects.setdefault(r["relation"], []).append(r["subject"])
    for r in records:
        for kind, prompt, _ in probes(r):
            if kind.startswith("locality") and prompt in edited:
                found.append(f"{r['id']}: {prompt!r} is edited by {edited[prompt]}")
        for item in r["locality"]["neighborhood"]:
            found += [
                f"{r['id']}: {item['prompt']!r} is about {subject}, which is edited too"
                for subject in subjects[r["relation"]]
                if holds(item["prompt"], subject)
            ]
    per_relation = Counter(r["relation"] for r in records)
    if len(records) < 220:
        found.append(f"only {len(records)} records")
    if len(per_relation) < 15:
        found.append(f"only {len(per_relation)} relations")
    found += [f"{name}: {n} records" for name, n in per_relation.items() if n > 20]
    for kind, share in PORTABILITY.items():
        have = sum(kind in r["portability"] for r in records)
        if have < share * len(records):
            found.append(f"only {have} records have {kind} probes")
    return found


def known_by(records: list[Record], model: str) -> int:
    """How many records are recorded as known by ``model``."""
    return sum(bool((r["known"] or {}).get(model)) for r in records)


def report(records: list[Record]) -> None:
    """Print the counts."""
    models = sorted({name for r in records for name in r["known"] or {}})
    total = Counter(r["relation"] for r in records)
    print(f"{len(records)} records, {len(total)} relations")
    print(f"{'relation':20}{'records':>9}" + "".join(f"{name:>15}" for name in models))
    for relation, n in total.most_common():
        mine = [r for r in records if r["relation"] == relation]
        print(f"{relation:20}{n:9}" + "".join(f"{known_by(mine, m):15}" for m in models))
    print(f"{'known':29}" + "".join(f"{known_by(records, m):15}" for m in models))
    probed = Counter(kind for r in records for kind, _, _ in probes(r))
    having = Counter(kind for r in records for kind in {kind for kind, _, _ in probes(r)})
    print(f"{'kind of probe':30}{'probes':>8}{'records':>9}")
    for kind, n in sorted(probed.items()):
        print(f"{kind:30}{n:8}{having[kind]:9}")
    near = [
        (i["answer"], r["ground_truth"]) for r in records for i in r["locality"]["neighborhood"]
    ]
    print(f"{sum(a == b for a, b in near)} of {len(near)} neighbours share the ground truth")


def record_known(records: list[Record], model: str, batch: int = 32) -> None:
    """Ask the model every prompt and note in place whether it knew the answer."""
    from easyeditor.lm.inference import generate
    from easyeditor.lm.loading import load

    lm = load(model, device="cpu")
    order = sorted(records, key=lambda r: len(r["prompt"]))
    for start in range(0, len(order), batch):
        chunk = order[start : start + batch]
        told = generate(lm, [r["prompt"] for r in chunk], 10)
        for record, text in zip(chunk, told, strict=True):
            knows = starts_with(text, record["ground_truth"])
            record["known"] = {**(record["known"] or {}), model: knows}
            if not knows:
                print(f"  not known: {record['id']}: {record['prompt']!r} -> {text!r}")


def main() -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["check", "known"])
    parser.add_argument("--model", default="smollm2-135m")
    args = parser.parse_args()
    records = read()
    if args.command == "known":
        record_known(records, args.model)
        write(records)
        print(f"{known_by(records, args.model)} of {len(records)} known by {args.model}")
        return 0
    report(records)
    broken = faults(records)
    for fault in broken:
        print(fault, file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
