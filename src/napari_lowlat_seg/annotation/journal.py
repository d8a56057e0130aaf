"""A session that survives the end of its process: a file to which every change is added, behind the change.

    journal = Journal(session, journal_folder())        # from now on every change is written
    ...
    for found in list_journals(journal_folder(), volume):
        session, journal = resume(found.path, volume, [labels])
    journal.save("annotation.lowlat")  # the same format, compacted
    session = open_session("annotation.lowlat", volume, [labels])

The session only puts a frozen event into a queue. A thread of the journal writes it, so a `kill -9` loses
what was done in the last milliseconds at most, and a power cut what was done in the last second. Why a plain
file and no data base: docs/decisions/journal.md.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

import numpy as np
import platformdirs

from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.annotation.journal_format import (
    FORMAT,
    MAGIC,
    VERSION,
    Decoder,
    Encoder,
    FrameReader,
    FrameWriter,
    JournalError,
    as_int,
    as_list,
    as_number,
    as_text,
)
from napari_lowlat_seg.annotation.mirror import Mirror, decoded_event, encoded_event
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.labels import LabelStore
from napari_lowlat_seg.core.volume import Volume

SUFFIX = ".journal"

QUEUE = 20_000
"""Events that may wait for the disk; beyond that the journal gives up."""

SYNC_SECONDS = 0.5
"""What is written is made safe against a power cut about so often."""

RETRY_SECONDS = 15.0
"""After an error of the disk, the whole session is written anew about so often until that succeeds."""

COMPACT_BYTES = 32 * 2**20
"""A file is compacted when it has this size and is twice as large as it was after the last time."""

HANDOVER_SECONDS = 0.25
"""Before labels on disk are written, the journal may take so long to note what will be written."""

KEEP_BYTES = 4 * 2**30
KEEP_DAYS = 90.0


def journal_folder() -> Path:
    """The user's folder for journals; it may not exist yet."""
    return platformdirs.user_state_path("napari-lowlat-seg", appauthor=False) / "journals"


