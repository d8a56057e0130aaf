"""Objects of a session propagated through planes, by a predictor that knows the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import FakePredictor, known_objects
from napari_lowlat_seg.annotation.propagation_run import (
    PlaneStack,
    PropagationRun,
    marks,
    most_uncertain_plane,
    next_anchor,
    next_click,
    refused_planes,
    stack_of,
)
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import run_propagation
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane

SHAPE = (13, 24, 24)


def _ball(radius: float = 5.0, centre: Sequence[float] = (6, 12, 12)) -> np.ndarray:
    z, r, c = np.indices(SHAPE)
    inside: np.ndarray = (z - centre[0]) ** 2 + (r - centre[1]) ** 2 + (c - centre[2]) ** 2 < radius**2
    return inside


def _session(labels: np.ndarray | None = None) -> Session:
    pixels = np.where(_ball(), 200, 50).astype(np.uint8)
    store = None if labels is None else ArrayLabels(labels)
    return Session(Volume(pixels, window=(0.0, 255.0)), store)


def _plane(position: int) -> Plane:
    return Plane((position, None, None))


PLANES = [_plane(z) for z in range(SHAPE[0])]


def _click(session: Session, position: int, mask: np.ndarray, at: tuple[float, float] = (12, 12)) -> None:
    session.add(_plane(position), Click(at))
    request = session.request(_plane(position))
    assert request is not None
    assert session.apply(request, SoftMask.of(mask.astype(np.float32)))


def _run(session: Session, run: PropagationRun, predictor: FakePredictor) -> list[int]:
    """Run it to the end; the positions of the planes that were applied, in order."""
    applied = []
    for number, found in run_propagation(
        predictor, session.volume, run.request, lambda plane: plane, lambda: False
    ):
        if run.apply(number, found):
            applied.append(found.plane.position)
    run.finish()
    return applied


def _masks(session: Session) -> np.ndarray:
    masks = [session.mask(plane) for plane in PLANES]
    return np.stack([np.zeros(SHAPE[1:], bool) if mask is None else mask for mask in masks])


def test_an_object_is_propagated_from_one_click_and_undone_in_one_step() -> None:
    """All its planes are there; undo leaves the click, redo brings them back."""
    session = _session()
    _click(session, 6, _ball()[6])
    _run(session, PropagationRun.propagation(session, PLANES), FakePredictor(known_objects(_ball())))
    assert np.array_equal(_masks(session), _ball())
    assert session.undo_stack.done[-1].title == "propagate"
    session.undo()
    assert _masks(session).any(axis=(1, 2)).sum() == 1
    assert session.prompted() == {_plane(6): (Click((12, 12)),)}
    session.redo()
    assert np.array_equal(_masks(session), _ball())


def test_a_correction_is_propagated_only_between_its_neighbours() -> None:
    """Beyond the anchors nothing is predicted, and nothing changes."""
    session = _session()
    for position in (3, 6, 9):
        _click(session, position, _ball()[position])
    _run(session, PropagationRun.propagation(session, PLANES), FakePredictor(known_objects(_ball())))
    before = {plane: session.state(plane) for plane in PLANES}
    session.add(_plane(7), Click((12, 13)))
    request = session.request(_plane(7))
    assert request is not None
    session.apply(request, SoftMask.of(_ball()[7].astype(np.float32)))
    predictor = FakePredictor(known_objects(_ball(), probability=0.7))
    applied = _run(session, PropagationRun.propagation(session, PLANES), predictor)
    assert set(applied) == {8}
    assert {plane.position for plane, *_ in predictor.calls} == {8}
    for plane in PLANES:
        assert (session.state(plane) is before[plane]) == (plane.position not in (7, 8))


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(2, 10), min_size=1, max_size=4), st.integers(3, 9))
def test_outside_the_interval_of_its_anchors_a_correction_changes_no_state(
    positions: set[int], corrected: int
) -> None:
    """Whatever is predicted the second time."""
    session = _session()
    for position in positions:
        _click(session, position, _ball()[position])
    _run(session, PropagationRun.propagation(session, PLANES), FakePredictor(known_objects(_ball())))
    before = {plane.position: session.state(plane) for plane in PLANES}
    session.paint(_plane(corrected), _ball(4)[corrected])
    others = positions - {corrected}
    low = max((p for p in others if p < corrected), default=-1)
    high = min((p for p in others if p > corrected), default=SHAPE[0])
    _run(
        session,
        PropagationRun.propagation(session, PLANES),
        FakePredictor(known_objects(_ball(4), probability=0.6)),
    )
    changed = {p for p, state in before.items() if session.state(_plane(p)) is not state}
    assert changed <= set(range(low + 1, high))
    session.undo()
    session.undo()
    assert all(session.state(_plane(p)) is state for p, state in before.items())


def test_a_plane_with_prompts_is_never_overwritten() -> None:
    """Also when they come while the run is under way and wait for a prediction."""
    session = _session()
    _click(session, 6, _ball()[6])
    run = PropagationRun.propagation(session, PLANES)
    found = PropagatedMask(_plane(6), SoftMask.of(np.ones(SHAPE[1:], np.float32)), 0.5)
    assert not run.apply(session.current, found)
    assert np.array_equal(session.mask(_plane(6)), _ball()[6])


def test_any_other_action_ends_the_run_and_keeps_the_masks_so_far() -> None:
    """The next run brings the rest."""
    session = _session()
    _click(session, 6, _ball()[6])
    run, predictor = PropagationRun.propagation(session, PLANES), FakePredictor(known_objects(_ball()))
    steps = run_propagation(predictor, session.volume, run.request, lambda plane: plane, lambda: False)
    for number, found in (next(steps), next(steps)):
        assert run.apply(number, found)
    session.add(_plane(6), Click((11, 11)))
    assert not run.active
    number, found = next(steps)
    assert not run.apply(number, found)
    assert [step.title for step in session.undo_stack.done] == ["click", "propagate", "click"]
    assert len(marks(session, PLANES)) == 3
    session.undo()
    _run(session, PropagationRun.propagation(session, PLANES), predictor)
    assert np.array_equal(_masks(session), _ball())


def test_a_second_run_without_a_change_is_refused_and_a_wider_range_is_not() -> None:
    """Only the planes that are new in the range are predicted."""
    session, predictor = _session(), FakePredictor(known_objects(_ball()))
    _click(session, 6, _ball()[6])
    assert _run(session, PropagationRun.propagation(session, PLANES[4:9]), predictor) == [5, 4, 7, 8]
    with pytest.raises(ValueError, match="nothing has changed since the last propagation"):
        PropagationRun.propagation(session, PLANES[4:9])
    predictor.calls.clear()
    _run(session, PropagationRun.propagation(session, PLANES[4:]), predictor)
    assert {plane.position for plane, *_ in predictor.calls} == {7, 8, 9, 10, 11}
    assert not session.state(_plane(3)).soft_mask


def test_a_plane_whose_click_was_removed_is_propagated_again() -> None:
    """A removed click leaves a hole, which the next run fills."""
    session, predictor = _session(), FakePredictor(known_objects(_ball()))
    _click(session, 6, _ball()[6])
    _run(session, PropagationRun.propagation(session, PLANES), predictor)
    _click(session, 8, _ball(3)[8])
    session.set_prompts(_plane(8), ())
    assert session.mask(_plane(8)) is None
    _run(session, PropagationRun.propagation(session, PLANES), predictor)
    assert np.array_equal(_masks(session), _ball())


def test_without_the_object_in_the_range_a_run_is_refused() -> None:
    """The sentence says what to do."""
    session = _session()
    with pytest.raises(ValueError, match="at least one of the 13 planes of its range; click on it"):
        PropagationRun.propagation(session, PLANES)


def test_shapes_are_interpolated_between_the_anchors() -> None:
    """Nothing is predicted; the confidence is the IoU of the two anchors, which stay as they are."""
    session, predictor = _session(), FakePredictor(known_objects())
    with pytest.raises(ValueError, match="on two planes of its range, got 0"):
        PropagationRun.interpolation(session, PLANES)
    for position in (4, 8):
        _click(session, position, _ball()[position])
    run = PropagationRun.interpolation(session, PLANES)
    assert (run.expected, run.left) == (3, 3)
    applied = _run(session, run, predictor)
    assert applied == [5, 6, 7]
    assert (run.done, run.left) == (3, 0)
    assert predictor.calls == []
    assert [mark.confidence for mark in marks(session, PLANES)] == [None, 1.0, 1.0, 1.0, None]
    assert np.array_equal(session.mask(_plane(6)), _ball()[4])
    session.undo()
    assert len(marks(session, PLANES)) == 2


def test_every_seed_becomes_an_object_in_the_labels_and_one_undo_removes_all() -> None:
    """They can be edited with their clicks; the next object gets the next label."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, 0, 0] = 7
    session = _session()
    session.use_labels(ArrayLabels(labels), 7)
    first, second = _ball(5, (6, 6, 6)), _ball(5, (7, 17, 17))
    seeds = [(_plane(6), Click((6, 6))), (_plane(7), Click((17, 17)))]
    session.volume = Volume(np.where(first | second, 200, 50).astype(np.uint8), window=(0.0, 255.0))
    _run(session, PropagationRun.seeds(session, PLANES, seeds), FakePredictor(known_objects(first, second)))
    expected = np.where(first, 8, np.where(second, 9, 0)).astype(np.uint16)
    expected[0, 0, 0] = 7
    assert np.array_equal(labels, expected)
    assert session.label == 10
    assert session.edit_object(_plane(6), (6, 6))
    assert session.prompted() == {_plane(6): (Click((6, 6)),)}
    session.undo()
    session.undo()
    assert (labels != 0).sum() == 1
    assert session.label == 8
    session.redo()
    assert np.array_equal(labels, expected)


