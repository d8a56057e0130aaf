"""Another Python interpreter that works for this one: how it is started, used and ended.

Both sides send framed messages over the child's standard input and output. Nothing is forked, and the user's
script is not run a second time, as multiprocessing would. A child ends itself when its input ends, so that
closing, a crash and `kill -9` of the parent have the same effect.
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

POLL_SECONDS = 0.005
"""Seconds between two checks whether a request was cancelled. Replies themselves wake at once."""

_BOOT = "import sys; sys.path += sys.argv[1:]; from {module} import {function}; {function}()"

Callbacks = Mapping[str, Callable[..., Any]]


class Interrupted(Exception):
    """Raised where a request that was cancelled is at work."""


class WorkerProcessEnded(RuntimeError):
    """Raised by a request to an interpreter that has ended."""


class Message(NamedTuple):
    """What is sent: the number of the request it belongs to, the kind of message, and its content."""

    number: int
    kind: str
    content: Any = None


class WorkerProcess:
    """Another interpreter, as its parent sees it. Call `request` from one thread, `kill` from any.

    Parameters
    ----------
    module, function
        What runs there; the function opens a `Connection` and calls its `serve`.
    environment
        Variables that differ from this process's environment.

    Raises
    ------
    RuntimeError
        If no process can be started.
    """

    def __init__(self, module: str, function: str, environment: Mapping[str, str] | None = None) -> None:
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW
        boot = _BOOT.format(module=module, function=function)
        # -P: what lies in the user's working folder is no module of ours. The package comes last on the path.
        command = [sys.executable, "-P", "-c", boot, str(Path(__file__).resolve().parents[2])]
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
        """Whether the interpreter has ended or was killed."""
        return self._killed or self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self._killed = True
        self._process.kill()

    def request(
        self,
        kind: str,
        content: tuple[Any, ...],
        callbacks: Callbacks,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[Any]:
        """Yield what the child's handler of this kind of request yields.

        Closing the generator stops the child as well.

        Parameters
        ----------
        kind
            The name of a handler that the child gave to `Connection.serve`.
        content
            The handler's arguments.
        callbacks
            By name, what the child may call here while it works. What they raise ends the request.
        cancelled
            Asked every `POLL_SECONDS` while waiting; once it returns True, the child is asked to stop.

        Raises
        ------
        Interrupted
            If the child has stopped.
        WorkerProcessEnded
            If the child has ended.
        Exception
            An error of the child's, as the nearest of its kinds that is built into Python.
        """
        number = next(self._numbers)
        self._send(Message(number, kind, content))
        stopped = ended = False
        try:
            while not ended:
                if cancelled is not None and not stopped and cancelled():
                    stopped = True
                    self._send(Message(number, "stop"))
                try:
                    reply = self._replies.get(timeout=POLL_SECONDS if cancelled is not None else None)
                except queue.Empty:
                    continue
                if reply.kind == "died":
                    self._replies.put(reply)  # for the next request
                    raise WorkerProcessEnded(
                        f"the model process {reply.content}; your prompts are kept, click again to restart it"
                    )
                if reply.number != number:
                    continue  # left over from a request that was given up
                ended = reply.kind in ("end", "error", "interrupted")
                if reply.kind == "item":
                    yield reply.content
                elif reply.kind == "error":
                    raise _rebuilt_error(*reply.content)
                elif reply.kind == "interrupted":
                    raise Interrupted
                elif not ended:
                    result = callbacks[reply.kind](*reply.content)
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
            self._replies.put(Message(0, "died", _described(status)))


class Connection:
    """The child's end, opened once, by its main thread. What the child prints goes to standard error then."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "wb", 0)
        source = os.fdopen(os.dup(0), "rb", 0)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        try:
            os.dup2(2, 1)
        except OSError:  # a program without a terminal has no standard error
            os.dup2(nothing, 1)
        os.close(nothing)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is meant for the parent
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._cancelled = self._number = 0
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def serve(self, handlers: Mapping[str, Callable[..., Iterator[Any]]]) -> None:
        """Serve requests until the parent ends, each by the handler of its kind, which yields the replies."""
        while True:
            message = self._messages.get()
            if message.kind not in handlers:
                continue  # a stop, or a callback's result, that came too late
            self._number = message.number
            try:
                for item in handlers[message.kind](*message.content):
                    self._send("item", item)
                self._send("end")
            except Interrupted:
                self._send("interrupted")
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                self._send("error", (kinds, str(error) or kinds[0], traceback.format_exc()))

    def cancelled(self) -> bool:
        """Whether the request under way was cancelled."""
        return self._cancelled == self._number

    def call(self, callback: str, *arguments: Any) -> Any:
        """What a callback of the parent's returns. Raises Interrupted if the request was cancelled."""
        if not self.cancelled():
            self._send(callback, arguments)
        while not self.cancelled():
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
                    self._cancelled = message.number
                self._messages.put(message)
        finally:
            os._exit(0)  # the parent is gone; whatever is under way ends too


def write(stream: Any, message: Message) -> None:
    """Write one frame: the number of parts, the length of each, the parts. Arrays are parts of their own and
    are not copied."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(message, 5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    lengths = struct.pack(f"<{1 + len(parts)}Q", len(parts), *(part.nbytes for part in parts))
    for part in (memoryview(lengths), *parts):
        while part.nbytes:
            part = part[stream.write(part) :]


def read(stream: Any) -> Message | None:
    """Read the next frame; None at the end of the stream."""
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


def _described(status: int) -> str:
    """How a process ended, after its exit status."""
    if status >= 0:
        return f"has ended with exit status {status}"
    name = next((known.name for known in signal.Signals if known == -status), f"signal {-status}")
    return "was killed, probably out of memory" if name == "SIGKILL" else f"was ended by {name}"


def _rebuilt_error(kinds: list[str], sentence: str, trace: str) -> Exception:
    """An error of the child's, as the nearest of its kinds that is built into Python."""
    for kind in kinds:
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception):
            try:
                error = known(sentence)
            except TypeError:  # a kind that needs more than a sentence
                continue
            error.__cause__ = RuntimeError(f"in the model process:\n{trace}")
            return error
    return RuntimeError(sentence)
