"""Labelled volumes that a memory learns from, by group: those of files, and synthetic ones made meanwhile."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from napari_lowlat_seg.training.data.volumes import (
    Extents,
    LabelledVolume,
    measured_synthetic_volume,
    read_labelled_picture,
    read_labelled_volume,
)

SHARES = {
    "synthetic": 0.3,
    "deformed": 0.27,
    "medulla": 0.17,
    "mito": 0.08,
    "hippocampus": 0.08,
    "other": 0.1,
}
"""Share of the sequences per group; the name of a volume's file begins with its group's."""


def load_groups(folder: Path, device: str) -> tuple[dict[str, tuple[float, list[Any]]], str]:
    """Read the training sets of a folder; returns them, and how many there are in words.

    `volumes/GROUP*.npz` are for `read_labelled_volume`, `pictures/*_image.*` for `read_labelled_picture`.
    """
    groups: dict[str, tuple[float, list[Any]]] = {name: (share, []) for name, share in SHARES.items()}
    for path in sorted((folder / "volumes").glob("*.npz")):
        name = next((key for key in SHARES if path.stem.startswith(key)), "other")
        volume = read_labelled_volume(path, device)
        # short runs of planes are drawn less often
        groups[name][1].extend([volume] * max(1, min(volume.image.shape) // 4))
    for path in sorted((folder / "pictures").glob("*_image.*")):
        picture = read_labelled_picture(path, device)
        if picture is not None:
            groups["deformed"][1].append(picture)
    return groups, ", ".join(f"{len(members)} {name}" for name, (_, members) in groups.items())


class SyntheticVolumes:
    """Worker processes that make synthetic volumes, and the list that grows with them.

    Parameters
    ----------
    into
        The list; when it has more than `capacity` volumes the oldest leave.
    device
        Where the volumes are kept.
    workers
        Processes; without any, three volumes are made at once, and no more.
    capacity
        Volumes kept at a time.
    seed
        Of the first volume; the next ones have the next numbers.
    """

    def __init__(
        self, into: list[LabelledVolume], device: str, workers: int, capacity: int, seed: int
    ) -> None:
        self.into, self.device, self.capacity = into, device, capacity
        self.next_seed = seed
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, mp_context=context) if workers else None
        self.pending: list[Future[Any]] = []
        self.problems: list[str] = []
        if self.pool is None:
            for _ in range(3):
                self._add(measured_synthetic_volume(self._seed()))
        for _ in range(2 * workers):
            self._submit()

    def _seed(self) -> int:
        self.next_seed += 1
        return self.next_seed

    def _submit(self) -> None:
        assert self.pool is not None
        self.pending.append(self.pool.submit(measured_synthetic_volume, self._seed()))

    def _add(self, made: tuple[Any, Any, Extents]) -> None:
        image, labels, measured = made
        volume = LabelledVolume.of(image, labels, (1.0, 1.0, 1.0), (0, 1, 2), self.device, measured)
        self.into.append(volume)

    def collect(self) -> None:
        """Take some of what is finished and ask for more; what failed is noted in `problems`."""
        for future in [one for one in self.pending if one.done()][:2]:
            self.pending.remove(future)
            try:
                self._add(future.result())
                self._submit()
            except Exception as problem:
                self.problems.append(f"{problem!r:.200}")
            if len(self.into) > self.capacity:
                self.into.pop(0)

    def close(self) -> None:
        """End the processes."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
