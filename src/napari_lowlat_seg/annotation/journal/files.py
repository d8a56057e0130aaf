"""Journals in a folder, and sessions restored from a file: listed, pruned, opened, gone on with."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs

from napari_lowlat_seg.annotation.journal.decoding import Decoder, Finder
from napari_lowlat_seg.annotation.journal.frames import (
    FORMAT,
    SUFFIX,
    VERSION,
    FrameReader,
    JournalError,
    as_int,
    as_list,
    as_number,
    as_text,
)
from napari_lowlat_seg.annotation.journal.mirror import Mirror
from napari_lowlat_seg.annotation.journal.writer import Journal, lock
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import LabelStore
from napari_lowlat_seg.core.volume import Volume

KEEP_BYTES = 4 * 2**30
KEEP_DAYS = 90.0
KEEP_COUNT = 200
SPARED = 20
"""The newest journals, which no age deletes: a clock that goes wrong makes every one of them old."""


def journal_folder() -> Path:
    """The user's folder for journals; it may not exist yet."""
    return platformdirs.user_state_path("napari-lowlat-seg", appauthor=False) / "journals"


@dataclass(frozen=True)
class JournalInfo:
    """A journal in a folder.

    Attributes
    ----------
    path
        The file.
    identity, shape, name
        `Volume.identity`, shape and name of the image, when the journal was begun.
    image
        Where it lay; None if that is not known.
    channel_axis, channel
        Of the image, as `Volume` has them.
    started, changed
        Seconds since 1970.
    nbytes
        Size of the file.
    in_use
        Whether a running program writes to it.
    """

    path: Path
    identity: str
    shape: tuple[int, ...]
    name: str
    image: str | None
    channel_axis: int | None
    channel: int | None
    started: float
    changed: float
    nbytes: int
    in_use: bool


def list_journals(folder: str | Path, volume: Volume | None = None) -> list[JournalInfo]:
    """The journals in a folder, the newest first; only those of an image with the same pixels if it is given.

    Files that are no journals are left out. A folder that does not exist has none.
    """
    found = []
    for path in Path(folder).glob(f"[!.]*{SUFFIX}"):  # not what a killed process was writing
        with suppress(JournalError, OSError):
            info = journal_info(path)
            if volume is None or info.identity == volume.identity:
                found.append(info)
    return sorted(found, key=lambda info: info.changed, reverse=True)


def prune_journals(
    folder: str | Path,
    keep_bytes: int = KEEP_BYTES,
    keep_days: float = KEEP_DAYS,
    keep_count: int = KEEP_COUNT,
    spared: int = SPARED,
) -> list[Path]:
    """Delete journals that were not changed for `keep_days`, and the oldest while there are too many.

    Too many are more than `keep_count`, and more than `keep_bytes` together. The newest `spared` may be of
    any age.

    Journals in use stay. Returns what was deleted.
    """
    journals = list_journals(folder)
    held, count = sum(info.nbytes for info in journals), len(journals)
    deleted = []
    for rank, info in reversed(list(enumerate(journals))):
        too_old = rank >= spared and time.time() - info.changed > keep_days * 86400
        if not info.in_use and (too_old or held > keep_bytes or count > keep_count):
            with suppress(OSError):  # another process was quicker
                info.path.unlink()
                deleted.append(info.path)
                held, count = held - info.nbytes, count - 1
    return deleted


@dataclass
class FoundSession:
    """A session as a file has it.

    Attributes
    ----------
    mirror
        All of it; `Mirror.write_labels` and `Mirror.put_into` make a session of it.
    saved
        Whether a user saved it; otherwise it is a journal.
    lost
        Bytes at the end that are damaged and were left out; 0 usually, and where only the last action is
        not whole.
    info
        What `list_journals` says of the file.
    """

    mirror: Mirror
    saved: bool
    lost: int
    info: JournalInfo

    def replaced(self) -> None:
        """Delete the file once another journal has all of it; a saved or a damaged one stays."""
        if not (self.saved or self.lost):
            self.info.path.unlink(missing_ok=True)

    @property
    def warning(self) -> str:
        """What was left out, in one sentence; empty where nothing was."""
        if not self.lost:
            return ""
        return (
            f"{self.info.path} is damaged: what was done before the damage is restored, the {self.lost} "
            "bytes after it are left out, and the file is kept"
        )


