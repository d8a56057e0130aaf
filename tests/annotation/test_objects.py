"""All objects of a session: counted, described, merged, split, deleted, locked."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.annotation.journal import Journal, open_session, read_session
from napari_lowlat_seg.annotation.journal.replay import replay
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, place_of, split
from napari_lowlat_seg.annotation.objects.counts import LabelCounts, count_labels
from napari_lowlat_seg.annotation.objects.facts import (
    PLAIN,
    ObjectClass,
    ObjectFacts,
    class_colours,
    read_classes,
)
from napari_lowlat_seg.annotation.objects.proposals import (
    accept_proposal,
    correct_proposal,
    linked_proposals,
    masks_of,
    propose,
    reject_proposals,
)
from napari_lowlat_seg.annotation.objects.table import ObjectTable
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume

SHAPE = (3, 8, 9)
PLANES = [Plane((0, None, None)), Plane((2, None, None)), Plane((None, 4, None)), Plane((None, None, 3))]


def made(labels, **options):
    """A session that writes to an array of labels, and its table, counted."""
    image = Volume(np.zeros(labels.shape, np.uint8), spacing=(2.0, 0.5, 0.5)[3 - labels.ndim :], **options)
    session = Session(image, ArrayLabels(labels))
    table = ObjectTable(session)
    table.update()
    table.set_counts(count_labels(session.labels, labels.shape))
    table.update()
    return session, table


@pytest.fixture
def labels():
    """Object 2 in two pieces on two planes, object 5 beside it."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[0, :2, :3] = 2
    labels[1, :2, :2] = 2
    labels[1, 6:, 7:] = 2
    labels[1, 4, 4] = 5
    return labels


def predict(session, plane, mask):
    """A click and its prediction."""
    session.add(plane, Click((1, 1)))
    session.apply(session.request(plane), SoftMask.of(np.where(mask, np.float32(0.97), np.float32(0))))


def counts_of(labels):
    """By label and plane, the voxels of an array: read anew."""
    return {
        int(label): {
            z: int((plane == label).sum()) for z, plane in enumerate(labels) if (plane == label).any()
        }
        for label in np.unique(labels)
        if label
    }


def as_dict(counts):
    return {
        label: {plane.index[0]: on.voxels for plane, on in counts.planes(label).items()}
        for label in counts.labels
    }


def test_every_label_is_a_row_whoever_made_it(labels):
    """Planes, voxels and size in world units; nothing was said of it yet."""
    _, table = made(labels)
    row = table.rows[2]
    assert (row.planes, row.voxels, row.size, row.state) == (2, 14, 7.0, "done")
    assert table.rows.keys() == {2, 5}


def test_boxes_hold_all_voxels_and_a_strip_is_counted_at_a_time(labels, monkeypatch):
    """Also where a plane is read in several strips."""
    monkeypatch.setattr("napari_lowlat_seg.annotation.objects.counts.READ", 9)
    seen = []
    counts = count_labels(ArrayLabels(labels), SHAPE, lambda done, total: seen.append((done, total)))
    on = counts.planes(2)[Plane((1, None, None))]
    assert (on.voxels, on.box) == (8, BoundingBox(0, 0, 8, 9))
    assert seen[-1] == (3, 3)
    assert as_dict(count_labels(ArrayLabels(labels), SHAPE, cancelled=lambda: True)) == {}


def test_the_object_in_progress_has_a_row_until_it_is_accepted(labels):
    """Also while its predictions are still to come."""
    session, table = made(labels)
    session.add(PLANES[0], Click((6, 6)))
    assert table.update() == (set(), {6})
    assert (table.rows[6].state, table.rows[6].voxels) == ("in progress", 0)
    session.accept()
    table.update()
    assert table.rows[6].state == "in progress"
    mask = np.zeros(SHAPE[1:], np.float32)
    mask[6:, 6:8] = 0.97
    session.apply(session.requests()[0], SoftMask.of(mask))
    assert table.update() == ({6}, set())
    assert (table.rows[6].state, table.rows[6].voxels) == ("done", 4)


