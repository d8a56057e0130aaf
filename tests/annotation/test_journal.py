"""Sessions restored from their journal: after any action, killed, cut short, on a full disk, hostile."""

import json
import os
import shutil
import sys
import threading
import time
import zlib
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kill_journal import (
    KINDS,
    PLACES,
    PLANES,
    SHAPE,
    check_pyramid,
    everything_of,
    fresh_labels,
    kills,
    new_session,
    play,
    predicted,
    script,
    store_in,
    volume,
)
from napari_lowlat_seg.annotation.journal import (
    Journal,
    JournalError,
    list_journals,
    open_session,
    prune_journals,
    read_session,
    resume,
)
from napari_lowlat_seg.annotation.journal import writer as journal_module
from napari_lowlat_seg.annotation.journal.encoding import AboutLabels, packed_content
from napari_lowlat_seg.annotation.journal.frames import MAGIC, FrameReader, FrameWriter
from napari_lowlat_seg.annotation.journal.mirror import merged
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit
from napari_lowlat_seg.core.prompts import Click, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume

FIRST, SECOND = PLANES[:2]

actions = st.lists(
    st.tuples(st.sampled_from([*KINDS, "compact"]), st.sampled_from(PLANES), st.integers(0, 2**32 - 1)),
    max_size=25,
)


@pytest.fixture
def labels():
    """Labels with one object in them."""
    return fresh_labels()


@pytest.fixture
def session(labels):
    """A session that writes to `labels`."""
    return new_session(labels)


def annotate(session, labels, count=40, seed=0):
    """Some random actions."""
    for action, plane, action_seed in script(seed, count):
        play(session, labels, action, plane, action_seed)
    session.close_transaction()


def click(session, plane=FIRST, at=(3, 3)):
    """A click and its prediction."""
    session.add(plane, Click(at))
    mask = np.zeros(session.volume.sides(plane), bool)
    mask[2:6, 2:6] = True
    session.apply(session.request(plane), predicted(mask))


def restored_from(path, fresh=None):
    """Everything that a file restores, into labels as they were at first."""
    again = fresh_labels() if fresh is None else fresh
    return everything_of(open_session(path, volume(), [ArrayLabels(again)]), again)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(actions)
def test_a_session_restored_from_its_journal_equals_the_session(tmp_path_factory, actions):
    """Prompts, masks, labels, objects, settings and both halves of the undo stack, after any script."""
    folder, labels = tmp_path_factory.mktemp("journal"), fresh_labels()
    session = new_session(labels)
    journal = Journal(session, folder)
    for action, plane, seed in actions:
        journal.compact() if action == "compact" else play(session, labels, action, plane, seed)
    assert journal.flush()
    again = fresh_labels()
    restored = open_session(journal.path, volume(), [ArrayLabels(again)])
    assert everything_of(restored, again) == everything_of(session, labels)
    journal.save(folder / "saved.lowlat")
    assert restored_from(folder / "saved.lowlat") == everything_of(session, labels)
    journal.close()
    while session.undo():
        assert restored.undo()
        assert everything_of(restored, again) == everything_of(session, labels)
    shutil.rmtree(folder)


def test_a_resumed_session_goes_on_and_can_be_restored_again(tmp_path, session, labels):
    """The new journal has all of it, and the old one is gone."""
    journal = Journal(session, tmp_path)
    annotate(session, labels)
    journal.close()
    again = fresh_labels()
    second, journal = resume(journal.path, volume(), [ArrayLabels(again)])
    annotate(second, again, seed=1)
    click(second)
    journal.close()
    assert [info.path for info in list_journals(tmp_path)] == [journal.path]
    assert restored_from(journal.path) == everything_of(second, again)


def test_a_saved_session_stays_when_it_is_resumed(tmp_path, session, labels):
    """It is the user's file."""
    journal = Journal(session, tmp_path / "journals")
    annotate(session, labels)
    journal.save(tmp_path / "mine.lowlat")
    journal.close(discard=True)
    assert list_journals(tmp_path / "journals") == []
    _, journal = resume(
        tmp_path / "mine.lowlat", volume(), [ArrayLabels(fresh_labels())], tmp_path / "journals"
    )
    journal.close()
    assert (tmp_path / "mine.lowlat").exists()
    assert len(list_journals(tmp_path / "journals")) == 1


