"""The house of docs/architecture.md, held by a walk over the syntax trees of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

import outer
from easyeditor.methods import METHODS

# A module may import its own floor and the floors below it. Files beside __init__.py are the
# vocabulary (2), except errors.py, which everything may use.
FLOORS = {
    "errors": 1,
    "lm": 3,
    "data": 3,
    "patches": 4,
    "associative": 4,
    "evaluate": 4,
    "methods": 5,
    "editors": 6,
    "train": 6,
    "web": 7,
    "bench": 7,
    "cli": 8,
}
VOCABULARY = 2
LONGEST, LONGEST_METHOD = 500, 300
NAMES = {spelling for name in METHODS for spelling in (name.upper(), name.lower())}

FILES = {
    ".".join(("easyeditor", *path.relative_to(outer.SOURCE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(outer.SOURCE.rglob("*.py"))
}
MODULES = [name for name in FILES if name != "easyeditor"]  # the front door leads everywhere
METHOD_MODULES = [name for name in MODULES if name.startswith("easyeditor.methods")]
OUTSIDE_METHODS = [name for name in MODULES if name not in METHOD_MODULES]
OUTSIDE_CLI = [name for name in FILES if not name.startswith("easyeditor.cli")]
FOLDERS = {
    path.relative_to(outer.SOURCE).parts[0]
    for path in FILES.values()
    if path.parent != outer.SOURCE
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def floor(module: str) -> int:
    """The floor of ``easyeditor.x.y``; the package itself stands above all."""
    parts = module.split(".")
    if len(parts) == 1:
        return max(FLOORS.values()) + 1
    return FLOORS[parts[1]] if parts[1] in FOLDERS else FLOORS.get(parts[1], VOCABULARY)


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """Modules of the package that one statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "easyeditor")
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            is_package = FILES[module].name == "__init__.py"
            base = module.split(".")[: len(module.split(".")) - node.level + is_package]
            source = ".".join([*base, *source.split(".")]).rstrip(".")
        if source.split(".")[0] == "easyeditor":
            for alias in node.names:
                inside = f"{source}.{alias.name}"
                yield inside if inside in FILES else source


