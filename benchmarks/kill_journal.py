"""Kills a process that annotates, at random instants, and compares what is restored with what it did.

    python -m benchmarks.kill_journal --kills 300
    xvfb-run python -m benchmarks.kill_journal --kills 300 --window

A child process does random actions of a user (`KINDS`): prompts of every kind, predictions, other
levels of a mask, edits of it, brush strokes, accepts, corrections, propagation runs, undo, redo, settings,
limits, classes of a file, the table of objects, proposals; with `--window` in napari, with the dock widget.
Labels lie in memory, in a file and in a pyramid by turns (`PLACES`). The parent plays the same actions itself
and knows what the session holds after each event; what is restored must be exactly one of these states, and
no old one. Labels on disk must be right on all levels of their pyramid, and the highest label that is noted
there too.

A process is stopped (SIGSTOP) at random instants, and its files are copied as they are then: this is what a
kill at that instant would leave. The last instant of each process is a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from napari_lowlat_seg.annotation.history import Event, ObjectRecord, Step
from napari_lowlat_seg.annotation.journal import Journal, list_journals, open_session
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.mask_edits import MaskEdit, edited_masks, masks_along
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, split
from napari_lowlat_seg.annotation.objects.counts import count_labels
from napari_lowlat_seg.annotation.objects.facts import read_classes
from napari_lowlat_seg.annotation.objects.proposals import (
    Proposal,
    accept_proposal,
    correct_proposal,
    masks_of,
    propose,
    reject_proposals,
)
from napari_lowlat_seg.annotation.plane_state import PlaneState
from napari_lowlat_seg.annotation.propagation_run import PropagationRun, stack_of
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import ArrayLabels, LabelEdit, Policy
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.sweep import PropagatedMask

SHAPE = (4, 12, 10)
PLANES = [Plane((1, None, None)), Plane((2, None, None)), Plane((None, 5, None)), Plane((None, None, 4))]
PIXELS = np.arange(480, dtype=np.uint8).reshape(SHAPE)
PLACES = ("memory", "file", "pyramid")
"""Where labels lie: in the journal, in an array on disk, in OME-Zarr with `LEVELS` levels."""

LEVELS = 3
PAUSE = 0.01
"""Seconds between two actions."""

Actions = Iterator[tuple[str, Plane, int]]
"""What is done, the plane in view, and a seed for the rest."""


def volume() -> Volume:
    """The image, made anew."""
    return Volume(PIXELS.copy())


def fresh_labels(dtype: Any = np.uint16) -> np.ndarray:
    """Labels with one object in them."""
    labels = np.zeros(SHAPE, dtype)
    labels[:, :3, :3] = 3
    return labels


def new_session(labels: np.ndarray) -> Session:
    """A session that writes to these labels."""
    return Session(volume(), ArrayLabels(labels))


def predicted(mask: np.ndarray) -> SoftMask:
    """The prediction of a network that is certain of a mask, but for every other column: it has levels."""
    unsure = np.arange(mask.shape[1]) % 2 == 1
    return SoftMask.of(np.select([mask & unsure, mask, unsure], [0.6, 0.97, 0.4], 0.02), 0.9)


def mask_of(soft_mask: SoftMask | None) -> object:
    """A soft mask as plain values."""
    if soft_mask is None:
        return None
    return soft_mask.shape, tuple(soft_mask.box), soft_mask.packed, soft_mask.quality, soft_mask.drawn


def state_of(state: PlaneState) -> object:
    """A plane's state as plain values."""
    masks = (state.soft_mask, state.previous, state.drawn, state.brushed, state.first)
    numbers = (state.prompts_before_drawn, state.refined, state.level)
    facts = (state.prompts, state.pending, state.confidence, numbers)
    return tuple(mask_of(mask) for mask in masks), facts


def by_plane(values: Mapping[Plane, Any]) -> list[tuple[Plane, Any]]:
    """The items in an order that does not depend on when they were added."""
    return sorted(values.items(), key=lambda item: repr(item[0]))


def record_of(record: ObjectRecord | None, session: Session) -> object:
    """An object's record as plain values."""
    if record is None:
        return None
    last = record.propagated
    propagated = last and (
        by_plane({plane: mask_of(mask) for plane, mask in last.anchors.items()}),
        last.planes,
        sorted(plane.position for plane in last.reached),
        last.refused,
    )
    return record.label, record.store is session.labels, by_plane(record.written), propagated, record.score


