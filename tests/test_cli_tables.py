"""Tables of the command line on terminals of any width."""

from __future__ import annotations

import pytest

WEIGHT = "model.layers.1.mlp.down_proj.weight"
PROMPT = "The Eiffel Tower is located in the city of"


@pytest.fixture
def shown(capsys, monkeypatch):
    """What :func:`easyeditor.cli.output.show` prints at so many columns, line by line."""
    from easyeditor.cli import output

    def at(width, columns, *rows):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("NO_COLOR", "1")
        output.show("title", columns, rows)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return at


def edits():
    from easyeditor.cli.output import Column

    columns = [Column(name, text=True) for name in ("prompt", "subject", "old")]
    return [*columns, Column("new", text=True, answer=True), Column("layer", right=True)]


def test_a_narrow_terminal_gets_the_names_of_all_columns(shown):
    lines = shown(50, edits(), [PROMPT, "The Eiffel Tower", "Paris", "Rome", "3"])
    assert lines == [
        "title",
        f"{PROMPT} → Rome",
        "  subject: The Eiffel Tower   old: Paris",
        "  layer: 3",
    ]


def test_the_name_of_a_row_stands_before_its_text(shown):
    from easyeditor.cli.output import Column

    columns = [Column("", text=True), Column("a number", right=True), Column("text", text=True)]
    assert shown(20, columns, ["unedited", "0.25", "Paris"], ["", "1", ""]) == [
        *("title", "unedited: Paris", "  a number: 0.25", "  a number: 1"),
    ]


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_name_is_broken(shown, width):
    from easyeditor.cli.output import Column

    columns = [Column("weight", text=True), Column("shape"), Column("rank", right=True)]
    assert any(WEIGHT in line for line in shown(width, columns, [WEIGHT, "[64, 32]", "32"]))


@pytest.mark.parametrize("width", [60, 100])
def test_running_text_is_folded_in_any_script(shown, width):
    from easyeditor.cli.output import Column

    prompt = "法国的首都是" * 12
    lines = shown(width, [Column("prompt", text=True), Column("old")], [prompt, "巴黎"])
    assert prompt in "".join(line.strip("│ ").removesuffix("巴黎").strip("│ ") for line in lines)


def test_a_table_of_many_numbers_is_split_in_two_or_becomes_a_list(shown, capsys, monkeypatch):
    from easyeditor.cli import output

    head = ["method", "n", *"ABCDEF"]
    body = [[name, "3", *["50.0 (25.0–75.0)"] * 6] for name in ("ROME", "FT")]
    for width, titles in ((160, 1), (90, 2), (60, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        output.show_wide("Editing", head, body, 2)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("Editing") for line in lines) == titles
    assert [line for line in lines if not line.startswith(" ")] == ["Editing", "ROME", "FT"]
    assert lines[2] == "  n: 3   A: 50.0 (25.0–75.0)   B: 50.0 (25.0–75.0)"
