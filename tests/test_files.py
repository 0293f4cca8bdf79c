"""Whole writes, and checks of a place before anything is computed."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from easyeditor.errors import OutputError
from easyeditor.files import (
    check_writable_place,
    folder_written_whole,
    write_or_rescue,
    written_whole,
)

ENTRIES = {"a.txt": "one", "b/c.txt": "two"}


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/.scratch")


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def fill(folder):
    for name, text in ENTRIES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


# -- files ------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.raises(TypeError), written_whole(file) as part:
        part.write_text("half") + ""
    assert file.read_text() == "old"
    with written_whole(file) as part:
        part.write_text("new")
        assert file.read_text() == "old"
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.json", "new")]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_the_umask(tmp_path, umask, mask):
    umask(mask)
    with written_whole(tmp_path / "x") as part:  # as safetensors does
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    with folder_written_whole(tmp_path / "folder") as part:
        os.close(os.open(part / "y", os.O_CREAT | os.O_WRONLY, 0o600))
    assert mode(tmp_path / "x") == mode(tmp_path / "folder" / "y") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask


def test_a_file_that_is_replaced_lends_its_mode(tmp_path):
    file = tmp_path / "x"
    file.write_text("old")
    file.chmod(0o640)
    with written_whole(file) as part:
        part.write_text("new")
    assert mode(file) == 0o640


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "x", tmp_path / "link"
    link.symlink_to(target)
    for text in ("first", "second"):
        with written_whole(link) as part:
            part.write_text(text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_special_files_are_left_alone(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for place in (fifo, Path(os.devnull)):
        with pytest.raises(OutputError, match="is not a regular file"), written_whole(place):
            pass
        with pytest.raises(OutputError, match="is not a regular file"):
            check_writable_place(place)
    assert stat.S_ISFIFO(fifo.stat().st_mode)


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    file = tmp_path / "x"
    with written_whole(file) as one, written_whole(file) as two:
        one.write_text("one")
        two.write_text("two")
        assert one != two
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_told_by_the_name_the_user_gave(tmp_path):
    file = tmp_path / "x"
    with pytest.raises(OutputError) as error, written_whole(file):
        full()
    assert (
        str(error.value)
        == f"{file} cannot be written: No space left on device. Make room and try again."
    )
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(ConnectionError), written_whole(file):
        raise ConnectionError  # not about the file
    assert list(tmp_path.iterdir()) == []


WRITER = """
import os, signal, sys
from pathlib import Path
from easyeditor.files import folder_written_whole, written_whole
write = folder_written_whole if sys.argv[2] == "folder" else written_whole
with write(Path(sys.argv[1])) as part:
    place = part / "half" if sys.argv[2] == "folder" else part
    place.write_text("half")
    print(place, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_leaves_is_deleted_by_the_next(tmp_path, kind):
    target = tmp_path / "model"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    half = Path(writer.stdout.readline().strip())
    assert half.read_text() == "half"

    def write():
        if kind == "file":
            with written_whole(target) as part:
                part.write_text("x")
        else:
            with folder_written_whole(target) as part:
                fill(part)

    write()
    assert half.exists()  # its writer lives
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert half.exists()
    if kind == "folder":
        for file in sorted(target.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    write()
    assert list(tmp_path.iterdir()) == [target]


# -- folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_appears_whole(tmp_path, there):
    folder = tmp_path / "deep" / "model"
    if there:
        folder.mkdir(parents=True)
    with folder_written_whole(folder) as part:
        fill(part)
        assert not folder.exists() or not any(folder.iterdir())
    assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.txt")} == ENTRIES
    with pytest.raises(OutputError, match="is not an empty folder"), folder_written_whole(folder):
        pass


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    why = "model cannot be written: No space"
    with pytest.raises(OutputError, match=why), folder_written_whole(tmp_path / "model") as part:
        fill(part) or full()
    assert list(tmp_path.iterdir()) == []


# -- places -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a" * 300, "File name too long|bytes long, and the disk allows"),
        ("new/" + "a" * 300 + "/x", "bytes long, and the disk allows"),
        ("a\0b", "holds a NUL"),
        ("", "does not end in the name"),
        ("file/x", "is not a folder|Not a directory"),
        ("folder", "is a folder; name a file in it"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, why):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    place = f"{tmp_path}/{name}" if name else ""
    with pytest.raises(OutputError, match=why) as error:
        check_writable_place(place)
    assert ".part" not in str(error.value)
    if name and "/" not in name:
        with pytest.raises(OutputError, match=why), written_whole(Path(place)):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_place_where_nothing_can_be_made():
    with pytest.raises(OutputError, match=r"^/proc/x cannot be written: No such file"):
        check_writable_place("/proc/x")
    with (
        pytest.raises(OutputError, match=r"^/proc/x cannot be written"),
        written_whole(Path("/proc/x")),
    ):
        pass


def test_a_place_for_a_folder(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new/deep"):
        assert check_writable_place(tmp_path / name, folder=True) == tmp_path / name
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(OutputError, match="name a new one"):
            check_writable_place(place, folder=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file"]


def test_a_place_with_too_little_room(tmp_path):
    check_writable_place(tmp_path / "x", size=1)
    with pytest.raises(OutputError, match=r"needs about 10.* GB, but the disk .* free. Make room"):
        check_writable_place(tmp_path / "x", size=10**16)


# -- rescue -----------------------------------------------------------------------------------


def test_a_result_that_does_not_fit_is_rescued(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def write(file):
        if "rescued" not in str(file):
            full()
        file.parent.mkdir(parents=True)
        file.write_text("the result")

    with pytest.raises(OutputError, match=r"The result is in .*tmp/easyedit-rescued-.*/x instead"):
        write_or_rescue(write, tmp_path / "x")
    (rescued,) = (tmp_path / "tmp").rglob("x")
    assert rescued.read_text() == "the result"
    with pytest.raises(OutputError, match=r"nor can .* Make room and run the same command again"):
        write_or_rescue(full, tmp_path / "x")
    write_or_rescue(lambda file: file.write_text("fits"), tmp_path / "x")
    assert (tmp_path / "x").read_text() == "fits"
