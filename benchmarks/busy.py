"""How much longer a command takes beside busy loops: it runs alone and beside them in turns.

    python -m benchmarks.busy [--loops 2] [--rounds 3] -- lowlat-seg demo -o OUT

What the command prints goes to standard error, the times to standard output.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter

from napari_lowlat_seg.evaluation.latency import busy_loops


def compared(command: Sequence[str], loops: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each run, alone and beside the loops; raises CalledProcessError if one fails."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(rounds):
        for count, taken in zip((0, loops), times):
            with busy_loops(count):
                start = perf_counter()
                subprocess.run(command, check=True, stdout=sys.stderr)
                taken.append(perf_counter() - start)
            print(f"beside {count} loops {taken[-1]:.2f} s", flush=True)
    return times


def main() -> None:
    """Read the command line, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    alone, busy = (median(taken) for taken in compared(given.command, given.loops, given.rounds))
    print(f"median: alone {alone:.2f} s, beside {given.loops} loops {busy:.2f} s, {busy / alone:.2f} times")


if __name__ == "__main__":
    main()