class Journal:
    """Writes every change of a session to a file, until `close`.

    Parameters
    ----------
    session
        From now on the journal is its observer.
    folder
        Made, for this user only, if it does not exist. The file in it has a name of its own.
    report
        Called from the journal's thread with one sentence when the disk fails and when it works again; warns
        by default. The session goes on in any case.
    mirror
        What `resume` knows of the session's labels.
    compact_bytes, sync_seconds, retry_seconds
        In place of `COMPACT_BYTES`, `SYNC_SECONDS` and `RETRY_SECONDS`.

    Attributes
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If the file cannot be made.
    """

    def __init__(
        self,
        session: Session,
        folder: str | Path,
        *,
        report: Callable[[str], object] | None = None,
        mirror: Mirror | None = None,
        compact_bytes: int = COMPACT_BYTES,
        sync_seconds: float = SYNC_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        folder = Path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        volume = session.volume
        self.path = folder / f"{volume.identity}-{token_hex(6)}{SUFFIX}"
        self._about = {
            "kind": "about",
            "format": FORMAT,
            "version": VERSION,
            "identity": volume.identity,
            "shape": list(volume.shape),
            "name": volume.name,
            "started": time.time(),
        }
        self._report = report or _warn
        self._compact_bytes, self._sync_seconds = compact_bytes, sync_seconds
        self._retry_seconds = retry_seconds
        self._mirror = Mirror.of(session) if mirror is None else mirror
        self._queue: queue.Queue[Event | _Task] = queue.Queue(QUEUE)
        self._postponed: list[_Task] = []
        self._file: IO[bytes] | None = None
        self._late: list[Event] | None = None  # those that came while the file is written anew
        self._failing = self._broken = self._unsynced = False
        self._next_try = self._synced_at = time.monotonic()
        self._syncing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "journal-sync")
        self._rewrite()
        self._session: Session | None = session
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        session.observer = self

    # The session's thread

    def __call__(self, event: Event) -> None:
        """Take an event of the session; returns at once.

        Only before labels outside of memory are written, it waits until the note of that is with the system,
        for `HANDOVER_SECONDS` at most.
        """
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._stop_observing()
            self._report(
                f"the journal {self.path} could not keep up with {QUEUE} changes and has stopped; save the "
                "labels, and open the image again to begin a new one"
            )
            return
        if event.kind == "writing" and not _in_memory(event.store):
            noted = _Task(lambda: None, quick=True)
            with suppress(queue.Full):
                self._queue.put_nowait(noted)
                noted.done.wait(HANDOVER_SECONDS)

    def flush(self) -> bool:
        """Wait until all changes so far are safe on disk; False if the disk refused them."""
        return bool(self._ask(self._flush))

    def save(self, path: str | Path) -> None:
        """Save the session as it is now as one file, complete or not at all.

        Raises OSError as `atomic_file` does.
        """
        self._ask(lambda: self._write_whole(Path(path)))

    def compact(self) -> None:
        """Write the file anew with what is needed to go on, and nothing else; atomic."""
        self._ask(self._compact)

    def close(self, *, discard: bool = False) -> None:
        """End the journal: all changes are safe on disk then, or the file is gone with `discard`."""
        if self._thread.is_alive():
            self._stop_observing()
            self._ask(self._flush, last=True)
            self._thread.join()
        self._pool.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None
        if discard:
            self.path.unlink(missing_ok=True)

    def _stop_observing(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.observer is self:
            session.observer = None

    def _ask(self, do: Callable[[], Any], *, last: bool = False) -> Any:
        if not self._thread.is_alive():
            raise RuntimeError("the journal is closed")
        task = _Task(do, last)
        self._queue.put(task)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.result

    # The journal's thread

    def _run(self) -> None:
        while True:
            try:
                item = (
                    self._postponed.pop(0) if self._postponed else self._queue.get(timeout=self._patience())
                )
                if self._take(item):
                    return
            except queue.Empty:
                pass
            try:
                self._sync()
                self._compact_if_large()
            except Exception as error:
                self._fail(error)

    def _patience(self) -> float | None:
        """Seconds until something is to be done without an event; None for never."""
        if self._failing:
            return None if self._broken else self._retry_seconds
        return self._sync_seconds if self._unsynced else None

    def _take(self, item: Event | _Task) -> bool:
        """Write an event, or do a task; True after the last one."""
        if isinstance(item, _Task):
            item.run()
            return item.last
        if self._broken:
            return False
        try:
            self._mirror.play(item)
            if self._late is not None:
                self._late.append(item)
            message = encoded_event(item, self._encoder)
            new, blobs = self._encoder.take()
            if not self._failing and self._file is not None:
                _write(self._file, self._frames.frame({**message, "new": new}, blobs))
                self._unsynced = True
        except Exception as error:
            self._fail(error)
        return False

    def _fail(self, error: BaseException) -> None:
        """Say once that changes are no longer written; a full disk may pass, a mistake of ours not."""
        first, self._failing = not self._failing, True
        self._broken = self._broken or not isinstance(error, OSError)
        self._next_try = time.monotonic() + self._retry_seconds
        if first:
            reason = (isinstance(error, OSError) and error.strerror) or f"{type(error).__name__}: {error}"
            self._report(
                f"the journal {self.path} cannot be written ({reason}); annotating goes on, but what "
                "is done now would be lost with the program: make room, or save the labels"
            )

    def _sync(self) -> None:
        """Start to make what was written safe, if it is time; does not wait for the disk."""
        if self._syncing is not None and self._syncing.done():
            error, self._syncing = self._syncing.exception(), None
            if error is not None:
                self._fail(error)
        due = time.monotonic() - self._synced_at >= self._sync_seconds
        if self._unsynced and due and self._syncing is None and not self._failing and self._file is not None:
            self._unsynced, self._synced_at = False, time.monotonic()
            self._syncing = self._pool.submit(_sync_and_close, os.dup(self._file.fileno()))

    def _flush(self) -> bool:
        if self._failing:
            self._try_again()
        if self._failing or self._file is None:
            return False
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._fail(error)
            return False
        self._unsynced = False
        return True

    def _compact_if_large(self) -> None:
        if self._failing:
            if time.monotonic() >= self._next_try:
                self._try_again()
        elif self._file is not None and self._file.tell() >= self._due:
            self._compact()

    def _compact(self) -> None:
        if self._mirror.transaction is not None or self._failing:
            return  # the masks of a transaction belong to one step: when it is closed
        try:
            self._rewrite()
        except OSError as error:
            self._fail(error)

    def _try_again(self) -> None:
        self._next_try = time.monotonic() + self._retry_seconds
        if self._mirror.transaction is not None or self._broken:
            return
        with suppress(OSError):
            self._rewrite()
            self._failing = False
            self._report(f"the journal {self.path} can be written again, and has all that was done")

    def _drain(self) -> None:
        """Write the events that come while a long file is written, so that a kill does not lose them."""
        while self._late is not None and not self._postponed:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _Task) and not item.quick:
                self._postponed.append(item)
            else:
                self._take(item)

    def _rewrite(self) -> None:
        """A new file in place of the old one: a snapshot, and what has happened while it was written.

        Until it takes its place, events are added to the old file too.
        """
        frames = FrameWriter()
        self._late = []
        encoder = Encoder(self._mirror.store_number, self._drain)
        try:
            with atomic_file(self.path) as part:
                part.chmod(0o600)
                with part.open("r+b", buffering=0) as file:
                    _write_snapshot(file, frames, encoder, self._about, self._mirror)
                    encoder.pause = lambda: None  # later, an event in the middle of another would go first
                    syncing = self._pool.submit(os.fsync, file.fileno())
                    while not syncing.done():
                        self._drain()
                        time.sleep(0.001)
                    self._drain()
                    late, self._late = self._late, None
                    for event in late:
                        message = encoded_event(event, encoder)
                        new, blobs = encoder.take()
                        _write(file, frames.frame({**message, "new": new}, blobs))
                if self._file is not None:
                    self._file.close()  # Windows does not replace a file that is open
                    self._file = None
        finally:
            self._late = None
        self._file = self.path.open("ab", buffering=0)
        _lock(self._file)
        self._frames, self._encoder = frames, encoder
        self._due = max(self._compact_bytes, 2 * self._file.tell())
        self._unsynced = False

    def _write_whole(self, path: Path) -> None:
        about = {**self._about, "saved": True}
        with atomic_file(path) as part, part.open("r+b", buffering=0) as file:
            _write_snapshot(file, FrameWriter(), Encoder(self._mirror.store_number), about, self._mirror)