def test_seeds_need_labels_and_lie_in_the_range() -> None:
    """One sentence each."""
    session = _session()
    with pytest.raises(ValueError, match="no labels to write to"):
        PropagationRun.seeds(session, PLANES, [(_plane(6), Click((6, 6)))])
    with pytest.raises(ValueError, match="seeds on the 2 planes of the range, got 1 of which 1 lie outside"):
        PropagationRun.seeds(session, PLANES[:2], [(_plane(6), Click((6, 6)))])
    with pytest.raises(ValueError, match="got 0"):
        PropagationRun.seeds(session, PLANES, [])


def test_a_label_that_the_labels_cannot_hold_is_refused() -> None:
    """What was written before stays one step of undo."""
    labels = np.zeros(SHAPE, np.uint8)
    session = _session()
    session.use_labels(ArrayLabels(labels), 254)
    seeds = [(_plane(6), Click((12, 12))), (_plane(6), Click((12, 13)))]
    run = PropagationRun.seeds(session, PLANES, seeds)
    first, second = run.request.seeds
    found = PropagatedMask(_plane(6), SoftMask.of(_ball()[6].astype(np.float32)), 1.0)
    assert run.apply(first, found)
    with pytest.raises(ValueError, match="from 1 to 255 in labels of type uint8, got 256"):
        run.apply(second, found)
    run.stop()
    session.undo()
    assert not labels.any()