def on_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported; not what only a type checker reads."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from on_import(node.orelse)
            continue
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from on_import(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from on_import(handler.body)


def where(module: str, node: ast.AST) -> str:
    return f"{FILES[module].relative_to(outer.ROOT)}:{node.lineno}"


def calls(module: str) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted text of what is called."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def bare_texts(module: str) -> set[int]:
    """Ids of docstrings and other texts that stand alone as a statement."""
    return {
        id(node.value)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


# -- floors -----------------------------------------------------------------------------------


def test_every_folder_has_a_floor():
    assert set(FLOORS) >= FOLDERS
    assert {"easyeditor.errors", "easyeditor.edits", "easyeditor.lm.model"} <= set(FILES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_lead_down(module):
    wrong = [
        f"{where(module, node)}: floor {floor(module)} imports {target} of floor {floor(target)}"
        for node in ast.walk(tree(module))
        for target in imported(node, module)
        if floor(target) > floor(module)
    ]
    assert wrong == []


def cycles(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """What is left once whatever imports nothing that is left has been taken away."""
    while True:
        free = {module for module, targets in graph.items() if not targets & graph.keys()}
        if not free:
            return {module: targets & graph.keys() for module, targets in graph.items()}
        graph = {module: targets for module, targets in graph.items() if module not in free}


def test_no_cycles():
    graph = {
        module: {
            target
            for node in on_import(tree(module).body)
            for target in imported(node, module)
            if target != module
        }
        for module in FILES
    }
    assert graph["easyeditor.lm.model"] >= {"easyeditor.errors", "easyeditor.lm.tokens"}
    assert cycles(graph) == {}


def test_cycles_are_found():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == {}
    assert cycles({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": set()}).keys() >= {"b", "c"}


def test_the_walk_sees_every_way_to_import():
    source = """
import easyeditor.cli.app
from easyeditor.lm import model
from easyeditor.lm.model import LM
from easyeditor import load
from .weight import Dense
from ..cli import app
def late():
    from easyeditor.editors.base import BaseEditor
if TYPE_CHECKING:
    import easyeditor.registry
else:
    import easyeditor.timing
"""
    here = "easyeditor.patches.stack"
    parsed = ast.parse(source)
    assert [t for node in ast.walk(parsed) for t in imported(node, here)] == [
        "easyeditor.cli.app",
        "easyeditor.lm.model",
        "easyeditor.lm.model",
        "easyeditor",
        "easyeditor.patches.weight",
        "easyeditor.cli.app",
        "easyeditor.editors.base",
        "easyeditor.registry",
        "easyeditor.timing",
    ]
    at_once = {t for node in on_import(parsed.body) for t in imported(node, here)}
    assert "easyeditor.timing" in at_once
    assert not at_once & {"easyeditor.registry", "easyeditor.editors.base"}


# -- sizes and names --------------------------------------------------------------------------


@pytest.mark.parametrize("module", FILES)
def test_length(module):
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= (LONGEST_METHOD if module in METHOD_MODULES else LONGEST)


def words(text: str) -> list[str]:
    """``"ROMEHyperParams of my_ft-run"`` → ``ROME Hyper Params of my ft run``."""
    return re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", text)


def named(node: ast.AST) -> Iterator[str]:
    """The identifiers and texts of one node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for field in ("id", "attr", "arg", "name", "asname", "module"):
        value = getattr(node, field, None)
        if isinstance(value, str):
            yield value


def allowed(module: str) -> set[int]:
    """Ids of nodes that may name a method: the command line's default and its examples."""
    if not module.startswith("easyeditor.cli"):
        return set()
    found: list[ast.AST] = []
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.arguments):
            given = [*node.posonlyargs, *node.args]
            with_default = given[len(given) - len(node.defaults) :]
            pairs = zip(with_default, node.defaults, strict=True)
            found += [
                default
                for argument, default in pairs
                if argument.annotation and ast.unparse(argument.annotation).endswith("Method")
            ]
        elif (isinstance(node, ast.keyword) and node.arg == "epilog") or (
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"EPILOG", "EXAMPLES"}
        ):
            found.append(node.value)
    return {id(inner) for node in found for inner in ast.walk(node)}


@pytest.mark.parametrize("module", OUTSIDE_METHODS)
def test_no_method_is_named(module):
    skipped = bare_texts(module) | allowed(module)
    wrong = [
        f"{where(module, node)}: {text!r}"
        for node in ast.walk(tree(module))
        if id(node) not in skipped
        for text in named(node)
        # "Rome" is a city; a method is written ROME or rome
        if NAMES & set(words(text))
    ]
    assert wrong == []


def test_words():
    assert " ".join(words("ROMEHyperParams of my_ft-run.")) == "ROME Hyper Params of my ft run"
    assert not NAMES & set(words("left drift Rome softly, a METHOD"))
    assert all(NAMES & set(words(f"{name}HyperParams")) for name in METHODS)


# -- manners ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", OUTSIDE_CLI)
def test_only_the_command_line_prints_and_sets_up(module):
    forbidden = {"print", "os.getcwd", "Path.cwd", "logging.basicConfig", "os.chdir", "breakpoint"}
    assert [where(module, node) for node, name in calls(module) if name in forbidden] == []


@pytest.mark.parametrize("module", FILES)
def test_no_global_generator_is_seeded(module):
    wrong = [
        where(module, node)
        for node, name in calls(module)
        if re.fullmatch(
            r"(torch|random|np\.random|numpy\.random)\.(\w+\.)?(manual_seed\w*|seed)"
            r"|(\w+\.)?set_seed",
            name,
        )
    ]
    assert wrong == []


@pytest.mark.parametrize("module", FILES)
def test_no_pickle(module):
    loads = {"torch.load", "torch.save", "eval", "exec"}
    wrong = [where(module, node) for node, name in calls(module) if name in loads]
    for node in ast.walk(tree(module)):
        names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
        names.append(getattr(node, "module", None) or "")
        if {name.split(".")[0] for name in names} & {"pickle", "dill", "joblib", "cloudpickle"}:
            wrong.append(where(module, node))
    assert wrong == []


@pytest.mark.parametrize("module", FILES)
def test_no_device_is_spelt_out(module):
    wrong = [
        where(module, node)
        for node in ast.walk(tree(module))
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in bare_texts(module)
            and re.fullmatch(r"cuda(:\d*)?", node.value)
        )
        or (isinstance(node, ast.Attribute) and node.attr == "cuda")
    ]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES)
def test_no_model_is_told_by_its_name(module):
    """``if "gpt2" in model_name`` is how every earlier tool broke: names are compared whole."""
    kinds = r"gpt|llama|mistral|qwen|gemma|opt|bloom|falcon|t5"
    wrong = [
        where(module, node)
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], (ast.In, ast.NotIn))
        and isinstance(node.left, ast.Constant)
        and re.match(kinds, str(node.left.value).lower())
    ]
    assert wrong == []
