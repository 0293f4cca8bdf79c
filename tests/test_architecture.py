"""The rules of docs/architecture.md, checked on the syntax trees of the package.

One test per rule; it lists every offender.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
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
    "encoders": 3,
    "patches": 4,
    "second_moments": 5,
    "associative": 5,
    "gradients": 5,
    "interpret": 5,
    "steering": 5,
    "evaluate": 5,
    "methods": 6,
    "editors": 7,
    "train": 7,
    "bench": 8,
    "ledger": 8,
    "export": 8,
    "serving": 8,
    "sharing": 8,
    "cli": 9,
    "web": 9,
}
VOCABULARY = 2
LONGEST, LONGEST_METHOD = 400, 300
ADAPTER_FORMAT = frozenset(("LORA", "lora"))  # PEFT's name of the files that an export writes
NAMES = {
    spelling
    for name in (method.replace("-", "") for method in METHODS)
    for spelling in (name.upper(), name.lower())
} - ADAPTER_FORMAT
PROMPT_FORMAT = re.compile(r"New Fact|^Prompt: $|\{(prompt|target|query)\}")
# Participles and pronouns say nothing about a value: `result`, `row`, `patch`, `scores` do.
VAGUE = frozenset(
    ("found", "own", "made", "told", "kept", "said", "asked", "whose", "each", "nears", "agains")
)

TABLE = "easyeditor.patches.kinds"  # of modules, a method's own kind of patch among them

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
def nodes(module: str) -> tuple[ast.AST, ...]:
    """Every node of a module, those in function bodies and under TYPE_CHECKING, too."""
    return tuple(ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))))


def floor(module: str) -> int:
    """The floor of ``easyeditor.x.y``; the package itself stands above all."""
    parts = module.split(".")
    if parts[1:] in ([], ["__main__"]):
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


@cache
def imports(module: str) -> tuple[tuple[ast.AST, str], ...]:
    """Each importing statement with the module it imports."""
    return tuple((node, target) for node in nodes(module) for target in imported(node, module))


def where(module: str, node: ast.AST) -> str:
    return f"{FILES[module].relative_to(outer.ROOT)}:{node.lineno}"


def calls(module: str) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the dotted text of what is called."""
    for node in nodes(module):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@cache
