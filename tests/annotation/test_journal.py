"""Sessions restored from their journal: after every kind of action, killed, cut short, on a full disk, hostile."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.annotation import journal as journal_module
from napari_lowlat_seg.annotation.history import Event
from napari_lowlat_seg.annotation.journal import (
    Journal,
    list_journals,
    open_session,
    prune_journals,
    resume,
)
from napari_lowlat_seg.annotation.journal_format import MAGIC, FrameReader, FrameWriter, JournalError
from napari_lowlat_seg.annotation.mirror import merged
from napari_lowlat_seg.annotation.propagation_run import PropagationRun, stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.sweep import PropagatedMask

SHAPE = (4, 12, 10)
PLANES = [Plane((1, None, None)), Plane((2, None, None)), Plane((None, 5, None)), Plane((None, None, 4))]
PIXELS = np.arange(480, dtype=np.uint8).reshape(SHAPE)


def volume():
    """The image, made anew."""
    return Volume(PIXELS.copy())


def fresh_labels():
    """Labels with one object in them."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[:, :3, :3] = 3
    return labels


def new_session(labels):
    """A session that writes to these labels."""
    return Session(volume(), ArrayLabels(labels))


def predicted(mask):
    """The prediction of a network that is certain of a mask."""
    return SoftMask.of(np.where(mask, np.float32(0.97), np.float32(0.02)), 0.9)


def mask_of(soft_mask):
    """A soft mask as plain values."""
    if soft_mask is None:
        return None
    return soft_mask.shape, tuple(soft_mask.box), soft_mask.packed, soft_mask.quality, soft_mask.drawn


def state_of(state):
    """A plane's state as plain values."""
    masks = (state.soft_mask, state.previous, state.drawn, state.brushed)
    facts = (state.prompts, state.prompts_before_drawn, state.pending, state.confidence)
    return tuple(mask_of(mask) for mask in masks), facts


def record_of(record, session):
    """An object's record as plain values."""
    if record is None:
        return None
    last = record.propagated
    propagated = last and (
        {plane: mask_of(mask) for plane, mask in last.anchors.items()},
        last.planes,
        last.reached,
    )
    return record.label, record.store is session.labels, dict(record.written), propagated


def step_of(step, session):
    """A step as plain values."""
    states = [(key, state_of(before), state_of(after)) for key, before, after in step.states]
    records = [
        (n, record_of(before, session), record_of(after, session)) for n, before, after in step.records
    ]
    return step.title, step.plane, step.current, states, records, step.edits


def everything_of(session, labels):
    """All that a session holds, as plain values that can be compared."""
    objects = session.all_states().items()
    states = {(n, plane): state_of(state) for n, planes in objects for plane, state in planes.items()}
    return {
        "labels": labels.tobytes(),
        "states": states,
        "records": {n: record_of(record, session) for n, record in session.all_records().items()},
        "current": (session.current, session.label, session.highest),
        "settings": (session.policy, session.finish, session.semantic),
        "done": [step_of(step, session) for step in session.undo_stack.done],
        "undone": [step_of(step, session) for step in session.undo_stack.undone],
    }


def propagate(session, plane, rng, *, seeds):
    """A propagation run with random masks that may be cut short."""
    planes = stack_of(session.volume, plane)
    try:
        if seeds:
            run = PropagationRun.seeds(session, planes, [(plane, Click((2, 2))), (plane, Click((5, 5)))])
        else:
            run = PropagationRun.propagation(session, planes)
    except ValueError:
        return  # there is nothing to propagate
    numbers = list(run.request.seeds or run.request.anchors)
    sides = session.volume.sides(plane)
    for _ in range(rng.integers(5)):
        where = planes[rng.integers(len(planes))]
        found = PropagatedMask(where, predicted(rng.random(sides) > 0.5), 0.5)
        run.apply(numbers[rng.integers(len(numbers))], found)
    if rng.integers(2):
        run.finish()