def step_of(step: Step, session: Session) -> object:
    """A step as plain values."""
    states = [(key, state_of(before), state_of(after)) for key, before, after in step.states]
    records = [
        (n, record_of(before, session), record_of(after, session)) for n, before, after in step.records
    ]
    return step.title, step.plane, step.current, states, records, step.edits, step.facts, step.accept, step.at


def everything_of(session: Session, labels: np.ndarray) -> dict[str, Any]:
    """All that a session holds, as plain values that can be compared; an open transaction is a step."""
    objects = session.contents.states.items()
    states = {(n, plane): state_of(state) for n, planes in objects for plane, state in planes.items()}
    under_way = session._recorder.open_step
    done = [*session.undo_stack.done, *([] if under_way is None else [under_way])]
    undone = () if under_way is not None else session.undo_stack.undone  # whatever follows drops them
    return {
        "labels": labels.tobytes(),
        "states": states,
        "records": {n: record_of(record, session) for n, record in session.contents.records.items()},
        "current": (session.current, session.label, session.highest),
        "settings": (session.policy, session.finish, session.semantic, session.limits, session.classes),
        "facts": sorted(session.facts.items()),
        "done": [step_of(step, session) for step in done],
        "undone": [step_of(step, session) for step in undone],
    }


def propagate(session: Session, plane: Plane, rng: np.random.Generator, kind: str) -> None:
    """A run of a kind with random masks that may be cut short."""
    planes = stack_of(session.volume, plane)
    if kind == "seeds":
        run = PropagationRun.seeds(session, planes, [(plane, Click((2, 2))), (plane, Click((5, 5)))])
    else:
        begin = PropagationRun.interpolation if kind == "interpolate" else PropagationRun.propagation
        run = begin(session, planes)
    numbers = list(run.request.seeds or run.request.anchors)
    sides = session.volume.sides(plane)
    for _ in range(rng.integers(5)):
        where = planes[int(rng.integers(len(planes)))]
        found = PropagatedMask(where, predicted(rng.random(sides) > 0.5), 0.5)
        run.apply(numbers[rng.integers(len(numbers))], found)
    if rng.integers(2):
        run.finish()


def random_prompt(rng: np.random.Generator, rows: int, cols: int) -> Prompt:
    """A prompt of any kind on a plane."""
    at = [(float(r), float(c)) for r, c in rng.random((4, 2)) * (rows - 1, cols - 1)]
    positive = bool(rng.integers(2))
    pixels = rng.random((rows, cols)) > 0.5
    pixels[0, 0] = True
    return (
        Click(at[0], positive),
        Scribble(tuple(at), positive),
        Box(at[0], at[1], positive),
        Polygon(tuple(at), positive),
        Mask(pixels if rng.integers(2) else pixels.astype(np.float32) / 3, positive),
    )[rng.integers(5)]


def play_objects(session: Session, rng: np.random.Generator) -> None:
    """Something that the table of objects can do."""
    assert session.labels is not None
    counts = count_labels(session.labels, session.volume.shape)
    present = sorted(counts.labels)
    chosen = [present[i] for i in rng.permutation(len(present))[: rng.integers(1, 4)]]
    kind, on = rng.integers(6) if chosen else 1, bool(rng.integers(2))
    if kind == 0:
        delete(session, counts, chosen)
    elif kind == 1:
        merge(session, counts, chosen)
    elif kind == 2:
        split(session, counts, chosen[0])
    elif kind == 3:
        describe(session, chosen, locked=on, review=not on)
    else:
        describe(session, chosen, name="one" if on else "", category="cell", hidden=on)


def play_proposals(session: Session, plane: Plane, rng: np.random.Generator) -> None:
    """Find all, and what a person does with the objects that were found."""
    waiting = [number for number in sorted(session.contents.records) if masks_of(session, number)]
    kind = rng.integers(4) if waiting else 0
    if kind == 0:
        sides, planes = session.volume.sides(plane), stack_of(session.volume, plane)[:2]
        shown = [{one: predicted(rng.random(sides) > 0.7) for one in planes} for _ in range(2)]
        propose(session, [Proposal(float(rng.random()), masks) for masks in shown])
    elif kind == 1:
        accept_proposal(session, waiting[0])
    elif kind == 2:
        correct_proposal(session, waiting[-1])
    else:
        reject_proposals(session, waiting[:2])


CLASSES = (None, "name,colour\ncell,#4477aa\naxon\n", "a 'class' of \"{one}\"\n")


