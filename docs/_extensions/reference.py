"""What the reference takes from the program: the options of commands, the settings of methods."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from easyeditor.hyperparams import MODEL_FIELDS, HyperParams

SOURCE = Path(__file__).parents[2] / "src"
COMMANDS, METRICS = "api/commands", "metrics/README"
"""Pages that something is added to."""


def add_to_page(_app: Any, page: str, source: list[str]) -> None:
    """Append the commands to their page, and to that of the metrics the list of its pages."""
    if page == COMMANDS:
        source[0] += "\n".join(_commands())
    if page == METRICS:
        source[0] += "\n```{toctree}\n:hidden:\n:glob:\n\n*\n```\n"


def _commands() -> list[str]:
    """Usage, options and examples of every command, as Markdown."""
    import typer

    from easyeditor.cli.app import app
    from easyeditor.cli.main import register

    register([])
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, info_name="easyedit")
    lines: list[str] = []
    for name, command in root.commands.items():
        _describe(lines, f"easyedit {name}", command, context)
    return lines


def _describe(lines: list[str], words: str, command: Any, parent: Any, depth: int = 2) -> None:
    context = command.context_class(command, info_name=words.rpartition(" ")[2], parent=parent)
    lines += ["", f"{'#' * depth} {words}", "", (command.help or "").strip(), ""]
    members = getattr(command, "commands", {})
    if not members:
        usage = " ".join([words, *command.collect_usage_pieces(context)])
        lines += ["```text", usage, "```", ""]
        rows = [row for param in command.get_params(context) if (row := _row(param, context))]
        if rows:
            lines += ["| | |", "|---|---|", *rows, ""]
    if command.epilog:
        lines += ["```text", *_dedented(command.epilog), "```"]
    for name, member in members.items():
        _describe(lines, f"{words} {name}", member, context, depth + 1)


def _dedented(text: str) -> list[str]:
    from textwrap import dedent

    lines = [line for line in dedent(text).strip().splitlines() if line != "Examples:"]
    return dedent("\n".join(lines)).splitlines()


def _row(param: Any, context: Any) -> str | None:
    names = [*param.opts, *param.secondary_opts]
    if "--help" in names or getattr(param, "hidden", False):
        return None
    if param.param_type_name == "argument":
        names = [param.metavar or param.name.upper()]
    text = " ".join((getattr(param, "help", None) or "").split())
    default = param.default
    if default not in (None, False, (), [], "") and not callable(default):
        default = getattr(default, "value", default)
        text = f"{text} [{default}]"
    words = ", ".join(f"`{name}`" for name in names)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in (words, text)) + " |"


def add_settings(
    _app: Any, kind: str, _name: str, obj: Any, _options: Any, lines: list[str]
) -> None:
    """Append the fields of a method's settings, with types and defaults, to its docstring."""
    if kind != "class" or not (isinstance(obj, type) and issubclass(obj, HyperParams)):
        return
    shown = set(MODEL_FIELDS) if obj is not HyperParams else set()
    rows = [
        f"``{name}: {_type(field.annotation)}{_default(field)}``"
        for name, field in obj.model_fields.items()
        if name not in shown
    ]
    lines += ["", ".. rubric:: Settings and their defaults", "", *(f"- {row}" for row in rows), ""]


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return text.replace("typing.", "").replace("NoneType", "None")


def _default(field: Any) -> str:
    return "" if field.is_required() else f" = {field.get_default(call_default_factory=True)!r}"


def exists(_app: Any, _env: Any, node: Any, text: Any) -> Any:
    """The name as it stands, where the package has it but the reference has not; else a warning."""
    path = str(node.get("reftarget", "")).split(".")
    for length in range(len(path), 0, -1):
        place = SOURCE.joinpath(*path[:length])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if path[0] == "easyeditor" and file.is_file():
            body = ast.parse(file.read_text(encoding="utf-8")).body
            return text if _defines(body, path[length:]) else None
    return None


def _defines(body: list[ast.stmt], path: list[str]) -> bool:
    if not path:
        return True
    for node in body:
        if isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            names = [getattr(node, "name", "")]
        if path[0] in names:
            return _defines(getattr(node, "body", []), path[1:])
    return False


def setup(app: Any) -> dict[str, bool]:
    """Connect them."""
    app.connect("source-read", add_to_page)
    app.connect("missing-reference", exists)
    app.connect("autodoc-process-docstring", add_settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
