"""Random checkpoints, sessions, training files, messages, command lines: taken, or refused in one sentence.

Model files and messages are mutated as `mutated_files` does it, sessions and journals also in their values,
with right digests; training files are settings with values of any kind; command lines are good ones with
words exchanged, left out and added. Tries run in processes of fifty, each of them with a limit on time and
memory. Anything but done and one sentence is a fault; so is a session that was taken and cannot go on.

Run: python -m benchmarks.fuzz [--count 1000] [--seed 0] [pth safetensors toml messages arguments ...]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.mutated_files import mutate

TESTS = Path(__file__).parents[1] / "tests"
MEMORY = 2**31
"""Bytes beyond what the process has at its start."""

SECONDS = 60
BATCH = 50

Try = Callable[[np.random.Generator, Path], object]


def pth(rng: np.random.Generator, folder: Path) -> object:
    """Load a mutated checkpoint of the original's kind."""
    tables = import_module("hostile.checkpoints")
    from napari_lowlat_seg.models.checkpoints import load_file

    (folder / "a.pth").write_bytes(mutate(tables.saved(tables.content()), rng))
    return load_file(folder / "a.pth")


def safetensors(rng: np.random.Generator, folder: Path) -> object:
    """Load a mutated checkpoint of ours; half of them without the digest that finds most changes."""
    import torch
    from safetensors.torch import save_file

    small = import_module("hostile.checkpoints").COMPACT
    from napari_lowlat_seg.models.checkpoints import load_file, save_model
    from napari_lowlat_seg.models.compact import Compact

    path, plain = folder / "good.safetensors", folder / "plain.safetensors"
    if not path.exists():
        from dataclasses import asdict

        network = Compact(small).eval()
        save_model(network, path)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        save_file(state, plain, {"family": "compact", "config": json.dumps(asdict(small))})
        torch.set_num_threads(1)
    good = path if rng.random() < 0.5 else plain
    raw = good.read_bytes()
    kept = 8 + int.from_bytes(raw[:8], "little") if rng.random() < 0.5 else 0  # the header, or nothing
    (folder / "a.safetensors").write_bytes(raw[:kept] + mutate(raw[kept:], rng))
    return load_file(folder / "a.safetensors")


VALUES = (
    *(
        "5",
        "-1",
        "0",
        "1e400",
        "nan",
        "-inf",
        "true",
        "''",
        "'a'",
        "[]",
        "[1, 2]",
        "['a']",
        "[[1]]",
        "{}",
        "!",
    ),
    *("{a = 1}", "2026-01-01", "0x10", "1_000", "9" * 30, '"\\u0000"', "{em = 0.5}", "'/etc/passwd'"),
)


def toml(rng: np.random.Generator, folder: Path) -> object:
    """Read a training file of random settings with random values, some in tables."""
    from dataclasses import fields

    from napari_lowlat_seg.models.compact import CompactConfig
    from napari_lowlat_seg.training.train import TrainConfig, read_config

    names = [field.name for field in fields(TrainConfig)]
    inner = [field.name for field in fields(CompactConfig)]
    lines = [f"{rng.choice(names)} = {rng.choice(VALUES)}" for _ in range(rng.integers(0, 4))]
    for table in rng.choice(names, rng.integers(0, 3)):
        lines += [f"[{table}]", f"{rng.choice([*inner, 'em', 'x'])} = {rng.choice(VALUES)}"]
    raw = "\n".join(lines).encode()
    (folder / "a.toml").write_bytes(mutate(raw, rng) if rng.random() < 0.3 and raw else raw)
    return read_config(folder / "a.toml")


def messages(rng: np.random.Generator, folder: Path) -> object:
    """Read a mutated message of the model's process."""
    soft_mask = import_module("hostile.messages").soft_mask
    from napari_lowlat_seg.serving.wire import MOST_REPLY, read

    return read(io.BytesIO(mutate(soft_mask(), rng)), MOST_REPLY)


NASTY: tuple[Any, ...] = (
    *(
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
    ),
    *([[]], [0], [1, None, None], [None, 5, None], "../../etc/passwd", "\x00", "a" * 5000, "keep", "seeds"),
)
BLOBS = (b"", b"x", zlib.compress(bytes(2**24)), zlib.compress(b"\xff" * 120), zlib.compress(bytes(120))[:-2])
PEAK = 64 * 2**20
"""Bytes that reading a session may take; the image has 480 voxels, and a bomb unpacks to 16 MiB."""

Frames = list[tuple[dict[str, Any], list[bytes]]]