def random_prompt(rng, rows, cols):
    """A prompt of any kind on a plane."""
    at = [(float(r), float(c)) for r, c in rng.random((4, 2)) * (rows - 1, cols - 1)]
    positive = bool(rng.integers(2))
    pixels = rng.random((rows, cols)) > 0.5
    pixels[0, 0] = True
    return (
        Click(at[0], positive),
        Scribble(at, positive),
        Box(at[0], at[1], positive),
        Polygon(at, positive),
        Mask(pixels if rng.integers(2) else pixels.astype(np.float32) / 3, positive),
    )[rng.integers(5)]


def play(session, labels, action, plane, seed):
    """One random action of a user."""
    rng = np.random.default_rng(seed)
    rows, cols = session.volume.sides(plane)
    at = (int(rng.integers(rows)), int(rng.integers(cols)))
    if action == "add":
        session.add(plane, random_prompt(rng, rows, cols))
    elif action == "apply":
        for waiting in session.pending:
            mask = rng.random(session.volume.sides(waiting)) > 0.5
            session.apply(session.request(waiting), predicted(mask))
    elif action == "remove":
        session.set_prompts(plane, session.state(plane).prompts[1:])
    elif action == "paint":
        session.paint(plane, rng.random((rows, cols)) > 0.5)
    elif action == "accept":
        session.accept()
    elif action == "clear":
        session.clear()
    elif action == "edit":
        session.edit_object(plane, at)
    elif action == "brush":
        before = labels[plane.key()].copy()
        labels[plane.key()][rng.random((rows, cols)) > 0.7] = int(rng.integers(4))
        edit = LabelEdit.between(plane, (0, 0, rows, cols), before, labels[plane.key()])
        session.record_stroke([edit] if edit else [])
    elif action in ("propagate", "seeds"):
        propagate(session, plane, rng, seeds=action == "seeds")
    elif action == "undo":
        session.undo()
    elif action == "redo":
        session.redo()
    elif action == "label":
        session.choose_label(int(rng.integers(1, 5)))
    elif action == "semantic":
        session.semantic = not session.semantic
    elif action == "policy":
        session.policy = Policy(("keep", "overwrite", "within")[rng.integers(3)], int(rng.integers(4)))
    elif action == "finish":
        session.finish = PostProcessing(float(rng.random() * 0.8 + 0.1), 0.0, bool(rng.integers(2)))


KINDS = ["add", "add", "apply", "apply", "remove", "paint", "accept", "clear", "edit", "brush", "undo", "redo", "label",
         "semantic", "policy", "finish", "propagate", "seeds"]  # fmt: skip
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
    rng = np.random.default_rng(seed)
    for _ in range(count):
        plane = PLANES[rng.integers(len(PLANES))]
        play(session, labels, KINDS[rng.integers(len(KINDS))], plane, int(rng.integers(2**32)))


@settings(max_examples=60, deadline=None)
@given(actions)
def test_a_session_restored_from_its_journal_equals_the_session(tmp_path_factory, script):
    """Prompts, masks, labels, objects, settings and both halves of the undo stack, after any script."""
    folder, labels = tmp_path_factory.mktemp("journal"), fresh_labels()
    session = new_session(labels)
    journal = Journal(session, folder)
    for action, plane, seed in script:
        journal.compact() if action == "compact" else play(session, labels, action, plane, seed)
    assert journal.flush()
    session.close_transaction()
    journal.flush()
    again = fresh_labels()
    restored = open_session(journal.path, volume(), [ArrayLabels(again)])
    assert everything_of(restored, again) == everything_of(session, labels)
    journal.save(folder / "saved.lowlat")
    from_saved = fresh_labels()
    saved = open_session(folder / "saved.lowlat", volume(), [ArrayLabels(from_saved)])
    assert everything_of(saved, from_saved) == everything_of(session, labels)
    journal.close()
    while session.undo():
        assert restored.undo()
        assert everything_of(restored, again) == everything_of(session, labels)
    shutil.rmtree(folder)