def test_labels_are_given_in_the_order_of_their_first_use(tmp_path, session, labels):
    """Those that are not given are made anew in memory, with what was in them at first."""
    journal = Journal(session, tmp_path)
    click(session)
    session.accept()
    other = np.zeros(SHAPE, np.uint8)
    session.use_labels(ArrayLabels(other))
    click(session, SECOND)
    session.accept()
    journal.close()
    one, two = fresh_labels(), np.zeros(SHAPE, np.uint8)
    restored = open_session(journal.path, volume(), [ArrayLabels(one), ArrayLabels(two)])
    assert np.array_equal(one, labels)
    assert np.array_equal(two, other)
    while restored.undo():
        pass
    assert np.array_equal(one, fresh_labels())
    assert not two.any()
    for few in ((), [ArrayLabels(fresh_labels())]):
        restored = open_session(journal.path, volume(), few)
        assert np.array_equal(restored.labels.data, other)
        found = {step.store for step in restored.undo_stack.done if step.store is not None}
        assert any(np.array_equal(store.data, labels) for store in found)


def test_labels_on_disk_must_be_given(tmp_path, session, labels):
    """Nobody knows what else was in them."""
    np.save(tmp_path / "labels.npy", labels)
    session.use_labels(ArrayLabels(np.load(tmp_path / "labels.npy", mmap_mode="r+")), 3)
    journal = Journal(session, tmp_path)
    click(session)
    session.accept()
    journal.close()
    with pytest.raises(JournalError, match=r"number 1: the session wrote to .*npy; give them"):
        open_session(journal.path, volume())


def test_labels_of_another_type_are_refused_before_anything_is_written(tmp_path, session, labels):
    """The message says which type is needed."""
    journal = Journal(session, tmp_path)
    click(session)
    session.accept()
    journal.close()
    wrong = np.zeros(SHAPE, np.uint8)
    with pytest.raises(JournalError, match="labels number 1 are of type uint16"):
        open_session(journal.path, volume(), [ArrayLabels(wrong)])
    assert not wrong.any()


def test_an_accept_that_a_kill_has_cut_short_is_taken_back(tmp_path, session, labels):
    """The journal knows what was about to be written to labels on disk; voxels written half are restored."""
    journal = Journal(session, tmp_path)
    click(session)
    click(session, SECOND)
    before = labels.copy()

    class Killed(ArrayLabels):
        def write(self, edits):
            super().write(edits[:1])
            raise KeyboardInterrupt

    session.labels = store = Killed(labels)
    session.use_labels(store, 3)
    with pytest.raises(KeyboardInterrupt):
        session.accept()
    assert not np.array_equal(labels, before)
    journal.close()
    open_session(journal.path, volume(), [ArrayLabels(fresh_labels()), ArrayLabels(labels)])
    assert np.array_equal(labels, before)


def test_what_a_kill_has_cut_short_is_not_noted_as_the_highest_label(tmp_path):
    """The number of an object that was taken back is free again, on disk too."""
    session = Session(volume(), store_in(tmp_path, "pyramid", new=True))
    journal = Journal(session, tmp_path)
    session.paint(PLANES[0], np.ones((12, 10), bool))
    session.observer = lambda event: journal(event) if event.kind == "writing" else None
    session.accept()
    assert session.labels.highest() == 4
    journal.close()
    again = store_in(tmp_path, "pyramid")
    restored = open_session(journal.path, volume(), [again])
    assert (again.highest(), restored.highest) == (3, 3)
    check_pyramid(store_in(tmp_path, "pyramid"), 3)


def test_a_write_that_failed_is_not_taken_back_once_the_session_has_gone_on(tmp_path, session, labels):
    """What was in the labels then is known to nobody; the last edits count."""
    journal = Journal(session, tmp_path)
    click(session)
    session.labels.write = lambda edits: (_ for _ in ()).throw(OSError("full"))
    with pytest.raises(OSError, match="full"):
        session.accept()
    del session.labels.write
    session.accept()
    journal.close()
    assert restored_from(journal.path) == everything_of(session, labels)


# Kills and cuts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_every_whole_part_of_a_journal_restores_the_session_after_that_event(tmp_path, seed):
    """Wherever a kill falls: in a run, between the end of a run and the accept that ended it."""
    labels = fresh_labels()
    session = new_session(labels)
    journal = Journal(session, tmp_path)
    journal.flush()
    expected = [everything_of(session, labels)]

    def observe(event):
        journal(event)
        if event.kind != "writing":
            expected.append(everything_of(session, labels))

    session.observer = observe
    for action in script(seed, 60):
        play(session, labels, *action)
    journal.close()
    whole, part, place = journal.path.read_bytes(), tmp_path / "part", -1
    with journal.path.open("rb") as file:
        reader = FrameReader(file, len(whole))
        for message, _ in reader:
            if message["kind"] == "about":
                continue
            place += message["kind"] != "writing"
            part.write_bytes(whole[: reader.end])
            assert restored_from(part) == expected[place]
    assert place == len(expected) - 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="stops a process and looks at its threads")
@pytest.mark.parametrize("place", PLACES)
def test_after_a_kill_a_state_after_an_event_is_restored(tmp_path, place):
    """At random instants, labels in memory and on disk; how many events are lost depends on the machine."""
    assert len(kills(tmp_path, 1000, place, instants=6)) == 6


