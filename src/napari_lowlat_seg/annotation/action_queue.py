"""The user's actions in the order in which they were made, some of which have to wait for predictions.

A prompt, an accept or an undo never waits: the session notes it, and answers find their place later. To open
the object under the cursor, or to propagate, the predictions before must be there. Such an action waits, and
so does everything after it, so that what is annotated does not depend on how fast the model is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable


class ActionQueue:
    """Does actions at once or, behind one that has to wait, later and in order. Use it from one thread."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], object], Callable[[], bool]]] = deque()
        self._going_on = False

    def __len__(self) -> int:
        return len(self._waiting)

    def do(self, action: Callable[[], object], ready: Callable[[], bool] = lambda: True) -> bool:
        """Do an action as soon as it and all before it are ready; False if that is later.

        Parameters
        ----------
        action
            Called once, unless `clear` comes first.
        ready
            Whether the action can be done now; asked again by every `go_on`.
        """
        self._waiting.append((action, ready))
        before = len(self._waiting)
        self.go_on()
        return len(self._waiting) < before

    def do_first(self, action: Callable[[], object], ready: Callable[[], bool]) -> None:
        """Do an action before all that waits, as soon as it is ready; for an action that cannot finish."""
        self._waiting.appendleft((action, ready))
        self.go_on()

    def go_on(self) -> None:
        """Do what has become ready. Call it after every prediction."""
        if self._going_on:
            return  # an action has called this; the loop below goes on when it is done
        self._going_on = True
        try:
            while self._waiting and self._waiting[0][1]():
                self._waiting.popleft()[0]()
        finally:
            self._going_on = False

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
