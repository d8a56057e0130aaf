"""Files of other programs: does one click in the middle segment each, how long does it take, how much memory?

Reads every file of a folder that has a suffix of a format, and folders of DICOM, pages, zarr, N5 and
precomputed volumes; clicks on the middle pixel of the middle plane; writes labels into a temporary folder and
reads them back: they must lie where the image lies. Prints a table: format, shape, size of a voxel, seconds,
memory beyond that of the model, or the sentence of the refusal.

Run: python -m benchmarks.outside_files FOLDER [FOLDER ...] [--csv FILE]
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

FOLDERS = (".zarr", ".n5", ".precomputed")
"""Suffixes of folders that are an image."""

SECONDS = 120
"""After so long a file hangs."""

COLUMNS = ("file", "format", "shape", "voxel", "object", "seconds", "MiB", "what")


def images(place: Path) -> Iterator[Path]:
    """The images at a place: itself, or those in the folder."""
    from napari_lowlat_seg.io.format_table import PAGES, find_format, locate

    if locate(place)[1]:  # a data set in a file or folder
        yield place
    elif place.is_file():
        if find_format(place) is not None:
            yield place
    elif place.suffix in FOLDERS or (place / "info").is_file():
        yield place
    else:
        inside = sorted(place.iterdir())
        ends = {one.suffix.lower() for one in inside if one.is_file()}
        if locate(place)[2] is not PAGES and ends & {".dcm", ".ima", ""}:
            yield place
        for one in inside:
            yield from images(one)


def resident(kind: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" at its highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024
    return 0.0


def tried(predictor: Any, path: Path) -> dict[str, Any]:
    """What happens to a file: segmented, refused with a sentence, or a fault."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident set begins anew
    before, began = resident("VmRSS"), time.perf_counter()
    row: dict[str, Any] = {"file": path.name}
    signal.alarm(SECONDS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            what = segmented(predictor, path, Path(folder), row)
    except (ValueError, OSError, ImportError) as error:
        what = f"refused: {error}"
    except BaseException:
        what = "FAULT " + " ".join(traceback.format_exc().split("\n")[-4:])
    signal.alarm(0)
    row["seconds"] = f"{time.perf_counter() - began:.2f}"
    row["MiB"] = f"{resident('VmHWM') - before:.0f}"
    row["what"] = " ".join(what.replace(str(path), path.name).split())
    return row


def segmented(predictor: Any, path: Path, folder: Path, row: dict[str, Any]) -> str:
    """Click on the middle, write and read back the labels; "lies on the image", or what is wrong."""
    from napari_lowlat_seg import Click
    from napari_lowlat_seg.core.volume import Plane
    from napari_lowlat_seg.io.files import check_labels_path, label_output, read_volume, shown_axes
    from napari_lowlat_seg.io.format_table import locate

    kind = locate(path)[2]
    row["format"] = "" if kind is None else kind.name
    volume = read_volume(path)
    geometry = volume.geometry
    assert geometry is not None
    order = shown_axes(volume)
    row["shape"] = " x ".join(f"{geometry.names[axis]}{volume.shape[axis]}" for axis in order)
    sizes = " x ".join(f"{geometry.spacing[axis]:.4g}" for axis in order)
    row["voxel"] = f"{sizes} {geometry.unit or ''}".strip() if geometry.calibrated else ""
    index: list[int | None] = [n // 2 for n in volume.shape]
    index[order[-2]] = index[order[-1]] = None
    plane = Plane(tuple(index))
    pixels = volume.with_window().plane(plane)
    rows, cols = pixels.shape[:2]
    embedding = predictor.embed(pixels)
    mask = predictor.predict(embedding, [Click((rows // 2, cols // 2))]).mask
    row["object"] = f"{int(mask.sum())} of {mask.size}"
    mask[rows // 2, cols // 2] = True
    for suffix in (".nii.gz", ".ome.zarr", ".ome.tif"):
        output = folder / f"labels{suffix}"
        try:
            check_labels_path(output, like=volume)
        except ValueError as error:
            refused = str(error)
            continue
        with label_output(output, volume) as labels:
            labels.write_mask(plane, mask, 7)
        return compared(volume, read_volume(output), plane, mask)
    return f"no labels: {refused}"


def compared(image: Any, labels: Any, plane: Any, mask: np.ndarray) -> str:
    """Whether labels lie in the world where the mask lies in the image."""
    where = np.zeros(image.shape, bool)
    where[plane.key()] = mask
    ours, theirs = image.geometry, labels.geometry
    found = np.argwhere(np.asarray(labels.data) == 7).astype(float)
    if ours.calibrated:
        found = ours.to_index((theirs.in_unit(ours.unit) if ours.unit else theirs).to_world(found))
    away = np.abs(found - np.rint(found)).max()
    same = {tuple(one) for one in np.rint(found).astype(int)} == {tuple(one) for one in np.argwhere(where)}
    return "lies on the image" if same and away < 0.02 else f"WRONG: {away:.3g} voxels off the grid"


def late(*_: object) -> None:
    """A file takes too long."""
    raise RuntimeError(f"took more than {SECONDS} s")


def main() -> None:
    """Try all files and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("places", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    from napari_lowlat_seg import load_predictor

    predictor = load_predictor("default", device="cpu")
    predictor.embed(np.zeros((64, 64), np.uint8))
    signal.signal(signal.SIGALRM, late)
    rows = []
    for path in (image for place in given.places for image in images(place)):
        rows.append(tried(predictor, path))
        print(" | ".join(str(rows[-1].get(name, "")) for name in COLUMNS), flush=True)
    print(f"{len(rows)} files, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
