"""What ``from easyeditor import …`` offers, and the tree of errors as it is drawn."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import subprocess
import sys

import pytest

import easyeditor
import outer
from easyeditor import errors

ERRORS = {
    name: thing
    for name, thing in vars(errors).items()
    if inspect.isclass(thing) and issubclass(thing, BaseException)
}
BUILTIN = {name for name, thing in vars(builtins).items() if inspect.isclass(thing)}


def test_all_is_what_can_be_imported():
    names: dict[str, object] = {}
    exec("from easyeditor import *", names)
    names.pop("__builtins__")
    assert sorted(names) == sorted(easyeditor.__all__) == sorted(dir(easyeditor))
    assert len(set(easyeditor.__all__)) == len(easyeditor.__all__)
    assert set(easyeditor.__all__) == {*easyeditor._PUBLIC, *easyeditor._SETTINGS, "__version__"}


def test_type_checkers_see_the_same_names():
    parsed = ast.parse((outer.SOURCE / "__init__.py").read_text())
    (block,) = [
        node
        for node in parsed.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.asname: f"{node.module}:{alias.name}" for node in block.body for alias in node.names
    }
    told = {
        name: f"easyeditor.{module}:{name}" for name, module in sorted(easyeditor._PUBLIC.items())
    }
    missing = sorted(set(easyeditor._SETTINGS) - set(seen))
    assert not missing, f"add an import under TYPE_CHECKING in easyeditor/__init__.py: {missing}"
    settings = {name: seen.pop(name).rpartition(":")[0] for name in easyeditor._SETTINGS}
    assert dict(sorted(seen.items())) == told
    for name, module in settings.items():  # of the methods, from the table of methods
        assert getattr(easyeditor, name).__module__ == module


def test_a_registered_method_brings_its_settings(monkeypatch):
    from easyeditor.methods import METHODS

    monkeypatch.setattr(
        METHODS, "_entries", {**METHODS._entries, "NEW": "easyeditor.methods.ft:FT"}
    )
    assert easyeditor.NEWHyperParams is easyeditor.FTHyperParams
    with pytest.raises(AttributeError, match="has no attribute 'OTHERHyperParams'"):
        _ = easyeditor.OTHERHyperParams


@pytest.mark.parametrize("name", [n for n in easyeditor.__all__ if n != "__version__"])
def test_public_names_are_documented(name):
    thing = getattr(easyeditor, name)
    assert thing.__name__ == name
    assert (thing.__doc__ or "").strip()
    # A dataclass or tuple without a docstring is given its signature as one.
    assert not thing.__doc__.startswith(f"{name}(")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (owner, name)
        for owner in easyeditor.__all__
        if inspect.isclass(getattr(easyeditor, owner))
        for name, member in vars(getattr(easyeditor, owner)).items()
        if not name.startswith("_")
        and (inspect.isroutine(member) or isinstance(member, (property, classmethod)))
    ],
)
def test_public_methods_are_documented(owner, name):
    assert inspect.getdoc(getattr(getattr(easyeditor, owner), name))


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", easyeditor.__version__)


def test_unknown_names():
    with pytest.raises(AttributeError, match="'easyeditor' has no attribute 'BaseEditr'"):
        _ = easyeditor.BaseEditr


def test_importing_is_light():
    script = (
        "import sys, easyeditor, easyeditor.errors, easyeditor.edits, easyeditor.hyperparams\n"
        "import easyeditor.methods, easyeditor.data.edits_file\n"
        "import easyeditor.data.open, easyeditor.data.write\n"
        "print({'torch', 'transformers', 'numpy', 'rich', 'typer'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("light", "")


# -- errors -----------------------------------------------------------------------------------


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """``{error: (parent, builtin)}`` as the docstring of errors.py draws it."""
    found: dict[str, tuple[str | None, str | None]] = {"EasyEditError": (None, None)}
    above = ["EasyEditError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r"    ((?:│   |    )*)[├└]── (\w+)(?: \((\w+)\))?(?:  .*)?", line)
        if match:
            depth = len(match[1]) // 4 + 1
            assert match[2] not in found
            found[match[2]] = (above[depth - 1], match[3])
            above[depth:] = [match[2]]
    return found


def test_the_tree_is_the_classes():
    parents = {
        name: next((base.__name__ for base in kind.__bases__ if base.__name__ in ERRORS), None)
        for name, kind in ERRORS.items()
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == parents


@pytest.mark.parametrize("name", drawn())
def test_the_builtin_drawn_is_the_builtin_inherited(name):
    builtin = {base.__name__ for base in ERRORS[name].__bases__} & BUILTIN - {"Exception"}
    assert builtin == ({drawn()[name][1]} - {None})


@pytest.mark.parametrize("name", sorted(set(ERRORS) - {"EasyEditError"}))
def test_every_error_is_also_a_builtin_one(name):
    kind = ERRORS[name]
    assert issubclass(kind, errors.EasyEditError)
    inherited = {base.__name__ for base in kind.__mro__} & BUILTIN
    assert inherited - {"Exception", "BaseException", "object"}
    assert inspect.getdoc(kind) != inspect.getdoc(kind.__bases__[0])
    assert str(kind("a sentence")) == "a sentence"
    assert str(kind()) == ""


def test_the_tree_fits_a_screen():
    assert all(len(line) <= 100 for line in (errors.__doc__ or "").splitlines())


@pytest.mark.parametrize(
    ("word", "hint"),
    [("ROEM", " Did you mean 'ROME'?"), ("memit", " Did you mean 'MEMIT'?"), ("xyz", "")],
)
def test_did_you_mean(word, hint):
    assert errors.did_you_mean(word, ["ROME", "MEMIT", "FT"]) == hint