@cache
def originals() -> dict[str, list[tuple[bytes, Frames]]]:
    """Journals and saved sessions with all kinds of actions: their bytes and frames."""
    from benchmarks.kill_journal import fresh_labels, new_session, play, script
    from napari_lowlat_seg.annotation.journal import Journal
    from napari_lowlat_seg.annotation.journal.frames import FrameReader

    found: dict[str, list[tuple[bytes, Frames]]] = {"journals": [], "sessions": []}
    for seed in range(8):
        with tempfile.TemporaryDirectory() as folder:
            labels = fresh_labels()
            session = new_session(labels)
            journal = Journal(session, folder)
            for action in script(seed, 40):
                play(session, labels, *action)
            journal.flush()
            journal.save(Path(folder) / "saved.lowlat")
            for kind, path in (("journals", journal.path), ("sessions", Path(folder) / "saved.lowlat")):
                with path.open("rb") as file:
                    frames = [(json.loads(json.dumps(m)), list(b)) for m, b in FrameReader(file, 10**9)]
                found[kind].append((path.read_bytes(), frames))
            journal.close(discard=True)
    return found


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where all values of a message are, as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from places(part)


def change_frames(frames: Frames, rng: random.Random) -> None:
    """Make one to three changes, in messages, bytes or the order of frames."""
    for _ in range(rng.randint(1, 3)):
        message, blobs = rng.choice(frames)
        kind = rng.random()
        if kind < 0.7:
            change_value(message, rng)
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


def change_value(message: dict[str, Any], rng: random.Random) -> None:
    """Replace, remove, repeat or exchange a value of a message."""
    container, key = rng.choice(list(places(message)))
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


def sessions(kind: str, rng: np.random.Generator, folder: Path) -> object:
    """Open a mutated session in all ways, and go on with it."""
    from napari_lowlat_seg.annotation.journal.frames import MAGIC, FrameWriter

    raw, frames = originals()[kind][rng.integers(len(originals()[kind]))]
    path, writer = folder / "mutant.journal", FrameWriter()
    if rng.random() < 0.25:
        path.write_bytes(mutate(raw, rng))
    else:
        changed = copy.deepcopy(frames)
        change_frames(changed, random.Random(int(rng.integers(2**32))))
        path.write_bytes(MAGIC + b"".join(writer.frame(message, blobs) for message, blobs in changed))
    tracemalloc.start()
    try:
        opened(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > PEAK:
            raise AssertionError(f"it took {peak} bytes")
    return None


def opened(path: Path) -> None:
    """Open a session, look at it, and do what a user would do next, which finds a state that cannot be."""
    from benchmarks.kill_journal import fresh_labels, volume
    from napari_lowlat_seg import ArrayLabels
    from napari_lowlat_seg.annotation import journal
    from napari_lowlat_seg.annotation.journal.script import exported_script

    journal.journal_info(path)
    journal.list_journals(path.parent)
    session = journal.open_session(path, volume(), [ArrayLabels(fresh_labels())])
    found = journal.read_session(path, volume(), [ArrayLabels(fresh_labels())])
    try:
        while session.undo():
            pass
        while session.redo():
            pass
        for plane in session.pending:
            session.request(plane)
        with contextlib.suppress(ValueError):  # a label that the labels cannot hold, a locked one
            session.accept()
    except Exception as error:
        raise AssertionError(f"it cannot go on: {type(error).__name__}: {error}") from error
    if found.mirror.actions is not None:
        exported_script(found)


WORDS = (
    *(
        "",
        "-",
        "--",
        "-1",
        "0",
        "1e9",
        "nan",
        "a.tif",
        "b.tif",
        "no.tif",
        "..",
        "/",
        "/dev/null",
        "1,2,3",
        "1,2",
    ),
    *(
        ":",
        "3:1",
        "0:",
        "-o",
        "-o",
        "--click",
        "--label",
        "-m",
        "-d",
        "cpu",
        "cuda:9",
        "ssh://",
        "\u00fc\u20ac",
    ),
    *("--axis", "--channel", "--propagate", "--workers", "-5", "99999999999999999999", "a" * 5000, "p.csv"),
    *("--replace", "--json", "--grid", "--stability", "--scheduler", "tcp://a:1", "'; touch owned", "a\nb"),
)

LINES = (
    "segment a.tif -o out.tif --click 1,5,5 -m tiny.safetensors -d cpu",
    "segment a.tif -o out.tif --box 1,2,2,9,9 --propagate : -m tiny.safetensors -d cpu",
    "seeds a.tif p.csv -o out.tif -m tiny.safetensors -d cpu",
    "everything a.tif -o out.tif --grid 2 -m tiny.safetensors -d cpu",
    "embed a.tif -o cache -m tiny.safetensors -d cpu",
    "models info tiny.safetensors",
    "models import tiny.safetensors -o models",
    "models calibrate tiny.safetensors --from r.json -o c.safetensors",
    "benchmark labels b.tif b.tif --json scores.json",
    "benchmark quality --dataset folder --root . -m tiny.safetensors",
    "measure b.tif --image a.tif -o table.csv",
    "train c.toml",
    "info -m nonsense",
    "serve",
)


def _write_inputs(rng: np.random.Generator, folder: Path) -> None:
    import tifffile

    from napari_lowlat_seg.models.checkpoints import save_model
    from napari_lowlat_seg.models.segnext import SegNext

    save_model(SegNext(import_module("hostile.checkpoints").TINY).eval(), folder / "tiny.safetensors")
    for name, dtype in (("a.tif", np.uint8), ("b.tif", np.uint16)):
        data = rng.integers(0, 9, (3, 12, 14)).astype(dtype)
        tifffile.imwrite(folder / name, data, imagej=True, metadata={"axes": "ZYX"})
    (folder / "p.csv").write_text("1,5,5\n")
    (folder / "c.toml").write_text("steps = 'x'\n")
    (folder / "r.json").write_text("{}")


def _line(rng: np.random.Generator) -> list[str]:
    given = str(rng.choice(LINES)).split()
    for _ in range(rng.integers(0, 4)):
        at, kind = int(rng.integers(1, len(given) + 1)), rng.integers(0, 3)
        if kind == 0:
            given.insert(at, str(rng.choice(WORDS)))
        elif kind == 1:
            given[at:] = [str(rng.choice(WORDS)), *given[at + 1 :]]
        else:
            del given[at : at + 1]
    if {"--workers", "download", "demo", "latency"} & set(given):
        given = [word for word in given if word != "--workers"]  # thousands of processes are no fuzz
    return given


def arguments(rng: np.random.Generator, folder: Path) -> object:
    """Run a command line with up to three words exchanged, left out or added."""
    from napari_lowlat_seg.cli.app import main

    if not (folder / "tiny.safetensors").exists():
        _write_inputs(rng, folder)
    given = _line(rng)
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(given)
        except SystemExit as left:
            lines = [line for line in said.getvalue().splitlines() if not line.startswith("warning: ")]
            if left.code == 2 and len(lines) >= 1 and "Usage" not in said.getvalue() and len(lines) > 1:
                raise AssertionError(f"{len(lines)} lines for {given}: {lines}") from None
            if left.code == 2:
                raise ValueError(lines[-1] if lines else "help") from None
            if left.code != 0:
                raise AssertionError(f"exit status {left.code} for {given}") from None
    return None


TRIES: dict[str, Try] = {
    "pth": pth,
    "safetensors": safetensors,
    "toml": toml,
    "messages": messages,
    "arguments": arguments,
    "journals": partial(sessions, "journals"),
    "sessions": partial(sessions, "sessions"),
}


def batch(name: str, seed: int, first: int, results: Any) -> None:
    """Fifty tries in this process; each outcome goes into the queue at once."""
    warnings.simplefilter("ignore")
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOWLAT_SEG_CACHE"] = f"{folder}/models"
        for number in range(first, first + BATCH):
            signal.alarm(SECONDS)
            results.put((number, outcome(TRIES[name], np.random.default_rng([seed, number]), Path(folder))))
            signal.alarm(0)
        os.chdir("/")
    results.put((-1, ""))


def outcome(attempt: Try, rng: np.random.Generator, folder: Path) -> str:
    """ "taken", "refused", or what went wrong."""
    from napari_lowlat_seg.serving.wire import ProtocolError

    try:
        attempt(rng, folder)
    except (ValueError, OSError, ImportError, ProtocolError) as error:
        said = str(error)
        return "refused" if 0 < len(said) < 8000 else f"a sentence of {len(said)} characters"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.300} at {Path(last.filename).name}:{last.lineno}"
    return "taken"


