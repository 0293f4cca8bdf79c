"""Classic configurations of steering, and the records its classes are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from easyeditor.errors import EditError, HyperParamsError, HyperParamsFileError, did_you_mean

Config = Mapping[str, Any] | str | os.PathLike[str]
METHODS_HERE = {"caa": "caa", "vector_prompt": "prompt"}
"""Classic names of the ways to make a vector, and ours."""
ELSEWHERE = {
    "dola": "contrasts layers while decoding, which is no edit",
    "deco": "corrects layers while decoding, which is no edit",
    "sta": "needs a public sparse autoencoder; caa is the nearest",
    "lm_steer": "is trained at the output head; caa is the nearest",
    "reps_vector": "is trained; caa is the nearest",
    "prompt": "is a text in front: write it into the input",
}


def mapping_of(cfg: Config) -> dict[str, Any]:
    """A configuration as a dict.

    Raises:
        HyperParamsError: no mapping and no file of one.
    """
    if isinstance(cfg, (str, os.PathLike)):
        return _file(Path(cfg))
    try:
        return {str(key): value for key, value in dict(cfg).items()}
    except (TypeError, ValueError):
        raise HyperParamsError(
            f"A configuration is a mapping or a YAML file, not {type(cfg).__name__} ({cfg!r:.80})."
        ) from None


def _file(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HyperParamsFileError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(data, Mapping):
        raise HyperParamsFileError(f"{path} must hold 'name: value' lines.")
    return {str(key): value for key, value in data.items()}


def settings_by_method(config: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Settings by method, ``layers`` and ``multipliers`` as lists of numbers.

    Raises:
        HyperParamsError: one is no mapping, names a method that is not here or one twice, or has
            something else than numbers.
    """
    listed = config.get(name) or []
    if isinstance(listed, (str, os.PathLike, Mapping)) or not isinstance(listed, Sequence):
        listed = [listed]
    result: dict[str, dict[str, Any]] = {}
    for entry in listed:
        settings = mapping_of(entry)
        method = check_method(str(settings.get("alg_name", "")))
        if method in result:
            raise HyperParamsError(
                f"{name} has two settings of {method}; give one, with all layers in it."
            )
        if settings.get("multiple_choice"):
            raise HyperParamsError(
                f"multiple_choice of {method} is not here: vectors are read at the answers' own "
                "tokens. Leave it out, and give the answers in words."
            )
        for key, kind in (("layers", _layer), ("multipliers", float)):
            settings[key] = _numbers(method, key, settings.get(key), kind)
        result[method] = settings
    return result


def _numbers(method: str, key: str, given: Any, kind: Callable[[Any], Any]) -> list[Any]:
    """One number or several; none for None."""
    listed = [] if given is None else [given] if isinstance(given, (int, float, str)) else given
    try:
        return [kind(number) for number in listed]
    except (TypeError, ValueError):
        raise HyperParamsError(
            f"{key} of {method} is {given!r:.80}; give a number or a list of them, e.g. [15]."
        ) from None


def _layer(number: Any) -> int | float:
    """A number of a block; a float is a share of the depth."""
    return number if isinstance(number, float) else int(number)


def check_method(name: str) -> str:
    """The name of a way to make vectors that is here.

    Raises:
        HyperParamsError: it is not; says what it is.
    """
    if name.lower() in METHODS_HERE:
        return name.lower()
    why = ELSEWHERE.get(name.lower(), "is not known")
    raise HyperParamsError(
        f"alg_name {name!r} {why}.{did_you_mean(name, METHODS_HERE)} Here are "
        f"{' and '.join(METHODS_HERE)}, and easyedit steer."
    )


def records_of(datasets: object) -> dict[str, list[Mapping[str, Any]]]:
    """``{name: [record, …]}``, checked.

    Raises:
        EditError: something else.
    """
    if not isinstance(datasets, Mapping) or not datasets:
        raise EditError(
            "There are no datasets: give {name: [record, …]}, a record being a mapping such as "
            "{'question': …, 'matching': …, 'not_matching': …} or {'input': …}, not "
            f"{datasets!r:.80}."
        )
    for name, records in datasets.items():
        some = records if isinstance(records, Sequence) and not isinstance(records, str) else [None]
        wrong = next((record for record in some if not isinstance(record, Mapping)), some)
        if wrong is not some:
            raise EditError(
                f"The records of {name!r} must be a list of mappings; one is {wrong!r:.80}."
            )
    return {str(name): list(records) for name, records in datasets.items()}


def text_of(dataset: str, number: int, record: Mapping[str, Any], *names: str) -> str:
    """The text under the first of these names that a record has.

    Raises:
        EditError: it has none.
    """
    value = next((record[name] for name in names if record.get(name)), None)
    if not isinstance(value, str):
        raise EditError(
            f"Record {number} of {dataset!r} has no text under {' or '.join(map(repr, names))}; it "
            f"has {', '.join(map(str, record)) or 'nothing'}."
        )
    return value
