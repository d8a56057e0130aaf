"""Every row of the hostile tables in the tests: the sentence, the seconds and the memory that it takes.

Each row is tried in a process forked for it, so that its memory is its own: the highest resident set less
that before the attempt, which a bomb must not blow up. Seconds are of the processor, and by the clock.

Run: python -m benchmarks.hostile_table [TABLE ...] [--csv docs/benchmarks/hostile.csv]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
TABLES = ("checkpoints", "configs", "messages", "files")
ROOM = 5 * 2**29
"""Bytes of address space that a row may take beyond what the process has."""

LONGEST = 300
"""Letters of a sentence in the table."""

SECONDS, MEMORY = 2.0, 200.0
"""What a refusal may take: seconds of an idle machine, and MiB."""


def resident(kind: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return 0.0


Prepare = Callable[[Path], Callable[[], object]]


def attempts(table: str) -> dict[str, tuple[Prepare, str]]:
    """By name of the row: what makes it and returns what must be refused; what is said then."""
    if table != "files":
        cases = import_module(f"hostile.{table}").CASES
        return {name: (case.prepare, case.match) for name, case in cases.items()}
    look = import_module("read_hostile").look

    def prepared(make: Callable[[Path], Path], folder: Path) -> Callable[[], object]:
        return partial(look, make(folder))

    files = import_module("hostile_files").CASES
    return {name: (partial(prepared, make), match) for name, (make, match) in files.items()}


def tried(prepare: Prepare, match: str, results: Any) -> None:
    """Prepare a row and attempt it; what happened goes into the queue."""
    sentence = import_module("hostile.case").sentence
    with tempfile.TemporaryDirectory() as folder:
        attempt = prepare(Path(folder))
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, resource.RLIM_INFINITY)
        )
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
        before, began, busy = resident("VmRSS"), time.perf_counter(), time.process_time()
        try:
            said = sentence(attempt)
            assert re.search(match, said), f"expected {match}, got {said}"
        except BaseException as error:
            said = f"FAULT {type(error).__name__}: {error!s:.200}"
        took, worked = time.perf_counter() - began, time.process_time() - busy
        said = " ".join(said.replace(folder, "").split())
        results.put((said[:LONGEST], took, worked, resident("VmHWM") - before))


def main() -> None:
    """Try all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=TABLES)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    for library in ("dask.array", "h5py", "nibabel", "pydicom", "tensorstore", "tifffile", "torch", "zarr"):
        import_module(library)  # what is loaded once is no row's memory
    fork = multiprocessing.get_context("fork")
    results: Any = fork.SimpleQueue()
    rows: list[dict[str, Any]] = []
    for table in given.tables:
        for name, what in attempts(table).items():
            process = fork.Process(target=tried, args=(*what, results))
            process.start()
            process.join(300)
            if results.empty():
                process.kill()
                results.put((f"FAULT ended or hangs ({process.exitcode})", 300.0, 300.0, 0.0))
            said, took, worked, memory = results.get()
            rows.append(
                {"table": table, "row": name, "said": said, "seconds": took, "cpu": worked, "MiB": memory}
            )
    show(rows, given.tables)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("table", "row", "sentence", "processor s", "clock s", "MiB"))
            for row in rows:
                figures = f"{row['cpu']:.2f}", f"{row['seconds']:.2f}", f"{row['MiB']:.0f}"
                writer.writerow((row["table"], row["row"], row["said"], *figures))


def show(rows: Sequence[dict[str, Any]], tables: Sequence[str]) -> None:
    """Print how many rows are wrong, what is slow or large in each table, and each row that is so."""
    faults = [row for row in rows if row["said"].startswith("FAULT")]
    print(f"{len(rows)} rows, {len({row['said'] for row in rows})} sentences, {len(faults)} faults")
    for table in tables:
        part = [row for row in rows if row["table"] == table]
        slowest, largest = (max(part, key=lambda row: row[what]) for what in ("cpu", "MiB"))
        print(
            f"{table}: {len(part)} rows; slowest {slowest['cpu']:.2f} s of processor time "
            f"({slowest['row']}), largest {largest['MiB']:.0f} MiB ({largest['row']})"
        )
    for row in rows:
        over = row["cpu"] > SECONDS or row["MiB"] > MEMORY
        if over or row in faults:
            print(f"  {row['table']}: {row['row']}: {row['cpu']:.2f} s, {row['MiB']:.0f} MiB: {row['said']}")


if __name__ == "__main__":
    main()
