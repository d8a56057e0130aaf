"""A session driven as a window drives it, with made-up masks in place of a network's predictions."""

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kill_journal import KINDS, PLANES, SHAPE, play, predicted
from napari_lowlat_seg.annotation.history import Step
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume

FIRST, SECOND = Plane((1, None, None)), Plane((2, None, None))
CORONAL = Plane((None, 5, None))


def block(top, left, bottom, right, shape=SHAPE[1:]):
    """A rectangular (rows, cols) mask."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def labels():
    """Empty labels."""
    return np.zeros(SHAPE, np.uint16)


@pytest.fixture
def session(labels):
    """A session that writes to `labels`."""
    return Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels))


def add(session, plane, prompt, mask):
    """Add a prompt and apply its prediction."""
    session.add(plane, prompt)
    assert session.apply(session.request(plane), predicted(mask))


def test_a_click_makes_a_request_and_its_prediction_is_shown(session):
    """The first request has all prompts and no previous mask."""
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    assert (request.plane, request.prompts, request.previous) == (FIRST, (Click((3, 3)),), None)
    assert session.mask(FIRST) is None
    assert session.apply(request, predicted(block(2, 2, 6, 6)))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))
    assert session.request(FIRST) is None


def test_the_next_click_refines_the_mask(session):
    """The mask so far is the previous one of the next request."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.add(FIRST, Click((9, 9), positive=False))
    request = session.request(FIRST)
    assert request.prompts == (Click((3, 3)), Click((9, 9), positive=False))
    assert request.previous is session.state(FIRST).soft_mask


def test_two_clicks_before_a_prediction_refine_the_mask_before_them(session):
    """A mask that belongs to other prompts is never fed back."""
    session.add(FIRST, Click((3, 3)))
    first = session.request(FIRST)
    session.add(FIRST, Click((4, 4)))
    assert session.request(FIRST).previous is None
    assert not session.apply(first, predicted(block(0, 0, 2, 2)))
    assert session.mask(FIRST) is None


def test_after_a_removed_click_the_mask_is_predicted_afresh(session):
    """The request has no previous mask, so the effect of the click is gone."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    add(session, FIRST, Click((8, 8)), block(2, 2, 9, 9))
    assert session.set_prompts(FIRST, [Click((3, 3))])
    request = session.request(FIRST)
    assert (request.prompts, request.previous) == ((Click((3, 3)),), None)


def test_after_a_moved_click_the_mask_is_predicted_afresh(session):
    """A move is a change, not an addition."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.set_prompts(FIRST, [Click((4, 3))])
    assert session.request(FIRST).previous is None


def test_without_prompts_there_is_no_request_and_no_mask(session):
    """Deleting the only click removes its mask."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.set_prompts(FIRST, [])
    assert session.request(FIRST) is None
    assert session.mask(FIRST) is None


def test_equal_prompts_make_no_undo_step(session):
    """Layers may be read again at any time."""
    session.add(FIRST, Click((3, 3)))
    assert not session.set_prompts(FIRST, [Click((3, 3))])
    assert len(session.undo_stack.done) == 1


def test_both_predictions_for_one_request_are_applied(session):
    """The quick one and the closer look belong to the same state."""
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    assert session.apply(request, predicted(block(2, 2, 6, 6)))
    assert session.apply(request, predicted(block(2, 2, 5, 5)))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 5, 5))


def test_a_prediction_is_applied_on_a_plane_that_was_left(session):
    """Scrolling on loses nothing."""
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    session.add(SECOND, Click((1, 1)))
    assert session.apply(request, predicted(block(2, 2, 6, 6)))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))
    assert session.mask(SECOND) is None
    assert session.pending == (SECOND,)


def test_a_preview_request_is_never_applied(session):
    """It adds prompts to the given ones, for a stroke under way or a hovering mouse."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    preview = session.preview_request(FIRST, [Scribble([(4, 4), (5, 5)])])
    assert preview.prompts == (Click((3, 3)), Scribble([(4, 4), (5, 5)]))
    assert preview.previous is session.state(FIRST).soft_mask
    assert not session.apply(preview, predicted(block(0, 0, 1, 1)))
    assert session.state(FIRST).prompts == (Click((3, 3)),)


