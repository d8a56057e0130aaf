"""The undo stack by itself: it finds, counts and drops the steps that a plain list of them would."""

import sys
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.annotation.contents import UndoStack
from napari_lowlat_seg.annotation.history import PendingAccept, Step
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels, Policy
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume

MASKS = [SoftMask.of(np.pad(np.full((side, side), 0.9, np.float32), 4)) for side in range(1, 6)]
PLANE = Plane()


class PlainStack:
    """What the stack is to do, by two lists and no index."""

    def __init__(self, limit):
        self.limit, self.done, self.undone = limit, [], []

    @property
    def nbytes(self):
        return sum(step.nbytes for step in (*self.done, *self.undone))

    def drop(self):
        while self.nbytes > self.limit and len(self.done) > 1 and self.done[0].accept is None:
            self.done.pop(0)


def step(title, before, after, accept=None):
    """A step that changes one state, or accepts an object."""
    states = (((1, PLANE), before, after),) if accept is None else ()
    return Step(title, PLANE, (1, 1), states, accept=accept)


def title(one):
    """Of a step, if there is one."""
    return one and one.title


ACTIONS = st.lists(
    st.one_of(
        st.just(("push",)),
        st.just(("undo",)),
        st.just(("redo",)),
        st.just(("accept",)),
        st.tuples(st.just("predict"), st.integers(0, 9), st.integers(0, 4)),
        st.tuples(st.just("amend"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=150)
@given(ACTIONS, st.integers(1500, 9000))
def test_it_does_what_two_plain_lists_would(actions, limit):
    """Whatever is pushed, undone, redone, predicted, amended and dropped, in any order."""
    stack, plain = UndoStack(limit), PlainStack(limit)
    states = [PlaneState()]
    for number, (action, *how) in enumerate(actions, 1):
        if action in ("push", "accept"):
            waits = PendingAccept(number, Policy(), PostProcessing()) if action == "accept" else None
            states.append(PlaneState((Click((number, 1)),), ticket=number))
            new = step(f"{number}", states[-2], states[-1], waits)
            stack.push(new)
            plain.undone.clear()
            plain.done.append(new)
            plain.drop()
        elif action == "undo":
            assert title(stack.undo()) == title(plain.done[-1] if plain.done else None)
            if plain.done:
                plain.undone.append(plain.done.pop())
        elif action == "redo":
            assert title(stack.redo()) == title(plain.undone[-1] if plain.undone else None)
            if plain.undone:
                plain.done.append(plain.undone.pop())
        elif action == "predict":
            place = how[0] % len(states)
            old, new = states[place], states[place].with_prediction(MASKS[how[1]])
            states[place] = new
            stack.replace(old, new)
            for steps in (plain.done, plain.undone):
                steps[:] = [
                    replace(
                        one,
                        states=tuple((key, *(new if s is old else s for s in b)) for key, *b in one.states),
                    )
                    for one in steps
                ]
            plain.drop()
        elif len(plain.done) >= how[0]:
            amended = [replace(one, title=one.title + "'", accept=None) for one in plain.done[-how[0] :]]
            stack.amend(amended)
            plain.done[-how[0] :] = amended
            plain.drop()
        for mine, expected in ((stack.done, plain.done), (stack.undone, plain.undone)):
            assert [one.title for one in mine] == [one.title for one in expected]
            for one, other in zip(mine, expected):
                assert all(a is b for x, y in zip(one.states, other.states) for a, b in zip(x[1:], y[1:]))
        assert stack.nbytes == plain.nbytes
        assert stack.to_undo is next(reversed(stack.done), None)
        assert stack.to_redo is next(reversed(stack.undone), None)
        assert stack.waiting == [one.accept for one in plain.done if one.accept is not None]


def test_a_loaded_stack_forgets_its_own_steps():
    """Predictions, memory and accepts are those of the steps that were loaded."""
    stack, other = UndoStack(), UndoStack()
    waits = PendingAccept(2, Policy(), PostProcessing())
    stack.push(step("old", PlaneState(), PlaneState(ticket=5)))
    stack.push(step("accepted", PlaneState(), PlaneState(), waits))
    other.push(step("new", PlaneState(), PlaneState(ticket=6)))
    stack.load(other.done, other.undone)
    assert [one.title for one in stack.done] == ["new"]
    assert (stack.nbytes, stack.waiting) == (other.nbytes, [])


def test_a_click_costs_the_same_after_a_long_day():
    """As many calls after 1,500 objects as after eight: no prompt, mask or accept reads all steps."""
    labels = ArrayLabels(np.zeros((4, 12, 12), np.uint16))
    session = Session(Volume(np.zeros((4, 12, 12), np.uint8)), labels)
    planes, mask = session.volume.planes(), SoftMask.of(np.pad(np.ones((4, 4), np.float32), 4))

    def annotate(turn):
        plane = planes[turn % 4]
        session.add(plane, Click((5, 5)))
        request = session.request(plane)
        session.apply(request, mask, final=False)
        session.apply(request, mask)
        session.accept()

    def calls(turn):
        count = 0

        def see(frame, event, argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(see)
        try:
            annotate(turn)
        finally:
            sys.setprofile(None)
        return count

    for turn in range(8):
        annotate(turn)
    first = calls(8)
    for turn in range(9, 1500):
        annotate(turn)
    assert calls(1500) == first
