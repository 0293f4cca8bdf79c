"""Options several commands share, and turning words into hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from easyeditor.errors import HyperParamsError, UnknownMethodError
from easyeditor.methods import METHODS

if TYPE_CHECKING:
    from easyeditor.hyperparams import HyperParams

H = TypeVar("H", bound="HyperParams")
DEFAULT_MODEL = "smollm2-135m"


def _method(name: str) -> str:
    try:
        return METHODS.canonical(name)
    except UnknownMethodError as error:
        raise typer.BadParameter(str(error)) from None


Method = Annotated[
    str,
    typer.Option("--method", "-m", callback=_method, help=f"One of {', '.join(METHODS)}."),
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


class Scheme(str, Enum):
    """How a model may be quantized while it is loaded."""

    eight = "8bit"
    four = "4bit"


Quantization = Annotated[
    Scheme | None,
    typer.Option(help="Load the linear layers in 8 or 4 bits, by bitsandbytes."),
]


def settings_of(
    method: str, model: str | None, file: Path | None, changes: list[str] | None
) -> HyperParams:
    """A method's settings for editing; see :func:`settings_as`."""

    def kind() -> type[HyperParams]:
        found: type[HyperParams] = METHODS.get(method).hyperparams_class
        return found

    METHODS.canonical(method)  # whether there is one is known before torch is
    return settings_as(kind, model, file, changes)


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
    kind = kind_of()
    if file is not None:
        found = kind.from_hparams(file).replace(**values)
        named = model or found.model_name or DEFAULT_MODEL
        return found.replace(model_name=named)
    return kind.for_model(model or DEFAULT_MODEL, **values)


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
            raise HyperParamsError(f"--set {change!r}: the value is not YAML ({error}).") from None
    if "model_name" in values:
        raise HyperParamsError("--set model_name: name the model with --model.")
    return values
