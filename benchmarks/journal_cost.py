"""What a journal costs the thread that annotates, and how fast its file grows.

    python -m benchmarks.journal_cost --clicks 900

A click is a prompt and the mask that a network would give, on planes of 512 x 512; every third object is
accepted. Clicks with and without a journal take turns, so both see the same load of the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import numpy as np

from napari_lowlat_seg import ArrayLabels, Click, Session, SoftMask, Volume
from napari_lowlat_seg.annotation.journal import Journal

SHAPE = (16, 512, 512)
CLICKS_PER_HOUR = 900


def annotate_once(session: Session, turn: int, mask: SoftMask) -> float:
    """The seconds that one click takes."""
    plane = session.volume.planes()[turn % SHAPE[0]]
    began = time.perf_counter()
    session.add(plane, Click((200.0 + turn % 100, 250.0)))
    request = session.request(plane)
    assert request is not None
    session.apply(request, mask)
    seconds = time.perf_counter() - began
    if turn % 3 == 2:
        session.accept()
    return seconds


def soft_mask(seed: int) -> SoftMask:
    """An object of some 10,000 pixels with a soft edge."""
    rows, cols = np.mgrid[: SHAPE[1], : SHAPE[2]].astype(np.float32)
    rng = np.random.default_rng(seed)
    distance = np.hypot(rows - 200 - rng.integers(100), cols - 250) - 56 - 5 * rng.random(rows.shape)
    return SoftMask.of(1 / (1 + np.exp(distance.clip(-50, 50))))


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clicks", type=int, default=CLICKS_PER_HOUR)
    count = parser.parse_args().clicks
    masks = [soft_mask(seed) for seed in range(8)]
    image = np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)
    plain, kept = (Session(Volume(image), ArrayLabels(np.zeros(SHAPE, np.uint16))) for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(kept, folder)
        times: dict[str, list[float]] = {"without": [], "with": []}
        for turn in range(count):
            times["without"].append(annotate_once(plain, turn, masks[turn % 8]))
            times["with"].append(annotate_once(kept, turn, masks[turn % 8]))
            time.sleep(0.02)  # a person is slower
        journal.flush()
        written = journal.path.stat().st_size
        journal.compact()
        result: dict[str, object] = {
            name: {f"p{q}_ms": round(1000 * float(np.percentile(values, q)), 3) for q in (50, 99)}
            for name, values in times.items()
        }
        result |= {
            "clicks": count,
            "mb_per_hour": round(written / 1e6 / count * CLICKS_PER_HOUR, 2),
            "mb_compacted": round(journal.path.stat().st_size / 1e6, 2),
        }
        journal.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