@pytest.mark.slow
def test_a_file_cut_at_any_byte_of_its_last_action_gives_the_action_before(tmp_path, session, labels):
    """A torn tail is left out, never guessed at."""
    journal = Journal(session, tmp_path)
    annotate(session, labels, 20)
    journal.flush()
    before, size = everything_of(session, labels), journal.path.stat().st_size
    session.paint(FIRST, np.eye(12, 10, dtype=bool))
    journal.close()
    whole = journal.path.read_bytes()
    assert restored_from(journal.path) == everything_of(session, labels)
    torn = tmp_path / "torn"
    for end in range(size, len(whole)):
        torn.write_bytes(whole[:end])
        assert restored_from(torn) == before
    for at in range(size, len(whole), 7):
        torn.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert restored_from(torn) == before


def test_damage_in_the_middle_is_said_and_the_file_is_kept(tmp_path, session, labels):
    """What was done before it is restored; a torn tail, as a kill leaves one, is not worth a word."""
    journal = Journal(session, tmp_path)
    click(session)
    journal.flush()
    before, size = everything_of(session, labels), journal.path.stat().st_size
    for turn in range(5):
        click(session, SECOND, (turn, 1))
    journal.close()
    whole = journal.path.read_bytes()
    damaged = tmp_path / "damaged.journal"
    damaged.write_bytes(whole[: size + 60] + b"~~~" + whole[size + 63 :])
    found = read_session(damaged, volume(), [ArrayLabels(fresh_labels())])
    assert f"the {len(whole) - size} bytes after it are left out, and the file is kept" in found.warning
    again = fresh_labels()
    restored, journal = resume(damaged, volume(), [ArrayLabels(again)])
    journal.close()
    assert everything_of(restored, again) == before
    assert damaged.exists()
    damaged.write_bytes(whole[:-5])
    assert read_session(damaged, volume(), [ArrayLabels(fresh_labels())]).warning == ""


def test_a_saved_session_that_is_cut_or_has_more_is_refused(tmp_path, session, labels):
    """It was complete when it was saved, so anything else is damage."""
    journal = Journal(session, tmp_path)
    annotate(session, labels, 10)
    journal.save(tmp_path / "saved")
    journal.close()
    whole = (tmp_path / "saved").read_bytes()
    for content in (whole[:-1], whole + b"x"):
        (tmp_path / "torn").write_bytes(content)
        with pytest.raises(JournalError, match="damaged or not complete"):
            restored_from(tmp_path / "torn")


@pytest.mark.slow
def test_compaction_bounds_the_file_and_loses_nothing(tmp_path, session, labels):
    """Undone and repeated for ever, an annotation takes no more than twice what a compacted file does."""
    journal = Journal(session, tmp_path, compact_bytes=30_000)
    session.undo_stack.limit = 20_000
    journal.close(discard=True)
    journal = Journal(session, tmp_path, compact_bytes=30_000)
    largest = 0
    for turn in range(400):
        click(session, at=(turn % 9, 3))
        session.clear()
        if turn % 20 == 0:
            journal.flush()
            largest = max(largest, journal.path.stat().st_size)
    journal.close()
    assert largest < 150_000
    assert restored_from(journal.path) == everything_of(session, labels)


def test_events_during_a_compaction_are_in_the_old_file_and_in_the_new_one(tmp_path, session, labels, until):
    """A kill in the middle of a compaction loses nothing either."""
    journal = Journal(session, tmp_path)
    click(session)
    journal.flush()
    begun, go_on = threading.Event(), threading.Event()
    snapshot = journal_module._write_snapshot

    def slow(file, frames, encoder, about, mirror):
        snapshot(file, frames, encoder, about, mirror)
        begun.set()
        while not go_on.is_set():
            journal._drain()
            time.sleep(0.001)

    journal_module._write_snapshot = slow
    try:
        compaction = threading.Thread(target=journal.compact)
        compaction.start()
        assert begun.wait(60)
        click(session, SECOND)
        session.accept()
        expected = everything_of(session, labels)
        until(lambda: restored_from(journal.path) == expected)
    finally:
        go_on.set()
        compaction.join()
        journal_module._write_snapshot = snapshot
    journal.close()
    assert restored_from(journal.path) == expected


# A disk that fails


def test_a_full_disk_is_said_once_and_the_session_goes_on(tmp_path, session, labels, monkeypatch):
    """When there is room again, the journal has all that was done meanwhile."""
    said = []
    journal = Journal(session, tmp_path, report=said.append, retry_seconds=0)
    click(session)
    journal.flush()
    before = everything_of(session, labels)

    def full(file, content):
        file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_write", full)
        for turn in range(5):
            click(session, SECOND, (turn, 1))
        assert session.accept()
        assert not journal.flush()
        assert len(said) == 1
        assert "No space left on device" in said[0]
        assert restored_from(journal.path) == before
        with pytest.raises(OSError, match="No space"):
            journal.save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    assert journal.flush()
    assert "can be written again" in said[1]
    assert restored_from(journal.path) == everything_of(session, labels)
    click(session)
    journal.close()
    assert restored_from(journal.path) == everything_of(session, labels)
    assert len(said) == 2


