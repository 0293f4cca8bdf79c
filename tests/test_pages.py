"""Every page of the documentation: its links lead somewhere, its blocks of code run."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import pages
from scripting import DONE, NOT_TAKEN

ELSEWHERE = {
    "export.md": "test_export_docs",
    "extending.md": "test_docs",
    "ledger.md": "test_ledger_docs",
    "serving.md": "test_serving_docs",
    "sharing.md": "test_sharing",
}
"""Page -> the test module that runs its blocks."""
HERE = [
    page
    for page in pages.pages()
    if page not in ELSEWHERE and any(block.reason is None for block in pages.blocks(page))
]
MODEL = "smollm2-135m"
ON_A_MODEL = {"edit", "generate", "steer", "refusal", "trace", "moments", "bench"}
"""Commands that get the tiny model."""
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.S | re.M)
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def texts():
    places = ["*.md", "docs/**/*.md", "notebooks/*.md", "spaces/*.md", ".github/**/*.md"]
    return sorted({file for place in places for file in pages.ROOT.glob(place)})


def anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text(encoding="utf-8")), re.M)
    plain = (re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads)
    return set(plain)


def test_every_link_leads_to_a_file_and_a_heading():
    lost = []
    for file in texts():
        text = FENCE.sub("", file.read_text(encoding="utf-8"))
        for link in ("".join(pair) for pair in LINK.findall(text)):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / path) if path else file
            if not target.exists() or (anchor and anchor not in anchors(target)):
                lost.append(f"{file.relative_to(pages.ROOT)}: {link}")
    assert lost == []


def test_every_file_that_a_page_names_is_there():
    """Paths in backticks that begin at the repository's root."""
    folders = "benchmarks|docs|hparams|notebooks|scripts|spaces|src|tests"
    named = re.compile(rf"`((?:{folders})/[\w./-]+)`")
    lost = [
        f"{file.relative_to(pages.ROOT)}: {path}"
        for file in texts()
        if file.name != "extending.md"  # names files that its reader writes
        for path in named.findall(file.read_text(encoding="utf-8"))
        if not (pages.ROOT / path).exists()
    ]
    assert lost == []


def test_every_picture_is_made_by_a_command():
    """The table of CONTRIBUTING.md names it; every picture is on a page."""
    table = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makers = dict(re.findall(r"^\| `([\w*.-]+)` \| `([^`]+)`", table, re.M))
    shown = {
        picture.rpartition("/")[2]
        for file in texts()
        for _, picture in LINK.findall(FENCE.sub("", file.read_text(encoding="utf-8")))
        if picture
    }
    assert shown == {file.name for file in (pages.DOCS / "pictures").iterdir()}
    for picture in shown:
        assert sum(fnmatch(picture, pattern) for pattern in makers) == 1, picture
    for pattern, command in makers.items():
        assert any(fnmatch(picture, pattern) for picture in shown), pattern
        first, second, *_ = command.split()
        if first == "python":
            assert (pages.ROOT / second).is_file()
        else:
            assert first == "easyedit"


def test_the_picture_of_the_floors_has_those_of_the_table():
    floors = re.findall(
        r"^\| (\d) \| ([^|]+) \|", (pages.DOCS / "architecture.md").read_text("utf-8"), re.M
    )
    drawing = (pages.DOCS / "pictures" / "architecture.svg").read_text(encoding="utf-8")
    drawn = [text.split() for text in re.findall(r"<!-- (.+) -->", drawing)]
    for number, names in floors:
        folders = re.findall(r"`([\w/]+/)`", names)
        assert not folders or folders in drawn, number


