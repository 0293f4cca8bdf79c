"""The package as it is released: one version everywhere, and a wheel that works alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import outer

SCRIPT = outer.ROOT / "scripts" / "release.sh"


def test_the_version_is_one_everywhere():
    done = subprocess.run([SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_images_use_the_pinned_versions_and_no_root():
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (outer.ROOT / name).read_text(encoding="utf-8")
        assert all("-c constraints.txt" in line for line in re.findall(r"^RUN pip.*", text, re.M))
        assert re.search(r"^USER 10001$", text, re.M)
        assert re.search(r"^VOLUME /cache$", text, re.M)


def test_the_images_are_made_of_what_is_there():
    """Files that are copied, and not kept from Docker; extras; commands; a cache for any user."""
    project = (outer.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([\w-]+) = \[", project.partition("optional-dep")[2], re.M))
    sent = (outer.ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in ("Dockerfile", "Dockerfile.cuda"):
        text = (outer.ROOT / name).read_text(encoding="utf-8")
        copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)).split()
        assert set(copied) >= {"constraints.txt", "pyproject.toml", "src"}
        for file in copied:
            assert (outer.ROOT / file).exists()
            assert f"!{file}\n" in sent
        (named,) = re.findall(r'"\.\[(.+)\]"', text)
        assert {"ui", "serve", "gguf"} <= set(named.split(",")) <= extras
        assert re.search(r"install -d -m 1777 /cache\b", text)
        assert re.search(r"^    HOME=/cache USER=easyedit \\$", text, re.M)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("github-workflows", ".github/workflows/*.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/[bm]*.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("compose-spec", "compose.yaml"),
        ("citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_other_programs_are_as_their_schemas_say(schema, files):
    pytest.importorskip("check_jsonschema", reason='pip install -e ".[dev]"')
    words = ("-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}")
    names = sorted(map(str, outer.ROOT.glob(files)))
    assert names
    done = subprocess.run([sys.executable, *words, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_images_pass_hadolint():
    here = Path(sys.executable).with_name("hadolint")
    hadolint = str(here) if here.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip('no hadolint: pip install -e ".[dev]" on Linux, or install it by hand')
    files = ("Dockerfile", "Dockerfile.cuda")
    done = subprocess.run([hadolint, *files], cwd=outer.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path):
    """With the packages of this environment, which are those of the constraints."""

    def run(*words, **how):
        return subprocess.run(words, check=True, capture_output=True, text=True, **how).stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, outer.ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    for data in ("cli/catalog.json", "data/sources.json", "py.typed", "web/page.py"):
        assert f"easyeditor/{data}" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty")
    python = tmp_path / "empty" / "bin" / "python"
    where = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    run(*pip, "install", "--no-deps", "--target", where, wheel)
    paths = [p for p in sys.path if p.endswith("site-packages")]
    run(python, "-c", f"open({where + '/requirements.pth'!r}, 'w').write({chr(10).join(paths)!r})")
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    code = "import easyeditor, sys; print(easyeditor.__file__)"
    assert where in run(python, "-c", code, cwd=tmp_path, env=env)
    assert "easyedit" in run(python, "-m", "easyeditor", "--version", cwd=tmp_path, env=env)
    listed = run(python, "-m", "easyeditor", "methods", "--json", cwd=tmp_path, env=env)
    assert '"MEMIT"' in listed