def test_a_run_keeps_notes_and_a_note_is_no_mask() -> None:
    """Why the object ended, for the window and for scripts."""
    session = _session()
    _click(session, 6, _ball()[6])
    run = PropagationRun.propagation(session, PLANES)
    mask = SoftMask.of(_ball()[5].astype(np.float32))
    assert run.apply(session.current, PropagatedMask(_plane(5), mask, 0.5))
    assert not run.apply(session.current, PropagatedMask(_plane(5), mask, 0.5, False, -1, "too dark"))
    assert run.notes == ("plane 5: ends here: too dark",)
    assert run.reached == {_plane(5)}
    run.finish()
    assert not run.apply(session.current, PropagatedMask(_plane(5), mask, 0.5, False, 0, "late"))
    assert len(run.notes) == 1


def test_the_most_uncertain_plane_and_the_next_anchor() -> None:
    """Uncertainty counts pixels; after the last anchor comes the first."""
    session = _session()
    assert most_uncertain_plane(session, PLANES) is None
    assert next_anchor(session, PLANES, _plane(3)) is None
    assert next_click(session, PLANES) is None
    for position in (4, 8):
        _click(session, position, _ball()[position])
    run = PropagationRun.propagation(session, PLANES)
    for position, confidence in ((3, 0.5), (6, 0.6), (7, 0.9)):
        found = PropagatedMask(
            _plane(position), SoftMask.of(_ball()[position].astype(np.float32)), confidence
        )
        assert run.apply(session.current, found)
    assert most_uncertain_plane(session, PLANES) == _plane(6)
    assert next_click(session, PLANES) == (_plane(6), (0, 0))  # no pixel of it is in doubt: all are as sure
    soft = _ball()[5].astype(np.float32)
    soft[2:7, 3:8] = 0.6
    assert run.apply(session.current, PropagatedMask(_plane(5), SoftMask.of(soft), 0.1))
    assert next_click(session, PLANES) == (_plane(5), (4, 5))
    assert next_anchor(session, PLANES, _plane(3)) == _plane(4)
    assert next_anchor(session, PLANES, _plane(4)) == _plane(8)
    assert next_anchor(session, PLANES, _plane(8)) == _plane(4)


