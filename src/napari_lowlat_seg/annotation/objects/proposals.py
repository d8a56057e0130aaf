"""Objects that were found without a prompt: proposed, then accepted, corrected or rejected by a person.

A proposal is an object of the session with masks and a score that is in no labels yet; it is journaled, saved
and undone as any other. It never takes a voxel from another object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from napari_lowlat_seg.annotation.history import ObjectRecord
from napari_lowlat_seg.annotation.objects.actions import do, labels_of, moved_on, next_label
from napari_lowlat_seg.annotation.objects.writing import check_label, volume_edits
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.labels import LabelStore, Policy
from napari_lowlat_seg.core.masks import SoftMask, postprocess_patch
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.linking import link_planes

LEAST_PLANES = 3
"""An object found in a stack is seen on this many planes or more: what appears on fewer is mostly wrong."""

FREE = 0.5
"""Of a mask, the share that must be background; the rest, which other objects have, is cut off."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """An object that was found.

    Attributes
    ----------
    score
        How good it seems, 0 to 1; of several planes the mean.
    masks
        By plane.
    """

    score: float
    masks: Mapping[Plane, SoftMask]


def linked_proposals(
    planes: Sequence[Plane],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    store: LabelStore | None = None,
) -> list[Proposal]:
    """The objects of some planes, in spatial order, the best first; may be called on a thread of its own.

    Parameters
    ----------
    planes
        Neighbours along one axis.
    found
        Of each: labels (rows, cols) from 1, and the score of each.
    store
        Labels whose objects keep their voxels; None without any.
    """
    labels = [_free(plane, one, store) for plane, (one, _) in zip(planes, found, strict=True)]
    masks: dict[int, dict[Plane, SoftMask]] = {}
    scores: dict[int, list[float]] = {}
    for plane, one, table, (_, score) in zip(planes, labels, link_planes(labels), found, strict=True):
        for label, patch in _patches(one):
            number = int(table[label])
            soft_mask = SoftMask.from_mask(patch.pixels).on((one.shape[0], one.shape[1]), patch.corner)
            masks.setdefault(number, {})[plane] = soft_mask
            scores.setdefault(number, []).append(float(score[label - 1]))
    least = min(LEAST_PLANES, len(planes))
    kept = [Proposal(sum(scores[n]) / len(scores[n]), masks[n]) for n in masks if len(masks[n]) >= least]
    return sorted(kept, key=lambda one: -one.score)


def _free(plane: Plane, labels: np.ndarray, store: LabelStore | None) -> np.ndarray:
    """Labels of a plane without pixels that another object has, and without masks that are mostly such."""
    if store is None or not labels.any():
        return labels
    taken = store.read(plane, BoundingBox(0, 0, labels.shape[0], labels.shape[1])) != 0
    areas = np.bincount(labels.ravel())
    free = np.bincount(labels[~taken], minlength=len(areas))
    kept = free >= FREE * areas
    result: np.ndarray = np.where(kept[labels] & ~taken, labels, 0)
    return result


def _patches(labels: np.ndarray) -> Iterable[tuple[int, Patch]]:
    from scipy import ndimage  # takes 0.25 s, which would delay the window

    for label, place in enumerate(ndimage.find_objects(labels.astype(np.int32)), 1):
        if place is not None:
            rows, cols = place
            yield label, Patch((rows.start, cols.start), labels[place] == label)


def propose(session: Session, proposals: Sequence[Proposal]) -> tuple[int, ...]:
    """Add proposals in one undo step; their numbers."""
    contents = session.contents
    numbers = tuple(contents.new_number() for _ in proposals)
    states = tuple(
        contents.change(number, plane, PlaneState((), mask, mask, mask))
        for number, one in zip(numbers, proposals, strict=True)
        for plane, mask in one.masks.items()
    )
    records = tuple(
        (number, None, ObjectRecord(1, score=one.score))
        for number, one in zip(numbers, proposals, strict=True)
    )
    if numbers:
        title = f"found {len(numbers)} objects" if len(numbers) > 1 else "found 1 object"
        do(session, title, records=records, states=states)
    return numbers


def masks_of(session: Session, number: int) -> Mapping[Plane, SoftMask]:
    """The masks of a proposal, by plane; none if it was accepted, rejected or opened."""
    record = session.contents.records.get(number)
    if record is None or record.score is None or record.store is not None or number == session.current:
        return {}
    states = session.contents.of(number).items()
    return {plane: state.soft_mask for plane, state in states if state.soft_mask is not None}


def accept_proposal(session: Session, number: int) -> int:
    """Write a proposal into the labels, in one undo step; its label.

    It takes background only, whatever the policy. Raises ValueError if all of it belongs to other objects by
    now, for labels whose type cannot hold its label, and without labels.
    """
    masks, store = _masks(session, number), labels_of(session)
    session.check_answered()
    record, label = session.contents.records[number], next_label(session)
    check_label(store, next(iter(masks)), label)
    patches = {plane: postprocess_patch(mask, session.finish, ()) for plane, mask in masks.items()}
    edits, written = volume_edits(store, patches, label, Policy("keep"), {})
    if not edits:
        raise ValueError("other objects cover this proposal by now: nothing was written; reject it")
    accepted = replace(record, label=label, store=store, written=written)
    records = ((number, record, accepted), *moved_on(session, label))
    do(session, f"accepted object {label}", store, edits, records)
    return label


def reject_proposals(session: Session, numbers: Iterable[int]) -> None:
    """Drop proposals, in one undo step; raises ValueError for what is none."""
    states = tuple(
        session.contents.change(number, plane, PlaneState())
        for number in dict.fromkeys(numbers)
        for plane in _masks(session, number)
    )
    records = tuple(
        (number, session.contents.records[number], session.contents.records[number])
        for number in dict.fromkeys(key[0] for key, _, _ in states)
    )
    if not states:
        raise ValueError("no proposal is chosen; choose a row of the table first")
    title = f"rejected {len(records)} proposals" if len(records) > 1 else "rejected a proposal"
    do(session, title, records=records, states=states, plane=states[0][0][1])


def correct_proposal(session: Session, number: int) -> Plane:
    """Make a proposal the current object, so that prompts refine its masks; the plane with most of it.

    The current object is accepted first. Raises ValueError as `Session.edit_object` does.
    """
    masks = _masks(session, number)
    session.check_answered()
    session.accept()
    record, plane = session.contents.records[number], max(masks, key=lambda one: masks[one].pixels)
    opened = replace(record, label=session.label)
    records = ((number, record, opened),)
    do(session, "correct a proposal", records=records, plane=plane, following=number)
    return plane


def _masks(session: Session, number: int) -> Mapping[Plane, SoftMask]:
    masks = masks_of(session, number)
    if not masks:
        raise ValueError("this proposal was accepted or rejected already; choose another row")
    return masks