@pytest.mark.parametrize("gone", ["file", "folder", "replaced"])
@pytest.mark.parametrize("flushed", [False, True])
def test_a_journal_that_is_taken_away_is_written_anew(tmp_path, session, labels, gone, flushed, until):
    """What is written to a file without a name would be lost without a word."""
    journal = Journal(session, tmp_path / "journals", sync_seconds=0)
    click(session)
    assert journal.flush()
    if gone == "folder":
        shutil.rmtree(journal.path.parent)
    else:
        journal.path.unlink()
    if gone == "replaced":
        journal.path.write_bytes(b"something else")
    click(session, SECOND)
    if flushed:
        assert journal.flush()
    until(lambda: journal.path.exists() and journal.path.read_bytes() != b"something else")
    until(lambda: restored_from(journal.path) == everything_of(session, labels))
    click(session)
    journal.close()
    assert restored_from(journal.path) == everything_of(session, labels)


@pytest.mark.slow
def test_a_file_that_may_not_grow_keeps_its_last_whole_action(tmp_path, run_python):
    """The system's own limit on the size of files, which takes a part of a write before it refuses."""
    code = f"""
import resource, sys
from pathlib import Path
from benchmarks.kill_journal import *
labels = fresh_labels()
session = new_session(labels)
said = []
journal = Journal(session, {str(tmp_path)!r}, report=said.append, retry_seconds=1000)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
digests = [digest_of(session, labels)]
session.observer = lambda event: (journal(event), event.kind == "writing" or digests.append(
    digest_of(session, labels)))
for action in script(3, 60):
    play(session, labels, *action)
assert not journal.flush()
assert len(said) == 1 and "File too large" in said[0], said
again = fresh_labels()
assert digest_of(open_session(journal.path, volume(), [ArrayLabels(again)]), again) in digests[1:-1]
print(journal.path.stat().st_size)
"""
    assert int(run_python(code)) == 6000


def test_by_default_a_failing_disk_is_a_warning(tmp_path, session, monkeypatch):
    """One sentence with the path."""
    journal = Journal(session, tmp_path)
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        journal._fail(OSError(5, "Input/output error"))
    journal.close()


def test_a_mistake_in_the_journal_is_said_and_stops_it(tmp_path, session, labels, monkeypatch):
    """It may not write a wrong state; the session goes on."""
    said = []
    journal = Journal(session, tmp_path, report=said.append, retry_seconds=0)
    click(session)
    journal.flush()
    before = everything_of(session, labels)
    monkeypatch.setattr(journal._mirror, "play", lambda event: 1 / 0)
    click(session, SECOND)
    assert not journal.flush()
    assert "ZeroDivisionError" in said[0]
    journal.close()
    assert restored_from(journal.path) == before


def test_a_queue_that_is_full_stops_the_journal_and_says_so(tmp_path, session, monkeypatch):
    """The session never waits for the disk."""
    monkeypatch.setattr(journal_module, "QUEUE", 3)
    said, go_on = [], threading.Event()
    journal = Journal(session, tmp_path, report=said.append)
    hung = threading.Thread(target=journal._ask, args=(go_on.wait,))
    hung.start()
    time.sleep(0.05)
    for turn in range(5):
        session.add(FIRST, Click((turn, 1)))
    assert len(said) == 1
    assert "could not keep up" in said[0]
    assert session.observer is None
    go_on.set()
    hung.join()
    journal.close()


def test_a_closed_journal_takes_no_orders(tmp_path, session):
    """Closing twice is fine."""
    journal = Journal(session, tmp_path)
    journal.close()
    journal.close()
    assert session.observer is None
    with pytest.raises(RuntimeError, match="closed"):
        journal.flush()


# Lists


def test_journals_are_found_by_pixels_and_not_by_name(tmp_path, session):
    """The newest first; other images are left out, and so are files that are no journals."""
    first = Journal(session, tmp_path)
    second = Journal(Session(replace(volume(), name="renamed")), tmp_path)
    other = Journal(Session(Volume(np.zeros((5, 6)))), tmp_path)
    for journal in (first, second, other):
        assert journal.flush()
    (tmp_path / "broken.journal").write_bytes(b"nonsense")
    os.utime(first.path, (1, 1))
    found = list_journals(tmp_path, volume())
    assert [info.path for info in found] == [second.path, first.path]
    assert found[0].name == "renamed"
    assert found[0].shape == SHAPE
    assert len(list_journals(tmp_path)) == 3
    assert list_journals(tmp_path / "missing") == []
    for journal in (first, second, other):
        journal.close()


