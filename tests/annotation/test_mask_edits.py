"""Edits of an object's mask on one plane and through its planes: what changes, one step, journaled."""

import numpy as np
import pytest

from napari_lowlat_seg.annotation import mask_edits
from napari_lowlat_seg.annotation.journal import Journal, read_session
from napari_lowlat_seg.annotation.journal.replay import replay
from napari_lowlat_seg.annotation.mask_edits import MaskEdit, edited_masks, masks_along
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels
from napari_lowlat_seg.core.volume import Plane, Volume

SHAPE = (7, 20, 24)
PLANE, ABOVE = Plane((3, None, None)), Plane((4, None, None))
SQUARE = np.zeros(SHAPE[1:], bool)
SQUARE[6:12, 8:14] = True


@pytest.fixture
def session():
    """A square drawn on planes 2 and 3, in thick planes."""
    made = Session(Volume(np.zeros(SHAPE, np.uint8), (2.0, 1.0, 1.0)), ArrayLabels(np.zeros(SHAPE, int)))
    made.paint(PLANE, SQUARE)
    made.paint(PLANE.moved(-1), SQUARE)
    return made


def do(session, edit):
    """The planes that an edit changes, after it was done."""
    changed = edited_masks(masks_along(session, PLANE, whole=edit.whole), edit)
    session.reshape(changed)
    return {plane.position for plane in changed}


def test_an_edit_of_one_plane_leaves_the_others(session):
    """Grown by two pixels to every side; one undo."""
    assert do(session, MaskEdit("grow", 2)) == {3}
    assert np.flatnonzero(session.mask(PLANE).any(axis=1)).tolist() == list(range(4, 14))
    assert np.array_equal(session.mask(PLANE.moved(-1)), SQUARE)
    assert session.undo().title == "edit of the mask"
    assert np.array_equal(session.mask(PLANE), SQUARE)


@pytest.mark.parametrize(("amount", "planes"), [(1.5, {2, 3}), (2, {1, 2, 3, 4}), (99, set(range(7)))])
def test_growing_in_three_axes_follows_the_spacing(session, amount, planes):
    """A plane is two pixels thick; at the ends of the volume there is nothing beyond."""
    assert do(session, MaskEdit("grow", amount, whole=True)) == planes
    assert len(session.undo_stack.done) == 3


def test_islands_and_holes_through_the_planes(session):
    """An island on another plane is dropped there; a cavity that only three axes enclose is filled."""
    island = np.zeros_like(SQUARE)
    island[1, 1] = True
    session.paint(ABOVE.moved(2), island)
    assert do(session, MaskEdit("largest", whole=True)) == {6}
    assert not session.mask(ABOVE.moved(2)).any()
    ring = SQUARE.copy()
    ring[8, 10] = False
    session.paint(ABOVE, SQUARE)
    session.paint(PLANE, ring)
    assert do(session, MaskEdit("fill_holes", whole=True)) == {3}
    assert np.array_equal(session.mask(PLANE), SQUARE)
    assert do(session, MaskEdit("fill_holes")) == set()


def test_shapes_between_planes(session):
    """Planes between two that have a mask get one."""
    session.paint(ABOVE.moved(2), np.roll(SQUARE, 2, axis=1))
    assert do(session, MaskEdit("between", whole=True)) == {4, 5}
    assert session.mask(ABOVE).sum() > 20


def test_what_is_too_large_is_refused(session, monkeypatch):
    """With its size; nothing without a mask."""
    monkeypatch.setattr(mask_edits, "MOST_VOXELS", 100)
    with pytest.raises(ValueError, match=r"in a block of 6 x 12 x 12 voxels, more than 100"):
        do(session, MaskEdit("grow", 2, whole=True))
    session.clear()
    assert do(session, MaskEdit("grow", 2, whole=True)) == set()


def test_a_replay_repeats_an_edit_as_it_was(session, tmp_path):
    """The masks are kept, as those that a person drew."""
    fresh = Session(session.volume, ArrayLabels(np.zeros(SHAPE, np.uint16)))
    journal = Journal(fresh, tmp_path)
    fresh.paint(PLANE, SQUARE)
    do(fresh, MaskEdit("grow", 2, whole=True))
    fresh.accept()
    journal.save(tmp_path / "mine.lowlat")
    journal.close()
    done = replay(read_session(tmp_path / "mine.lowlat", fresh.volume), fresh.volume, lambda facts: None)
    assert (done.differing, np.count_nonzero(done.labels)) == (0, np.count_nonzero(fresh.labels.data))
