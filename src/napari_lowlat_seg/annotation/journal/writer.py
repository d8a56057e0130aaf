"""Writes every change of a session to a file, behind the change.

The session only puts a frozen event into a queue. A thread of the journal writes it, so a `kill -9` loses
what was done in the last milliseconds at most, and a power cut what was done in the last second. Why a plain
file and no data base: docs/decisions/journal.md.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import IO, Any

from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.annotation.journal.encoding import Encoder
from napari_lowlat_seg.annotation.journal.frames import FORMAT, MAGIC, SUFFIX, VERSION, FrameWriter
from napari_lowlat_seg.annotation.journal.mirror import Mirror
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.atomic_file import atomic_file

QUEUE = 20_000
"""Events that may wait for the disk; beyond that the journal gives up."""

POLL_SECONDS = 0.01
"""The journal looks for events so often: being woken by each would make the click wait for that thread."""

IDLE_POLL_SECONDS = 0.05
"""So often when none came for a while."""

SYNC_SECONDS = 0.5
"""What is written is made safe against a power cut about so often."""

RETRY_SECONDS = 15.0
"""After an error of the disk, the whole session is written anew about so often until that succeeds."""

COMPACT_BYTES = 32 * 2**20
"""A file is compacted when it has this size and is twice as large as it was after the last time."""

HANDOVER_SECONDS = 0.25
"""Before labels on disk are written, the journal may take so long to note what will be written."""


class Journal:
    """Writes every change of a session to a file, until `close`.

    Parameters
    ----------
    session
        From now on the journal is its observer.
    folder
        Made, for this user only, if it does not exist. The file in it has a name of its own, and is there as
        soon as something was done in the session.
    report
        Called from the journal's thread with one sentence when the disk fails and when it works again; warns
        by default. The session goes on in any case.
    before
        The mirror that the session was restored from.
    image
        Where the image lies, for the record.
    compact_bytes, sync_seconds, retry_seconds
        In place of `COMPACT_BYTES`, `SYNC_SECONDS` and `RETRY_SECONDS`.

    Attributes
    ----------
    path
        The file.
    """

    def __init__(
        self,
        session: Session,
        folder: str | Path,
        *,
        report: Callable[[str], object] | None = None,
        before: Mirror | None = None,
        image: str | Path | None = None,
        compact_bytes: int = COMPACT_BYTES,
        sync_seconds: float = SYNC_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._started = time.time()
        begun = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(self._started))
        self.path = Path(folder) / f"{begun}-{token_hex(4)}{SUFFIX}"
        self._volume, self._image = session.volume, None if image is None else str(image)
        self._report = report or _warn
        self._compact_bytes, self._sync_seconds = compact_bytes, sync_seconds
        self._retry_seconds = retry_seconds
        self._mirror = Mirror.of(session, before)
        self._queue = _Inbox()
        self._postponed: list[_Task] = []
        self._file: IO[bytes] | None = None
        self._late: list[Event] | None = None  # those that came while the file is written anew
        self._failing = self._broken = self._unsynced = False
        self._next_try = self._synced_at = time.monotonic()
        self._syncing: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1, "journal-sync")
        self._session: Session | None = session
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()
        session.observer = self

    # The session's thread

    def __call__(self, event: Event) -> None:
        """Take an event of the session; returns at once.

        Only before labels outside of memory are written, it waits until the note of that is with the system,
        for `HANDOVER_SECONDS` at most; and labels in memory are read when they are used first, unless they
        say themselves what is in them.
        """
        if event.kind == "labels" and event.store is not None:
            self._mirror.meet(event.store)
        try:
            self._queue.put(event)
        except queue.Full:
            self.leave()
            self._report(
                f"the journal {self.path} could not keep up with {QUEUE} changes and has stopped; save the "
                "labels, and open the image again to begin a new one"
            )
            return
        writing = event.store if event.kind == "writing" else None
        if writing is not None and self._mirror.about(writing).place is not None:  # on disk
            noted = _Task(lambda: None, quick=True)
            with suppress(queue.Full):
                self._queue.put(noted, wake=True)
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
            self.leave()
            self._ask(lambda: self._mirror.untouched or self._flush(), last=True)
            self._thread.join()
        self._pool.shutdown()
        if self._file is not None:
            self._file.close()
            self._file = None
        if discard:
            self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Hear of the session no longer; `close` ends the journal."""
        session, self._session = self._session, None
        if session is not None and session.observer is self:
            session.observer = None

    def _ask(self, do: Callable[[], Any], *, last: bool = False) -> Any:
        if not self._thread.is_alive():
            raise RuntimeError("the journal is closed")
        task = _Task(do, last)
        self._queue.put(task, wake=True)
        task.done.wait()
        if task.error is not None:
            raise task.error
        return task.result

    # The journal's thread

    def _run(self) -> None:
        if not self._mirror.untouched:
            self._compact()
        while True:
            try:
                item = self._postponed.pop(0) if self._postponed else self._queue.get(self._patience())
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
        if self._file is None and item.kind not in ("settings", "labels"):
            self._begin()
        try:
            self._mirror.play(item)
            if self._late is not None:
                self._late.append(item)
            if self._file is None:
                return False
            message = self._encoder.event(item)
            new, blobs = self._encoder.take()
            if not self._failing:
                _write(self._file, self._frames.frame({**message, "new": new}, blobs))
                self._unsynced = True
        except Exception as error:
            self._fail(error)
        return False

    def _begin(self) -> None:
        """Make the file, with what was before the first event."""
        if self._late is None and not self._failing and self._mirror.transaction is None:
            try:
                self._rewrite(alone=True)
            except Exception as error:
                self._fail(error)

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
            if not _same_file(self._file, self.path):  # somebody has removed it, or its drive is gone
                self._compact()
                return
            self._syncing = self._pool.submit(_sync_and_close, os.dup(self._file.fileno()))

    def _flush(self) -> bool:
        if self._failing:
            self._try_again()
        elif self._file is None or not _same_file(self._file, self.path):
            self._compact()
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
        except Exception as error:
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
                item = self._queue.get(0)
            except queue.Empty:
                return
            if isinstance(item, _Task) and not item.quick:
                self._postponed.append(item)
            else:
                self._take(item)

    def _rewrite(self, *, alone: bool = False) -> None:
        """A new file in place of the old one: a snapshot, and what has happened while it was written.

        Until it takes its place, events are added to the old file too. Those that come while it is made
        `alone` wait.
        """
        frames = FrameWriter()
        self._late = None if alone else []
        encoder = Encoder(self._mirror.about, self._drain)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with atomic_file(self.path) as part:
                part.chmod(0o600)
                with part.open("r+b", buffering=0) as file:
                    _write_snapshot(file, frames, encoder, self._about(), self._mirror)
                    encoder.pause = lambda: None  # later, an event in the middle of another would go first
                    syncing = self._pool.submit(os.fsync, file.fileno())
                    while not syncing.done():
                        self._drain()
                        time.sleep(0.001)
                    self._drain()
                    late, self._late = self._late or [], None
                    for event in late:
                        message = encoder.event(event)
                        new, blobs = encoder.take()
                        _write(file, frames.frame({**message, "new": new}, blobs))
                if self._file is not None:
                    self._file.close()  # Windows does not replace a file that is open
                    self._file = None
        finally:
            self._late = None
        self._file = self.path.open("ab", buffering=0)
        lock(self._file)
        self._frames, self._encoder = frames, encoder
        self._due = max(self._compact_bytes, 2 * self._file.tell())
        self._unsynced = False

    def _write_whole(self, path: Path) -> None:
        about = {**self._about(), "saved": True}
        with atomic_file(path) as part, part.open("r+b", buffering=0) as file:
            _write_snapshot(file, FrameWriter(), Encoder(self._mirror.about), about, self._mirror)

    def _about(self) -> dict[str, Any]:
        volume = self._volume
        return {
            "kind": "about",
            "format": FORMAT,
            "version": VERSION,
            "identity": volume.identity,  # may read a few planes, the first time
            "shape": list(volume.shape),
            "channel": [volume.channel_axis, volume.channel],
            "name": volume.name,
            "image": self._image,
            "started": self._started,
        }


class _Inbox:
    """A queue whose `put` wakes nobody: the reader looks for items by itself, or is woken at once."""

    def __init__(self) -> None:
        self._items: deque[Event | _Task] = deque()
        self._wake = threading.Event()
        self._busy_until = 0.0

    def put(self, item: Event | _Task, *, wake: bool = False) -> None:
        """Add an item; raises queue.Full beyond `QUEUE`."""
        if len(self._items) >= QUEUE:
            raise queue.Full
        self._items.append(item)
        if wake:
            self._wake.set()

    def get(self, patience: float | None) -> Event | _Task:
        """The oldest item; raises queue.Empty if none comes in so many seconds, None for ever."""
        end = None if patience is None else time.monotonic() + patience
        while not self._items:
            now = time.monotonic()
            pause = POLL_SECONDS if now < self._busy_until else IDLE_POLL_SECONDS
            if end is not None:
                pause = min(pause, end - now)
                if pause <= 0:
                    raise queue.Empty
            self._wake.wait(pause)
            self._wake.clear()
        self._busy_until = time.monotonic() + 2
        return self._items.popleft()


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


def _same_file(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _sync_and_close(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)


def lock(file: IO[bytes]) -> bool:
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