def test_undo_and_redo_change_a_click_and_its_mask_together(session):
    """No request is needed."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    add(session, FIRST, Click((8, 8)), block(2, 2, 9, 9))
    assert session.undo().plane == FIRST
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))
    assert session.request(FIRST) is None
    session.redo()
    assert np.array_equal(session.mask(FIRST), block(2, 2, 9, 9))
    assert session.request(FIRST) is None
    session.undo(), session.undo()
    assert session.mask(FIRST) is None
    assert session.undo() is None


def test_undo_to_a_click_without_a_prediction_makes_a_request(session):
    """What was overtaken is made up for."""
    session.add(FIRST, Click((3, 3)))
    session.add(FIRST, Click((8, 8)))
    session.undo()
    assert session.request(FIRST).prompts == (Click((3, 3)),)


def test_a_prediction_that_comes_after_undo_is_stale(session):
    """It does not change the state before its click; redo makes the request again."""
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    session.undo()
    assert not session.apply(request, predicted(block(2, 2, 6, 6)))
    assert session.mask(FIRST) is None
    session.redo()
    assert session.apply(session.request(FIRST), predicted(block(2, 2, 6, 6)))


def test_a_new_step_drops_the_undone_steps(session):
    """The undo stack is a line, not a tree."""
    session.add(FIRST, Click((3, 3)))
    session.undo()
    session.add(FIRST, Click((4, 4)))
    assert not session.can_redo
    assert session.redo() is None


def test_a_drawn_mask_is_refined_by_later_prompts(session):
    """It is the previous mask of the next click; earlier prompts that it contradicts are left out."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 9, 9))
    add(session, FIRST, Click((8, 8)), block(2, 2, 9, 9))
    session.paint(FIRST, block(2, 2, 6, 6))
    assert session.request(FIRST) is None
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))
    session.add(FIRST, Click((5, 7)))
    request = session.request(FIRST)
    assert request.prompts == (Click((3, 3)), Click((5, 7)))
    assert np.array_equal(request.previous.probability > 0.5, block(2, 2, 6, 6))


def test_brushed_pixels_stay_unless_a_later_prompt_contradicts_them(session):
    """Erased pixels do not come back with a click elsewhere; one on them, or a box over them, frees them."""
    first = block(2, 2, 9, 9)
    add(session, FIRST, Click((3, 3)), first)
    drawn = first & ~block(6, 2, 9, 4) & ~block(6, 7, 9, 9)
    session.paint(FIRST, drawn)
    add(session, FIRST, Click((2, 6)), block(1, 2, 9, 9))
    assert np.array_equal(session.mask(FIRST), drawn | block(1, 2, 2, 9))
    add(session, FIRST, Click((7, 8)), block(1, 2, 9, 9))
    assert np.array_equal(session.mask(FIRST), block(1, 2, 9, 9) & ~block(6, 2, 9, 4))
    add(session, FIRST, Box((6, 2), (8, 3)), block(1, 2, 9, 9))
    assert np.array_equal(session.mask(FIRST), block(1, 2, 9, 9))


def test_brush_strokes_add_up(session):
    """A second stroke keeps the first one's pixels; what the network found between them is free."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.paint(FIRST, block(2, 2, 6, 8))
    add(session, FIRST, Click((7, 3)), block(2, 2, 8, 6))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 8, 6) | block(2, 6, 6, 8))
    session.paint(FIRST, (block(2, 2, 8, 6) | block(2, 6, 6, 8)) & ~block(2, 2, 3, 6))
    add(session, FIRST, Click((7, 4)), block(2, 2, 5, 5))
    assert np.array_equal(session.mask(FIRST), block(3, 2, 5, 5) | block(2, 6, 6, 8))


def test_a_stroke_that_changes_nothing_protects_nothing(session):
    """Neither one over what is shown as it is, nor one that erases where nothing is."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.paint(FIRST, block(2, 2, 6, 6))
    add(session, FIRST, Click((8, 8)), block(4, 4, 9, 9))
    assert np.array_equal(session.mask(FIRST), block(4, 4, 9, 9))
    session.clear()
    session.paint(FIRST, block(0, 0, 0, 0))
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))


