"""Files that are complete or not there at all: the one way in which this project writes a file.

The content goes to a temporary file in the folder of the target and is renamed when it is complete, so that a
reader, a full disk or a killed process never leaves half a file under the target's name.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".part-"
"""Temporary files begin with this, 12 random hexadecimal digits and a dash; then comes the target's name."""

ABANDONED = 3600.0
"""Seconds without a change after which a temporary file has lost its writer and is removed."""

ATTEMPTS = 10 if os.name == "nt" else 1
"""Tries to rename: on Windows a virus scanner or an indexer may hold a new file open for a moment."""

PAUSE = 0.1
"""Seconds between two tries."""

_LEFTOVER = re.compile(re.escape(PREFIX) + r"[0-9a-f]{12}-.")


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` when the block ends without an error.

    A symbolic link is followed: the file it points to is replaced, the link stays. A file that is replaced
    keeps its permissions. After an error nothing is left, and what was at `path` is untouched.

    Parameters
    ----------
    path
        The file to write; its folder must exist. The temporary path ends in the same suffix, because many
        libraries choose a format by it.
    durable
        Whether the content must survive a power cut (`fsync`), and leftovers of killed processes are removed
        from the folder. False for entries of a cache, which have a checksum and are many.

    Yields
    ------
    pathlib.Path
        An empty file with a random name beside the target. Close whatever was opened on it in the block.

    Raises
    ------
    OSError
        As `check_writable`; and any error of the block, with `path` in place of the temporary name.
    """
    target = check_writable(path)
    if durable:
        remove_leftovers(target.parent)
    # Only the end of a long name: file systems allow 255 bytes, and a character may take four.
    part = target.with_name(f"{PREFIX}{secrets.token_hex(6)}-{Path(path).name[-56:]}")
    try:
        # O_EXCL: a file or link that is already there is never written through.
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            with in_use(part):
                yield part
            if durable:
                _sync(part)
            with suppress(FileNotFoundError):
                part.chmod(stat.S_IMODE(target.stat().st_mode))
            _rename(part, target)
            if durable:
                with suppress(OSError):  # Windows opens no folders
                    _sync(target.parent)
        finally:
            with suppress(OSError):  # gone after the rename; else the next writer's sweep tries again
                part.unlink()
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part), part):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def check_writable(path: str | Path) -> Path:
    """The real path of a file that `atomic_file` can write, links followed; ask before long work.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If a folder is at the path.
    PermissionError
        If the file there is write-protected, or the folder cannot be written to.
    OSError
        If something is there that is no ordinary file, such as a device.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder at {Path(path).parent}; make it first")
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a folder; give the name of a file")
        if not stat.S_ISREG(mode):
            raise OSError(f"{path} is no ordinary file; give another name")
        # The bits as well: to an administrator every file seems writable.
        if not mode & 0o222 or not os.access(target, os.W_OK):
            raise PermissionError(f"{path} is write-protected; make it writable or give another name")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"the folder {Path(path).parent} cannot be written to; choose another")
    return target


def check_not_input(path: str | Path, inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse to write over a file that the work reads, also by a link.

    Parameters
    ----------
    inputs
        (what it is, path) of each.

    Raises
    ------
    ValueError
        With the name of the input.
    """
    path = Path(path)
    for name, one in inputs:
        if path.exists() and one.exists() and path.samefile(one):
            raise ValueError(f"{path} is the {name} itself; give the output another name")


@contextmanager
def in_use(part: Path) -> Iterator[None]:
    """A block in which nobody takes a temporary file or folder for abandoned.

    However long nothing is written: networks work for hours.
    """
    over = threading.Event()

    def renew() -> None:
        while not over.wait(ABANDONED / 4):
            with suppress(OSError):  # the disk may be away for a while
                os.utime(part)

    thread = threading.Thread(target=renew, name="temporary file in use", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of ours in which nothing has changed for `ABANDONED` seconds."""
    with suppress(OSError), os.scandir(folder) as entries:  # a folder of others may only be read
        for entry in entries:
            if _LEFTOVER.match(entry.name):
                with suppress(OSError):  # another process was quicker
                    if entry.is_dir(follow_symlinks=False):
                        if _abandoned(entry, *_all_in(entry.path)):
                            shutil.rmtree(entry.path)
                    elif _abandoned(entry):
                        os.unlink(entry.path)


def _abandoned(*entries: os.DirEntry[str]) -> bool:
    newest = max(entry.stat(follow_symlinks=False).st_mtime for entry in entries)
    return time.time() - newest > ABANDONED


def _all_in(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from _all_in(entry.path)


def _sync(path: Path) -> None:
    # Windows syncs only what is open for writing; a folder opens for reading only.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(part: Path, target: Path) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            os.replace(part, target)
            return
        except PermissionError:
            if attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE)
