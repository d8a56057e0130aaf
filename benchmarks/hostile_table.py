"""Every row of the hostile tables in the tests: the sentence, the seconds and the memory that it takes.

Each row is tried in a process forked for it, so that its memory is its own: the highest resident set less
that before the attempt, which a bomb must not blow up.

Run: python -m benchmarks.hostile_table [TABLE ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
TABLES = ("checkpoints", "configs", "messages")

SECONDS, MEMORY = 2.0, 200.0
"""What a refusal may take: seconds of an idle machine, and MiB."""


def resident(kind: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return 0.0


def tried(table: str, name: str, results: Any) -> None:
    """Prepare a row and attempt it; what happened goes into the queue."""
    sentence = import_module("hostile.case").sentence
    case = import_module(f"hostile.{table}").CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        attempt = case.prepare(Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
        before, began, busy = resident("VmRSS"), time.perf_counter(), time.process_time()
        try:
            said = sentence(attempt)
        except BaseException as error:
            said = f"FAULT {type(error).__name__}: {error!s:.200}"
        took, worked = time.perf_counter() - began, time.process_time() - busy
        said = said.replace(folder, "").replace("\n", " ")
        results.put((said, took, worked, resident("VmHWM") - before))


def main() -> None:
    """Try all and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=TABLES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.path.insert(0, str(TESTS))
    fork = multiprocessing.get_context("fork")
    results: Any = fork.SimpleQueue()
    rows: list[dict[str, Any]] = []
    for table in given.tables:
        for name in import_module(f"hostile.{table}").CASES:
            process = fork.Process(target=tried, args=(table, name, results))
            process.start()
            process.join(300)
            if process.is_alive():
                process.kill()
                results.put(("FAULT hangs", 300.0, 300.0, 0.0))
            said, took, worked, memory = results.get()
            rows.append(
                {"table": table, "row": name, "said": said, "seconds": took, "cpu": worked, "MiB": memory}
            )
    faults = [row for row in rows if row["said"].startswith("FAULT")]
    print(f"{len(rows)} rows, {len({row['said'] for row in rows})} sentences, {len(faults)} faults")
    for table in given.tables:
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
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