def test_brushed_pixels_are_those_that_differ_from_the_mask_shown(session):
    """Pixels that post-processing removed were not brushed: a prediction may bring them back."""
    session.finish = PostProcessing(largest=True)
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6) | block(8, 8, 9, 9))
    session.paint(FIRST, block(2, 2, 6, 5))
    session.finish = PostProcessing()
    add(session, FIRST, Click((2, 2)), block(2, 2, 6, 6) | block(8, 8, 9, 9))
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 5) | block(8, 8, 9, 9))


def test_regions_older_than_a_drawn_mask_are_left_out(session):
    """The drawn mask has replaced them."""
    add(session, FIRST, Box((2, 2), (8, 8)), block(2, 2, 9, 9))
    session.paint(FIRST, block(2, 2, 6, 6))
    session.add(FIRST, Click((5, 7)))
    assert session.request(FIRST).prompts == (Click((5, 7)),)


def test_removing_the_click_after_a_drawn_mask_shows_the_drawn_mask(session):
    """No prompt is left beside it."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 9, 9))
    session.paint(FIRST, block(2, 2, 6, 6))
    add(session, FIRST, Click((5, 7)), block(2, 2, 6, 8))
    session.set_prompts(FIRST, [Click((3, 3))])
    assert session.request(FIRST) is None
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))


def test_accept_writes_all_planes_in_one_step_and_begins_the_next_object(session, labels):
    """Planes of both orientations get the label, the newer where they cross; undo removes it."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    add(session, CORONAL, Click((1, 3)), block(0, 1, 3, 4, (4, 10)))
    assert session.accept()
    expected = np.zeros_like(labels)
    expected[1, 2:6, 2:6] = 1
    expected[1, 5] = 0
    expected[0:3, 5, 1:4] = 1
    assert np.array_equal(labels, expected)
    assert (session.label, session.prompted()) == (2, {})
    session.undo()
    assert not labels.any()
    assert session.label == 1
    assert set(session.prompted()) == {FIRST, CORONAL}
    session.redo()
    assert np.array_equal(labels, expected)
    assert session.label == 2


def test_it_is_told_how_much_of_an_object_other_labels_keep(session):
    """A click inside a finished object would else leave a rim of it, and nobody knew."""
    heard = []
    session.on_accepted = heard.append
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    add(session, FIRST, Click((3, 3)), block(2, 2, 7, 6))
    session.accept()
    add(session, SECOND, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    assert [(one.label, one.share) for one in heard] == [(1, 1), (2, 0.2), (3, 1)]


def test_accept_without_anything_changes_nothing(session):
    """Enter twice is Enter once."""
    assert not session.accept()
    assert session.label == 1


def test_accept_without_labels_says_what_to_do():
    """The mask stays."""
    session = Session(Volume(np.zeros(SHAPE, np.uint8)))
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    with pytest.raises(ValueError, match="no labels to write to; choose or make a labels layer first"):
        session.accept()
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))


def test_a_late_prediction_does_not_change_an_accepted_object(session):
    """An object that is edited again shows what was written."""
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    session.apply(request, predicted(block(2, 2, 6, 6)))
    session.accept()
    assert not session.apply(request, predicted(block(0, 0, 9, 9)))


def test_neighbours_keep_their_voxels(session, labels):
    """With the policy "keep" an object takes background only."""
    labels[1, 4:, 4:] = 7
    before = labels.copy()
    session.use_labels(session.labels, 7)
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    assert np.array_equal(labels == 7, before == 7)
    assert (labels[1] == 8).sum() == 12