def bare_texts(module: str) -> frozenset[int]:
    """Ids of docstrings and other texts that stand alone as a statement."""
    return frozenset(
        id(node.value)
        for node in nodes(module)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def texts(module: str) -> Iterator[tuple[ast.Constant, str]]:
    """Every text of the code but docstrings."""
    for node in nodes(module):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in bare_texts(module):
            yield node, node.value


# -- floors -----------------------------------------------------------------------------------


def test_every_folder_has_a_floor():
    assert set(FLOORS) >= FOLDERS
    assert {"easyeditor.errors", "easyeditor.edits", "easyeditor.lm.model"} <= set(FILES)


def test_imports_only_lead_down():
    wrong = [
        f"{where(module, node)}: floor {floor(module)} imports {target} of floor {floor(target)}"
        for module in MODULES
        for node, target in imports(module)
        if floor(target) > floor(module)
    ]
    assert wrong == []


def cycles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import one another, directly or through others of the group."""
    reach = {module: set(targets & graph.keys()) for module, targets in graph.items()}
    for middle in reach:
        for targets in reach.values():
            if middle in targets:
                targets |= reach[middle]
    looped = {module for module, targets in reach.items() if module in targets}
    groups = []
    while looped:
        module = min(looped)
        groups.append({other for other in reach[module] & looped if module in reach[other]})
        looped -= groups[-1]
    return groups


def test_no_cycles():
    graph = {
        module: {target for _, target in imports(module) if target != module} for module in MODULES
    }
    assert graph["easyeditor.lm.model"] >= {"easyeditor.errors", "easyeditor.lm.tokens"}
    assert [sorted(group) for group in cycles(graph)] == []


def test_cycles_are_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert cycles({"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": {"a"}}) == [{"a", "b", "c", "d"}]
    two = {"a": {"b"}, "b": {"c", "d"}, "c": {"b"}, "d": {"e"}, "e": {"d"}}
    assert cycles(two) == [{"b", "c"}, {"d", "e"}]


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
    assert [t for node in ast.walk(ast.parse(source)) for t in imported(node, here)] == [
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


# -- sizes and names --------------------------------------------------------------------------


def test_lengths():
    longest = {module: LONGEST_METHOD if module in METHOD_MODULES else LONGEST for module in FILES}
    lengths = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in FILES.items()}
    assert {m: lines for m, lines in lengths.items() if lines > longest[m]} == {}


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
    examples: list[ast.AST] = []
    for node in nodes(module):
        if isinstance(node, ast.arguments):
            arguments = [*node.posonlyargs, *node.args]
            with_default = arguments[len(arguments) - len(node.defaults) :]
            examples += [
                default
                for argument, default in zip(with_default, node.defaults, strict=True)
                if argument.annotation and ast.unparse(argument.annotation).endswith("Method")
            ]
        elif (isinstance(node, ast.keyword) and node.arg == "epilog") or (
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"EPILOG", "EXAMPLES"}
        ):
            examples.append(node.value)
    return {id(inner) for node in examples for inner in ast.walk(node)}


def test_no_method_is_named_outside_its_files():
    wrong = []
    for module in OUTSIDE_METHODS:
        if module == TABLE:
            continue
        skipped = bare_texts(module) | allowed(module)
        wrong += [
            f"{where(module, node)}: {text!r}"
            for node in nodes(module)
            if id(node) not in skipped
            for text in named(node)
            # "Rome" is a city; a method is written ROME or rome
            if NAMES & set(words(text))
        ]
    assert wrong == []


def test_no_prompt_format_stands_outside_its_method():
    assert [
        f"{where(module, node)}: {text!r}"
        for module in OUTSIDE_METHODS
        for node, text in texts(module)
        if PROMPT_FORMAT.search(text)
    ] == []


def test_words():
    assert " ".join(words("ROMEHyperParams of my_ft-run.")) == "ROME Hyper Params of my ft run"
    assert not NAMES & set(words("left drift Rome softly, a METHOD"))
    spelled = {name.replace("-", "").upper() for name in METHODS} - ADAPTER_FORMAT
    assert all(NAMES & set(words(f"{name}HyperParams")) for name in spelled)


def vague_names(module: str) -> list[str]:
    """Variables and arguments whose name says nothing about their value."""
    return [
        f"{where(module, node)}: {name}"
        for node in nodes(module)
        for name in (
            node.arg
            if isinstance(node, ast.arg)
            else node.id
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else "",
        )
        if name in VAGUE
    ]


def test_local_names_say_what_they_hold():
    assert [place for module in FILES for place in vague_names(module)] == []


# -- manners ----------------------------------------------------------------------------------


def called(modules: list[str], pattern: str) -> list[str]:
    """Places at which something is called whose whole dotted name fits ``pattern``."""
    return [
        f"{where(module, node)}: {name}"
        for module in modules
        for node, name in calls(module)
        if re.fullmatch(pattern, name)
    ]


def test_only_the_command_line_prints_and_sets_up():
    setting_up = r"print|os\.getcwd|Path\.cwd|logging\.basicConfig|os\.chdir|breakpoint"
    assert called(OUTSIDE_CLI, setting_up) == []


def test_no_global_generator_is_seeded():
    seeding = (
        r"(torch|random|np\.random|numpy\.random)\.(\w+\.)?(manual_seed\w*|seed)|(\w+\.)?set_seed"
    )
    assert called(list(FILES), seeding) == []


def test_no_pickle():
    wrong = called(list(FILES), r"torch\.load|torch\.save|eval|exec")
    for module in FILES:
        for node in nodes(module):
            names = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            names.append(getattr(node, "module", None) or "")
            if {name.split(".")[0] for name in names} & {"pickle", "dill", "joblib", "cloudpickle"}:
                wrong.append(where(module, node))
    assert wrong == []


def test_no_device_is_spelt_out():
    assert [
        f"{where(module, node)}: {text!r}"
        for module in FILES
        for node, text in texts(module)
        if re.fullmatch(r"cuda(:\d*)?", text)
    ] + [
        where(module, node)
        for module in FILES
        for node in nodes(module)
        if isinstance(node, ast.Attribute) and node.attr == "cuda"
    ] == []


def test_no_model_is_recognised_by_a_part_of_its_name():
    """``if "gpt2" in model_name`` is how every earlier tool broke: names are compared whole."""
    kinds = r"gpt|llama|mistral|qwen|gemma|opt|bloom|falcon|t5"
    assert [
        where(module, node)
        for module in MODULES
        for node in nodes(module)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], (ast.In, ast.NotIn))
        and isinstance(node.left, ast.Constant)
        and re.match(kinds, str(node.left.value).lower())
    ] == []


# -- Python 3.10 ------------------------------------------------------------------------------

# What the standard library got in 3.11 and later, by module; mypy knows the rest (pyproject.toml).
NEWER = {
    "asyncio": {"timeout", "timeout_at", "TaskGroup", "Runner"},
    "contextlib": {"chdir"},
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "EnumCheck", "verify", "member", "nonmember", "global_enum"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "sumprod"},
    "operator": {"call"},
    "sys": {"exception"},
    "tomllib": {"load", "loads"},
    "typing": {
        *("Self", "Never", "LiteralString", "assert_never", "assert_type", "reveal_type"),
        *("Unpack", "TypeVarTuple", "Required", "NotRequired", "dataclass_transform", "override"),
        *("TypeAliasType", "get_overloads", "clear_overloads"),
    },
    "warnings": {"deprecated"},
}
NEWER_ATTRIBUTES = {"add_note"} | {f"{m}.{name}" for m, names in NEWER.items() for name in names}
NEWER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup"}


def newer_than_3_10(tree):
    """What a syntax tree names that Python 3.10 does not have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = {alias.name for alias in node.names}
            yield from sorted(names & NEWER.get(node.module or "", set()))
            yield from ["tomllib"] * (node.module == "tomllib")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name == "tomllib")
        elif isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            yield from [dotted] * bool({dotted, f"{node.attr}"} & NEWER_ATTRIBUTES)
        elif isinstance(node, ast.Name) and node.id in NEWER_BUILTINS:
            yield node.id


def test_python_3_10_is_enough():
    project = (outer.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">=3.10"' in project
    assert 'target-version = "py310"' in project
    assert 'python_version = "3.10"' in project
    wrong = []
    for path in FILES.values():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path), feature_version=(3, 10))
        wrong += [(path.name, name) for name in newer_than_3_10(tree)]
    assert wrong == []


def test_what_python_3_10_lacks_is_noticed():
    code = (
        "from enum import StrEnum\nfrom typing import Any, Self\nimport tomllib, hashlib\n"
        "hashlib.file_digest(f, 'md5')\nerror.add_note('x')\nraise ExceptionGroup('', [])"
    )
    names = {"StrEnum", "Self", "tomllib", "hashlib.file_digest", "error.add_note"}
    assert set(newer_than_3_10(ast.parse(code))) == names | {"ExceptionGroup"}
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* OSError:\n    pass", feature_version=(3, 10))