def _imported() -> None:
    """Import here what each batch would import again."""
    for name in ("hostile.checkpoints", "hostile.messages", "napari_lowlat_seg.cli.app", "tifffile"):
        import_module(name)
    import_module("napari_lowlat_seg.training.train")
    originals()


def fuzz(name: str, count: int, seed: int = 0) -> Counter[str]:
    """How often each outcome came in so many tries."""
    _imported()
    fork = multiprocessing.get_context("fork")
    found: Counter[str] = Counter()
    for first in range(0, count, BATCH):
        results: Any = fork.SimpleQueue()
        process = fork.Process(target=batch, args=(name, seed, first, results))
        process.start()
        number = first - 1
        while True:
            while results.empty() and process.is_alive():
                time.sleep(0.001)
            if results.empty() and not process.is_alive():
                found[f"the process ended or hung after try {number}"] += 1
                break
            number, said = results.get()
            if number == -1:
                break
            found[said] += 1
        process.join()
    return found


def main() -> int:
    """Fuzz and report; 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(TRIES))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    wrong = 0
    for name in given.names:
        began = time.perf_counter()
        found = fuzz(name, given.count, given.seed)
        faults = {said: times for said, times in found.items() if said not in ("taken", "refused")}
        wrong += sum(faults.values())
        print(
            f"{name}: {found['taken']} taken, {found['refused']} refused, {sum(faults.values())} faults "
            f"in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        for said, times in faults.items():
            print(f"  {times} x {said}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