def test_overwrite_and_within_take_what_they_may(session, labels):
    """ "overwrite" takes all, "within 7" takes 7 alone."""
    labels[1, 4:, 4:] = 7
    session.policy = Policy("overwrite")
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    assert (labels[1] == 1).sum() == 16
    session.undo()
    session.policy = Policy("within", 7)
    session.accept()
    assert (labels[1] == 1).sum() == 4


def test_an_edited_object_has_its_prompts_and_frees_the_voxels_it_leaves(session, labels):
    """A smaller mask gives the voxels back, to the label that was beneath where there was one."""
    labels[1, 4:, 4:] = 7
    session.policy = Policy("overwrite")
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    assert session.edit_object(FIRST, (3.2, 2.9))
    assert session.prompted() == {FIRST: (Click((3, 3)),)}
    assert np.array_equal(session.mask(FIRST), block(2, 2, 6, 6))
    add(session, FIRST, Click((5, 5), positive=False), block(2, 2, 4, 4))
    session.accept()
    expected = np.zeros_like(labels)
    expected[1, 4:, 4:] = 7
    expected[1, 2:4, 2:4] = 1
    assert np.array_equal(labels, expected)


def test_an_edited_object_that_is_cleared_and_accepted_is_gone(session, labels):
    """What was beneath comes back."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    session.edit_object(FIRST, (3, 3))
    assert session.clear()
    session.accept()
    assert not labels.any()


def test_voxels_painted_over_by_others_stay_theirs_when_the_object_is_corrected(session, labels):
    """A correction changes only voxels that still have the object's label."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    labels[1, 2, 2:6] = 9
    session.edit_object(FIRST, (3, 3))
    session.clear()
    session.accept()
    assert (labels[1] == 9).sum() == 4
    assert (labels == 1).sum() == 0


def test_editing_where_accepting_has_just_freed_the_pixel_finds_the_background(session, labels):
    """The current object was cleared, so accepting it removes the label under the click."""
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    session.accept()
    session.edit_object(FIRST, (3, 3))
    session.clear()
    assert not session.edit_object(FIRST, (3, 3))
    assert not labels.any()


def test_a_label_from_elsewhere_can_be_edited(session, labels):
    """Its mask becomes a drawn one, refined and freed like that of any object."""
    labels[1, 2:8, 2:8] = 5
    session.use_labels(session.labels, 5)
    assert session.edit_object(FIRST, (3, 3))
    assert session.label == 5
    assert np.array_equal(session.mask(FIRST), block(2, 2, 8, 8))
    add(session, FIRST, Click((7, 7), positive=False), block(2, 2, 7, 7))
    session.accept()
    assert np.array_equal(labels[1] == 5, block(2, 2, 7, 7))
    assert session.label == 6


def test_background_cannot_be_edited_and_pixels_outside_are_refused(session):
    """A click beside all objects does nothing; one beside the plane is a mistake."""
    assert not session.edit_object(FIRST, (3, 3))
    with pytest.raises(ValueError, match=r"pixel \(12, 0\) is outside the plane of 12 x 10 pixels"):
        session.edit_object(FIRST, (12, 0))


def test_editing_another_object_accepts_the_current_one_first(session, labels):
    """Nothing is lost by looking at another object."""
    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    session.accept()
    add(session, FIRST, Click((8, 8)), block(6, 6, 9, 9))
    session.edit_object(FIRST, (1, 1))
    assert (labels == 2).sum() == 9
    assert session.label == 1


def test_semantic_mode_gives_every_object_one_label(session, labels):
    """Objects stay apart: correcting one leaves the other."""
    session.semantic = True
    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    session.accept()
    add(session, FIRST, Click((8, 8)), block(6, 6, 9, 9))
    session.accept()
    assert set(np.unique(labels)) == {0, 1}
    session.edit_object(FIRST, (7, 7))
    session.clear()
    session.accept()
    assert (labels == 1).sum() == 9


