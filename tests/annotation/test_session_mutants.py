"""Session files changed at random, with right digests: a sentence, or a session that works."""

import copy
import json
import random
import tracemalloc
import zlib
from contextlib import suppress

import pytest

from benchmarks.kill_journal import fresh_labels, new_session, play, script, volume
from napari_lowlat_seg import ArrayLabels
from napari_lowlat_seg.annotation.journal import (
    Journal,
    JournalError,
    journal_info,
    list_journals,
    open_session,
    read_session,
)
from napari_lowlat_seg.annotation.journal.frames import MAGIC, FrameReader, FrameWriter
from napari_lowlat_seg.annotation.journal.script import exported_script

NASTY = [
    None,
    True,
    -1,
    0,
    1,
    2,
    99,
    2**31,
    2**63,
    2**70,
    0.5,
    1e308,
    "",
    "x",
    "nan",
    "inf",
    "<u8",
    "O",
    [],
    {},
]
NASTY += [
    [[]],
    [0],
    [1, None, None],
    [None, 5, None],
    "../../etc/passwd",
    "\x00",
    "a" * 5000,
    "keep",
    "seeds",
]
BLOBS = [b"", b"x", zlib.compress(bytes(2**24)), zlib.compress(b"\xff" * 120), zlib.compress(bytes(120))[:-2]]
PEAK = 64 * 2**20
"""Bytes that reading a mutant may take; the image has 480 voxels, and a bomb unpacks to 16 MiB."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The frames of journals and of saved sessions with all kinds of actions."""
    found = []
    for seed in range(6):
        folder, labels = tmp_path_factory.mktemp("original"), fresh_labels()
        session = new_session(labels)
        journal = Journal(session, folder)
        for action in script(seed, 25):
            play(session, labels, *action)
        assert journal.flush()
        journal.save(folder / "saved.lowlat")
        for path in (journal.path, folder / "saved.lowlat"):
            with path.open("rb") as file:
                found.append([(json.loads(json.dumps(m)), list(b)) for m, b in FrameReader(file, 10**9)])
        journal.close(discard=True)
    return found


def places(value, path=()):
    """Where all values of a message are, as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from places(part)


def mutate(frames, rng):
    """One to three changes, in messages, bytes or the order of frames."""
    for _ in range(rng.randint(1, 3)):
        message, blobs = rng.choice(frames)
        kind = rng.random()
        if kind < 0.7:
            container, key = rng.choice(list(places(message)))
            change(container, key, message, rng)
        elif kind < 0.9 and blobs:
            at = rng.randrange(len(blobs))
            part = bytearray(blobs[at]) or bytearray(b"\0")
            part[rng.randrange(len(part))] = rng.randrange(256)
            blobs[at] = rng.choice([*BLOBS, bytes(part), *blobs])
        elif len(frames) > 2:
            place = rng.randrange(1, len(frames))
            if rng.randrange(2):
                frames.pop(place)
            else:
                frames.insert(place, frames[-1])


def change(container, key, message, rng):
    """Replace, remove, repeat or exchange a value."""
    turn = rng.randrange(5)
    if turn == 0:
        container.pop(key)
    elif turn == 1 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif turn == 2:
        other, place = rng.choice(list(places(message)))
        container[key] = copy.deepcopy(other[place])
    elif turn == 3 and isinstance(container[key], int):
        container[key] += rng.choice([-1, 1, 7])
    else:
        container[key] = copy.deepcopy(rng.choice(NASTY))


def use(session):
    """What a user would do next, which finds a state that cannot be."""
    while session.undo():
        pass
    while session.redo():
        pass
    for plane in session.pending:
        session.request(plane)
    with suppress(ValueError):  # a label that the labels cannot hold
        session.accept()


def tried(path):
    """Open a mutant in all ways; the sentence if it was refused."""
    try:
        journal_info(path)
        list_journals(path.parent)
        session = open_session(path, volume(), [ArrayLabels(fresh_labels())])
        found = read_session(path, volume(), [ArrayLabels(fresh_labels())])
        if found.mirror.actions is not None:
            exported_script(found)
    except JournalError as error:
        return str(error)
    use(session)
    return ""


def try_mutants(originals, folder, seeds):
    """How many were refused, and the most memory that one took."""
    refused = peak = 0
    for seed in seeds:
        rng = random.Random(seed)
        frames = copy.deepcopy(rng.choice(originals))
        mutate(frames, rng)
        writer, path = FrameWriter(), folder / "mutant.journal"
        path.write_bytes(MAGIC + b"".join(writer.frame(message, blobs) for message, blobs in frames))
        tracemalloc.start()
        try:
            sentence = tried(path)
        except Exception as error:
            raise AssertionError(f"mutant {seed}: {type(error).__name__}: {error}") from error
        refused += bool(sentence)
        assert "\n" not in sentence
        assert len(sentence) < 600 + len(str(path))
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return refused, peak


def test_a_hundred_mutants(tmp_path, originals):
    """Refused in one sentence, or a session that one can go on with."""
    refused, peak = try_mutants(originals, tmp_path, range(100))
    assert 30 < refused < 100
    assert peak < PEAK


@pytest.mark.slow
def test_a_thousand_mutants(tmp_path, originals):
    """The same, further on."""
    refused, peak = try_mutants(originals, tmp_path, range(100, 1100))
    assert refused > 300
    assert peak < PEAK
