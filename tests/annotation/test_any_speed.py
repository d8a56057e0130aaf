"""The same actions give the same labels, however late the predictions come and in whatever order."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.annotation.accepting import Accepted
from napari_lowlat_seg.annotation.action_queue import ActionQueue
from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.mask_edits import MaskEdit, edited_masks, masks_along
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, split
from napari_lowlat_seg.annotation.objects.counts import count_labels
from napari_lowlat_seg.annotation.objects.proposals import (
    Proposal,
    accept_proposal,
    correct_proposal,
    masks_of,
    propose,
    reject_proposals,
)
from napari_lowlat_seg.annotation.propagation_run import PropagationRun, stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.sweep import PropagatedMask

SHAPE = (3, 9, 8)
PLANES = [Plane((0, None, None)), Plane((1, None, None)), Plane((2, None, None)), Plane((None, 4, None))]
FIRST, SECOND = PLANES[:2]
PIXELS = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE) % 9
UNANSWERABLE = PLANES[2]
"""As if it were all NaN."""


def predicted(plane, prompts, final=True):
    """A block around every positive click, less those around negative ones; larger at first.

    Were it smaller at first, a negative click given before the last mask would bound the next one by what was
    seen then, see test_masks_stay_sane. That is meant, and the one thing that depends on when masks come.
    """
    rows, cols = (SHAPE[axis] for axis in plane.axes)
    mask = np.zeros((rows, cols), bool)
    for prompt in prompts:
        row, col = (round(x) for x in prompt.at)
        reach = 3 if prompt.positive and not final else 2  # so that a first mask contains the final one
        mask[max(0, row - reach) : row + reach, max(0, col - reach) : col + reach] = prompt.positive
    unsure = np.broadcast_to(np.arange(cols) % 2 == 1, mask.shape)  # other levels differ in these columns
    return SoftMask.of(np.select([mask & unsure & final, mask, unsure], [0.6, 0.97, 0.4], 0.02))


READS_LABELS = ("edit", "propagate", "grow", "merge", "split", "delete", "judge")
"""What waits in the window until all predictions before are there."""

KINDS = [
    *("click", "click", "click", "click", "enter", "enter", "enter"),
    *("tab", "undo", "undo", "redo", "escape", "policy", "limits", "lock", "propose", *READS_LABELS),
]

REFUSED = "is locked|in progress|one piece|two or more|is chosen|other objects cover"


class User:
    """A session with a queue of actions, and a service whose answers come when `answer` is called."""

    def __init__(self):
        self.labels = np.zeros(SHAPE, np.uint16)
        self.labels[:, :2, :3] = 40
        self.session = Session(Volume(PIXELS), ArrayLabels(self.labels))
        self.queue, self.run, self.masks = ActionQueue(), None, []

    def act(self, kind, plane, at, positive):
        session = self.session
        ready = {
            **dict.fromkeys(READS_LABELS, lambda: session.answered),
            "click": lambda: not session.awaits_cross_section(plane),
            "tab": lambda: session.request(plane) is None or plane in session.unanswered,
        }.get(kind)
        action = getattr(self, kind)
        # Whatever follows a run would end it, so it waits for the last mask, as this user does.
        self.queue.do(
            lambda: action(plane, at, positive), lambda: self.run is None and (ready is None or ready())
        )

    def click(self, plane, at, positive):
        rows, cols = (SHAPE[axis] for axis in plane.axes)
        self.session.add(plane, Click((at[0] % rows, at[1] % cols), positive))

    def tab(self, plane, *_):
        levels = self.session.levels(plane)
        if levels:
            level = self.session.state(plane).level
            self.session.choose_level(plane, levels[(levels.index(level) + 1) % len(levels)])

    def undo(self, *_):
        self.session.undo()

    def redo(self, *_):
        self.session.redo()

    def enter(self, *_):
        self.perhaps(self.session.accept)

    @staticmethod
    def perhaps(work):
        """Do it; a refusal changes nothing."""
        try:
            work()
        except ValueError as error:
            if not re.search(REFUSED, str(error)):
                raise

    def grow(self, plane, at, positive):
        session = self.session
        known = masks_along(session, plane, whole=not positive)
        session.reshape(edited_masks(known, MaskEdit("grow" if at[0] % 2 else "smooth", 1.0, not positive)))

    def limits(self, plane, at, positive):
        box = ((0.0, 0.0), (0.0, at[1] + 1.0), (at[0] + 1.0, at[1] + 1.0), (at[0] + 1.0, 0.0))
        self.session.limits = Limits(positive, (0, at[0]), () if at[1] % 2 else (box,), plane.axes)

    def chosen(self, at):
        """Labels, some of which are there, as rows of a table are chosen."""
        counts = count_labels(self.session.labels, SHAPE)
        present = sorted(counts.labels)
        return counts, present[at[0] % 3 :][: 1 + at[1] % 3]

    def lock(self, plane, at, positive):
        self.perhaps(lambda: describe(self.session, [(40, 41, 42)[at[0] % 3]], locked=positive))

    def merge(self, plane, at, positive):
        self.perhaps(lambda: merge(self.session, *self.chosen(at)))

    def delete(self, plane, at, positive):
        self.perhaps(lambda: delete(self.session, *self.chosen(at)))

    def split(self, plane, at, positive):
        counts, chosen = self.chosen(at)
        if chosen:
            self.perhaps(lambda: split(self.session, counts, chosen[0]))

    def propose(self, plane, at, positive):
        rows, cols = (SHAPE[axis] for axis in plane.axes)
        masks = {plane: predicted(plane, [Click((at[0] % rows, at[1] % cols))])}
        propose(self.session, [Proposal(0.5, masks)] * (1 + positive))

    def judge(self, plane, at, positive):
        session = self.session
        numbers = [number for number in session.contents.records if masks_of(session, number)]
        if numbers:
            number = numbers[at[1] % len(numbers)]
            judged = (
                lambda: accept_proposal(session, number),
                lambda: correct_proposal(session, number),
                lambda: reject_proposals(session, [number]),
            )
            self.perhaps(judged[at[0] % 3])

    def escape(self, *_):
        self.session.leave_object()

    def policy(self, plane, at, positive):
        self.session.policy = Policy("overwrite" if positive else "keep")

    def edit(self, plane, at, positive):
        rows, cols = (SHAPE[axis] for axis in plane.axes)
        self.perhaps(lambda: self.session.edit_object(plane, (at[0] % rows, at[1] % cols)))

    def propagate(self, plane, *_):
        planes = stack_of(self.session.volume, plane)
        try:
            self.run = PropagationRun.propagation(self.session, planes)
        except ValueError:
            return  # there is nothing to propagate
        ((number, anchors),) = self.run.request.anchors.items()
        shown = next(iter(anchors.values()))
        self.masks = [(number, PropagatedMask(where, shown, 0.5)) for where in planes if where not in anchors]
        if not self.masks:
            self.end()

    def end(self):
        self.run.finish()
        self.run = None

    def answer(self, rng=None, late=()):
        """One answer: the next one, or a random one of `late` or of those that are asked for now."""
        if self.masks:
            self.run.apply(*self.masks.pop(0))
            if not self.masks:
                self.end()
        else:
            wanted = [*late, *self.session.requests()]
            if not wanted:
                return False
            request = wanted[0 if rng is None else rng.integers(len(wanted))]
            final = rng is None or bool(rng.integers(2))
            if request.plane == UNANSWERABLE:
                self.session.refuse(request, "it cannot be answered")
            else:
                answer = predicted(request.plane, request.prompts, final)
                self.session.apply(request, answer, final=final)
        self.queue.go_on()
        return True

    def answer_all(self):
        while self.answer():
            pass
        assert not len(self.queue)
        assert not self.session.accepting

    def shown(self):
        """What can be seen at the end."""
        session = self.session
        masks = {
            plane.index: None if session.mask(plane) is None else session.mask(plane).tobytes()
            for plane in PLANES
        }
        titles = [step.title for step in session.undo_stack.done]
        return self.labels.tobytes(), session.label, session.prompted(), masks, titles, dict(session.facts)


# A brush is not among them: it draws on the mask that is seen, and so depends on which one has come.
actions = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.sampled_from(PLANES),
        st.tuples(st.integers(0, 8), st.integers(0, 7)),
        st.booleans(),
    ),
    max_size=25,
)


def instantly(script):
    """Every answer is there before the next action."""
    user = User()
    for action in script:
        user.act(*action)
        user.answer_all()
    return user


def at_the_end(script):
    """No answer comes before the last action, but what an action waits for."""
    user = User()
    for action in script:
        user.act(*action)
    user.answer_all()
    return user


def in_any_order(script, seed):
    """Answers come now and then, out of order, with first masks in between, some for older prompts."""
    user, rng, late = User(), np.random.default_rng(seed), []
    for action in script:
        user.act(*action)
        late += user.session.requests()
        for _ in range(rng.integers(3)):
            user.answer(rng, late)
    user.answer_all()
    return user


CLICKS = [((0, 0), False)] * 3 + [((0, 0), True)] + [((0, 3), False)] * 2


@pytest.mark.slow
@settings(max_examples=200)
@example([("click", Plane((0, None, None)), *click) for click in CLICKS], 1)
@given(actions, st.integers(0, 2**32 - 1))
def test_labels_do_not_depend_on_how_fast_the_model_is(script, seed):
    """Labels, prompts, masks and the undo stack are those of a model that answers at once."""
    expected = instantly(script)
    for user in (at_the_end(script), in_any_order(script, seed)):
        assert user.shown() == expected.shown()
        steps = len(expected.session.undo_stack.done)
        for _ in range(steps):
            assert expected.session.undo().title == user.session.undo().title
            assert np.array_equal(expected.labels, user.labels)
        for _ in range(steps):
            assert expected.session.redo().title == user.session.redo().title
        expected.answer_all()
        user.answer_all()
        assert user.labels.tobytes() == expected.labels.tobytes()


def session_of(labels):
    """A session that writes to these labels."""
    return Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels))


@pytest.fixture
def labels():
    """Empty labels."""
    return np.zeros(SHAPE, np.uint16)


def test_the_next_prompt_after_an_accept_belongs_to_a_new_object(labels):
    """Click A, Enter, click B, Enter before any answer: two labels, in the order of the accepts."""
    session, heard = session_of(labels), []
    session.on_accepted = heard.append
    session.add(FIRST, Click((3, 3)))
    assert session.accept()
    session.add(SECOND, Click((6, 6)))
    assert session.accept()
    assert session.accepting == (1, 2)
    assert session.prompted() == {}
    first, second = session.requests()
    session.apply(second, predicted(SECOND, second.prompts))
    assert not labels.any()  # the first one goes first
    session.apply(first, predicted(FIRST, first.prompts, final=False), final=False)
    assert not labels.any()
    session.apply(first, predicted(FIRST, first.prompts))
    assert np.array_equal(labels[0] == 1, predicted(FIRST, first.prompts).mask)
    assert np.array_equal(labels[1] == 2, predicted(SECOND, second.prompts).mask)
    assert heard == [Accepted(1, (FIRST,)), Accepted(2, (SECOND,))]
    assert session.accepting == ()


def test_an_accept_that_waits_is_undone_and_redone(labels):
    """The object is current again; redo writes it, also when its answer came in between."""
    session = session_of(labels)
    session.add(FIRST, Click((3, 3)))
    session.accept()
    (request,) = session.requests()
    assert session.undo().title == "accepted object 1"
    assert session.label == 1
    session.apply(request, predicted(FIRST, request.prompts))
    assert not labels.any()
    session.redo()
    assert (labels == 1).sum() == 16
    session.undo()
    assert not labels.any()


def test_the_settings_at_the_accept_count_and_not_those_at_the_answer(labels):
    """What was covered by the policy then is covered now."""
    labels[0] = 7
    session = session_of(labels)
    session.policy = Policy("overwrite")
    session.add(FIRST, Click((3, 3)))
    session.accept()
    session.policy = Policy("keep")
    (request,) = session.requests()
    session.apply(request, predicted(FIRST, request.prompts))
    assert (labels == 8).sum() == 16


def test_a_stroke_on_the_labels_after_the_accept_lies_over_the_object(labels):
    """As if the object had been written when it was accepted; undo takes both back in turn."""
    session = session_of(labels)
    session.add(FIRST, Click((3, 3)))
    session.accept()
    before = labels[0].copy()
    labels[0, 3:5, 3:8] = 9
    session.record_stroke([LabelEdit.between(FIRST, (0, 0, 9, 8), before, labels[0])])
    (request,) = session.requests()
    session.apply(request, predicted(FIRST, request.prompts))
    expected = predicted(FIRST, request.prompts).mask.astype(np.uint16)
    stroked = expected.copy()
    stroked[3:5, 3:8] = 9
    assert np.array_equal(labels[0], stroked)
    assert session.undo().title == "brush on the labels"
    assert np.array_equal(labels[0], expected)
    session.undo()
    assert not labels.any()


def test_an_object_with_a_plane_that_cannot_be_answered_is_accepted_without_it(labels):
    """The answered plane is written, the other one named with the reason."""
    session, heard = session_of(labels), []
    session.on_accepted = heard.append
    session.add(FIRST, Click((3, 3)))
    session.apply(session.request(FIRST), predicted(FIRST, [Click((3, 3))]))
    session.add(SECOND, Click((3, 3)))
    request = session.request(SECOND)
    session.accept()
    assert not labels.any()
    session.refuse(request, "plane 1 is all NaN")
    assert (labels[0] == 1).sum() == 16
    assert not labels[1].any()
    assert heard == [Accepted(1, (FIRST,), {SECOND: "plane 1 is all NaN"})]
    session.undo()
    assert session.unanswered == {SECOND: "plane 1 is all NaN"}
    session.ask_again()
    assert [one.plane for one in session.requests()] == [SECOND]


def test_an_object_is_not_opened_while_predictions_are_to_come(labels):
    """The labels do not show yet what was accepted."""
    session = session_of(labels)
    session.add(FIRST, Click((3, 3)))
    with pytest.raises(ValueError, match="predictions are still to come"):
        session.edit_object(FIRST, (3, 3))
    session.accept()
    with pytest.raises(ValueError, match="predictions are still to come"):
        session.open_objects(2)


def test_a_label_that_the_labels_cannot_hold_is_refused_at_the_accept():
    """Not when the answer comes, when the user is elsewhere."""
    session = session_of(np.zeros(SHAPE, np.uint8))
    session.choose_label(300)
    session.add(FIRST, Click((3, 3)))
    with pytest.raises(ValueError, match="must be from 1 to 255"):
        session.accept()
    assert session.label == 300
    assert session.accepting == ()


def test_an_error_while_writing_keeps_the_object_until_the_next_accept(labels, monkeypatch):
    """A full disk, for one: it is said, and tried again."""
    session, heard = session_of(labels), []
    session.on_accepted = heard.append
    session.add(FIRST, Click((3, 3)))
    session.accept()
    (request,) = session.requests()
    with monkeypatch.context() as full:
        full.setattr(
            session.labels, "write", lambda edits: (_ for _ in ()).throw(OSError("the disk is full"))
        )
        session.apply(request, predicted(FIRST, request.prompts))
    assert heard == [Accepted(1, error="the disk is full")]
    assert session.accepting == (1,)
    session.add(SECOND, Click((3, 3)))
    session.apply(session.request(SECOND), predicted(SECOND, [Click((3, 3))]))
    session.accept()
    assert np.unique(labels[0]).tolist() == [0, 1]
    assert np.unique(labels[1]).tolist() == [0, 2]


def test_leaving_an_edited_object_keeps_it_as_it_was(labels):
    """Prompts, masks and label are those of the accept, in one step of undo; the next object begins."""
    session = session_of(labels)
    session.add(FIRST, Click((3, 3)))
    session.apply(session.request(FIRST), predicted(FIRST, [Click((3, 3))]))
    assert not session.leave_object()  # a new object is nothing to go back to
    session.accept()
    written = labels.copy()
    assert session.edit_object(FIRST, (3, 3))
    session.add(FIRST, Click((6, 6)))
    session.add(SECOND, Click((6, 6)))
    session.choose_label(5)
    assert session.leave_object()
    assert (session.label, session.prompted()) == (2, {})
    assert np.array_equal(labels, written)
    session.edit_object(FIRST, (3, 3))
    assert (session.label, session.prompted()) == (1, {FIRST: (Click((3, 3)),)})
    session.undo()
    assert session.undo().title == "left object 1 as it was"
    assert (session.label, set(session.prompted())) == (5, {FIRST, SECOND})
    assert isinstance(session.undo(), Step)


def test_a_queue_does_what_waits_in_order():
    """What comes behind something that waits, waits as well; `give_up` drops it, or an optional one alone."""
    queue, done, ready = ActionQueue(), [], []
    assert queue.do(lambda: done.append(1))
    assert not queue.do(lambda: done.append(2), lambda: bool(ready))
    assert not queue.do(lambda: done.append(3))
    queue.go_on()
    assert (done, len(queue)) == ([1], 2)
    ready.append(True)
    queue.go_on()
    assert done == [1, 2, 3]
    ready.clear()
    queue.do(lambda: done.append(4), lambda: bool(ready))
    queue.do(lambda: done.append(5))
    assert queue.give_up() == 2
    queue.do(lambda: done.append(6), lambda: bool(ready), optional=True)
    queue.do(lambda: done.append(7))
    queue.do(lambda: done.append(8), lambda: bool(ready), optional=True)
    queue.do(lambda: done.append(9), lambda: bool(ready))
    queue.do(lambda: done.append(10))
    assert queue.give_up() == 4
    ready.append(True)
    queue.go_on()
    assert done == [1, 2, 3, 7]


def test_a_queue_knows_what_had_to_wait():
    """Also what is asked for by an action that had to; not what is done at once behind it."""
    queue, late, ready = ActionQueue(), [], []

    def note():
        late.append(queue.late)

    def ask():
        note()
        queue.do(note)

    queue.do(ask)
    assert late == [False, False]
    queue.do(ask, lambda: bool(ready))
    assert queue.waiting == (ask,)
    ready.append(True)
    queue.do(note)
    assert late[2:] == [True, False, True]
    assert queue.waiting == ()
    assert not queue.late