def test_the_next_label_is_free(session, labels):
    """Above everything written, chosen or painted."""
    session.choose_label(4)
    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    session.accept()
    assert session.label == 5
    with pytest.raises(ValueError, match="label must be 1 or more, got 0"):
        session.choose_label(0)


def test_a_label_too_large_for_the_labels_is_refused(session, labels):
    """The sentence names the limits of the type."""
    session.choose_label(70000)
    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    with pytest.raises(ValueError, match="from 1 to 65535 in labels of type uint16, got 70000"):
        session.accept()
    assert session.label == 70000


def test_a_brush_stroke_on_the_labels_is_undone_in_order(session, labels):
    """The labels have changed already when it is recorded."""
    from napari_lowlat_seg.core.labels import LabelEdit

    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    session.accept()
    box, before = (0, 0, 12, 10), labels[1].copy()
    labels[1, 5, :] = 9
    session.record_stroke([LabelEdit.between(FIRST, box, before, labels[1])])
    after = labels.copy()
    session.undo()
    assert np.array_equal(labels[1], before)
    session.undo()
    assert not labels.any()
    session.redo(), session.redo()
    assert np.array_equal(labels, after)
    add(session, SECOND, Click((3, 3)), block(0, 0, 3, 3))
    session.accept()
    assert session.label == 10


def test_the_finish_counts_for_what_is_shown_and_written(session, labels):
    """A threshold above the probability leaves nothing; back at the default, all is there again."""
    add(session, FIRST, Click((3, 3)), block(0, 0, 3, 3))
    session.finish = PostProcessing(threshold=0.98)
    assert not session.mask(FIRST).any()
    session.finish = PostProcessing()
    assert session.accept()
    assert (labels == 1).sum() == 9


@pytest.mark.slow
def test_five_hundred_clicks_on_a_megapixel_plane_can_be_undone_in_bounded_memory():
    """Each with a mask of its own; the undo stack stays within its limit."""
    plane = Plane()
    session = Session(Volume(np.zeros((1024, 1024), np.uint8)))
    rows, cols = np.mgrid[:1024, :1024]
    distance = np.hypot(rows - 500, cols - 500).astype(np.float32)
    for i in range(500):
        session.add(plane, Click((i, i)))
        probability = np.clip((150 + i / 2 - distance) / 100, 0, 1) ** 2
        session.apply(session.request(plane), SoftMask.of(probability))
    assert len(session.undo_stack.done) == 500
    assert session.undo_stack.nbytes < session.undo_stack.limit / 2
    while session.undo():
        pass
    assert session.state(plane).prompts == ()
    assert session.mask(plane) is None


def test_a_full_undo_stack_drops_its_oldest_steps(labels):
    """And keeps the newest, however large."""
    session = Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels), limit=5000)
    for i in range(20):
        add(session, FIRST, Click((i / 2, 3)), block(2, 2, 6, 6))
    assert 1 <= len(session.undo_stack.done) < 20
    assert session.undo_stack.nbytes <= 5000


# Random scripts

actions = st.lists(
    st.tuples(st.sampled_from(sorted(set(KINDS))), st.sampled_from(PLANES), st.integers(0, 2**32 - 1)),
    max_size=40,
)


def filled(labels, plane, label):
    """An edit that gives a whole plane a label."""
    before = labels[plane.key()]
    return LabelEdit.between(plane, BoundingBox.at((0, 0), before.shape), before, np.full_like(before, label))


