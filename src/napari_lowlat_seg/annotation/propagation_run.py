"""Objects of a session carried through planes: what is asked, where the answers land, where to look then.

    run = PropagationRun.propagation(session, planes)
    for number, found in responder.propagate(run.walk, sources):
        run.apply(number, found)                # False once the user has done something else
    run.finish()                               # all of it is one step of undo

A plane where a person has spoken is never written to. What was carried before is carried anew only between
the anchors around a change; see `sweep.affected`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from napari_lowlat_seg.annotation.history import Trace, Transaction
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import object_edits
from napari_lowlat_seg.core.masks import SoftMask, postprocess_patch
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PropagationRequest
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import uncertainty
from napari_lowlat_seg.propagation.sweep import PropagatedMask, affected


class PropagationRun:
    """One run. Make one with `propagation`, `interpolation` or `seeds`.

    Attributes
    ----------
    walk
        What is to be asked.
    """

    def __init__(
        self, session: Session, step: Transaction, walk: PropagationRequest, *, writes: bool = False
    ) -> None:
        self.walk = walk
        self._session, self._step, self._writes = session, step, writes
        self._reached: set[Plane] = set()

    @classmethod
    def propagation(cls, session: Session, planes: Sequence[Plane]) -> PropagationRun:
        """The object in hand, carried from where a person has shown it through `planes`, in spatial order.

        Raises ValueError if it is shown on none of them, and if nothing has changed since the last time.
        """
        anchors = _anchors(session, planes)
        if not any(answer.pixels for answer in anchors.values()):
            raise ValueError(
                f"propagation needs the object on at least one of the {len(planes)} planes of its range; "
                "click on it there first"
            )
        trace = session.record(session.current).trace
        changed = tuple(planes) if trace is None else _changed(session, trace, anchors, planes)
        if not changed:
            raise ValueError(
                "nothing has changed since the object was carried; correct it on a plane, or widen the range"
            )
        step = session.open_transaction("propagate", next(iter(anchors)))
        for plane in affected(anchors, planes, changed):
            if session.state(plane).confidence is not None:
                step.set_state((session.current, plane), PlaneState())
        walk = PropagationRequest(tuple(planes), {session.current: anchors}, changed=changed)
        return cls(session, step, walk)

    @classmethod
    def interpolation(cls, session: Session, planes: Sequence[Plane]) -> PropagationRun:
        """The object in hand, its shapes mixed between the planes where a person has shown it; no network.

        Raises ValueError if it is shown on less than two of `planes`.
        """
        outlines = {}
        for plane in _anchors(session, planes):
            patch = session.patch(plane)
            if patch is not None and patch.pixels.any():
                outlines[plane] = SoftMask.from_mask(patch.pixels).on(
                    session.volume.sides(plane), patch.corner
                )
        if len(outlines) < 2:
            raise ValueError(
                f"interpolation needs the object on two planes of its range, got {len(outlines)}; click on "
                "it on another plane as well"
            )
        step = session.open_transaction("interpolate", next(iter(outlines)))
        step.set_record(session.current, replace(session.record(session.current), trace=None))
        return cls(session, step, PropagationRequest(tuple(planes), {session.current: outlines}, shapes=True))

    @classmethod
    def seeds(
        cls, session: Session, planes: Sequence[Plane], seeds: Sequence[tuple[Plane, Prompt]]
    ) -> PropagationRun:
        """Every prompt as an object of its own, carried through `planes` and written to the labels at once.

        The object in hand is accepted first. Raises ValueError without labels, without a seed and for one
        that lies on none of `planes`.
        """
        beside = [plane for plane, _ in seeds if plane not in planes]
        if not seeds or beside:
            raise ValueError(
                f"expected seeds on the {len(planes)} planes of the range, got {len(seeds)} of which "
                f"{len(beside)} lie beside them; move them or widen the range"
            )
        if session.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        step, numbers = session.open_objects(len(seeds))
        return cls(
            session, step, PropagationRequest(tuple(planes), seeds=dict(zip(numbers, seeds))), writes=True
        )

    @property
    def wanted(self) -> bool:
        """Whether answers still land: nothing else was done meanwhile."""
        return self._step.open

    @property
    def reached(self) -> int:
        """How many planes have been answered so far, of all objects."""
        return len(self._reached)

    def apply(self, number: int, found: PropagatedMask[SoftMask]) -> bool:
        """Take an answer in; False if it is not wanted any more, or if a person has spoken on its plane.

        Raises ValueError if the labels' type cannot hold the object's label.
        """
        key, plane = (number, found.plane), found.plane
        seed = self.walk.seeds.get(number)
        if not self._step.open:
            return False
        if number == self._session.current:
            known = self._session.state(plane)
            if known.prompts or known.anchor:
                return False
        state = PlaneState((), found.prediction, found.prediction, confidence=found.confidence)
        if seed is not None and seed[0] == plane:
            state = PlaneState((seed[1],), found.prediction)
        self._step.set_state(key, state)
        self._reached.add(plane)
        if self._writes:
            self._write(number, plane, found.prediction)
        return True

    def finish(self) -> None:
        """All planes have been answered: the step is complete, and it is remembered how it was made."""
        if not self._step.open:
            return
        if not self.walk.shapes and not self._writes:
            ((number, anchors),) = self.walk.anchors.items()
            record = self._session.record(number)
            reached = (mark.plane for mark in marks(self._session, self.walk.planes) if not mark.anchor)
            trace = Trace(anchors, self.walk.planes, frozenset(reached))
            self._step.set_record(number, replace(record, trace=trace))
        self._session.close_transaction()

    def stop(self) -> None:
        """What is there stays, as one step; what is not there yet is carried the next time."""
        if self._step.open:
            self._session.close_transaction()

    def _write(self, number: int, plane: Plane, answer: SoftMask) -> None:
        session, record = self._session, self._session.record(number)
        assert session.labels is not None
        mask = postprocess_patch(answer, session.finish)
        edit, whole = object_edits(
            session.labels, plane, mask.pixels, record.label, session.policy, corner=mask.corner
        )
        if edit is not None:
            self._step.write(session.labels, edit)
        if whole is not None:
            self._step.set_record(number, replace(record, written={**record.written, plane: whole}))


class Mark(NamedTuple):
    """What a strip along the planes shows of one of them; the confidence of an anchor is None."""

    plane: Plane
    answer: SoftMask
    confidence: float | None

    @property
    def anchor(self) -> bool:
        """Whether a person has spoken there."""
        return self.confidence is None


def marks(session: Session, planes: Iterable[Plane]) -> list[Mark]:
    """The planes on which the object in hand is known, in the order given."""
    known = ((plane, session.state(plane)) for plane in planes)
    return [Mark(plane, state.answer, state.confidence) for plane, state in known if state.answer is not None]


def most_uncertain_plane(session: Session, planes: Iterable[Plane]) -> Plane | None:
    """The carried plane where a correction is likely to matter most; None if nothing was carried."""
    uncertainties = {
        plane: uncertainty(confidence, answer.pixels)
        for plane, answer, confidence in marks(session, planes)
        if confidence is not None
    }
    return max(uncertainties, key=lambda plane: uncertainties[plane], default=None)


def next_anchor(session: Session, planes: Sequence[Plane], here: Plane) -> Plane | None:
    """The next plane after `here` where a person has shown the object; after the last comes the first."""
    anchors = [mark.plane for mark in marks(session, planes) if mark.anchor]
    behind = [plane for plane in anchors if plane.position > here.position]
    return next(iter(behind or anchors), None)


def stack_of(volume: Volume, plane: Plane) -> tuple[Plane, ...]:
    """All planes along the axis on which this one lies, itself among them; a 2-D image has one."""
    axes = [axis for axis, position in enumerate(plane.index) if position is not None]
    if not axes:
        return (plane,)
    return tuple(plane.moved(place - plane.position) for place in range(volume.shape[axes[-1]]))


def _anchors(session: Session, planes: Iterable[Plane]) -> dict[Plane, SoftMask]:
    return {
        mark.plane: mark.answer
        for mark in marks(session, planes)
        if mark.anchor and session.state(mark.plane).answered
    }


def _changed(
    session: Session, trace: Trace, anchors: dict[Plane, SoftMask], planes: Sequence[Plane]
) -> tuple[Plane, ...]:
    """The planes of a range whose anchor, or whose carried answer, is not what the last run left there."""
    old = set(trace.planes)
    return tuple(
        plane
        for plane in planes
        if plane not in old
        or trace.anchors.get(plane) is not anchors.get(plane)
        or (plane in trace.reached and plane not in anchors and session.state(plane).confidence is None)
    )