def test_what_is_said_of_objects_is_one_undo_step(labels):
    """Undo takes it back, redo says it again; what is said already is no step."""
    session, table = made(labels)
    assert describe(session, [2, 5], name="neurite", category="axon", review=True)
    assert not describe(session, [5], name="neurite")
    assert table.update() == ({2, 5}, set())
    assert (table.rows[5].name, table.rows[5].category, table.rows[5].state) == (
        "neurite",
        "axon",
        "to review",
    )
    assert session.undo().title == "name “neurite” of, class “axon” of, marked to review objects 2, 5"
    table.update()
    assert table.rows[5].name == ""
    assert session.facts == {}
    session.redo()
    assert session.facts[2] == ObjectFacts("neurite", "axon", review=True)


def test_objects_are_deleted_merged_and_split(labels):
    """Each is one undo step; parts get new labels, and what was said of the whole."""
    session, table = made(labels)
    before = labels.copy()
    describe(session, [2], name="n")
    assert split(session, table.counts, 2) == (6,)
    assert (labels[1, 6:, 7:] == 6).all()
    assert session.facts[6].name == "n"
    assert (session.highest, session.label) == (6, 7)
    assert merge(session, table.counts, [5, 2]) == 5
    assert not (labels == 2).any()
    assert 2 not in session.facts
    delete(session, table.counts, [5])
    table.update()
    assert table.rows.keys() == {6}
    for _ in range(4):
        session.undo()
    assert np.array_equal(labels, before)
    table.update()
    assert as_dict(table.counts) == counts_of(labels)


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda s, c: delete(s, c, [2]), "object 2 is locked; unlock it"),
        (lambda s, c: merge(s, c, [5, 2]), "object 2 is locked"),
        (lambda s, c: split(s, c, 2), "object 2 is locked"),
        (lambda s, c: s.edit_object(PLANES[0], (0, 0)), "object 2 is locked"),
        (lambda s, c: (s.choose_label(2), s.accept()), "object 2 is locked"),
        (lambda s, c: (s.clear(), delete(s, c, [9])), "no voxel has label 9"),
        (lambda s, c: (s.clear(), delete(s, c, [])), "no object is chosen"),
        (lambda s, c: merge(s, c, [5]), "two or more objects are merged, got 1"),
        (lambda s, c: split(s, c, 5), "object 5 is in one piece"),
        (lambda s, c: (s.choose_label(5), delete(s, c, [5])), "object 5 is in progress"),
        (lambda s, c: place_of(s, LabelCounts(SHAPE), 77), "no voxel has label 77"),
        (lambda s, c: (s.use_labels(None), describe(s, [5], name="a")), "there are no labels yet"),
        (lambda s, c: describe(s, [5], category="c"), "expected a class of the list .a, b., got 'c'"),
        (lambda s, c: describe(s, [5], name="a\nb"), "a name is one line of up to 200 letters"),
        (lambda s, c: (s.add(PLANES[1], Click((1, 1))), delete(s, c, [5])), "predictions are still to come"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(labels, action, sentence):
    """No voxel has changed then."""
    session, table = made(labels)
    describe(session, [2], locked=True)
    session.classes = (ObjectClass("a", "#000000"), ObjectClass("b", "#ffffff"))
    predict(session, PLANES[0], np.ones(SHAPE[1:], bool))
    before = labels.copy()
    with pytest.raises(ValueError, match=sentence):
        action(session, table.counts)
    assert np.array_equal(labels, before)


def test_locked_voxels_stay_whatever_the_policy(labels):
    """Also those of an object that is accepted before its mask comes: it is locked then or not."""
    session, _ = made(labels)
    describe(session, [2], locked=True)
    session.policy = Policy("overwrite")
    session.add(PLANES[0], Click((1, 1)))
    session.accept()
    describe(session, [2], locked=False)
    (request,) = session.requests()
    session.apply(request, SoftMask.of(np.full(SHAPE[1:], 0.97, np.float32)))
    assert (labels[0, :2, :3] == 2).all()
    assert (labels[0, 2:] == 6).all()


def test_a_brush_stroke_over_a_locked_object_gives_it_back(labels):
    """It loses no voxel and gets none; the rest of the stroke is one undo step."""
    session, table = made(labels)
    describe(session, [2], locked=True)
    before = labels[0].copy()
    labels[0, :, 2:4] = 5
    edit = LabelEdit.between(PLANES[0], BoundingBox(0, 0, 8, 9), before, labels[0])
    assert not session.record_stroke([edit])
    assert (labels[0, :2, 2] == 2).all()
    assert (labels[0, :, 3] == 5).all()
    table.update()
    assert as_dict(table.counts) == counts_of(labels)
    session.undo()
    assert np.array_equal(labels[0], before)


def test_edit_again_finds_the_plane_with_the_prompts(labels):
    """Of an object without prompts it is the plane that shows most of it."""
    session, table = made(labels)
    assert place_of(session, table.counts, 2)[0] == Plane((1, None, None))
    mask = np.zeros(SHAPE[1:], bool)
    mask[5:7, 5:7] = True
    predict(session, PLANES[1], mask)
    session.accept()
    plane, at = place_of(session, table.counts, 6)
    assert plane == PLANES[1]
    assert session.edit_object(plane, at)
    assert session.state(plane).prompts == (Click((1, 1)),)


def test_labels_edited_while_they_are_counted_are_counted_once(labels):
    """The planes that changed meanwhile are read again."""
    session, table = made(labels)
    table.begin_count()
    counts = count_labels(session.labels, SHAPE)
    delete(session, table.counts, [5])
    table.set_counts(counts)
    table.update()
    assert as_dict(table.counts) == counts_of(labels)


def test_names_and_locks_survive_a_kill(labels, tmp_path):
    """So do classes, and what was undone."""
    session, table = made(labels)
    journal = Journal(session, tmp_path)
    session.classes = (ObjectClass("axon", "#123456"),)
    describe(session, [2], category="axon", locked=True)
    delete(session, table.counts, [5])
    assert journal.flush()
    again = labels.copy()
    again[1, 4, 4] = 5
    restored = open_session(journal.path, session.volume, [ArrayLabels(again)])
    assert (restored.facts, restored.classes) == (session.facts, session.classes)
    assert not (again == 5).any()
    journal.save(tmp_path / "saved.lowlat")
    restored = open_session(tmp_path / "saved.lowlat", session.volume, [ArrayLabels(again)])
    assert restored.undo()
    assert (again == 5).any()
    assert restored.undo()
    assert restored.facts == {}
    journal.close()


def test_a_replay_repeats_what_was_done_in_the_table(labels, tmp_path):
    """Deleted objects, steps of undo, locks."""
    path = tmp_path / "saved.lowlat"
    session, table = made(labels)
    journal = Journal(session, tmp_path)
    delete(session, table.counts, [2])
    session.undo()
    session.redo()
    describe(session, [5], locked=True)
    journal.save(path)
    found = read_session(path, session.volume)
    again = replay(found, session.volume, lambda facts: None)
    assert (again.differing, again.session.facts) == (0, session.facts)
    journal.close()


def stack_of_squares():
    """Labels with a column, a flake on one plane, and an object that an existing one mostly covers."""
    found = np.zeros((3, 8, 9), np.uint32)
    found[:, 4:6, 0:3] = 1
    found[0, 7, 7] = 2
    found[:, :2, :3] = 3
    scores = np.array([0.5, 0.9, 0.8], np.float32)
    return [(found[0], scores), (found[1], scores), (found[2], scores)]


def test_proposals_take_background_only_and_run_through_planes(labels):
    """What appears on one plane of many, and what is mostly another object, is no proposal."""
    planes = [Plane((z, None, None)) for z in range(3)]
    labels[:, :2, :3] = 2
    labels[0, 4, 0] = 5
    session, table = made(labels)
    (found,) = linked_proposals(planes, stack_of_squares(), session.labels)
    assert (found.masks.keys(), round(found.score, 3)) == (set(planes), 0.5)
    assert found.masks[planes[0]].pixels == 5
    (number,) = propose(session, [found])
    assert table.update() == (set(), {-number})
    row = table.rows[-number]
    assert (row.state, row.planes, row.voxels, row.score) == ("proposed", 3, 17, found.score)
    # Accepted in one step that takes no voxel, whatever has been done since.
    describe(session, [5], locked=True)
    session.policy = Policy("overwrite")
    before = labels.copy()
    label = accept_proposal(session, number)
    assert (label, session.label) == (6, 7)
    assert np.array_equal(labels[before > 0], before[before > 0])
    assert int((labels == label).sum()) == 17
    table.update()
    assert (-number not in table.rows, table.rows[label].state) == (True, "done")
    session.undo()
    table.update()
    assert table.rows[-number].state == "proposed"
    session.redo()
    with pytest.raises(ValueError, match="was accepted or rejected already"):
        accept_proposal(session, number)
    # On one plane every object counts.
    only = linked_proposals(planes[:1], stack_of_squares()[:1])
    assert [round(one.score, 2) for one in only] == [0.9, 0.8, 0.5]


def test_a_proposal_is_rejected_corrected_and_survives_a_kill(labels, tmp_path):
    """A corrected one is the current object, with its mask to refine; all can be undone."""
    planes = [Plane((z, None, None)) for z in range(3)]
    session, table = made(labels)
    journal = Journal(session, tmp_path)
    first, second = propose(session, linked_proposals(planes, stack_of_squares(), session.labels)[:1] * 2)
    reject_proposals(session, [first])
    table.update()
    assert [key for key in table.rows if key < 0] == [-second]
    plane = correct_proposal(session, second)
    table.update()
    assert not [key for key in table.rows if key < 0]
    assert (session.current, table.rows[6].state) == (second, "in progress")
    session.add(plane, Click((5, 1)))
    assert session.request(plane).previous.pixels == masks_before(session, second, plane)
    assert journal.flush()
    restored = open_session(journal.path, session.volume, [ArrayLabels(labels.copy())])
    assert (restored.current, restored.states().keys()) == (second, session.states().keys())
    for _ in range(3):
        restored.undo()
    again = ObjectTable(restored)
    again.update()
    assert sorted(key for key in again.rows if key < 0) == [-second, -first]
    journal.save(tmp_path / "saved.lowlat")
    found = read_session(tmp_path / "saved.lowlat", session.volume)
    replayed = replay(found, session.volume, lambda facts: None).session
    assert (replayed.prompted(), replayed.current) == (session.prompted(), second)
    assert masks_of(session, first) == {}
    journal.close()


def masks_before(session, number, plane):
    return session.contents.state(number, plane).drawn.pixels


def test_a_proposal_that_is_covered_by_now_is_refused(labels):
    """Nothing is written; no number is no proposal."""
    session, _ = made(labels)
    (number,) = propose(session, linked_proposals(PLANES[:1], stack_of_squares()[:1])[2:])
    labels[...] = 9
    with pytest.raises(ValueError, match="other objects cover this proposal by now"):
        accept_proposal(session, number)
    with pytest.raises(ValueError, match="no proposal is chosen"):
        reject_proposals(session, [])
    assert propose(session, []) == ()


STEPS = ("describe", "delete", "merge", "split", "paint", "accept", "undo", "redo", "lock")


CROSSING = [("paint", Plane((0, None, None)), 0), ("paint", Plane((None, 4, None)), 0)]


@settings(max_examples=15, deadline=None)
@example([*CROSSING, ("accept", PLANES[0], 0), ("undo", PLANES[0], 0)])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(PLANES), st.integers(0, 999)), max_size=25))
def test_any_actions_keep_rows_voxels_and_locks_in_step(actions):
    """Rows equal what is read from the array, and a locked voxel never changes but by undo and redo."""
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    first = labels.copy()
    session, table = made(labels)
    session.policy = Policy("overwrite")
    for kind, plane, seed in actions:
        rng = np.random.default_rng(seed)
        before, locked = labels.copy(), [n for n, one in session.facts.items() if one.locked]
        present = [int(n) for n in np.unique(labels) if n]
        chosen = [present[i] for i in rng.permutation(len(present))[:2]]
        facts = dict(session.facts)
        try:
            if kind == "describe" and chosen:
                describe(session, chosen, name=str(seed % 3), review=bool(seed % 2))
                facts |= {
                    n: replace(facts.get(n, PLAIN), name=str(seed % 3), review=bool(seed % 2)) for n in chosen
                }
            elif kind == "lock" and chosen:
                describe(session, chosen[:1], locked=True)
                facts |= {chosen[0]: replace(facts.get(chosen[0], PLAIN), locked=True)}
            elif kind in ("delete", "merge"):
                {"delete": delete, "merge": merge}[kind](session, table.counts, chosen)
                gone = chosen if kind == "delete" else chosen[1:]
                facts = {n: one for n, one in facts.items() if n not in gone}
            elif kind == "split" and chosen:
                new = split(session, table.counts, chosen[0])
                facts |= {n: facts[chosen[0]] for n in new if chosen[0] in facts}
            elif kind == "paint":
                session.paint(plane, rng.random(session.volume.sides(plane)) > 0.6)
            elif kind == "accept":
                session.accept()
        except ValueError:
            assert np.array_equal(labels, before)
            facts = dict(session.facts)
        if kind in ("undo", "redo"):
            getattr(session, kind)()
        else:
            assert session.facts == {n: one for n, one in facts.items() if one != PLAIN}
            where = np.isin(before, locked)
            assert np.array_equal(before[where], labels[where])
        table.update()
        assert as_dict(table.counts) == counts_of(labels)
        assert {key for key, row in table.rows.items() if row.voxels} == counts_of(labels).keys()
        for plane_counts in (table.counts.planes(n) for n in table.counts.labels):
            assert all(on.voxels <= on.box.shape[0] * on.box.shape[1] for on in plane_counts.values())
    while session.undo():
        pass
    assert np.array_equal(labels, first)
    assert session.facts == {}