def shown_of(session, labels):
    """Everything that a session shows."""
    masks = {plane.index: session.mask(plane) for plane in PLANES}
    shown = {index: None if mask is None else mask.tobytes() for index, mask in masks.items()}
    return labels.tobytes(), session.current, session.label, session.prompted(), shown


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(actions)
def test_any_script_undoes_to_a_bit_identical_volume_and_redoes_to_where_it_was(script):
    """Undo of each step restores the state before it; redo then restores the state after it."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :3, :3] = 3
    session = Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels))
    for action, plane, seed in script:
        play(session, labels, action, plane, seed)
    shown = [shown_of(session, labels)]
    while session.undo():
        shown.append(shown_of(session, labels))
    expected = np.zeros(SHAPE, np.uint16)
    expected[:, :3, :3] = 3
    assert np.array_equal(labels, expected)
    for expected in reversed(shown[:-1]):
        session.redo()
        assert shown_of(session, labels) == expected


class DiskLabels(ArrayLabels):
    """Labels on a disk that takes `room` more boxes, and of the one after these a part."""

    room = 10**6

    def put(self, plane, box, region, changed=None):
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        self.room -= 1
        if self.room == 0:
            super().put(plane, box, np.where(np.indices(region.shape)[1] < 2, region, self.read(plane, box)))
            raise OSError(28, "No space left on device")
        super().put(plane, box, region, changed)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(actions, st.lists(st.integers(0, 6), max_size=12), st.integers(1, 4))
def test_a_disk_that_fails_at_any_write_leaves_labels_and_steps_in_agreement(script, rooms, patience):
    """A write that fails is taken back, then or when there is room again; what was annotated stays."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :3, :3] = 3
    first, store = labels.copy(), DiskLabels(labels)
    session, rooms = Session(Volume(np.zeros(SHAPE, np.uint8)), store), iter(rooms)
    for place, (action, plane, seed) in enumerate(script):
        if action == "brush":  # napari's own, which has written already
            continue
        if place % patience == 0:
            store.room = next(rooms, 10**6)
        with suppress(OSError):
            play(session, labels, action, plane, seed)
    store.room = 10**6
    while session.undo():
        pass
    assert np.array_equal(labels, first)


def test_an_accept_on_a_full_disk_can_be_repeated(session, labels):
    """Nothing of it is in the labels until there is room; then it is as if the disk had never been full."""
    store = DiskLabels(labels)
    session.use_labels(store)
    for plane in (FIRST, SECOND):
        add(session, plane, Click((3, 3)), block(2, 2, 6, 6))
    store.room = 2
    with pytest.raises(OSError, match="No space left"):
        session.accept()
    assert session.label == 1
    assert np.array_equal(session.mask(SECOND), block(2, 2, 6, 6))
    assert len(session.undo_stack.done) == 2
    with pytest.raises(OSError, match="No space left"):  # nothing could be taken back yet
        session.accept()
    store.room = 100
    assert session.accept()
    assert np.array_equal(labels == 1, np.stack([block(2, 2, 6, 6) * (z in (1, 2)) for z in range(4)]))
    session.undo()
    assert not labels.any()


def test_edits_of_labels_that_were_mended_meanwhile_are_refused(session, labels):
    """They were made from labels with a part of an earlier write in them; once more, they are right."""
    store = DiskLabels(labels)
    session.use_labels(store)
    add(session, FIRST, Click((3, 3)), block(2, 2, 6, 6))
    store.room = 1
    with pytest.raises(OSError, match="No space left"):
        session.accept()
    assert labels.any()
    store.room = 100
    step = Step("paint", FIRST, (1, 1), edits=(filled(labels, FIRST, 7),), store=store)
    with pytest.raises(OSError, match="the labels were mended after a write that had failed; do this once"):
        session.do_step(step)
    assert not labels.any()
    session.do_step(replace(step, edits=(filled(labels, FIRST, 7),)))
    session.undo()
    assert not labels.any()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(actions)