def test_what_is_left_of_a_run_is_known_by_ends_and_by_planes_that_come_twice() -> None:
    """For the time left: nothing behind an end, two masks between anchors; one where an anchor is empty."""
    session = _session()
    _click(session, 6, _ball()[6])
    run = PropagationRun.propagation(session, PLANES)
    mask = SoftMask.of(_ball()[5].astype(np.float32))
    found = PropagatedMask(_plane(5), mask, 0.5)
    assert run.apply(session.current, found)
    assert (run.came, run.left, run.expected) == (1, 11, 12)
    run.apply(session.current, replace(found, final=False, reason="plane 4 is blank"))
    assert (run.left, run.expected) == (11, 12)
    run.apply(session.current, replace(found, final=False, ends=-1, reason="too dark"))
    assert (run.left, run.expected) == (6, 7)  # planes 7 to 12
    at_anchor = PropagatedMask(_plane(6), mask, 1.0, False, 1, "plane 7 is darker")
    for _ in range(2):  # said twice, it is one end
        run.apply(session.current, at_anchor)
    assert (run.came, run.left, run.expected, run.count) == (1, 0, 1, 12)
    run.finish()
    _click(session, 10, np.zeros(SHAPE[1:], bool))
    assert PropagationRun.propagation(session, PLANES).left == 3 + 2  # planes 7 to 9, 11 and 12
    session.undo()
    _click(session, 9, _ball()[9])
    run = PropagationRun.propagation(session, PLANES)
    assert (run.count, run.came, run.left) == (5, 0, 7)  # planes 7, 8 twice, 10 to 12
    for way in (1, -1):  # between two anchors the other sweep may still come
        run.apply(session.current, PropagatedMask(_plane(7), mask, 0.5, False, way, "too dark"))
    assert run.expected == 5
    counted = []
    for place, final in ((7, False), (8, True), (7, True)):  # plane 8 is reached from one side only
        assert run.apply(session.current, PropagatedMask(_plane(place), mask, 0.5, final))
        counted.append((run.done, run.came, run.left))
    assert counted == [(1, 1, 6), (2, 3, 4), (2, 4, 3)]


def _ended(session: Session, reached: int, refused: RefusedPlane) -> None:
    """A run that reached one plane and ended at another."""
    run = PropagationRun.propagation(session, PLANES)
    found = PropagatedMask(_plane(reached), SoftMask.of(_ball()[reached].astype(np.float32)), 0.9)
    assert run.apply(session.current, found)
    note = PropagatedMask(found.plane, found.prediction, 0.9, False, 1, "too dark", (refused,))
    assert not run.apply(session.current, note)
    assert refused.plane not in refused_planes(session, PLANES)  # a run that is stopped has not ended
    run.finish()


def test_planes_at_which_a_run_ended_are_offered_until_they_have_a_mask() -> None:
    """By presence and pixels, beside the masks; undo takes them back; what is far from a change stays."""
    session = _session()
    _click(session, 6, _ball()[6])
    below = RefusedPlane(_plane(4), 0.3, 60, "does not show it")
    _ended(session, 5, below)
    assert refused_planes(session, PLANES) == {_plane(4): below}
    assert most_uncertain_plane(session, PLANES) == _plane(4)  # 9 pixels; of plane 5 about 7 are likely wrong
    assert next_click(session, PLANES) == (_plane(4), (0, 0))  # of the mask of plane 5, all as sure
    assert most_uncertain_plane(session, PLANES[5:]) == _plane(5)
    assert most_uncertain_plane(session, PLANES[:5]) == _plane(4)
    assert next_click(session, PLANES[:5]) is None  # no mask there to say where
    session.clear()
    assert not refused_planes(session, PLANES)
    session.undo()
    _click(session, 8, _ball()[8])
    above = RefusedPlane(_plane(9), 0.2, 30, "is darker")
    _ended(session, 7, above)
    assert list(refused_planes(session, PLANES)) == [_plane(4), _plane(9)]
    session.undo()
    session.undo()
    assert list(refused_planes(session, PLANES)) == [_plane(4)]
    _click(session, 4, _ball()[4])
    assert not refused_planes(session, PLANES)
    assert most_uncertain_plane(session, PLANES) == _plane(5)
    _ended(session, 5, replace(below, plane=_plane(2)))
    assert list(refused_planes(session, PLANES)) == [_plane(2)]


