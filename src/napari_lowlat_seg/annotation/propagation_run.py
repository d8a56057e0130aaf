"""Contents of a session propagated through planes: the request, its masks, and which planes to check.

    run = PropagationRun.propagation(session, planes)
    for number, found in service.propagate(run.request, sources):
        run.apply(number, found)               # False once the user has done something else
    run.finish()                               # all of it is one undo step

A plane with prompts or a drawn mask is never changed. Masks of an earlier run stay until new ones come, so
that a run that is stopped leaves no holes; those that a complete run no longer reaches are removed. A second
run propagates only between the anchors around a change, see `sweep.affected`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, overload

import numpy as np

from napari_lowlat_seg.annotation.history import Key, Propagated, Transaction
from napari_lowlat_seg.annotation.objects.writing import object_edits
from napari_lowlat_seg.annotation.plane_state import PlaneState, finished_mask
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import EMPTY_PATCH
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Prompt
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.propagate import doubtful_point, most_doubtful
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane, affected, anchor_gaps


class PropagationService(Protocol):
    """What a run needs of a `PredictionService`."""

    def propagate(
        self, request: PropagationRequest, sources: Sequence[PlaneSource]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """As `PredictionService.propagate`."""


class PropagationRun:
    """One propagation of objects of a session. Make one with `propagation`, `interpolation` or `seeds`.

    Use it from the session's thread. It is one undo step. Anything else that is done with the session ends
    the run; masks that have come until then stay.

    Attributes
    ----------
    request
        What `PredictionService.propagate` takes.
    count
        How many planes may get a mask, of all objects, as far as is known at the start.
    """

    def __init__(
        self,
        session: Session,
        step: Transaction,
        request: PropagationRequest,
        *,
        count: int,
        twice: Collection[Plane] = (),
        old: Iterable[Plane] = (),
        writes: bool = False,
    ) -> None:
        self.request, self.count = request, count
        self._session, self._step, self._writes = session, step, writes
        self._reached: set[Key] = set()
        self._twice, self._again = len(twice), set(twice)  # between two anchors: until the final mask
        self._behind: set[Plane] = set()  # an end that a sweep has found
        self._old = set(old)
        self._noted: list[PropagatedMask[SoftMask]] = []  # of one object; of many nobody would read it
        step.begin(request)

    @classmethod
    def propagation(cls, session: Session, planes: Sequence[Plane]) -> PropagationRun:
        """Begin to propagate the current object through `planes`, in spatial order, from its anchors there.

        Raises ValueError if none of the planes shows the object, and if nothing has changed since the last
        run.
        """
        anchors = _anchors(session, planes)
        if not any(soft_mask.pixels for soft_mask in anchors.values()):
            raise ValueError(
                f"propagation needs the object on at least one of the {len(planes)} planes of its range; "
                "click on it there first"
            )
        last = session.contents.records[session.current].propagated
        changed = tuple(planes) if last is None else _changed(session, last, anchors, planes)
        if not changed:
            raise ValueError(
                "nothing has changed since the last propagation; correct the object on a plane, or widen "
                "the range"
            )
        step = session.open_transaction("propagate", next(iter(anchors)))
        open_planes = affected(anchors, planes, changed)
        pixels = {place: anchors[plane].pixels for place, plane in enumerate(planes) if plane in anchors}
        twice = [
            plane
            for lo, hi in anchor_gaps(anchors, planes, changed)
            if lo is not None and hi is not None and pixels[lo] and pixels[hi]
            for plane in planes[lo + 1 : hi]
        ]
        old = [plane for plane in open_planes if session.state(plane).confidence is not None]
        request = PropagationRequest(tuple(planes), {session.current: anchors}, changed=changed)
        return cls(session, step, request, count=len(open_planes), twice=twice, old=old)

    @classmethod
    def interpolation(cls, session: Session, planes: Sequence[Plane]) -> PropagationRun:
        """Begin to interpolate the shape of the current object between its anchors, without the network.

        Raises ValueError if less than two of `planes` show the object.
        """
        masks = {}
        for plane in _anchors(session, planes):
            patch = session.patch(plane)
            if patch is not None and patch.pixels.any():
                masks[plane] = SoftMask.from_mask(patch.pixels).on(session.volume.sides(plane), patch.corner)
        if len(masks) < 2:
            raise ValueError(
                f"interpolation needs the object on two planes of its range, got {len(masks)}; click on "
                "it on another plane as well"
            )
        step = session.open_transaction("interpolate", next(iter(masks)))
        step.change(
            records={session.current: replace(session.contents.records[session.current], propagated=None)}
        )
        request = PropagationRequest(tuple(planes), {session.current: masks}, shapes=True)
        places = [place for place, plane in enumerate(planes) if plane in masks]
        return cls(session, step, request, count=places[-1] - places[0] + 1 - len(places))

    @classmethod
    def seeds(
        cls, session: Session, planes: Sequence[Plane], seeds: Sequence[tuple[Plane, Prompt]]
    ) -> PropagationRun:
        """Begin an object for every seed, a prompt on a plane; they are written to the labels as they come.

        The current object is accepted first. Raises ValueError without labels, without a seed and for a seed
        that lies on none of `planes`.
        """
        outside = [plane for plane, _ in seeds if plane not in planes]
        if not seeds or outside:
            raise ValueError(
                f"expected seeds on the {len(planes)} planes of the range, got {len(seeds)} of which "
                f"{len(outside)} lie outside; move them or widen the range"
            )
        if session.labels is None:
            raise ValueError("there are no labels to write to; choose or make a labels layer first")
        step, numbers = session.open_objects(len(seeds))
        request = PropagationRequest(tuple(planes), seeds=dict(zip(numbers, seeds)))
        return cls(session, step, request, count=len(planes) * len(seeds), writes=True)

    @property
    def active(self) -> bool:
        """Whether masks are still applied: nothing else was done with the session meanwhile."""
        return self._step.open

    @property
    def reached(self) -> frozenset[Plane]:
        """The planes that have got a mask so far, of all objects."""
        return frozenset(plane for _, plane in self._reached)

    @property
    def done(self) -> int:
        """How many planes have got a mask, of all objects."""
        return len(self._reached)

    @property
    def expected(self) -> int:
        """How many planes may get a mask: `count` without those behind an end that a sweep has found."""
        return self.count - len(self._behind)

    @property
    def left(self) -> int:
        """How many more masks may come; a plane between two anchors gets two, the second one final."""
        return self.expected - self.done + len(self._again)

    @property
    def came(self) -> int:
        """How many masks have come, and with a plane's final one the first, also if there was none."""
        return self.done + self._twice - len(self._again)

    @property
    def old(self) -> frozenset[Plane]:
        """The planes whose mask of an earlier run has not been replaced so far."""
        return frozenset(self._old)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why one object was not followed further, and which damaged planes were stepped over, in words."""
        return tuple(f"plane {found.plane.position}: {found.note}" for found in self._noted)

    def apply(self, number: int, found: PropagatedMask[SoftMask]) -> bool:
        """Apply a mask; False if the run has ended, or if the plane has prompts or a drawn mask.

        What has a note is kept for `notes` and changes nothing, so it is False as well.

        Raises ValueError if the labels' type cannot hold the object's label.
        """
        key, plane = (number, found.plane), found.plane
        seed = self.request.seeds.get(number)
        if not self._step.open:
            return False
        if found.note is not None:
            if not self._writes:
                self._noted.append(found)
                if found.ends:
                    self._pass(number, plane, found.ends)
            return False
        if number == self._session.current:
            state = self._session.state(plane)
            if state.prompts or state.anchor:
                return False
        state = PlaneState((), found.prediction, found.prediction, confidence=found.confidence)
        if seed is not None and seed[0] == plane:
            state = PlaneState((seed[1],), found.prediction)
        if self._writes:
            self._write(key, state)
        else:
            self._step.change({key: state})
        self._reached.add(key)
        self._old.discard(plane)
        if found.final:
            self._again.discard(plane)
        return True

    def _pass(self, number: int, end: Plane, way: int) -> None:
        """Expect no mask behind the end of a sweep from the first or the last anchor; `way` is its `ends`."""
        planes = self.request.planes
        place = planes.index(end)
        behind = planes[place + 1 :] if way > 0 else planes[:place]
        if not self.request.anchors[number].keys() & set(behind):
            self._behind.update(behind)

    def finish(self) -> None:
        """Complete the undo step when all masks have come, and record them for the next run."""
        if not self._step.open:
            return
        if not self.request.shapes and not self._writes:
            ((number, anchors),) = self.request.anchors.items()
            # The object no longer reaches the others.
            self._step.change({(number, plane): PlaneState() for plane in self._old})
            record = self._session.contents.records[number]
            planes, changed = self.request.planes, self.request.changed or ()
            reached = frozenset(mark.plane for mark in marks(self._session, planes) if not mark.anchor)
            again = {*changed, *affected(anchors, planes, changed)}
            last = () if record.propagated is None else record.propagated.refused
            refused = [one for one in last if one.plane not in again]
            refused += [one for found in self._noted for one in found.refused]
            propagated = Propagated(anchors, planes, reached, tuple(refused))
            self._step.change(records={number: replace(record, propagated=propagated)})
        self._session.close_transaction()

    def stop(self) -> None:
        """End the run early: new masks stay, as one undo step, and old ones where no new one has come."""
        if self._step.open:
            self._session.close_transaction()

    def complete(self, service: PropagationService) -> int:
        """Run to the end in this thread and return how many planes got a mask.

        For scripts: a window applies each mask when it comes. Raises what the service raises; masks that have
        come until then stay.
        """
        sources = [self._session.source(plane) for plane in self.request.planes]
        try:
            for number, found in service.propagate(self.request, sources):
                self.apply(number, found)
        except BaseException:
            self.stop()
            raise
        self.finish()
        return len(self.reached)

    def _write(self, key: Key, state: PlaneState) -> None:
        (number, plane), session = key, self._session
        record = session.contents.records[number]
        assert session.labels is not None
        limits = replace(session.limits, neighbours=False)  # by the policy, in `object_edits`
        mask = session.within(limits, finished_mask(state, session.finish) or EMPTY_PATCH, plane)
        edit, whole = object_edits(
            session.labels, plane, mask.pixels, record.label, session.policy_in_force, corner=mask.corner
        )
        records = {}
        if whole is not None:
            records[number] = replace(record, written={**record.written, plane: whole})
        self._step.change({key: state}, records, session.labels, [] if edit is None else [edit])


class Mark(NamedTuple):
    """A plane with a mask of the current object, for an overview of all planes.

    Attributes
    ----------
    plane, soft_mask
        Where and what.
    confidence
        Estimated IoU of a propagated mask, 0 to 1; None for an anchor.
    """

    plane: Plane
    soft_mask: SoftMask
    confidence: float | None

    @property
    def anchor(self) -> bool:
        """Whether a person gave prompts or drew there."""
        return self.confidence is None


def marks(session: Session, planes: Iterable[Plane]) -> list[Mark]:
    """The planes on which the current object has a mask, in the order given."""
    known = {plane: state for plane, state in session.states().items() if state.soft_mask is not None}
    if isinstance(planes, PlaneStack):  # thousands of planes, of which few are known
        stack = planes
        planes = sorted((plane for plane in known if plane in stack), key=lambda plane: plane.position)
    found = ((plane, known[plane]) for plane in planes if plane in known)
    return [
        Mark(plane, state.soft_mask, state.confidence)
        for plane, state in found
        if state.soft_mask is not None
    ]


def refused_planes(session: Session, planes: Sequence[Plane]) -> dict[Plane, RefusedPlane]:
    """The planes at which a sweep of the current object ended and that still have no mask of it."""
    last = session.contents.records[session.current].propagated
    states = session.states()
    return {
        one.plane: one
        for one in (() if last is None else last.refused)
        if one.plane in planes and (one.plane not in states or states[one.plane].soft_mask is None)
    }


def most_uncertain_plane(session: Session, planes: Sequence[Plane]) -> Plane | None:
    """The plane where a correction is likely to matter most; None if nothing has been propagated.

    It is one with a propagated mask, or one at which a sweep ended; see `propagate.most_doubtful`.
    """
    masks = (
        (plane, confidence, soft_mask.pixels)
        for plane, soft_mask, confidence in marks(session, planes)
        if confidence is not None
    )
    return most_doubtful(masks, refused_planes(session, planes).values())


def next_click(session: Session, planes: Sequence[Plane]) -> tuple[Plane, tuple[int, int]] | None:
    """Where a click is likely to help most: `most_uncertain_plane`, and (row, col) of its mask in doubt.

    Whether the click should be positive is for a person to say. On a plane without a pixel in doubt it is the
    least certain pixel, on one without a mask that of the nearest mask. None if nothing has been propagated,
    or no plane has a mask.
    """
    plane, known = most_uncertain_plane(session, planes), marks(session, planes)
    if plane is None or not known:
        return None
    nearest = min(known, key=lambda mark: abs(mark.plane.position - plane.position))
    probability = nearest.soft_mask.probability
    point = doubtful_point(probability)
    if point is None:
        row, col = np.unravel_index(int(np.argmin(abs(probability - 0.5))), probability.shape)
        point = int(row), int(col)
    return plane, point


def next_anchor(session: Session, planes: Sequence[Plane], here: Plane) -> Plane | None:
    """The next anchor after the plane `here`; after the last comes the first. None without anchors."""
    anchors = [mark.plane for mark in marks(session, planes) if mark.anchor]
    behind = [plane for plane in anchors if plane.position > here.position]
    return next(iter(behind or anchors), None)


class PlaneStack(Sequence[Plane]):
    """All planes along the last axis on which a plane has a position, in order.

    A plane is made when it is asked for, so that a stack of 5,000 planes costs no more than one of 5.

    Parameters
    ----------
    plane
        One of them; it has a position on at least one axis.
    shape
        Of the volume.
    """

    def __init__(self, plane: Plane, shape: Sequence[int]) -> None:
        axis = max(axis for axis, position in enumerate(plane.index) if position is not None)
        self._before, self._after = plane.index[:axis], plane.index[axis + 1 :]
        self._length = shape[axis]

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, key: int) -> Plane: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Plane, ...]: ...

    def __getitem__(self, key: int | slice) -> Plane | tuple[Plane, ...]:
        positions = range(self._length)[key]
        if isinstance(positions, range):
            return tuple(self._at(position) for position in positions)
        return self._at(positions)

    def __contains__(self, plane: object) -> bool:
        if not isinstance(plane, Plane):
            return False
        index, axis = plane.index, len(self._before)
        position = index[axis] if axis < len(index) else None
        return (
            position is not None
            and position < self._length
            and (index[:axis], index[axis + 1 :]) == (self._before, self._after)
        )

    def _at(self, position: int) -> Plane:
        return Plane((*self._before, position, *self._after))


def stack_of(volume: Volume, plane: Plane) -> Sequence[Plane]:
    """All planes along the axis on which this one lies, itself among them; a 2-D image has one."""
    if all(position is None for position in plane.index):
        return (plane,)
    return PlaneStack(plane, volume.shape)


def _anchors(session: Session, planes: Iterable[Plane]) -> dict[Plane, SoftMask]:
    """The masks of the current object that a person gave prompts for or drew, by plane."""
    return {
        mark.plane: mark.soft_mask
        for mark in marks(session, planes)
        if mark.anchor and not session.state(mark.plane).pending
    }


def _changed(
    session: Session, last: Propagated, anchors: dict[Plane, SoftMask], planes: Sequence[Plane]
) -> tuple[Plane, ...]:
    """The planes of a range whose anchor or propagated mask is not what the last run left there."""
    old = set(last.planes)
    return tuple(
        plane
        for plane in planes
        if plane not in old
        or last.anchors.get(plane) is not anchors.get(plane)
        or (plane in last.reached and plane not in anchors and session.state(plane).confidence is None)
    )