def test_with_the_policy_keep_no_voxel_of_another_object_ever_changes(script):
    """Accepting and correcting change only background and the object itself."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(SHAPE) > 0.7, 40 + rng.integers(1, 4, SHAPE), 0).astype(np.uint16)
    session = Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels))
    for action, plane, seed in script:
        if action in ("policy", "brush", "semantic", "label", "undo", "redo", "seeds", "objects"):
            continue
        before, mine = labels.copy(), session.label
        if action == "edit":
            session.accept()
            before = labels.copy()
        play(session, labels, action, plane, seed)
        others = (before != 0) & (before != mine)
        assert np.array_equal(labels[others], before[others])


ANY_AXIS = st.sampled_from(
    [Plane((z, None, None)) for z in (0, 1)]
    + [Plane((None, y, None)) for y in (4, 5)]
    + [Plane((None, None, x)) for x in (3, 4)]
)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(ANY_AXIS, st.integers(0, 99)), min_size=1, max_size=5), max_size=3))
def test_planes_of_all_axes_are_written_as_the_newest_one_says(accepts):
    """As if each had been written into a plain volume, also by later accepts; undo leaves nothing of it."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :5, 3] = 40
    before, policy, shown = labels.copy(), Policy("keep"), np.zeros(SHAPE, bool)
    session = Session(Volume(np.zeros(SHAPE, np.uint8)), ArrayLabels(labels))
    session.use_labels(session.labels, 40)
    session.limits = Limits(neighbours=False)
    masks = {}
    for place, touched in enumerate(accepts):
        if place:
            session.do_step(Step("edit object 41", None, (session.current, 1), kind="edit"))
        for plane, seed in touched:
            masks.pop(plane, None)
            masks[plane] = np.random.default_rng(seed).random(session.volume.sides(plane)) > seed % 3 / 2
            session.set_prompts(plane, [Click((seed / 50, 1))])
            if session.request(plane) is None:
                session.set_prompts(plane, [Click((seed / 50, 2))])
            assert session.apply(session.request(plane), predicted(masks[plane]))
        assert session.accept()
        shown = np.zeros(SHAPE, bool)
        for plane, mask in masks.items():
            shown[plane.key()] = mask
        assert np.array_equal(labels, np.where(shown & policy.allows(before), 41, before))
    while session.undo():
        pass
    assert np.array_equal(labels, before)


def test_a_correction_on_another_axis_begins_from_the_cut(session, labels):
    """What the masks on axial planes show is refined, and a negative click only takes away from it."""
    assert session.cross_section(CORONAL) is None
    for plane in (FIRST, SECOND):
        add(session, plane, Click((5, 3)), block(2, 2, 8, 7))
    section, cut = session.cross_section(CORONAL), block(1, 2, 3, 7, (4, 10))
    assert section.lines == {(0, 1), (0, 2)}
    assert np.array_equal(session.cut(CORONAL).on((4, 10)), cut)
    session.add(CORONAL, Click((2, 6), positive=False))
    assert np.array_equal(session.request(CORONAL).previous.mask, cut)
    assert session.mask(CORONAL) is None
    session.set_prompts(CORONAL, [Click((2, 5), positive=False)])  # moved
    assert np.array_equal(session.request(CORONAL).previous.mask, cut)
    assert not session.state(CORONAL).begun
    session.apply(session.request(CORONAL), predicted(block(0, 0, 4, 5, (4, 10))))
    assert np.array_equal(session.mask(CORONAL), block(1, 2, 3, 5, (4, 10)))
    session.accept()
    assert labels[1, 5].tolist() == labels[2, 5].tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert labels[1, 4].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]
    session.undo()
    session.set_prompts(CORONAL, [])
    assert session.request(CORONAL) is None
    assert session.mask(CORONAL) is None


def test_a_positive_click_begins_only_from_a_whole_cut(session):
    """A part of the object as the previous mask would keep the network from finding the rest."""
    for plane in (FIRST, SECOND):
        add(session, plane, Click((5, 3)), block(2, 2, 8, 7))
    session.add(CORONAL, Click((2, 6)))
    assert session.request(CORONAL).previous is None
    session.set_prompts(CORONAL, [])
    nothing = np.zeros_like(block(2, 2, 8, 7))
    for at in (0, 3):
        add(session, Plane((at, None, None)), Click((5, 3), positive=False), nothing)
    session.add(CORONAL, Click((2, 6)))
    assert np.array_equal(session.request(CORONAL).previous.mask, block(1, 2, 3, 7, (4, 10)))


