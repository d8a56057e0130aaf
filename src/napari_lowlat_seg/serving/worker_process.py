"""Another Python interpreter that works for this one: how it is started, used and ended.

Both sides send framed messages over the child's standard input and output (`wire`). Nothing is forked, and
the user's script is not run a second time, as multiprocessing would. A child ends itself when its input ends,
so that closing, a crash and `kill -9` of the parent have the same effect. Between the two may be ssh.
"""

from __future__ import annotations

import builtins
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from napari_lowlat_seg.serving.wire import (
    HELLO,
    MOST_REPLY,
    MOST_REQUEST,
    Message,
    ProtocolError,
    find_hello,
    read,
    write,
)

POLL_SECONDS = 0.005
"""Seconds between two checks whether a request was cancelled. Replies themselves wake at once."""

QUIET_SECONDS = 20.0
"""Seconds without a word after which a child is asked whether it is there."""

HUNG_SECONDS = 600.0
"""Seconds without an answer to that after which it is ended. Its listener answers whatever it works on, but
beside 20 busy programs on two processors it was silent for more than two minutes."""

ENDING_SECONDS = 3.0
"""Seconds from the end of a child's output until it is ended, if it does not do so itself."""

WAITING = 16
"""Messages from a child that wait here to be read; then it has to wait itself."""

MOST_STRAY = 10_000
"""Messages to nobody while a request is under way, after which a child is ended."""

_BOOT = "import sys; sys.path += sys.argv[1:]; from {module} import {function}; {function}()"

Callbacks = Mapping[str, Callable[..., Any]]


class Interrupted(Exception):
    """Raised where a request that was cancelled is at work."""


NOT_FOUND = 127
"""The exit status of a shell that does not find a command; of ssh, where `lowlat-seg` is not on the path."""


class CallFailed(Exception):
    """Raised in the child where the callback that it called has raised; only the parent knows what.

    A handler may go on without it. Where it does not, the parent raises what the callback has raised.
    """


class WorkerProcessEnded(RuntimeError):
    """Raised by a request to an interpreter that has ended."""


def python_command(module: str, function: str) -> list[str]:
    """The command that runs a function of a module in a fresh interpreter.

    The function opens a `Connection` and calls its `serve`.
    """
    boot = _BOOT.format(module=module, function=function)
    # -P: what lies in the user's working folder is no module of ours. The package comes last on the path.
    return [sys.executable, "-P", "-c", boot, str(Path(__file__).resolve().parents[2])]