def test_old_journals_are_pruned_but_none_in_use(tmp_path, session):
    """By age, and by the size of all."""
    journals = [Journal(Session(volume()), tmp_path) for _ in range(4)]
    assert all(journal.flush() for journal in journals)
    for age, journal in enumerate(journals[:3]):
        journal.close()
        at = time.time() - (100 - 30 * age) * 86400
        os.utime(journal.path, (at, at))
    os.utime(journals[3].path, (1, 1))
    assert prune_journals(tmp_path, spared=0) == [journals[0].path]
    assert [info.in_use for info in list_journals(tmp_path)] == [False, False, True]
    assert prune_journals(tmp_path, keep_bytes=0) == [journals[1].path, journals[2].path]
    journals[3].close()
    assert prune_journals(tmp_path, spared=0) == [journals[3].path]


@pytest.mark.parametrize("years", [-60, 30])
def test_a_clock_that_goes_wrong_deletes_no_session(tmp_path, session, monkeypatch, years):
    """The newest are of any age; of more than those the oldest go."""
    for number in range(3):
        journal = Journal(Session(volume()), tmp_path)
        journal.flush()
        journal.close()
        os.utime(journal.path, (number + 1, number + 1))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + years * 365 * 86400)
    assert prune_journals(tmp_path) == []
    assert len(prune_journals(tmp_path, spared=2)) == (years > 0)
    assert [info.changed for info in list_journals(tmp_path)][:2] == [3, 2]


def test_a_session_in_which_nothing_was_done_has_no_file(tmp_path, labels):
    """Images that are only looked at leave no list of empty sessions."""
    session = Session(volume())
    journal = Journal(session, tmp_path)
    session.semantic = True
    session.use_labels(ArrayLabels(labels), 3)
    session.volume = session.volume.with_window()
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_readable_by_its_user_only(tmp_path, session):
    """It holds parts of pictures."""
    journal = Journal(session, tmp_path / "journals")
    journal.compact()
    assert (tmp_path / "journals").stat().st_mode & 0o777 == 0o700
    assert journal.path.stat().st_mode & 0o777 == 0o600
    journal.close()


# Hostile files


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """The frames of a journal with all kinds of values: (message, blobs) each."""
    labels = fresh_labels()
    session = new_session(labels)
    journal = Journal(session, tmp_path_factory.mktemp("frames"))
    journal.flush()
    session.set_prompts(FIRST, [Click((1, 1)), Scribble([(2, 2), (3, 3)])])
    session.apply(session.request(FIRST), predicted(np.eye(12, 10, dtype=bool)))
    session.accept()
    session.undo()
    journal.close()
    with journal.path.open("rb") as file:
        return [(json.loads(json.dumps(m)), list(b)) for m, b in FrameReader(file, 10**9)]


def written(path, frames):
    """A journal of frames with right digests."""
    writer = FrameWriter()
    path.write_bytes(MAGIC + b"".join(writer.frame(message, blobs) for message, blobs in frames))
    return path


def entry(frames, kind):
    """(message, place) of the first value of a kind."""
    for message, blobs in frames[1:]:
        at = 0
        for value in message["new"]:
            if value["is"] == kind:
                return value, blobs, at
            at += {"mask": 1, "edit": 3, "pixels": 1, "labels": 1}.get(value["is"], 0)
    raise AssertionError(kind)


def set_value(kind, name, value):
    """A change of a value in the frames."""

    def change(frames):
        entry(frames, kind)[0][name] = value

    return change


def give_levels_to_two_prompts(frames):
    """A state after two prompts whose mask came from one, as no session makes it."""
    values = [value for message, _ in frames[1:] for value in message["new"] if value["is"] == "state"]
    state = next(value for value in values if value["soft_mask"] is not None)
    assert len(state["prompts"]) == 2
    state["first"] = state["soft_mask"]


def set_blob(kind, content, offset=0):
    """A change of a value's bytes."""

    def change(frames):
        _, blobs, at = entry(frames, kind)
        blobs[at + offset] = content

    return change


def set_in(place, *names_and_value):
    """A change of a frame's message."""
    *names, last, value = names_and_value

    def change(frames):
        message = frames[place][0]
        for name in names:
            message = message[name]
        message[last] = value

    return change


