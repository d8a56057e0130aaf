"""The user's actions in the order in which they were made, some of which have to wait for predictions.

A prompt, an accept or an undo never waits: the session notes it, and answers find their place later. To open
the object under the cursor, or to propagate, the predictions before must be there. Such an action waits, and
so does everything after it, so that what is annotated does not depend on how fast the model is.

What has waited for its turn does not have the user's eyes any more: it may change what is annotated, but
not which plane is seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiting:
    """An action that waits."""

    action: Callable[[], object]
    ready: Callable[[], bool]
    optional: bool
    late: bool


class ActionQueue:
    """Does actions at once or, behind one that has to wait, later and in order. Use it from one thread.

    Attributes
    ----------
    late
        Whether the action that is being done had to wait, or was asked for by one that had: the user may look
        and click elsewhere by now.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._going_on = False
        self.late = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def waiting(self) -> tuple[Callable[[], object], ...]:
        """The actions that wait, the next one first."""
        return tuple(one.action for one in self._waiting)

    def do(
        self,
        action: Callable[[], object],
        ready: Callable[[], bool] = lambda: True,
        *,
        optional: bool = False,
    ) -> bool:
        """Do an action as soon as it and all before it are ready; False if that is later.

        Parameters
        ----------
        action
            Called once, unless `give_up` comes first.
        ready
            Whether the action can be done now; asked again by every `go_on`.
        optional
            Whether what follows means the same without it, as after the choice of another mask.
        """
        self._waiting.append(_Waiting(action, ready, optional, self.late))
        before = len(self._waiting)
        self.go_on()
        return len(self._waiting) < before

    def do_first(self, action: Callable[[], object], ready: Callable[[], bool]) -> None:
        """Do an action before all that waits, as soon as it is ready; for an action that cannot finish."""
        self._waiting.appendleft(_Waiting(action, ready, False, self.late))
        self.go_on()

    def go_on(self) -> None:
        """Do what has become ready. Call it after every prediction."""
        if self._going_on:
            return  # an action has called this; the loop below goes on when it is done
        self._going_on = True
        try:
            while self._waiting and self._waiting[0].ready():
                one = self._waiting.popleft()
                self.late = one.late
                one.action()
        finally:
            self._going_on = self.late = False
            for one in self._waiting:
                one.late = True

    def give_up(self) -> int:
        """Wait for nothing any more; the number of actions that were dropped.

        An optional action is dropped alone: what follows it is done, in order. Any other takes all that
        follows with it: a click behind an object that was not opened would land in another object.
        """
        dropped = 0
        self.go_on()
        while self._waiting:
            dropped += 1
            if not self._waiting.popleft().optional:
                dropped += len(self._waiting)
                self._waiting.clear()
            self.go_on()
        return dropped