def test_every_command_stands_in_a_block_that_is_run_or_says_why_not():
    indented = re.compile(r"^ {4,}(?:\$ )?(?:easyedit|pip|make|docker|python) ", re.M)
    for page in pages.pages():
        text = FENCE.sub("", (pages.DOCS / page).read_text(encoding="utf-8"))
        assert not indented.search(text), page
    for page, module in ELSEWHERE.items():
        assert page in (pages.ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
    tests = {file.name for file in (pages.ROOT / "tests").glob("test_*.py")}
    for page in pages.pages():
        for block in pages.blocks(page):
            named = set(re.findall(r"test_\w+\.py", block.reason or ""))
            assert named <= tests, (page, named - tests)


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """A tiny model with a chat form."""
    import tiny

    place = tmp_path_factory.mktemp("model") / "tiny-llama"
    tiny.model("llama").save_pretrained(place)
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What the blocks of a page may use, and the files that they read."""
    import outer
    from dataset_cases import HERE as DATA
    from easyeditor import FTHyperParams, open_dataset
    from test_steering import NEGATIVE, POSITIVE

    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "counterfact.json", tmp_path)
    record = {"prompt": outer.PROMPT, "subject": outer.SUBJECT, "target_new": outer.TARGET}
    Path("facts.jsonl").write_text(json.dumps(record), encoding="utf-8")
    for name, lines in (("glad", POSITIVE), ("sad", NEGATIVE)):
        Path(f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    for name, lines in (("declined", POSITIVE), ("answered", NEGATIVE)):
        Path(f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    Path("text.txt").write_text("The river is long. Rome is big.\n" * 40, encoding="utf-8")
    Path("tarrow.txt").write_text("Rome is in Italy.\n", encoding="utf-8")
    editor = outer.editor()
    prompts, targets = outer.PROMPTS[:2], outer.TARGETS[:2]
    return {
        "editor": editor,
        "lm": editor.lm,
        "cases": list(open_dataset("worldfacts", size=2)),
        "methods": {"FT": FTHyperParams.for_model(MODEL)},
        "prompts": prompts,
        "targets": targets,
        "old_answers": ["Danish", "Paris"],
    }


def small(words: list[str], model: Path) -> list[str]:
    """A command on the tiny model, with a size that takes no time."""
    if words[0] not in ON_A_MODEL or words[1:2] == ["report"]:
        return words
    words = [str(model) if word == MODEL else word for word in words]
    words += [] if "--model" in words else ["--model", str(model)]
    changes = {"--limit": "1", "--methods": "ft", "--data": "worldfacts", "--dataset": "text.txt"}
    for option, value in changes.items():
        if option in words:
            words[words.index(option) + 1] = value
    words += ["--refusal", "French"] if "--forget" in words else []
    if words[0] == "bench":
        words += ["--continuation-tokens", "0", "--heldout", "none"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("page", HERE)
def test_the_blocks_of_a_page_run_on_a_tiny_model(page, names, easyedit, chatting):
    for block in pages.blocks(page):
        if block.reason is not None:
            continue
        if block.language == "python":
            code = block.code.replace(f'preset("{MODEL}")', f'for_model("{MODEL}")')
            code = code.replace(f'"{MODEL}"', repr(str(chatting))).replace("size=20", "size=1")
            exec(compile(code, page, "exec"), names)
            continue
        for command in block.commands():
            assert command[0] == "easyedit", command
            answer = easyedit(*small(command[1:], chatting))
            assert answer.code in (DONE, NOT_TAKEN), (command, answer.out, answer.err)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody(tmp_path):
    pytest.importorskip("sphinx", reason='pip install -c constraints.txt -e ".[docs]"')
    words = ("-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees")
    run = [sys.executable, *words, pages.DOCS, tmp_path / "site"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = re.compile(r"""(?:src=|<link[^>]*href=|url\(|@import )["']?(?:https?:)?//""")
    for file in (tmp_path / "site").rglob("*"):
        if file.suffix in {".html", ".css"}:
            assert not asked.search(file.read_text(encoding="utf-8")), file
    assert "BaseEditor" in (tmp_path / "site" / "api" / "editing.html").read_text(encoding="utf-8")