BOMB = zlib.compress(bytes(2**24))
NOT_ONE = [None, -1, 1.5, "1", [], {}, True, 10**30, 99]
HOSTILE = {
    **{f"version {v!r}": set_in(0, "version", v) for v in (2, 0, "1", None)},
    **{f"shape {v!r}": set_in(0, "shape", v) for v in ([4, 12], [4, 12, -10], None, [[]], "x")},
    "another format": set_in(0, "format", "pickle"),
    "no identity": set_in(0, "identity", None),
    "no snapshot": lambda frames: frames.pop(1),
    "two snapshots": lambda frames: frames.insert(2, frames[1]),
    "values twice": lambda frames: frames.insert(2, frames[2]),
    **{f"kind {v!r}": set_in(2, "kind", v) for v in ("session", "__class__", None, [], 3)},
    **{f"highest {v!r}": set_in(2, "highest", v) for v in NOT_ONE if v != 99},
    **{f"current {v!r}": set_in(1, "current", v) for v in NOT_ONE if v != 99},
    **{f"limit {v!r}": set_in(1, "limit", v) for v in (None, -1, "1", 0.5)},
    **{f"store {v!r}": set_in(1, "store", v) for v in (-1, 1, "0", 0.0, True)},
    **{f"settings {v!r}": set_in(1, "settings", v) for v in (None, [], {"policy": 3}, {"volume": 1})},
    **{f"model {v!r}": set_in(1, "settings", "model", v) for v in (
        {"model": 3}, {"device": ["ssh://x"]}, {"closer_look": {}}, {"threads": "8; x"},
        {"x": {"y": [[[[1]]]]}})},
    **{f"preprocessing {v!r}": set_in(1, "settings", "preprocessing", v) for v in (
        {"window=None), print(": 1}, {"window": "x", "spacing": None}, {"window": None, "spacing": ["1"]})},
    "an unknown policy": set_in(1, "settings", {"policy": {"kind": "all", "within": 0}}),
    "no threshold": set_in(1, "settings", {"finish": {"threshold": "nan", "smooth": 0}}),
    **{f"states {v!r}": set_in(1, "states", v) for v in (None, 1, [[1, 2]], [[1, [1, None, None], 99]])},
    **{f"records {v!r}": set_in(1, "records", v) for v in (None, [[1, 50]], [["1", 0]])},
    **{f"new {v!r}": set_in(2, "new", v) for v in (
        None, {}, [3], [{}], [{"is": "pickle"}], [{"is": "mask"}])},
    **{f"plane {v!r}": set_in(2, "step", "plane", v) for v in (
        [1, None], [9, None, None], [-1, None, None], [1, 1, None], [True, None, None], "x", [1.0, None])},
    **{f"step {v!r}": set_in(2, "step", v) for v in (None, {}, [], 3)},
    **{f"title {v!r}": set_in(2, "step", "title", v) for v in (None, 3, [])},
    **{f"step's current {v!r}": set_in(2, "step", "current", v) for v in (None, [1], [1, 77], ["1", 1])},
    **{f"step's states {v!r}": set_in(2, "step", "states", v) for v in (
        None, [[1]], [[1, [1, None, None], 0, 10**6]], [[1, [None, 5, None], 0, 0], 3])},
    **{f"prompts {v!r}": set_value("state", "prompts", v) for v in (
        None, 3, [[]], [["click", [[1, 2]], 1]], [["click", [], True]], [["click", [["1", "2"]], True]],
        [["click", [["nan", 1]], True]], [["eval", [[1, 2]], True]], [["polygon", [[1, 2]], True]],
        [["mask", 0, True]], [["mask", None, True]], [["box", [[1, 2]], True]])},
    **{f"older {v!r}": set_value("state", "older", v) for v in NOT_ONE},
    **{f"pending {v!r}": set_value("state", "pending", v) for v in (None, 0, "true")},
    **{f"ticket {v!r}": set_value("state", "ticket", v) for v in (None, -1, "1", 2**70)},
    **{f"confidence {v!r}": set_value("state", "confidence", v) for v in ("1", [], True)},
    **{f"level {v!r}": set_value("state", "level", v) for v in (None, -3, 3, "1", 0.0)},
    "a level of no mask": set_value("state", "level", 1),
    "levels after two prompts": give_levels_to_two_prompts,
    **{f"first {v!r}": set_value("state", "first", v) for v in (-1, 10**6, "0", True)},
    **{f"soft mask {v!r}": set_value("state", "soft_mask", v) for v in (-1, 10**6, "0", True)},
    **{f"mask's shape {v!r}": set_value("mask", "shape", v) for v in (
        None, [12], [12, 10**9], [0, 10], [10, 12], [12.0, 10])},
    **{f"mask's box {v!r}": set_value("mask", "box", v) for v in (
        None, [0, 0, 12], [0, 0, 13, 10], [-1, 0, 12, 10], [5, 5, 5, 5], [0, 0, 1, 1])},
    **{f"quality {v!r}": set_value("mask", "quality", v) for v in ("high", [], False)},
    **{f"drawn {v!r}": set_value("mask", "drawn", v) for v in (None, 1)},
    "a mask that is no zlib": set_blob("mask", b"nonsense"),
    "a mask of nothing": set_blob("mask", b""),
    "a mask that is cut": set_blob("mask", zlib.compress(bytes(120))[:-3]),
    "a mask with more behind it": set_blob("mask", zlib.compress(bytes(120)) + b"x"),
    "a mask that is too long": set_blob("mask", zlib.compress(bytes(121))),
    "a mask that is a bomb": set_blob("mask", BOMB),
    "a mask of impossible steps": set_blob("mask", zlib.compress(b"\xff" * 120)),
    **{f"edit's plane {v!r}": set_value("edit", "plane", v) for v in ([2, None, None], [9, None, None], 3)},
    **{f"edit's box {v!r}": set_value("edit", "box", v) for v in ([0, 0, 99, 10], [0, 0, 0, 0], None)},
    **{f"edit's type {v!r}": set_value("edit", "dtype", v) for v in (
        "O", "<f4", "|V8", "x", None, "<u1,<u2", [["a", "O"]], "<U9", "<M8[s]")},
    **{f"edit's before {v!r}": set_value("edit", "before", v) for v in (-1, 2**16, "0", 0.0, True)},
    **{f"edit's after {v!r}": set_value("edit", "after", v) for v in (None, -1, 2**16, True)},
    "an edit that is a bomb": set_blob("edit", BOMB),
    "an edit of no voxel": set_blob("edit", zlib.compress(bytes(15))),
    "an edit with bytes too many": set_blob("edit", b"x", 1),
    **{f"record's label {v!r}": set_value("record", "label", v) for v in (None, 0, -1, "1", 1.5, 2**63)},
    **{f"record's written {v!r}": set_value("record", "written", v) for v in (
        None, [[]], [[[1, None, None], 0]])},
    **{f"record's base {v!r}": set_value("record", "base", v) for v in (10**6, -1, "0")},
    **{f"record's propagated {v!r}": set_value("record", "propagated", v) for v in (
        3, {}, {"anchors": 3, "planes": [], "reached": []}, {"anchors": [], "planes": [3], "reached": []},
        *({"anchors": [], "planes": [], "reached": [], "refused": refused} for refused in (
            3, [[]], [[[1, None, None], 0.5, 1.5, ""]], [[[1, None, None], "0", 1, ""]],
            [[[99, None, None], 0.5, 1, ""]], [[[1, None, None], 0.5, 1, 3]])))},
    "nothing to undo": lambda frames: frames.extend([({"kind": "undo", "highest": 1, "new": []}, [])] * 9),
    "nothing to redo": lambda frames: frames.extend([({"kind": "redo", "highest": 1, "new": []}, [])] * 9),
    "a blob too many": lambda frames: frames[2][1].append(b"x") or frames[2][0].update(new=[{"is": "mask"}]),
    "a frame without values": lambda frames: frames[2][0].pop("new"),
    "not a number": set_value("mask", "quality", float("nan")),
    "nested": set_in(2, "step", json.loads("[" * 900 + "]" * 900)),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_journal_is_refused_in_one_sentence_and_no_label_is_written(tmp_path, frames, name):
    """Digests are right, content is not."""
    changed = [(json.loads(json.dumps(message)), list(blobs)) for message, blobs in frames]
    HOSTILE[name](changed)
    path, again = written(tmp_path / "x.journal", changed), fresh_labels()
    began = time.perf_counter()
    with pytest.raises(JournalError) as refused:
        open_session(path, volume(), [ArrayLabels(again)])
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert len(sentence) < 500 + len(str(path))
    assert np.array_equal(again, fresh_labels())
    assert time.perf_counter() - began < 60


def test_the_frames_unchanged_are_a_journal(tmp_path, frames):
    """Otherwise the table of hostile files would show nothing."""
    written(tmp_path / "x.journal", frames)
    restored_from(tmp_path / "x.journal")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        MAGIC,
        MAGIC[:-1],
        MAGIC + b"\xff" * 28,
        MAGIC + bytes(28),
        b"PK\x03\x04" * 9,
        b"SQLite format 3\0",
    ],
)
def test_a_file_without_a_frame_is_refused(tmp_path, content):
    """Declared sizes count for nothing beyond the end of the file."""
    (tmp_path / "x.journal").write_bytes(content)
    with pytest.raises(JournalError, match="cannot be opened as a session"):
        open_session(tmp_path / "x.journal", volume())
    assert list_journals(tmp_path) == []


