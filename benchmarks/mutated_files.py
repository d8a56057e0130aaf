"""Mutated files: does a reader say one sentence, without a hang and without taking the memory of the machine?

A small file of each format is mutated (bytes flipped, runs overwritten, cut off, repeated) and opened, and a
plane of it is read, in a process of its own with a limit on memory. Counts: read, refused with one sentence,
and whatever else happens, which is a fault.

Run: python benchmarks/mutated_files.py [--count 1000] [--seed 0] [FORMAT ...]
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.format_matrix import INPUTS

MEMORY = 2**31
"""Bytes beyond what the process has at its start."""

SECONDS = 20


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Bytes of a file with one to eight changes; half of them in the first 1024, where headers are."""
    changed = bytearray(raw)
    for _ in range(int(rng.integers(1, 9))):
        end = min(len(changed), 1024) if rng.random() < 0.5 else len(changed)
        at = int(rng.integers(0, max(1, end)))
        kind = rng.integers(0, 10)
        if kind < 6 and changed:
            changed[at] = int(rng.integers(0, 256))
        elif kind < 8:
            changed[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9999"])
        elif kind == 8:
            del changed[at : at + int(rng.integers(1, 200))]
        else:
            changed[at:at] = changed[at : at + int(rng.integers(1, 200))]
    return bytes(changed)


def victims(source: Path) -> list[Path]:
    """The files that make up an image."""
    return sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]


def try_files(name: str, first: int, count: int, seed: int, results: Any) -> None:
    """Mutate and read in this process; each outcome goes into the queue before the next file is tried."""
    from napari_lowlat_seg.io.files import read_volume

    warnings.simplefilter("ignore")
    logging.disable()

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "whole").mkdir()
        source = INPUTS[name](Path(folder) / "whole")
        read_volume(source).plane  # noqa: B018  # imports what is needed before memory is limited
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(first, count):
            rng = np.random.default_rng([seed, number])
            work = Path(folder) / "work"
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(Path(folder) / "whole", work)
            path = work / source.relative_to(Path(folder) / "whole")
            files = victims(path)
            victim = files[int(rng.integers(0, len(files)))]
            victim.write_bytes(mutate(victim.read_bytes(), rng))
            results.put((number, "died"))
            signal.alarm(SECONDS)
            started = time.perf_counter()
            try:
                volume = read_volume(path)
                volume.plane(volume.planes()[0])
                outcome = "read"
            except (ValueError, OSError) as error:
                outcome = (
                    "sentence" if "\n" not in str(error) and str(error) else f"no sentence: {error!r:.200}"
                )
            except BaseException as error:
                outcome = f"{type(error).__name__}: {str(error)[:150]}"
            signal.alarm(0)
            took = time.perf_counter() - started
            # Readers may take the alarm for damage.
            results.put((number, f"hangs for {SECONDS} s" if took >= SECONDS else outcome, took))


def outcomes(name: str, count: int, seed: int) -> tuple[Counter[str], float]:
    """What happened to all files of a format, and the longest time in seconds; a crash is one outcome."""
    context = multiprocessing.get_context("spawn")
    found: dict[int, str] = {}
    slowest = 0.0
    while len(found) < count:
        results = context.SimpleQueue()
        child = context.Process(target=try_files, args=(name, len(found), count, seed, results))
        child.start()
        while child.is_alive() or not results.empty():
            if results.empty():
                time.sleep(0.01)
                continue
            number, outcome, *took = results.get()
            found[number] = outcome
            slowest = max(slowest, *took, 0.0)
    return Counter(found.values()), slowest


def main() -> None:
    """Print a line for each format."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("formats", nargs="*", default=list(INPUTS))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    for name in wanted.formats:
        counts, slowest = outcomes(name, wanted.count, wanted.seed)
        faults = {text: n for text, n in counts.items() if text not in ("read", "sentence")}
        numbers = f"{counts['read']} read, {counts['sentence']} sentences, {sum(faults.values())} faults"
        print(f"{name}: {numbers}, slowest {slowest:.1f} s", flush=True)
        for text, n in faults.items():
            print(f"    {n} x {text}", flush=True)


if __name__ == "__main__":
    main()
