"""Another interpreter that works for this one: how it is started, spoken to and ended.

Both sides talk in frames over the child's standard input and output. Nothing is forked, and the user's script
is not run a second time, as multiprocessing would. A child whose input ends, ends itself: closing, a crash
and `kill -9` of the parent all look the same to it.
"""

from __future__ import annotations

import builtins
import itertools
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

GLANCE = 0.005
"""Seconds between two glances at whether an answer is still wanted. Answers themselves wake at once."""

_BOOT = "import sys; sys.path += sys.argv[2:]; from {module} import {function}; {function}()"

Services = Mapping[str, Callable[..., Any]]


class Interrupted(Exception):
    """The answer is not wanted any more."""


class WorkerProcessEnded(RuntimeError):
    """The other interpreter is not there any more."""


class Message(NamedTuple):
    """What travels: the number of the conversation, what it is about, and what belongs to it."""

    number: int
    kind: str
    content: Any = None


class WorkerProcess:
    """Another interpreter, as its parent sees it. `ask` from one thread, `kill` from any.

    Parameters
    ----------
    module, function
        What runs there; the function opens a `Connection` and serves.
    environment
        What differs from this process's environment.
    niceness
        Steps by which it gives way to other processes, where the system knows such steps; 0 for none.

    Raises
    ------
    RuntimeError
        If no process can be started.
    """

    def __init__(
        self, module: str, function: str, environment: Mapping[str, str] | None = None, niceness: int = 0
    ) -> None:
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW
            flags |= subprocess.BELOW_NORMAL_PRIORITY_CLASS if niceness else 0
        boot = _BOOT.format(module=module, function=function)
        # -P: what lies in the user's working folder is no module of ours. The package comes last on the path.
        command = [sys.executable, "-P", "-c", boot, str(niceness), str(Path(__file__).resolve().parents[2])]
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                creationflags=flags,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise RuntimeError(
                f"no process could be started with {sys.executable!r} ({error}); close other programs and "
                "try again"
            ) from None
        self.pid = self._process.pid
        self._numbers = itertools.count(1)
        self._replies: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._killed = False
        threading.Thread(target=self._listen, name=f"replies of {module}", daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether nobody will answer any more."""
        return self._killed or self._process.poll() is not None

    def kill(self) -> None:
        """Ends it at once, whatever it is doing."""
        self._killed = True
        self._process.kill()

    def ask(
        self,
        verb: str,
        content: tuple[Any, ...],
        services: Services,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Any]:
        """What the child says to one question, each as it comes.

        Parameters
        ----------
        services
            What the child may call here while it works. What they raise ends the conversation.
        newer
            Asked again and again while waiting; once it is true, the child is told to stop.

        Raises
        ------
        Interrupted
            If the child stopped.
        WorkerProcessEnded
            If it ended, or had. And every error of the child's, as the nearest kind that all Pythons have.
        """
        number = next(self._numbers)
        self._send(Message(number, verb, content))
        stopped = ended = False
        try:
            while not ended:
                if cancelled is not None and not stopped and cancelled():
                    stopped = True
                    self._send(Message(number, "stop"))
                try:
                    reply = self._replies.get(timeout=GLANCE if cancelled is not None else None)
                except queue.Empty:
                    continue
                if reply.kind == "died":
                    self._replies.put(reply)  # for whoever asks next
                    raise WorkerProcessEnded(
                        f"the process that runs the model has ended ({reply.content}); what was drawn is "
                        "kept, try again"
                    )
                if reply.number != number:
                    continue  # left over from a conversation that was given up
                ended = reply.kind in ("end", "error", "interrupted")
                if reply.kind == "item":
                    yield reply.content
                elif reply.kind == "error":
                    raise _rebuilt(*reply.content)
                elif reply.kind == "interrupted":
                    raise Interrupted
                elif not ended:
                    result = services[reply.kind](*reply.content)
                    self._send(Message(number, "served", result))
        finally:
            if not ended and not stopped:
                self._send(Message(number, "stop"))

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None
        try:
            with self._sending:
                write(self._process.stdin, message)
        except (OSError, ValueError):
            pass  # it has ended, and the queue of replies says so

    def _listen(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        try:
            with self._process.stdout as stream:
                while (message := read(stream)) is not None:
                    self._replies.put(message)
        finally:
            self._process.kill()  # one that has closed its output is of no use
            status = self._process.wait()
            with self._sending:
                self._process.stdin.close()
            self._replies.put(Message(0, "died", _told(status)))


class Connection:
    """The child's end, opened once, by its main thread; what it prints goes to standard error then."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "wb", 0)
        source = os.fdopen(os.dup(0), "rb", 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # a program without a terminal has none
            os.dup2(nothing, 1)
        os.close(nothing)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is meant for the parent
        niceness = int(sys.argv[1])
        if niceness and hasattr(os, "nice"):
            os.nice(niceness)
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stopped = self._number = 0
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def serve(self, verbs: Mapping[str, Callable[..., Iterator[Any]]]) -> None:
        """Answers questions by `verbs` for ever; each yields what it has to say."""
        while True:
            message = self._messages.get()
            if message.kind not in verbs:
                continue  # a stop or a service that came too late
            self._number = message.number
            try:
                for item in verbs[message.kind](*message.content):
                    self._send("item", item)
                self._send("end")
            except Interrupted:
                self._send("interrupted")
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                self._send("error", (kinds, str(error) or kinds[0], traceback.format_exc()))

    def stopped(self) -> bool:
        """Whether the answer under way is not wanted any more."""
        return self._stopped == self._number

    def call(self, service: str, *arguments: Any) -> Any:
        """What a service of the parent's gives; Interrupted if the parent stopped instead."""
        if not self.stopped():
            self._send(service, arguments)
        while not self.stopped():
            message = self._messages.get()
            if message.kind == "served" and message.number == self._number:
                return message.content
        raise Interrupted

    def _send(self, kind: str, content: Any = None) -> None:
        write(self._stream, Message(self._number, kind, content))

    def _listen(self, source: Any) -> None:
        try:
            while (message := read(source)) is not None:
                if message.kind == "stop":
                    self._stopped = message.number
                self._messages.put(message)
        finally:
            os._exit(0)  # the parent is gone, in the middle of whatever this is


def write(stream: Any, message: Message) -> None:
    """One frame: the number of parts, the length of each, the parts. Arrays are parts and are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, 5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(part.nbytes for part in parts))
    for part in (memoryview(lengths), *parts):
        while part.nbytes:
            part = part[stream.write(part) :]


def read(stream: Any) -> Message | None:
    """The next frame; None at the end."""
    try:
        (count,) = struct.unpack("<Q", _exactly(stream, 8))
        lengths = struct.unpack(f"<{count}Q", _exactly(stream, 8 * count))
        head, *buffers = [_exactly(stream, length) for length in lengths]
    except (EOFError, OSError, ValueError):
        return None
    message: Message = pickle.loads(head, buffers=buffers)
    return message


def _exactly(stream: Any, count: int) -> bytearray:
    part = bytearray(count)
    view = memoryview(part)
    while view.nbytes:
        got = stream.readinto(view)
        if not got:
            raise EOFError
        view = view[got:]
    return part


def _told(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    name = next((known.name for known in signal.Signals if known == -status), f"signal {-status}")
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


def _rebuilt(kinds: list[str], sentence: str, trace: str) -> Exception:
    """An error of the child's, as the nearest kind that every Python has."""
    for kind in kinds:
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                error = known(sentence)
            except TypeError:  # a kind that needs more than a sentence
                continue
            error.__cause__ = RuntimeError(f"in the child:\n{trace}")
            return error
    return RuntimeError(sentence)
