"""Options several commands share, and turning words into hyper-parameters."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from easyeditor.cli import catalog, places
from easyeditor.errors import HyperParamsError, ModelLoadError, UnknownMethodError
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.hyperparams import HyperParams

H = TypeVar("H", bound="HyperParams")
DEFAULT_MODEL = "smollm2-135m"
SEEING_MODEL = "flags-135m"
"""What is taken where an image is given and no model is named."""
NEARLY_EQUAL = 0.85
"""Similarity from which a name that is not there is taken for a misspelt one that is."""


def _method(name: str) -> str:
    try:
        return METHODS.canonical(name)
    except UnknownMethodError as error:
        raise typer.BadParameter(str(error)) from None


def _learning_method(name: str) -> str:
    name = _method(name)
    if not catalog.method(name)["learns"]:
        raise typer.BadParameter(
            f"{name} needs no training: it edits at once. Those that are trained: "
            f"{', '.join(catalog.learning())}."
        )
    return name


def _named(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Completion by the shell."""
    known = list(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.lower().startswith(incomplete.lower())]

    return complete


Method = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        callback=_method,
        autocompletion=_named(METHODS),
        help=f"One of {', '.join(METHODS)}.",
    ),
]
LearningMethod = Annotated[
    str,
    typer.Option(
        "--method",
        "-m",
        callback=_learning_method,
        autocompletion=_named(catalog.learning()),
        help=f"One of {', '.join(catalog.learning())}.",
    ),
]
Model = Annotated[
    str,
    typer.Option("--model", "-M", help="A hub name, a folder, a .gguf file, or smollm2-135m."),
]
MaybeModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-M",
        help="A hub name, a folder, a .gguf file, or smollm2-135m; by default what --hparams "
        "names, else smollm2-135m.",
    ),
]
PatchModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-M",
        help="A hub name, a folder, a .gguf file, or smollm2-135m; by default the model that the "
        "patch was made for.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Change one hyper-parameter; repeatable."),
]
Hparams = Annotated[Path | None, typer.Option("--hparams", help="A YAML file of hyper-parameters.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, or an accelerator's number; the best one by default.")
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; the checkpoint's own by default."),
]


EditPrompt = Annotated[str | None, typer.Option("--prompt", help="The text to be continued.")]
EditTarget = Annotated[str | None, typer.Option("--target", help="How it shall continue.")]
TargetFile = Annotated[
    Path | None,
    typer.Option(
        "--target-file",
        help="A text file that says how it shall continue, for targets of paragraphs, which then "
        "end with the model's end of text (append_eos); - for standard input.",
    ),
]
Subject = Annotated[
    str | None,
    typer.Option(
        "--subject",
        help="What the fact is about, as the prompt writes it; '<image>' for the --image.",
    ),
]
GroundTruth = Annotated[str | None, typer.Option("--ground-truth", help="How it continues now.")]
Rephrase = Annotated[
    list[str] | None,
    typer.Option("--rephrase", help="The same question in other words; repeatable."),
]
Locality = Annotated[
    list[str] | None,
    typer.Option("--locality", help="'prompt => answer' that must stay; repeatable."),
]


Image = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        help="An image the prompt is about; repeatable. Without --model the model is then "
        "flags-135m, which names flags and coloured shapes.",
    ),
]
RephraseImage = Annotated[
    list[str] | None,
    typer.Option(
        "--rephrase-image", help="Another image of the same, asked with the prompt; repeatable."
    ),
]
KeepImage = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-image",
        help="Another image, about which the answer to the prompt is kept while the edit is made; "
        "repeatable. Give several, of other things.",
    ),
]
LocalityImage = Annotated[
    list[str] | None,
    typer.Option(
        "--locality-image",
        help="'other.png | prompt => answer' that must stay; an empty prompt is --prompt's; "
        "repeatable.",
    ),
]
Relation = Annotated[
    str | None,
    typer.Option(
        help="Instead of --prompt: 'capital', 'is located in the city of'; with --subject and "
        "--target."
    ),
]
Question = Annotated[
    str | None, typer.Option(help="The same fact as a question, for the edit to be made with, too.")
]
Alias = Annotated[
    list[str] | None, typer.Option("--alias", help="Another name of the subject; repeatable.")
]
ExpandEdit = Annotated[
    bool,
    typer.Option(
        "--expand",
        help="Make the edit with its question, its chat form and rewordings, too, so that it holds "
        "where people ask.",
    ),
]
Chat = Annotated[
    bool,
    typer.Option(
        "--chat", help="--expand, and the edit has not taken before it holds in the chat."
    ),
]
Written = Annotated[
    int,
    typer.Option(
        "--written", min=0, help="With --expand: questions that the model itself writes, checked."
    ),
]
Inverse = Annotated[
    bool,
    typer.Option(
        "--inverse", help="With --expand: also from the answer back, where it is one-to-one."
    ),
]


class Scheme(str, Enum):
    """How a model may be quantized while it is loaded."""

    eight = "8bit"
    four = "4bit"


Quantization = Annotated[
    Scheme | None,
    typer.Option(help="Load the linear layers in 8 or 4 bits, by bitsandbytes."),
]


TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python code that comes with the model, with all your rights.",
    ),
]


def settings_of(
    method: str, model: str | None, file: Path | None, changes: list[str] | None
) -> HyperParams:
    """A method's settings for editing; see :func:`settings_as`."""

    def kind() -> type[HyperParams]:
        result: type[HyperParams] = METHODS.get(method).hyperparams_class
        return result

    method = METHODS.canonical(method)  # whether there is one is known before torch is
    settings = settings_as(kind, model, file, changes)
    places.check_settings(method, settings)
    return settings


def settings_as(
    kind_of: Callable[[], type[H]], model: str | None, file: Path | None, changes: list[str] | None
) -> H:
    """The file, or the preset of exactly this model, or the defaults; then the changes.

    ``model_name`` of what comes back is the model to load. ``kind_of`` is called once the changes
    are read: it imports the method.

    Raises:
        HyperParamsError: unknown names, wrong values, an unreadable file.
    """
    values = _changes(changes or [])
    if model is not None:
        check_model(model)
    if file is not None and not (os.path.isfile(file) or os.path.isfile(f"{file}.yaml")):
        raise HyperParamsError(
            f"No hyper-parameter file {str(file)!r} (nor with .yaml). easyedit hparams write "
            "writes the built-in ones."
        )
    kind = kind_of()
    if file is not None:
        settings = kind.from_hparams(file).replace(**values)
        named = model or settings.model_name or DEFAULT_MODEL
        return settings.replace(model_name=named)
    return kind.for_model(model or DEFAULT_MODEL, **values)


def loaded_as(
    settings: H,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantization: Scheme | None = None,
) -> H:
    """``settings`` with what the command line says about loading the model."""
    changes: dict[str, Any] = {}
    if device is not None:
        changes["device"] = device
    if dtype is not None:
        changes |= {"dtype": dtype, "fp16": False}
    if quantization is not None:
        changes["quantization"] = quantization.value
    return settings.replace(**changes) if changes else settings


def check_model(name: str) -> None:
    """Refuse what can be known to be no model before anything is imported or asked of a hub.

    Raises:
        ModelLoadError: no such file or folder, or a name that is nearly one of the known ones.
    """
    if not name.strip() or "\0" in name:
        raise ModelLoadError(
            f"--model {name!r} names no model. Give a hub name, a folder, a .gguf file, or "
            f"{DEFAULT_MODEL}."
        )
    if len(os.fsencode(name)) > 1000:
        raise ModelLoadError(f"--model {name[:40]!r}… is {len(name)} characters long, no name.")
    place = os.path.expanduser(name)
    if os.path.isdir(place):
        if not any(file.endswith((".json", ".gguf")) for file in os.listdir(place)):
            raise ModelLoadError(
                f"The folder {name!r} could not be loaded: it holds no config.json. A model folder "
                "holds config.json and weights."
            )
        return
    if name.lower().endswith(".gguf"):
        if not os.path.isfile(place):
            raise ModelLoadError(f"No GGUF file {name!r}.")
        return
    if os.path.isfile(place):
        raise ModelLoadError(f"{name!r} is a file; name the folder it is in, or a .gguf file.")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ModelLoadError(f"No folder {name!r}. A model folder holds config.json and weights.")
    if "/" not in name:
        from easyeditor.hyperparams import KNOWN_MODELS

        check_spelling(name, [DEFAULT_MODEL, SEEING_MODEL, *KNOWN_MODELS])


def check_spelling(name: str, known: Iterable[str]) -> None:
    """Refuse a name without a slash that is nearly, but not, one of ``known``.

    Raises:
        ModelLoadError: it is; names the one that may be meant.
    """
    spelt = {word.lower(): word for word in known}
    if "/" in name or name.lower() in spelt:
        return
    near = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=NEARLY_EQUAL)
    if near:
        raise ModelLoadError(
            f"There is no model {name!r}. Did you mean {spelt[near[0]]!r}? A hub name has the form "
            "owner/name; a folder of that name is written ./name."
        )


def _changes(changes: list[str]) -> dict[str, Any]:
    import yaml

    values: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name.strip():
            raise HyperParamsError(f"--set takes NAME=VALUE, e.g. --set v_lr=0.4; got {change!r}.")
        try:
            values[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            from easyeditor.hyperparams import yaml_problem

            why = yaml_problem(error)
            raise HyperParamsError(f"--set {change!r}: the value is not YAML ({why}).") from None
    if "model_name" in values:
        raise HyperParamsError("--set model_name: name the model with --model.")
    return values


def judge_of(text: str) -> Any:
    """The classifier that ``NAME[=LABEL]`` names, read; None for an empty text.

    Raises:
        typer.BadParameter: the label is no number.
        JudgeError: it is not there or cannot be read.
    """
    if not text.strip():
        return None
    from easyeditor.evaluate.behaviour import ClassifierJudge

    name, _, label = text.strip().partition("=")
    if label and not label.isdecimal():
        raise typer.BadParameter(
            f"{text!r}: the label that means safe is a number from 0", param_hint="--classifier"
        )
    judge = ClassifierJudge(name, int(label or 0))
    judge.load()
    return judge