def test_a_brush_on_another_axis_keeps_the_cut(session):
    """The stroke is added to the cut; later predictions may change the cut only."""
    add(session, FIRST, Click((5, 3)), block(2, 2, 8, 7))
    session.paint(CORONAL, block(3, 0, 4, 2, (4, 10)))
    both = block(1, 2, 2, 7, (4, 10)) | block(3, 0, 4, 2, (4, 10))
    assert np.array_equal(session.mask(CORONAL), both)
    assert np.array_equal(session.state(CORONAL).brushed.mask, block(3, 0, 4, 2, (4, 10)))


def test_a_first_click_waits_for_masks_on_other_axes(session):
    """It would begin from another cut else, and from none where they come late."""
    session.add(FIRST, Click((5, 3)))
    assert session.awaits_cross_section(CORONAL)
    assert not session.awaits_cross_section(SECOND)
    session.apply(session.request(FIRST), predicted(block(2, 2, 8, 7)))
    assert not session.awaits_cross_section(CORONAL)


def soft_block(session, plane):
    """A click whose mask has levels: a block, unsure at its border and around it."""
    probability = np.zeros((12, 10), np.float32)
    probability[1:9, 1:9], probability[2:8, 2:8], probability[3:7, 3:7] = 0.45, 0.55, 0.9
    session.add(plane, Click((4, 4)))
    session.apply(session.request(plane), SoftMask.of(probability, 0.8))


def test_the_mask_of_a_first_click_has_levels(session, labels):
    """Each is a step of undo; later prompts refine the chosen one, which is what is written."""
    soft_block(session, FIRST)
    first = session.state(FIRST).soft_mask
    assert session.levels(FIRST) == (-1, 0, 1)
    assert session.choose_level(FIRST, 1)
    assert not session.choose_level(FIRST, 1)
    assert np.array_equal(session.mask(FIRST), block(1, 1, 9, 9))
    assert session.choose_level(FIRST, -1)
    assert np.array_equal(session.mask(FIRST), block(3, 3, 7, 7))
    assert session.undo().title == "smaller mask"
    assert np.array_equal(session.mask(FIRST), block(1, 1, 9, 9))
    assert session.choose_level(FIRST, 0)
    assert session.state(FIRST).soft_mask is first
    session.undo()
    session.add(FIRST, Click((0, 0), positive=False))
    assert np.array_equal(session.request(FIRST).previous.mask, block(1, 1, 9, 9))
    session.undo()
    session.accept()
    assert np.array_equal(labels[1] > 0, block(1, 1, 9, 9))


def test_levels_differ_at_the_threshold_in_use(session):
    """And the one that is chosen is one of them whatever that is."""
    soft_block(session, FIRST)
    session.choose_level(FIRST, 2)
    assert session.levels(FIRST) == (-1, 0, 1, 2)
    session.finish = PostProcessing(threshold=0.95)
    assert session.levels(FIRST) == (0, 2)


def test_a_level_needs_a_first_mask_and_no_later_prompt(session):
    """Else there is none to choose, and the sentence says why."""
    assert session.levels(FIRST) == ()
    session.add(FIRST, Click((4, 4)))
    with pytest.raises(ValueError, match="the first prediction is still to come; apply it, then choose"):
        session.choose_level(FIRST, 1)
    session.apply(session.request(FIRST), predicted(block(2, 2, 6, 6)), final=False)
    assert session.levels(FIRST) == ()
    session.apply(session.request(FIRST), predicted(block(2, 2, 6, 6)))
    with pytest.raises(ValueError, match="expected a level from -2"):
        session.choose_level(FIRST, 3)
    add(session, FIRST, Click((1, 1)), block(0, 0, 6, 6))
    assert session.levels(FIRST) == ()
    with pytest.raises(ValueError, match="only the mask of the first prompt has levels; undo the later ones"):
        session.choose_level(FIRST, 1)