def test_a_frame_that_is_no_json_is_refused(tmp_path):
    """Also JSON that nests deeper than Python can read."""
    for text in (b"{", b"[" * 100_000, b"[1]", b"\xff\xfe", b'{"sizes":[-1]}', b'{"sizes":[1]}', b"1" * 5000):

        class Raw(FrameWriter):
            def frame(self, message, blobs=(), text=text):
                from napari_lowlat_seg.annotation.journal.frames import _HEAD, _digest

                return _HEAD.pack(len(text), 0, _digest(b"", text, b"")) + text

        (tmp_path / "x.journal").write_bytes(MAGIC + Raw().frame({}))
        with pytest.raises(JournalError, match="cannot be opened as a session"):
            open_session(tmp_path / "x.journal", volume())


def test_a_session_of_other_pixels_is_refused(tmp_path, session):
    """The shape may be the same; the name does not count."""
    journal = Journal(session, tmp_path)
    journal.flush()
    journal.close()
    other = Volume(np.zeros(SHAPE, np.uint8))
    with pytest.raises(JournalError, match="belongs to other pixels"):
        open_session(journal.path, other, [ArrayLabels(fresh_labels())])
    open_session(journal.path, replace(volume(), name="renamed"), [ArrayLabels(fresh_labels())])


def test_a_pipe_and_a_missing_file_are_refused(tmp_path):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe.journal")
    with pytest.raises(JournalError, match="is no file"):
        open_session(tmp_path / "pipe.journal", volume())
    with pytest.raises(FileNotFoundError):
        open_session(tmp_path / "missing.journal", volume())


