"""A picture: images of one format and labels of another lie on each other in one napari window.

An oblique NIfTI with labels as NRRD, an oblique DICOM series with labels as NIfTI, an OME-Zarr with a
translation with labels as OME-TIFF. Labels are those of a ball in the image, written as the command line
writes them and placed as the plugin's reader places them. Prints the voxels of the ball that are not covered.

Run: xvfb-run -a python benchmarks/window/one_world.py OUT.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import napari
import numpy as np

import benchmarks.format_matrix as matrix
from napari_lowlat_seg.io.files import as_shown, label_output, read_volume
from napari_lowlat_seg.plugin.contributions import layer_place

PAIRS = {
    "NIfTI, oblique": ".nrrd",
    "DICOM series, oblique": ".nii.gz",
    "OME-Zarr, translation": ".ome.tif",
}
SHAPE = (12, 64, 80)


def ball() -> np.ndarray:
    """Where the image is bright."""
    grid = np.indices(SHAPE)
    inside: np.ndarray = (
        sum(((x - at) / r) ** 2 for x, at, r in zip(grid, (6, 24, 50), (5, 14, 20), strict=True)) < 1
    )
    return inside


def shot(name: str, suffix: str, folder: Path) -> np.ndarray:
    """The canvas with an image and its labels, and how well they lie on each other."""
    source = matrix.INPUTS[name](folder)
    image = read_volume(source)
    mask = np.asarray(image.data) > 1000
    with label_output(folder / f"labels{suffix}", image) as labels:
        labels.data[...] = mask
    viewer = napari.Viewer(show=True)
    shown = as_shown(image)
    base = viewer.add_image(np.asarray(shown.data), name=name, **layer_place(shown))
    other = as_shown(read_volume(folder / f"labels{suffix}"))
    data = np.asarray(other.data)
    layer = viewer.add_labels(data, name=f"labels{suffix}", **layer_place(other))
    layer.contour = 2
    bright = np.argwhere(np.asarray(base.data) > 1000)
    ratio = [float((1 * a).to(b).magnitude) for a, b in zip(base.units, layer.units, strict=True)]
    places = np.array([layer.world_to_data(np.asarray(base.data_to_world(at)) * ratio) for at in bright])
    there = np.asarray(layer.data)[tuple(np.round(places).astype(int).T)]
    beside = int(np.count_nonzero(layer.data)) - len(bright)
    lost = np.count_nonzero(there == 0)
    print(f"{name}, labels {suffix}: {lost} of {len(bright)} voxels not covered, {beside} labelled beside")
    viewer.dims.set_point(0, base.data_to_world(bright.mean(axis=0))[0])
    viewer.reset_view()
    canvas: np.ndarray = viewer.screenshot(canvas_only=True, size=(500, 600))
    viewer.close()
    return canvas


def main() -> None:
    """Write the picture."""
    matrix.SHAPE = SHAPE
    noise = np.random.default_rng(0).normal(300, 60, SHAPE)
    matrix.pixels = lambda: np.where(ball(), 1500 + noise, noise).astype(np.uint16)
    rows = []
    for name, suffix in PAIRS.items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(shot(name, suffix, Path(folder)))
    from PIL import Image

    Image.fromarray(np.concatenate(rows, axis=1)[..., :3]).save(sys.argv[1])


if __name__ == "__main__":
    main()