def classes_of_a_file(content: str | None) -> Any:
    """The classes in a CSV file of this content; none without one."""
    if content is None:
        return ()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "classes.csv").write_text(content)
        return read_classes(Path(folder) / "classes.csv")


def play(session: Session, labels: np.ndarray, action: str, plane: Plane, seed: int) -> None:
    """One random action of a user, or its refusal."""
    try:
        act(session, labels, action, plane, np.random.default_rng(seed))
    except ValueError as error:
        if not re.search(REFUSALS, str(error)):
            raise


REFUSALS = (
    "is locked|in progress|one piece|still to come|two or more|is chosen|of the list|needs|nothing (has|was)"
)


def act(session: Session, labels: np.ndarray, action: str, plane: Plane, rng: Any) -> None:
    """One random action of a user."""
    rows, cols = session.volume.sides(plane)
    at = (int(rng.integers(rows)), int(rng.integers(cols)))
    drawn = rng.random((rows, cols)) > (0.5, 0.8, 1.0)[rng.integers(3)]  # also nothing at all
    if action == "add":
        session.add(plane, random_prompt(rng, rows, cols))
    elif action == "apply":
        answer(session, rng)
    elif action == "remove":
        session.set_prompts(plane, session.state(plane).prompts[1:])
    elif action == "paint":
        session.paint(plane, drawn)
    elif action == "level":
        if session.levels(plane):
            session.choose_level(plane, int(rng.integers(-2, 3)))
    elif action == "reshape":
        kinds = ("grow", "shrink", "smooth", "fill_holes", "largest", "drop_small", "between")
        change = MaskEdit(kinds[rng.integers(7)], 1.0, bool(rng.integers(2)))
        session.reshape(edited_masks(masks_along(session, plane, whole=change.whole), change))
    elif action in ("accept", "clear"):
        getattr(session, action)()
    elif action == "edit":
        if session.answered:
            session.edit_object(plane, at)
    elif action == "brush":
        brush(session, labels[plane.key()], plane, drawn, int(rng.integers(4)))
    elif action in ("propagate", "seeds", "interpolate"):
        propagate(session, plane, rng, action)
    elif action == "objects":
        play_objects(session, rng)
    elif action == "proposals":
        play_proposals(session, plane, rng)
    else:
        play_settings(session, action, plane, rng)


def answer(session: Session, rng: np.random.Generator) -> None:
    """Apply a mask for each request, as its last one or not."""
    for request in session.requests():
        mask = rng.random(session.volume.sides(request.plane)) > 0.5
        session.apply(request, predicted(mask), final=bool(rng.integers(2)))


def brush(session: Session, pixels: np.ndarray, plane: Plane, drawn: np.ndarray, label: int) -> None:
    """A stroke on the labels, whose pixels on the plane these are."""
    session.close_transaction()
    before = pixels.copy()
    pixels[drawn] = label
    edit = LabelEdit.between(plane, BoundingBox.at((0, 0), pixels.shape), before, pixels)
    session.record_stroke([edit] if edit else [])


def play_settings(session: Session, action: str, plane: Plane, rng: np.random.Generator) -> None:
    """An action that needs no pixels of the plane: steps of undo, settings, and what cannot be answered."""
    some = bool(rng.integers(2))
    if action in ("undo", "redo"):
        getattr(session, action)()
    elif action == "leave":
        session.leave_object()
    elif action == "refuse":
        for request in session.requests()[:1]:
            session.refuse(request, "the model erred")
    elif action == "label":
        session.choose_label(int(rng.integers(1, 5)))
    elif action == "semantic":
        session.semantic = not session.semantic
    elif action == "policy":
        session.policy = Policy(("keep", "overwrite", "within")[rng.integers(3)], int(rng.integers(4)))
    elif action == "classes":
        session.classes = classes_of_a_file(CLASSES[rng.integers(len(CLASSES))])
    elif action == "limits":
        low = float(rng.integers(99))
        ring = ((0.0, 0.0), (0.0, 7.5), (6.0, 2.0 + low / 20))
        range_ = (low, low + 99.5) if rng.integers(2) else None
        session.limits = Limits(some, range_, (ring,) if rng.integers(2) else (), plane.axes)
    elif action == "finish":
        grow, smallest = float(rng.integers(-1, 2)), int(rng.integers(3))
        threshold = float(rng.random() * 0.8 + 0.1)
        session.finish = PostProcessing(threshold, 0.0, some, grow=grow, smallest=smallest)