def test_a_stack_keeps_the_other_positions() -> None:
    """A 4-D plane moves along its last position; a 2-D image has one plane."""
    volume = Volume(np.zeros((2, 3, 4, 5), np.uint8))
    stack = stack_of(volume, Plane((1, 2, None, None)))
    assert [plane.index for plane in stack] == [(1, z, None, None) for z in range(3)]
    flat = Plane((None, None))
    assert stack_of(Volume(np.zeros((4, 5), np.uint8)), flat) == (flat,)


def test_a_stack_is_a_sequence_of_planes_made_on_demand() -> None:
    """Length, items, slices and membership are those of the tuple of all its planes."""
    stack = stack_of(Volume(np.zeros((2, 3, 4, 5), np.uint8)), Plane((1, 2, None, None)))
    planes = tuple(Plane((1, z, None, None)) for z in range(3))
    assert (len(stack), tuple(stack), stack[-1], stack[1:]) == (3, planes, planes[2], planes[1:])
    assert all(plane in stack for plane in planes)
    others = (
        Plane((0, 1, None, None)),
        Plane((1, 3, None, None)),
        Plane((1, None, 2, None)),
        Plane(),
        "plane",
    )
    assert not any(other in stack for other in others)
    with pytest.raises(IndexError):
        stack[3]


class Service:
    """Propagates with a predictor in this process; raises after `limit` masks."""

    def __init__(self, predictor: FakePredictor, limit: int = 1000) -> None:
        self.predictor, self.limit = predictor, limit

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        data = np.stack([source.read() for source in sources])
        volume = Volume(data, window=sources[0].window)
        steps = run_propagation(self.predictor, volume, request, lambda plane: plane, lambda: False)
        for count, step in enumerate(steps):
            if count == self.limit:
                raise RuntimeError("the service was stopped")
            yield step


def test_a_run_is_completed_in_one_call() -> None:
    """The service gets the sources of all planes; the number of planes reached comes back."""
    session = _session()
    _click(session, 6, _ball()[6])
    assert (
        PropagationRun.propagation(session, PLANES).complete(Service(FakePredictor(known_objects(_ball()))))
        == 8
    )
    assert np.array_equal(_masks(session), _ball())
    assert [step.title for step in session.undo_stack.done] == ["click", "propagate"]


def test_an_error_of_the_service_ends_the_run_and_keeps_the_masks_so_far() -> None:
    """They are one undo step."""
    session = _session()
    _click(session, 6, _ball()[6])
    run = PropagationRun.propagation(session, PLANES)
    with pytest.raises(RuntimeError, match="the service was stopped"):
        run.complete(Service(FakePredictor(known_objects(_ball())), limit=3))
    assert (len(run.reached), run.active) == (3, False)
    session.undo()
    assert len(marks(session, PLANES)) == 1


def test_the_source_of_a_plane_reads_its_pixels() -> None:
    """With the window and the spacing of the volume; sources of two sessions differ."""
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    session = Session(Volume(pixels, spacing=(3, 2, 1), window=(0.0, 9.0)))
    source = session.source(Plane((None, 1, None)))
    assert np.array_equal(source.read(), pixels[:, 1])
    assert (source.window, source.spacing, source.plane) == ((0.0, 9.0), (3.0, 1.0), Plane((None, 1, None)))
    assert source.identity == session.source(Plane((None, 1, None))).identity
    assert source.identity != Session(session.volume).source(Plane((None, 1, None))).identity


def test_marks_make_no_plane_of_a_stack() -> None:
    """Their cost depends on the planes that have a mask, not on the number of planes."""

    class Sealed(PlaneStack):
        def __getitem__(self, key):
            raise AssertionError("a plane of the stack was made")

    volume = Volume(np.zeros((5000, 4, 5), np.uint8))
    session = Session(volume)
    for position in (4000, 17):
        session.paint(_plane(position), np.ones((4, 5), bool))
    found = marks(session, Sealed(_plane(0), volume.shape))
    assert [mark.plane.position for mark in found] == [17, 4000]
