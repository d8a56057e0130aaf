"""Kills a process that annotates, at random instants, and compares what is restored with what it did.

    python -m benchmarks.kill_journal --kills 300
    xvfb-run python -m benchmarks.kill_journal --kills 300 --window

A child process does random actions of a user: prompts of every kind, predictions, brush strokes, accepts,
corrections, propagation runs, undo, redo, settings; with `--window` in napari, with the dock widget. Labels
lie in memory or on disk by turns. The parent plays the same actions itself and knows what the session holds
after each event; what is restored must be exactly one of these states, and no old one. Labels on disk must be
right on all levels of their pyramid, and the highest label that is noted there too.

A process is stopped (SIGSTOP) at random instants, and its files are copied as they are then: this is what a
kill at that instant would leave. The last instant of each process is a kill.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.annotation.history import Event, ObjectRecord, Step
from napari_lowlat_seg.annotation.journal import Journal, list_journals, open_session
from napari_lowlat_seg.annotation.mask_edits import MaskEdit, edited_masks, masks_along
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, split
from napari_lowlat_seg.annotation.objects.counts import count_labels
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
    """The prediction of a network that is certain of a mask."""
    return SoftMask.of(np.where(mask, np.float32(0.97), np.float32(0.02)), 0.9)


def mask_of(soft_mask: SoftMask | None) -> object:
    """A soft mask as plain values."""
    if soft_mask is None:
        return None
    return soft_mask.shape, tuple(soft_mask.box), soft_mask.packed, soft_mask.quality, soft_mask.drawn


def state_of(state: PlaneState) -> object:
    """A plane's state as plain values."""
    masks = (state.soft_mask, state.previous, state.drawn, state.brushed, state.first)
    numbers = (state.prompts_before_drawn, state.refined, state.candidate)
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
    )
    return record.label, record.store is session.labels, by_plane(record.written), propagated, record.score


def step_of(step: Step, session: Session) -> object:
    """A step as plain values."""
    states = [(key, state_of(before), state_of(after)) for key, before, after in step.states]
    records = [
        (n, record_of(before, session), record_of(after, session)) for n, before, after in step.records
    ]
    return step.title, step.plane, step.current, states, records, step.edits, step.facts


def everything_of(session: Session, labels: np.ndarray) -> dict[str, Any]:
    """All that a session holds, as plain values that can be compared; an open transaction is a step."""
    objects = session.contents.states.items()
    states = {(n, plane): state_of(state) for n, planes in objects for plane, state in planes.items()}
    done = list(session.undo_stack.done)
    if session.open_step is not None:
        done.append(session.open_step)
    undone = () if session.open_step is not None else session.undo_stack.undone  # whatever follows drops them
    return {
        "labels": labels.tobytes(),
        "states": states,
        "records": {n: record_of(record, session) for n, record in session.contents.records.items()},
        "current": (session.current, session.label, session.highest),
        "settings": (session.policy, session.finish, session.semantic),
        "facts": sorted(session.facts.items()),
        "done": [step_of(step, session) for step in done],
        "undone": [step_of(step, session) for step in undone],
    }


def propagate(session: Session, plane: Plane, rng: np.random.Generator, *, seeds: bool) -> None:
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


def play(session: Session, labels: np.ndarray, action: str, plane: Plane, seed: int) -> None:
    """One random action of a user."""
    rng = np.random.default_rng(seed)
    rows, cols = session.volume.sides(plane)
    at = (int(rng.integers(rows)), int(rng.integers(cols)))
    drawn = rng.random((rows, cols)) > (0.5, 0.8, 1.0)[rng.integers(3)]  # also nothing at all
    if action == "add":
        session.add(plane, random_prompt(rng, rows, cols))
    elif action == "apply":
        for request in session.requests():
            mask = rng.random(session.volume.sides(request.plane)) > 0.5
            session.apply(request, predicted(mask), final=bool(rng.integers(2)))
    elif action == "remove":
        session.set_prompts(plane, session.state(plane).prompts[1:])
    elif action == "paint":
        session.paint(plane, drawn)
    elif action == "choose":
        if session.candidates_request(plane) is not None:
            session.choose_candidate(plane, int(rng.integers(3)), predicted(drawn))
    elif action == "reshape":
        session.reshape(edited_masks(masks_along(session, plane, whole=True), MaskEdit("grow", 1.0, True)))
    elif action == "accept":
        session.accept()
    elif action == "clear":
        session.clear()
    elif action == "edit":
        if session.answered:
            session.edit_object(plane, at)
    elif action == "brush":
        session.close_transaction()
        before = labels[plane.key()].copy()
        labels[plane.key()][drawn] = int(rng.integers(4))
        edit = LabelEdit.between(plane, BoundingBox(0, 0, rows, cols), before, labels[plane.key()])
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
    elif action == "objects":
        with suppress(ValueError):  # locked, in progress, in one piece, or waiting for predictions
            play_objects(session, rng)
    elif action == "finish":
        session.finish = PostProcessing(float(rng.random() * 0.8 + 0.1), 0.0, bool(rng.integers(2)))