@dataclass(eq=False)
class _Task:
    """Something that the journal's thread does between two events."""

    do: Callable[[], Any]
    last: bool = False
    quick: bool = False
    result: Any = None
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.done = threading.Event()

    def run(self) -> None:
        try:
            self.result = self.do()
        except Exception as error:
            self.error = error
        finally:
            self.done.set()


def _write_snapshot(
    file: IO[bytes], frames: FrameWriter, encoder: Encoder, about: dict[str, Any], mirror: Mirror
) -> None:
    _write(file, MAGIC + frames.frame(about))
    message = mirror.snapshot(encoder)
    new, blobs = encoder.take()
    _write(file, frames.frame({**message, "new": new}, blobs))


def _write(file: IO[bytes], content: bytes) -> None:
    """Write all of it; a full disk takes a part first, and refuses the rest."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _sync_and_close(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _in_memory(store: LabelStore | None) -> bool:
    return type(getattr(store, "data", None)) is np.ndarray  # not a memory map, which is a file


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)


def _lock(file: IO[bytes]) -> bool:
    """Mark a file as in use; False if another process has done so. Always True where that is unknown."""
    try:
        import fcntl
    except ImportError:  # Windows: a file that is open cannot be deleted there
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


# Reading


@dataclass(frozen=True)
class JournalInfo:
    """A journal in a folder.

    Attributes
    ----------
    path
        The file.
    identity, shape, name
        `Volume.identity`, shape and name of the image, when the journal was begun.
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
    started: float
    changed: float
    nbytes: int
    in_use: bool


def list_journals(folder: str | Path, volume: Volume | None = None) -> list[JournalInfo]:
    """The journals in a folder, the newest first; only those of an image with the same pixels if it is given.

    Files that are no journals are left out. A folder that does not exist has none.
    """
    found = []
    for path in Path(folder).glob(f"*{SUFFIX}"):
        with suppress(JournalError, OSError):
            info = _info(path)
            if volume is None or info.identity == volume.identity:
                found.append(info)
    return sorted(found, key=lambda info: info.changed, reverse=True)