TIMES = {"add": 2, "apply": 2, "accept": 2, "level": 2, "objects": 3, "proposals": 3}
KINDS = (
    *(kind for kind, times in TIMES.items() for _ in range(times)),
    *("remove", "paint", "clear", "edit", "brush", "undo", "redo", "label", "semantic", "policy", "finish"),
    *("propagate", "seeds", "interpolate", "reshape", "limits", "classes", "leave", "refuse"),
)
"""The actions of `play`."""


def script(seed: int, count: int, place: str = "memory") -> Actions:
    """Random actions, the same ones for the same seed.

    Without brush strokes on labels on disk, which are there before the journal hears of them.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        kind, plane = KINDS[rng.integers(len(KINDS))], PLANES[rng.integers(len(PLANES))]
        if kind != "brush" or place == "memory":
            yield kind, plane, int(rng.integers(2**32))


class SlowLabels(ArrayLabels):
    """Labels in a file that take a while for each edit, so that kills hit the middle of an accept."""

    def write(self, edits: Sequence[LabelEdit]) -> None:
        """Make the edits, one by one."""
        for edit in edits:
            super().write([edit])
            time.sleep(0.002)


def digest_of(session: Session, labels: np.ndarray) -> str:
    """A digest of all that a session holds, the same in every process."""
    everything = everything_of(session, labels)
    for part in ("states", "records"):
        everything[part] = sorted(everything[part].items(), key=lambda item: repr(item[0]))
    return hashlib.blake2b(repr(everything).encode(), digest_size=12).hexdigest()


class Counting:
    """An observer that counts the events after which a session can be restored, and hands all on."""

    def __init__(self, then: Any) -> None:
        self.events, self._then = 0, then

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if event.kind != "writing":
            self.events += 1
        self._then(event)


def store_in(folder: Path, place: str, *, new: bool = False) -> ArrayLabels:
    """The labels at the beginning, or after the kill if they lie on disk."""
    if place == "memory":
        return ArrayLabels(fresh_labels())
    if place == "file":
        if new:
            np.save(folder / "labels.npy", fresh_labels())
        return SlowLabels(np.load(folder / "labels.npy", mmap_mode="r+"))
    from napari_lowlat_seg.io.chunked import ome_zarr
    from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid

    with patch.object(ome_zarr, "SMALLEST", 4):  # few pixels, and yet several levels
        store = LabelPyramid.at(folder / "labels.ome.zarr", volume())
    for position, plane in enumerate(volume().planes() if new else ()):
        store.fill(plane, fresh_labels()[position])
    assert len(store.levels) == LEVELS, len(store.levels)
    return store


def child(folder: Path, seed: int, count: int, place: str) -> None:
    """Annotate, and note after each action how many events there were, until killed."""
    store = store_in(folder, place, new=True)
    labels = store.data if place == "memory" else fresh_labels()  # brush strokes are left out
    session = Session(volume(), store)
    journal = Journal(session, folder, compact_bytes=40_000, sync_seconds=0.02)
    session.observer = counting = Counting(journal)
    annotate(session, labels, counting, folder / "log", script(seed, count, place), time.sleep)
    time.sleep(3600)


def annotate(
    session: Session, labels: np.ndarray, counting: Counting, log: Path, actions: Actions, wait: Any
) -> None:
    """Do all actions, and note how many events there were after each."""
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(file, b"0\n")
    for action, plane, action_seed in actions:
        play(session, labels, action, plane, action_seed)
        os.write(file, b"%d\n" % counting.events)
        wait(PAUSE)
    os.write(file, b"end\n")


def expected_digests(seed: int, count: int, place: str) -> list[str]:
    """What a session holds at first and after each event."""
    labels = fresh_labels(np.uint32 if place == "pyramid" else np.uint16)
    session = new_session(labels)
    digests = [digest_of(session, labels)]

    def note(event: Event) -> None:
        if event.kind != "writing":
            digests.append(digest_of(session, labels))

    session.observer = note
    for action, plane, action_seed in script(seed, count, place):
        play(session, labels, action, plane, action_seed)
    return digests


def kills(
    folder: Path, seed: int, place: str, *, window: bool = False, instants: int = 1, count: int = 60
) -> list[int]:
    """Stop one child at random instants, and kill it at the last; how many finished events were lost at each.

    Raises AssertionError if what is restored is not what the session held after one of its events.
    """
    work = folder / "work"
    work.mkdir()
    module = "benchmarks.kill_window" if window else "benchmarks.kill_journal"
    command = [sys.executable, "-m", module, "--child", str(work), str(seed), str(count), place]
    state = {**os.environ, "XDG_STATE_HOME": str(work)}
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], env=state)
    log, rng = work / "log", random.Random(seed)
    moments = sorted(rng.random() * count for _ in range(instants))
    copies = []
    try:
        for number, moment in enumerate(moments):
            while not _reached(log, moment):
                assert process.poll() is None, "the child ended before it began"
                time.sleep(0.001)
            time.sleep(rng.random() * (PAUSE + 0.004))
            process.send_signal(signal.SIGSTOP)
            while not _stopped(process.pid):
                time.sleep(0.001)
            copies.append(folder / f"at-{number}")
            shutil.copytree(work, copies[-1])
            process.send_signal(signal.SIGCONT if number < instants - 1 else signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    digests = expected_digests(seed, count, place)
    # A layer over a file is one in memory for the window: the journal has all of it.
    known = place == "file" and window
    return [_lost(copy, seed, digests, place, known=known) for copy in [*copies[:-1], work]]


def _reached(log: Path, moment: float) -> bool:
    """Whether so many actions are done, or all: labels on disk have no brush strokes."""
    lines = log.read_bytes().split() if log.exists() else []
    return len(lines) > moment or b"end" in lines


def _stopped(process: int) -> bool:
    """Whether all threads of a process stand still."""
    tasks = Path(f"/proc/{process}/task").glob("*/stat")
    return all(task.read_text().rsplit(")", 1)[1].split()[0] in "TtZX" for task in tasks)


def _lost(folder: Path, seed: int, digests: list[str], place: str, *, known: bool) -> int:
    lines = (folder / "log").read_text().split("\n")[:-1]
    finished = int([line for line in lines if line != "end"][-1])
    journals = list(folder.rglob("[!.]*.journal"))
    found = list_journals(journals[0].parent, volume()) if journals else []
    store = store_in(folder, place)
    assert len(found) == bool(journals), found  # none if nothing was done that would be worth a file
    stores = [] if known else [store]
    session = open_session(found[0].path, volume(), stores) if found else Session(volume(), store)
    if place == "pyramid":
        check_pyramid(store, session.highest)
    labels: Any = session.labels
    restored = digest_of(session, np.asarray(labels.data))
    places = [number for number, digest in enumerate(digests) if digest == restored]
    assert places, f"seed {seed}: what was restored was never there, {finished} events were finished"
    # The same state may come back; the nearest one is meant.
    return max(0, min(finished - number for number in places if number >= finished or number == max(places)))


def check_pyramid(store: Any, highest: int) -> None:
    """Raise AssertionError unless coarse levels show the finest one, and the highest label is noted."""
    first = np.asarray(store.levels[0])
    for number, level in enumerate(store.levels[1:], 1):
        thinned = first[..., :: 2**number, :: 2**number]
        assert np.array_equal(np.asarray(level), thinned), f"level {number} of the pyramid is wrong"
    noted = store.highest()
    assert noted >= first.max(), f"the highest label is {first.max()}, {noted} is noted"
    assert noted <= max(highest, int(first.max())), f"{noted} is noted as the highest label of {highest}"


def main() -> None:
    """Kill, and print what was found."""
    if sys.argv[1:2] == ["--child"]:
        folder, first, count, place = sys.argv[2:]
        child(Path(folder), int(first), int(count), place)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--window", action="store_true", help="in napari, with the dock widget")
    parser.add_argument("--instants", type=int, default=10, help="stops of each process")
    given = parser.parse_args()
    lost, killed, wrong = Counter[int](), Counter[str](), list[str]()
    for seed in range(given.first_seed, given.first_seed + -(-given.kills // given.instants)):
        place = PLACES[seed % len(PLACES)]
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts = kills(Path(folder), seed, place, window=given.window, instants=given.instants)
                lost.update(counts)
                killed[place] += len(counts)
            except Exception as error:
                wrong.append(f"{type(error).__name__} (labels in {place}): {error}")
            done = {"kills": killed.total(), "by labels": killed, "wrong": wrong}
            print(json.dumps({**done, "events lost": dict(sorted(lost.items()))}), flush=True)


if __name__ == "__main__":
    main()