def open_session(path: str | Path, volume: Volume, labels: Sequence[LabelStore] | Finder = ()) -> Session:
    """The session in a file, as it was after the last complete action; its labels are written.

    Parameters
    ----------
    path
        Saved by `Journal.save`, or a journal. Of a journal, an action that is not whole at the end of the
        file is left out.
    volume
        The image; its pixels must be those of the session, its name and place need not.
    labels
        The labels that the session wrote to, in the order of their first use, as they were at first or as it
        left them. Where none are given, new ones are made in memory.

    Raises
    ------
    JournalError
        If it is no session, one of a later version or of other pixels, or a damaged one, and without labels
        on disk that it wrote to. No label is written.
    OSError
        If the file cannot be read.
    """
    return _session(read_session(path, volume, labels), volume)


def resume(
    path: str | Path,
    volume: Volume,
    labels: Sequence[LabelStore] | Finder = (),
    folder: str | Path | None = None,
    **options: Any,
) -> tuple[Session, Journal]:
    """Go on with a session: as `open_session`, and a journal for what comes.

    The journal begins with all of the session; once it is safe on disk, the file at `path` is deleted if it
    was a journal. `folder` is that of `path` by default; `options` are those of `Journal`.
    """
    path = Path(path)
    found = read_session(path, volume, labels)
    session = _session(found, volume)
    folder = path.parent if folder is None else folder
    journal = Journal(session, folder, before=found.mirror, **options)
    session.write_accepted()
    if journal.flush():
        found.replaced()
    return session, journal


def _session(found: FoundSession, volume: Volume) -> Session:
    session = Session(volume)
    found.mirror.write_labels()
    found.mirror.put_into(session)
    return session


def _open(path: Path) -> IO[bytes]:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise JournalError(f"{path} is no file; choose a session that was saved")
    return path.open("rb")


def journal_info(path: str | Path) -> JournalInfo:
    """What a file says of the session in it; raises JournalError and OSError as `open_session`."""
    path = Path(path)
    with _open(path) as file, _refused(path):
        facts = os.fstat(file.fileno())
        about = _about(FrameReader(file, facts.st_size))
        in_use = not lock(file)
        image, (channel_axis, channel) = about["image"], as_list(about["channel"])
        return JournalInfo(
            path,
            about["identity"],
            tuple(as_int(n, 1) for n in as_list(about["shape"])),
            as_text(about["name"]),
            None if image is None else as_text(image),
            None if channel_axis is None else as_int(channel_axis),
            None if channel is None else as_int(channel),
            as_number(about["started"]),
            facts.st_mtime,
            facts.st_size,
            in_use,
        )


def _about(reader: FrameReader) -> dict[str, Any]:
    about, _ = next(iter(reader), ({}, []))
    if about.get("kind") != "about" or about.get("format") != FORMAT:
        raise JournalError("it does not begin as a session does")
    if as_int(about["version"], 1) != VERSION:
        raise JournalError(
            f"it is of version {about['version']}, this program reads version {VERSION}; use a newer one"
        )
    as_text(about["identity"])
    return about


def read_session(
    path: str | Path, volume: Volume, labels: Sequence[LabelStore] | Finder = ()
) -> FoundSession:
    """What is in the file of a session; no label is written. As `open_session`, which says what it raises."""
    path = Path(path)
    info = journal_info(path)
    with _open(path) as file, _refused(path):
        size = os.fstat(file.fileno()).st_size
        reader = FrameReader(file, size)
        about = _about(reader)
        if info.identity != volume.identity or info.shape != volume.shape:
            raise JournalError(
                f"it belongs to other pixels, an image of shape {info.shape}"
                f"{info.name and ' named '}{info.name}, not to this one of {volume.shape}; "
                "open that image"
            )
        saved = bool(about.get("saved"))
        decoder = Decoder(info.shape, labels)
        mirror: Mirror | None = None
        for message, blobs in reader:
            decoder.add(message["new"], blobs)
            if mirror is None:
                if message["kind"] != "snapshot":
                    raise JournalError("its first action is no snapshot")
                mirror = Mirror.decoded(message, decoder, info.shape)
            elif saved:
                raise JournalError("a saved session has two frames, this one more")
            else:
                mirror.play(decoder.event(message))
        if mirror is None or (saved and reader.end != size):
            raise JournalError("it is damaged or not complete")
        mirror.check()
        return FoundSession(mirror, saved, size - reader.end if reader.damaged else 0, info)


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Says in one sentence why a file is no session, whatever was wrong in it."""
    try:
        yield
    except JournalError as error:
        raise JournalError(f"{path} cannot be opened as a session: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise JournalError(
            f"{path} cannot be opened as a session: it is damaged, or another program wrote it ({reason})"
        ) from error