def prune_journals(
    folder: str | Path, keep_bytes: int = KEEP_BYTES, keep_days: float = KEEP_DAYS
) -> list[Path]:
    """Delete journals that were not changed for `keep_days`, and the oldest while all are over `keep_bytes`.

    Journals in use stay. Returns what was deleted.
    """
    journals = list_journals(folder)
    held = sum(info.nbytes for info in journals)
    deleted = []
    for info in reversed(journals):
        too_old = time.time() - info.changed > keep_days * 86400
        if not info.in_use and (too_old or held > keep_bytes):
            with suppress(OSError):  # another process was quicker
                info.path.unlink()
                deleted.append(info.path)
                held -= info.nbytes
    return deleted


def open_session(path: str | Path, volume: Volume, labels: Sequence[LabelStore] = ()) -> Session:
    """The session in a file, as it was after the last complete action; its labels are written.

    Parameters
    ----------
    path
        Saved by `Journal.save`, or a journal. Of a journal, an action that is not whole at the end of the
        file is left out.
    volume
        The image; its pixels must be those of the session, its name and place need not.
    labels
        All labels that the session wrote to, in the order of their first use, as they were at first or as it
        left them.

    Raises
    ------
    JournalError
        If it is no session, one of a later version or of other pixels, or a damaged one. No label is written.
    OSError
        If the file cannot be read.
    """
    return _read(Path(path), volume, labels)[0].session(volume)


def resume(
    path: str | Path,
    volume: Volume,
    labels: Sequence[LabelStore] = (),
    folder: str | Path | None = None,
    **options: Any,
) -> tuple[Session, Journal]:
    """Go on with a session: as `open_session`, and a journal for what comes.

    The journal begins with all of the session; once it is safe on disk, the file at `path` is deleted if it
    was a journal. `folder` is that of `path` by default; `options` are those of `Journal`.
    """
    path = Path(path)
    mirror, about = _read(path, volume, labels)
    session = mirror.session(volume)
    again = Mirror.of(session, mirror.written)
    again.stores, again.store = mirror.stores, mirror.store
    journal = Journal(session, path.parent if folder is None else folder, mirror=again, **options)
    if not about.get("saved"):
        path.unlink()
    return session, journal


def _open(path: Path) -> IO[bytes]:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
        raise JournalError(f"{path} is no file; choose a session that was saved")
    return path.open("rb")


def _info(path: Path) -> JournalInfo:
    with _open(path) as file, _refused(path):
        about = _about(FrameReader(file, os.fstat(file.fileno()).st_size))
        facts = os.fstat(file.fileno())
        in_use = not _lock(file)
    shape = tuple(as_int(n, 1) for n in as_list(about["shape"]))
    started = as_number(about["started"])
    name = as_text(about["name"])
    return JournalInfo(path, about["identity"], shape, name, started, facts.st_mtime, facts.st_size, in_use)


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


def _read(path: Path, volume: Volume, labels: Sequence[LabelStore]) -> tuple[Mirror, dict[str, Any]]:
    """The mirror in a file, and its first frame."""
    with _open(path) as file, _refused(path):
        size = os.fstat(file.fileno()).st_size
        reader = FrameReader(file, size)
        about = _about(reader)
        shape = tuple(as_int(n, 1) for n in as_list(about["shape"]))
        if about["identity"] != volume.identity or shape != volume.shape:
            raise JournalError(
                f"it belongs to other pixels, an image of shape {shape}"
                f"{about['name'] and ' named '}{as_text(about['name'])}, not to this one of {volume.shape}; "
                "open that image"
            )
        decoder = Decoder(shape, list(labels))
        mirror: Mirror | None = None
        for message, blobs in reader:
            decoder.add(message["new"], blobs)
            if mirror is None:
                if message["kind"] != "snapshot":
                    raise JournalError("its first action is no snapshot")
                mirror = Mirror.decoded(message, decoder, shape, list(labels))
            elif about.get("saved"):
                raise JournalError("a saved session has two frames, this one more")
            else:
                mirror.play(decoded_event(message, decoder))
        if mirror is None or (about.get("saved") and reader.end != size):
            raise JournalError("it is damaged or not complete")
        mirror.check()
    return mirror, about


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