def test_classes_are_read_from_a_table(tmp_path):
    """With and without a heading and colours."""
    path = tmp_path / "classes.csv"
    path.write_text("name,colour\nnucleus,#ff0000\n\nvesicle\n", encoding="utf-8")
    classes = read_classes(path)
    assert [one.name for one in classes] == ["nucleus", "vesicle"]
    assert class_colours(classes, ["other", ""])["nucleus"] == "#ff0000"
    assert class_colours((), ["other"]).keys() == {"other"}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "must name one class in each row, got none"),
        (b"a\na\n", "got 'a' twice"),
        (b"a,red\n", "a colour is #rrggbb"),
        (b",#000000\n", "a class needs a name"),
        (b"\xff\xfe\x00", "is no table of text in UTF-8"),
        (b"<b>\n" + b"x" * 201, "a class is one line of up to 200 letters, got 201"),
        (b"a\0b\n", "(is no table of text|a class is one line)"),
        (b'"a\nb"\n', "a class is one line"),
        (b"\n".join(b"%d" % n for n in range(1001)), "at most 1000 classes in .* got 1001 rows"),
        (b"," * 2**20 + b"a", "at most 1000 classes in 1048576 bytes, got .* rows in 1048577"),
    ],
)
def test_a_wrong_table_of_classes_is_refused(tmp_path, content, sentence):
    """With the file's name."""
    path = tmp_path / "classes.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_classes(path)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such files")
def test_classes_are_read_from_a_file_and_nothing_else(tmp_path):
    """A pipe would be waited for, a device has no end."""
    os.mkfifo(tmp_path / "pipe.csv")
    for place in (tmp_path / "pipe.csv", Path("/dev/zero"), tmp_path):
        with pytest.raises(ValueError, match="is no file; choose a table of classes as CSV"):
            read_classes(place)
