"""Files are complete or absent, whatever happens, and appear where they were meant to."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from napari_lowlat_seg.core import atomic_file as module
from napari_lowlat_seg.core.atomic_file import (
    ABANDONED,
    PREFIX,
    atomic_file,
    check_writable,
    remove_leftovers,
)

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither these bits nor signals")


def _write(path: Path, text: str, *, durable: bool = True) -> None:
    with atomic_file(path, durable=durable) as part:
        part.write_text(text)


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_written_and_replaced(tmp_path: Path, durable: bool) -> None:
    """The target is seen with the old or the new content, never with part of one."""
    path = tmp_path / "a.txt"
    _write(path, "old", durable=durable)
    with atomic_file(path, durable=durable) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_lies_beside_the_target_under_a_random_name_with_its_suffix(
    tmp_path: Path,
) -> None:
    """Libraries choose a format by the suffix; a rename across file systems would not be atomic."""
    names = []
    for _ in range(2):
        with atomic_file(tmp_path / ("a" * 240 + ".nii.gz")) as part:
            names.append(part.name)
            assert part.parent == tmp_path.resolve()
    assert names[0] != names[1]
    assert all(name.startswith(PREFIX) and name.endswith(".nii.gz") for name in names)


def test_a_file_that_is_in_the_way_is_never_written_through(tmp_path: Path, monkeypatch) -> None:
    """Such as a link to another file, put under the temporary name (O_EXCL)."""
    monkeypatch.setattr("secrets.token_hex", lambda count: "0123456789ab")
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / f"{PREFIX}0123456789ab-a.txt").symlink_to(other)
    with pytest.raises(FileExistsError, match=r"a\.txt"), atomic_file(tmp_path / "a.txt"):
        pass
    assert other.read_text() == "mine"


@posix
def test_permissions_are_kept(tmp_path: Path) -> None:
    """A private file stays private, a shared one shared; a new one follows the umask."""
    path = tmp_path / "a.txt"
    before = os.umask(0o027)
    try:
        _write(path, "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    for mode in (0o600, 0o664, 0o755):
        path.chmod(mode)
        _write(path, "again")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    """The file it points to is written, in that file's folder; also where it does not exist yet."""
    (tmp_path / "data").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to(Path("data") / "real.txt")
    for text in ("first", "second"):
        with atomic_file(link) as part:
            part.write_text(text)
            assert part.parent == (tmp_path / "data").resolve()
        assert link.is_symlink()
        assert (tmp_path / "data" / "real.txt").read_text() == text


def test_a_write_protected_file_is_refused(tmp_path: Path) -> None:
    """In one sentence, to administrators as well, and before anything is written."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(
        PermissionError, match=r"a\.txt is write-protected; make it writable or give another name"
    ):
        _write(path, "new")
    path.chmod(0o644)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written_are_refused(tmp_path: Path, monkeypatch) -> None:
    """No folder, a folder of that name, a folder that may only be read: each with what to do."""
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere; make it first"):
        check_writable(tmp_path / "nowhere" / "a.txt")
    with pytest.raises(IsADirectoryError, match=r" is a folder; give the name of a file"):
        check_writable(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"the folder .* cannot be written to; choose another"):
        check_writable(tmp_path / "a.txt")


@posix
def test_a_device_is_not_replaced_by_a_file() -> None:
    """A rename would remove it."""
    with pytest.raises(OSError, match=r"/dev/null is no ordinary file; give another name"):
        _write(Path(os.devnull), "x")


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError("disk")])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    """Also an interrupt."""
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half() -> None:
        with atomic_file(path) as part:
            part.write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_removes_its_file_is_an_error(tmp_path: Path) -> None:
    """What it did not write cannot be put in place."""
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt", durable=False) as part:
        part.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [None, "part"])
def test_an_error_of_the_system_names_the_target(tmp_path: Path, name: str | None) -> None:
    """And not the temporary file, whose name is random."""
    path = tmp_path / "a.txt"
    with pytest.raises(OSError, match=r"No space left on device: '.*[/\\]a\.txt'"), atomic_file(path) as part:
        raise OSError(errno.ENOSPC, "No space left on device", name and str(part))


def test_old_leftovers_are_removed_and_young_ones_are_not(tmp_path: Path) -> None:
    """A young one may belong to a process that is still writing; other people's files are left alone."""
    old, young = (tmp_path / f"{PREFIX}0123456789ab-{name}.txt" for name in ("old", "young"))
    other = tmp_path / f"{PREFIX}of-somebody-else.txt"
    for path in (old, young, other):
        path.touch()
    for path in (old, other):
        os.utime(path, (time.time() - ABANDONED - 60,) * 2)
    _write(tmp_path / "a.txt", "new", durable=False)
    assert old.exists()
    _write(tmp_path / "a.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.txt", young.name, other.name])
    remove_leftovers(tmp_path / "nowhere")


def test_the_content_is_synced_before_the_rename(tmp_path: Path, monkeypatch) -> None:
    """Else a power cut could leave an empty file under the target's name; entries of a cache go without."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (done.append("sync"), sync(handle)))
    monkeypatch.setattr("os.replace", lambda a, b: (done.append("rename"), replace(a, b)))
    _write(tmp_path / "a.txt", "x")
    assert done[:2] == ["sync", "rename"]
    done.clear()
    _write(tmp_path / "a.txt", "x", durable=False)
    assert done == ["rename"]


def test_a_rename_is_tried_again_while_something_holds_the_file(tmp_path: Path, monkeypatch) -> None:
    """On Windows a virus scanner does, for a moment."""
    calls: list[int] = []
    replace = os.replace

    def held(first: Path, second: Path) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "held", str(first))
        replace(first, second)

    monkeypatch.setattr("os.replace", held)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    with pytest.raises(PermissionError, match=r"held: '.*a\.txt'"):
        _write(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []
    _write(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


@posix
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    """And a leftover that the next writer removes once it is old."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from napari_lowlat_seg.core.atomic_file import atomic_file\n"
        "with atomic_file(sys.argv[1]) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (other for other in tmp_path.iterdir() if other != path)
    assert path.read_text() == "old"
    os.utime(left, (time.time() - ABANDONED - 60,) * 2)
    _write(path, "new")
    assert list(tmp_path.iterdir()) == [path]
