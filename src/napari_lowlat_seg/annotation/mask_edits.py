"""Edits of the current object's mask, on one plane or in three axes: what they would change, and doing it.

known = masks_along(session, plane, whole=True)      # quick; the session may go on meanwhile
changed = edited_masks(known, MaskEdit("grow", 3))   # on any thread
session.reshape(changed)                             # one step of undo
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from napari_lowlat_seg.annotation.propagation_run import stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import EMPTY_PATCH, BoundingBox, Patch
from napari_lowlat_seg.core.masks import Edit, edited
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.interpolate import interpolate

MOST_VOXELS = 2**28
"""A block around an object that is larger is not edited in three axes."""


@dataclass(frozen=True)
class MaskEdit:
    """What is to be done to a mask.

    Attributes
    ----------
    edit
        As `edited` has it, or "between": shapes are interpolated between the planes that have a mask.
    amount
        In pixels along a row of the plane; of "drop_small" a number of pixels or voxels.
    whole
        Whether the object is edited in three axes, on all its planes along one axis, or on one plane.
    """

    edit: Edit | str
    amount: float = 0.0
    whole: bool = False


@dataclass(frozen=True, eq=False)
class KnownMasks:
    """The masks of one object on parallel planes.

    Attributes
    ----------
    masks
        bool, by plane; those that are empty are left out.
    planes
        All planes that an edit may change, in spatial order.
    sides
        (rows, cols) of each.
    spacing
        Distance of two planes, and size of a pixel along rows and columns.
    """

    masks: Mapping[Plane, Patch]
    planes: Sequence[Plane]
    sides: tuple[int, int]
    spacing: tuple[float, float, float]


def masks_along(session: Session, plane: Plane, *, whole: bool) -> KnownMasks:
    """The masks of the current object on a plane, or with `whole` on all planes of its stack."""
    planes = stack_of(session.volume, plane) if whole else (plane,)
    here = set(session.states()).intersection(planes) if whole else {plane}
    patches = {one: session.patch(one) for one in sorted(here, key=lambda one: one.position)}
    masks = {one: patch for one, patch in patches.items() if patch is not None and patch.pixels.any()}
    spacing = (session.volume.thickness(plane), *session.volume.plane_spacing(plane))
    return KnownMasks(masks, planes, session.volume.sides(plane), spacing)


def edited_masks(known: KnownMasks, edit: MaskEdit) -> dict[Plane, Patch]:
    """The masks that an edit changes, by plane. Does not mutate.

    Raises
    ------
    ValueError
        As `edited`, and for an object around which a block of more than `MOST_VOXELS` voxels lies.
    """
    if not known.masks:
        return {}
    if edit.edit == "between":
        return _between(known)
    across = edit.amount * known.spacing[2] / known.spacing[0]  # planes that a growing object reaches
    reach = {"grow": 1.0, "smooth": 4.0}.get(edit.edit, 0.0)
    places = [place for place, plane in enumerate(known.planes) if plane in known.masks]
    first = max(0, places[0] - int(np.ceil(reach * across)) - 1)
    planes = known.planes[first : places[-1] + int(np.ceil(reach * across)) + 2]
    boxes = [BoundingBox.of(patch.pixels).shifted(*patch.corner) for patch in known.masks.values()]
    margin = int(np.ceil(reach * edit.amount * known.spacing[2] / min(known.spacing[1:]))) + 1
    box = boxes[0].union(*boxes[1:]).grown(margin).clipped(known.sides)
    rows, cols = box.shape
    if len(planes) * rows * cols > MOST_VOXELS:
        raise ValueError(
            f"the object lies in a block of {len(planes)} x {rows} x {cols} voxels, more than {MOST_VOXELS} "
            "to be edited in three axes; edit it plane by plane"
        )
    before = [known.masks.get(plane, EMPTY_PATCH).shown_in(box) for plane in planes]
    kind: Edit = edit.edit  # type: ignore[assignment]
    if edit.whole:
        after = edited(np.stack(before), kind, edit.amount, known.spacing)
    else:
        after = edited(before[0], kind, edit.amount, known.spacing[1:])[None]
    return {
        plane: Patch(box.corner, new)
        for plane, old, new in zip(planes, before, after, strict=True)
        if not np.array_equal(old, new)
    }


def _between(known: KnownMasks) -> dict[Plane, Patch]:
    masks = {plane: patch.on(known.sides) for plane, patch in known.masks.items()}
    found = interpolate(masks, known.planes, known.spacing[1:])
    return {plane: Patch.of(mask) for plane, mask in found}