class WorkerProcess:
    """Another interpreter, as its parent sees it. Call `request` and `ping` from one thread, `kill` from any.

    Parameters
    ----------
    command
        Starts it; what it writes to standard output are messages.
    environment
        Variables that differ from this process's environment.
    name
        What messages call it.
    remote
        Whether what it writes to standard error says why it ended, as ssh does.

    Attributes
    ----------
    killed
        Whether `kill` has ended it.
    misbehaved
        Whether it was ended because of what it has sent; another one would do the same.

    Raises
    ------
    RuntimeError
        If no process can be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        name: str = "the model process",
        remote: bool = False,
    ) -> None:
        flags = 0
        if sys.platform == "win32":
            flags = subprocess.CREATE_NO_WINDOW
        try:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if remote else None,
                creationflags=flags,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise RuntimeError(
                f"no process could be started with {command[0]!r} ({error}); close other programs and "
                "try again"
            ) from None
        self.pid = self._process.pid
        self.name = name
        self._numbers = itertools.count(1)
        self._replies = _Mailbox()
        self._sending = threading.Lock()
        self.killed = self.misbehaved = False
        self._greeted = False
        self._why = ""
        self._said: deque[str] = deque(maxlen=5)
        self._listeners = [threading.Thread(target=self._listen, name=f"replies of {name}", daemon=True)]
        if remote:
            self._listeners.append(threading.Thread(target=self._overhear, daemon=True))
        for listener in self._listeners:
            listener.start()

    @property
    def ended(self) -> bool:
        """Whether the interpreter has ended or was killed."""
        return self.killed or self._process.poll() is not None

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        self.killed = True
        self._process.kill()

    def reject(self, why: str) -> NoReturn:
        """End a child that misbehaves, and raise WorkerProcessEnded with the reason."""
        self.misbehaved = True
        self._end(why)
        raise self._dead()

    def ping(self) -> float:
        """Seconds until a word from there is here; while no request is under way."""
        began = time.perf_counter()
        self._send(Message(0, "ping"))
        while self._next(None).kind != "pong":
            pass
        return time.perf_counter() - began

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
            By name, what the child may call here while it works. What they raise is raised here when the
            child cannot go on without it; see `CallFailed`.
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
        number, stray = next(self._numbers), 0
        self._send(Message(number, kind, content))
        stopped = ended = False
        failure: Exception | None = None  # of a callback, the newest

        def stop() -> None:
            nonlocal stopped
            if cancelled is not None and not stopped and cancelled():
                stopped = True
                self._send(Message(number, "stop"))

        try:
            while not ended:
                reply = self._next(None if cancelled is None else stop)
                if reply.number != number:  # left over from a request that was given up
                    stray += 1
                    if stray > MOST_STRAY:
                        self.reject("sent messages that nobody asked for and was ended")
                    continue
                ended = reply.kind in ("end", "error", "interrupted", "failed")
                if reply.kind == "item":
                    yield reply.content
                elif reply.kind == "error":
                    raise _rebuilt_error(reply.content)
                elif reply.kind == "interrupted":
                    raise Interrupted
                elif reply.kind == "failed":
                    if failure is None:
                        self.reject("gave up for a call that has not failed and was ended")
                    raise failure
                elif not ended:
                    failure = self._serve(callbacks, reply) or failure
        finally:
            failure = None  # its traceback holds this frame, and frames of the callback with pixels
            if not ended and not stopped:
                self._send(Message(number, "stop"))

    def _serve(self, callbacks: Callbacks, call: Message) -> Exception | None:
        """Send the result of a callback, if the child may call it, or that it has raised what is returned."""
        callback = callbacks.get(call.kind)
        if callback is None or type(call.content) is not tuple:
            self.reject(f"sent a message of an unknown kind ({call.kind[:20]!r}) and was ended")
        try:
            self._send(Message(call.number, "served", callback(*call.content)))
        except WorkerProcessEnded:
            raise
        except Exception as error:
            self._send(Message(call.number, "failed"))
            return error
        return None

    def _next(self, between: Callable[[], None] | None) -> Message:
        """The next message; `between` is called while there is none. Raises WorkerProcessEnded."""
        quiet_since, asked = time.monotonic(), False
        while True:
            if between is not None:
                between()
            message = self._replies.get(POLL_SECONDS if between is not None else QUIET_SECONDS / 4)
            if message is not None and (message.kind != "pong" or not asked):
                return message
            if message is not None:
                quiet_since, asked = time.monotonic(), False
            elif self._replies.closed:
                raise self._dead()
            elif not self._greeted:  # it is still starting, however long that takes
                quiet_since = time.monotonic()
            elif not asked and time.monotonic() > quiet_since + QUIET_SECONDS:
                asked = True
                self._send(Message(0, "ping"))
            elif time.monotonic() > quiet_since + QUIET_SECONDS + HUNG_SECONDS:
                self._end(f"has not answered for {QUIET_SECONDS + HUNG_SECONDS:.0f} s and was ended")

    def _dead(self) -> WorkerProcessEnded:
        advice = "your prompts are kept, click again to restart it"
        if f"exit status {NOT_FOUND} " in self._why:
            advice = "install napari-lowlat-seg there, or set LOWLAT_SEG_REMOTE to the path of the command"
        return WorkerProcessEnded(f"{self.name} {self._why}; {advice}")

    def _end(self, why: str) -> None:
        """End a child that misbehaves; the reason is what requests raise."""
        self._why = self._why or why
        self._process.kill()

    def _send(self, message: Message) -> None:
        assert self._process.stdin is not None
        try:
            with self._sending:
                write(self._process.stdin, message)
        except OSError:
            pass  # it has ended, and the mailbox says so
        except ValueError:
            if not self._process.stdin.closed:
                raise  # what was to be sent is none of what travels

    def _listen(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        try:
            with self._process.stdout as stream:
                if find_hello(stream):
                    self._greeted = True
                    while (message := read(stream, MOST_REPLY)) is not None:
                        self._replies.put(message)
        except ProtocolError as error:
            self.misbehaved = True
            self._why = self._why or f"was ended, because {error}"
        finally:
            if self.misbehaved:
                self._process.kill()
            try:  # ssh has an exit status to give after its output has ended
                status = self._process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()  # one that has closed its output is of no use
                status = self._process.wait()
            for listener in self._listeners[1:]:
                listener.join(1.0)
            self._why = self._why or _described(status, " ".join(self._said))
            with self._sending:
                self._process.stdin.close()
            self._replies.close()

    def _overhear(self) -> None:
        """Keep the last lines of standard error."""
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            while line := stream.readline(500):
                self._said.append(line.decode("utf-8", "replace").strip())


class _Mailbox:
    """Messages that wait to be read, so many at most; what comes in wakes who waits."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no message is there and none will come."""
        with self._changed:
            return self._closed and not self._messages

    def put(self, message: Message) -> None:
        """Add a message, when there is room. Pongs and callbacks do not wait: each answers one of ours."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._messages) < WAITING or self._closed)
            self._messages.append(message)
            self._changed.notify_all()

    def get(self, timeout: float) -> Message | None:
        """The oldest message, or None if there is none in time or the box is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._closed, timeout)
            if not self._messages:
                return None
            self._changed.notify_all()
            return self._messages.popleft()

    def close(self) -> None:
        """Nothing comes any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
        self._sending = threading.Lock()  # the listener answers while a handler is at work
        self._stream.write(HELLO)
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
            except CallFailed:
                self._send("failed")
            except Exception as error:
                kinds = [kind.__name__ for kind in type(error).__mro__]
                self._send("error", (kinds, str(error) or kinds[0], traceback.format_exc()))

    def cancelled(self) -> bool:
        """Whether the request under way was cancelled."""
        return self._cancelled == self._number

    def call(self, callback: str, *arguments: Any) -> Any:
        """What a callback of the parent's returns. Raises CallFailed if it raised something.

        Raises Interrupted if the request was cancelled.
        """
        if not self.cancelled():
            self._send(callback, arguments)
        while not self.cancelled():
            message = self._messages.get()
            if message.number != self._number:
                continue
            if message.kind == "served":
                return message.content
            if message.kind == "failed":
                raise CallFailed
        raise Interrupted

    def _send(self, kind: str, content: Any = None) -> None:
        self._write(Message(self._number, kind, content))

    def _write(self, message: Message) -> None:
        with self._sending:
            write(self._stream, message)

    def _listen(self, source: Any) -> None:
        try:
            while (message := read(source, MOST_REQUEST)) is not None:
                if message.kind == "ping":
                    self._write(Message(0, "pong"))
                    continue
                if message.kind == "stop":
                    self._cancelled = message.number
                self._messages.put(message)
        finally:
            os._exit(0)  # the parent is gone; whatever is under way ends too


def _described(status: int, said: str = "") -> str:
    """How a process ended, after its exit status and what it said last."""
    reason = f" ({said})" if said else ""
    if status >= 0:
        return f"has ended with exit status {status}{reason}"
    name = next((known.name for known in signal.Signals if known == -status), f"signal {-status}")
    return "was killed, probably out of memory" if name == "SIGKILL" else f"was ended by {name}{reason}"


def _rebuilt_error(content: Any) -> Exception:
    """An error of the child's, as the nearest of its kinds that is built into Python."""
    try:
        kinds, sentence, trace = content
        names = [str(kind) for kind in kinds]
    except (TypeError, ValueError):
        return RuntimeError("the model process failed without saying how")
    for kind in names:
        known = getattr(builtins, kind, None)
        if isinstance(known, type) and issubclass(known, Exception) and not kind.startswith("Stop"):
            try:
                error = known(str(sentence))
            except TypeError:  # a kind that needs more than a sentence
                continue
            error.__cause__ = RuntimeError(f"in the model process:\n{trace}")
            return error
    return RuntimeError(str(sentence))