def test_bytes_changed_at_random_give_an_earlier_state_or_a_sentence(tmp_path, session, labels):
    """No other error, and never another state."""
    journal = Journal(session, tmp_path)
    states = [everything_of(session, labels)]
    session.observer = lambda event: (journal(event), states.append(everything_of(session, labels)))
    for action, plane, seed in script(7, 8):
        play(session, labels, action, plane, seed)
    journal.close()
    whole, rng = journal.path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            content[at] = rng.integers(256)
        journal.path.write_bytes(content)
        refused += 1
        with suppress(JournalError):
            assert restored_from(journal.path) in states
            refused -= 1
    assert 0 < refused < 200


# Merged edits


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLANES), st.integers(0, 2**32 - 1)), max_size=12))
def test_merged_edits_write_what_the_edits_write_one_after_the_other(script):
    """Planes along several axes, over each other; on labels as they were, and on labels half written."""
    labels, edits = fresh_labels(), []
    for plane, seed in script:
        rng = np.random.default_rng(seed)
        before = labels[plane.key()].copy()
        labels[plane.key()][rng.random(before.shape) > 0.6] = rng.integers(5)
        edit = LabelEdit.between(plane, (0, 0, *before.shape), before, labels[plane.key()])
        edits += [edit] if edit else []
    result = merged(edits, SHAPE)
    assert len({edit.plane for edit in result}) == len(result) <= SHAPE[0]
    for done in (0, len(edits) // 2, len(edits)):
        again = fresh_labels()
        ArrayLabels(again).write(edits[:done])
        ArrayLabels(again).write(result)
        assert np.array_equal(again, labels)


def test_merged_edits_of_four_axes(tmp_path):
    """Planes of time and space."""
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 3, 4, 5), np.uint16)
    edits = []
    for index in ((1, None, 2, None), (0, 1, None, None), (None, 2, 3, None), (None, None, 1, 1)):
        plane = Plane(index)
        before = labels[plane.key()].copy()
        labels[plane.key()] = rng.integers(0, 5, before.shape)
        edits.append(LabelEdit.between(plane, (0, 0, *before.shape), before, labels[plane.key()]))
    again = np.zeros_like(labels)
    ArrayLabels(again).write(merged(edits, labels.shape))
    assert np.array_equal(again, labels)


def test_labels_that_have_no_room_in_memory_are_refused(monkeypatch):
    """One sentence instead of a MemoryError."""

    def full(*args):
        raise MemoryError

    monkeypatch.setattr(np, "zeros", full)
    about = AboutLabels(np.dtype(np.uint16), content=b"")
    with pytest.raises(ValueError, match="do not fit into memory; give those on disk"):
        about.in_memory((2, 2, 2))


def test_content_of_another_size_is_refused(labels):
    """Of labels in memory that a file holds."""
    about = AboutLabels(labels.dtype, content=packed_content(labels))
    assert np.array_equal(about.in_memory(SHAPE).data, labels)
    for shape in ((4, 12, 9), (4, 12, 11)):
        with pytest.raises(ValueError, match="packed bytes"):
            about.in_memory(shape)
    assert packed_content(np.zeros(SHAPE, np.uint8)) == b""


def test_numbers_of_numpy_are_numbers_in_the_file(tmp_path, session, labels):
    """A window from contrast limits, facts of a model: nothing of them may end the journal."""
    said = []
    journal = Journal(session, tmp_path, report=said.append)
    session.volume = replace(session.volume, window=(np.float32(3), np.float64(200)))
    session.model = {"model": "default", "size": np.int64(512), "where": tmp_path}
    click(session)
    journal.close()
    assert said == []
    mirror = read_session(journal.path, volume()).mirror
    assert mirror.settings["preprocessing"]["window"] == (3.0, 200.0)
    assert mirror.settings["model"] == {"model": "default", "size": 512, "where": str(tmp_path)}