KINDS = (
    *("add", "add", "apply", "apply", "remove", "paint", "accept", "clear", "edit", "brush", "undo", "redo"),
    *(
        "label",
        "semantic",
        "policy",
        "finish",
        "propagate",
        "seeds",
        "choose",
        "reshape",
        "objects",
        "objects",
    ),
)
"""The actions of `play`."""


def script(seed: int, count: int, *, on_disk: bool = False) -> Iterator[tuple[str, Plane, int]]:
    """Random actions, the same ones for the same seed.

    Without brush strokes on labels on disk, which are there before the journal hears of them.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        kind, plane = KINDS[rng.integers(len(KINDS))], PLANES[rng.integers(len(PLANES))]
        if kind != "brush" or not on_disk:
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


def labels_in(folder: Path, *, on_disk: bool, new: bool) -> np.ndarray:
    """The labels at the beginning, or after the kill if they lie on disk."""
    if not on_disk:
        return fresh_labels()
    path = folder / "labels.npy"
    if new:
        np.save(path, fresh_labels())
    labels: np.ndarray = np.load(path, mmap_mode="r+")
    return labels


def child(folder: Path, seed: int, count: int, on_disk: bool, pause: float) -> None:
    """Annotate, and note after each action how many events there were, until killed."""
    labels = labels_in(folder, on_disk=on_disk, new=True)
    session = Session(volume(), (SlowLabels if on_disk else ArrayLabels)(labels))
    journal = Journal(session, folder, compact_bytes=40_000, sync_seconds=0.02)
    session.observer = counting = Counting(journal)
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(log, b"0\n")
    for action, plane, action_seed in script(seed, count, on_disk=on_disk):
        play(session, labels, action, plane, action_seed)
        os.write(log, b"%d\n" % counting.events)
        time.sleep(pause)
    os.write(log, b"end\n")
    time.sleep(3600)


def expected_digests(seed: int, count: int, *, on_disk: bool, dtype: Any = np.uint16) -> list[str]:
    """What a session holds at first and after each event."""
    labels = fresh_labels(dtype)
    session = new_session(labels)
    digests = [digest_of(session, labels)]

    def note(event: Event) -> None:
        if event.kind != "writing":
            digests.append(digest_of(session, labels))

    session.observer = note
    for action, plane, action_seed in script(seed, count, on_disk=on_disk):
        play(session, labels, action, plane, action_seed)
    return digests


def kills(
    folder: Path,
    seed: int,
    *,
    on_disk: bool,
    window: bool = False,
    instants: int = 1,
    pause: float = 0.01,
    count: int = 60,
) -> list[int]:
    """Stop one child at random instants, and kill it at the last; how many finished events were lost at each.

    Raises AssertionError if what is restored is not what the session held after one of its events.
    """
    work = folder / "work"
    work.mkdir()
    module = "benchmarks.kill_window" if window else "benchmarks.kill_journal"
    command = [sys.executable, "-m", module, "--child", str(work), str(seed), str(count)]
    state = {**os.environ, "XDG_STATE_HOME": str(work)}
    root = Path(__file__).parents[1]
    process = subprocess.Popen([*command, str(int(on_disk)), str(pause)], cwd=root, env=state)
    log, rng = work / "log", random.Random(seed)
    places = sorted(rng.random() * count for _ in range(instants))
    copies = []
    try:
        for number, place in enumerate(places):
            while not _reached(log, place):
                assert process.poll() is None, "the child ended before it began"
                time.sleep(0.001)
            time.sleep(rng.random() * (pause + 0.004))
            process.send_signal(signal.SIGSTOP)
            while not _stopped(process.pid):
                time.sleep(0.001)
            copies.append(folder / f"at-{number}")
            shutil.copytree(work, copies[-1])
            process.send_signal(signal.SIGCONT if number < instants - 1 else signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    dtype = pyramid_in(work)[0].dtype.name if window and on_disk else "uint16"
    digests = expected_digests(seed, count, on_disk=on_disk, dtype=dtype)
    return [_lost(copy, seed, digests, on_disk=on_disk, window=window) for copy in [*copies[:-1], work]]


def _reached(log: Path, place: float) -> bool:
    """Whether so many actions are done, or all: labels on disk have no brush strokes."""
    lines = log.read_bytes().split() if log.exists() else []
    return len(lines) > place or b"end" in lines


def _stopped(process: int) -> bool:
    """Whether all threads of a process stand still."""
    tasks = Path(f"/proc/{process}/task").glob("*/stat")
    return all(task.read_text().rsplit(")", 1)[1].split()[0] in "TtZX" for task in tasks)


def _lost(folder: Path, seed: int, digests: list[str], *, on_disk: bool, window: bool) -> int:
    lines = (folder / "log").read_text().split("\n")[:-1]
    finished = int([line for line in lines if line != "end"][-1])
    found = (
        list_journals(next(folder.rglob("[!.]*.journal")).parent, volume())
        if any(folder.rglob("[!.]*.journal"))
        else []
    )
    if window and on_disk:
        labels, store = pyramid_in(folder)
    else:
        labels = labels_in(folder, on_disk=on_disk, new=False)
        store = ArrayLabels(labels)
    if found:
        (one,) = found
        session = open_session(one.path, volume(), [store])
        labels = labels if not hasattr(store, "levels") else np.asarray(store.levels[0])
        restored = digest_of(session, labels)
        if hasattr(store, "levels"):
            check_pyramid(store, session.highest)
    else:  # nothing was done that would be worth a file
        restored = digest_of(Session(volume(), ArrayLabels(labels)), labels)
    places = [place for place, digest in enumerate(digests) if digest == restored]
    assert places, f"seed {seed}: what was restored was never there, {finished} events were finished"
    # The same state may come back; the nearest one is meant.
    return max(0, min(finished - place for place in places if place >= finished or place == max(places)))


def pyramid_in(folder: Path) -> tuple[np.ndarray, Any]:
    """Labels on disk as a kill has left them."""
    from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid

    store = LabelPyramid.at(folder / "labels.ome.zarr", volume())
    return np.asarray(store.levels[0]), store


def check_pyramid(store: Any, highest: int) -> None:
    """Raise AssertionError unless coarse levels show the finest one, and the highest label is noted."""
    first = np.asarray(store.levels[0])
    for level in store.levels[1:]:
        steps = [max(1, round(n / m)) for n, m in zip(first.shape, level.shape, strict=True)]
        thinned = first[tuple(slice(None, None, step) for step in steps)]
        assert np.array_equal(np.asarray(level), thinned), "a level of the pyramid is wrong"
    noted = store.highest()
    assert noted >= first.max(), f"the highest label is {first.max()}, {noted} is noted"
    assert noted <= max(highest, int(first.max())), f"{noted} is noted as the highest label of {highest}"


def main() -> None:
    """Kill, and print what was found."""
    if sys.argv[1:2] == ["--child"]:
        place, first, count, on_disk, pause = sys.argv[2:]
        child(Path(place), int(first), int(count), bool(int(on_disk)), float(pause))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--window", action="store_true", help="in napari, with the dock widget")
    parser.add_argument("--instants", type=int, default=10, help="stops of each process")
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between two actions")
    options = parser.parse_args()
    lost: Counter[int] = Counter()
    wrong = []
    for seed in range(options.first_seed, options.first_seed + -(-options.kills // options.instants)):
        with tempfile.TemporaryDirectory() as folder:
            try:
                lost.update(
                    kills(
                        Path(folder),
                        seed,
                        on_disk=bool(seed % 2),
                        window=options.window,
                        instants=options.instants,
                        pause=options.pause,
                    )
                )
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")
            done = {"kills": sum(lost.values()), "wrong": wrong, "events lost": dict(sorted(lost.items()))}
            print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
