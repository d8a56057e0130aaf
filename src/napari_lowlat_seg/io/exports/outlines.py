"""Objects plane by plane: .geojson with outlines, .json in COCO's form with run lengths.

Planes are those that a viewer shows first, across z or time. Coordinates are pixels of these planes, as
QuPath and COCO count them: x to the right, y down, (0, 0) the corner of the first pixel. The image's shape,
affine and axes, in the same order, stand beside them, so that the world is not lost.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.raster import run_lengths
from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.exports.slabs import Slabs
from napari_lowlat_seg.io.placed import described


def check(suffix: str, labels: Volume, image: Volume | None = None) -> None:
    """Nothing is refused: places go along as an affine."""


def write(path: Path, suffix: str, labels: Slabs, names: Mapping[int, str], image: Volume | None) -> None:
    """Write outlines or run lengths of every object on every plane where it is, plane by plane."""
    # A file name in another encoding has characters that UTF-8 lacks: they become JSON's \udcff.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.writelines((_geojson if suffix == ".geojson" else _coco)(labels, names))


def _about(labels: Slabs) -> dict[str, Any]:
    """The image as it is shown: its axes in the world's order."""
    return {"name": labels.name, "shape": list(labels.shape), **described(labels.geometry)}


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _listed(values: Iterable[Any]) -> Iterator[str]:
    """The text of a list, value by value."""
    yield "["
    for number, value in enumerate(values):
        yield (", " if number else "") + _json(value)
    yield "]"


def _objects(plane: np.ndarray) -> Iterator[tuple[int, tuple[int, int], np.ndarray]]:
    """(label, (row, col) of the mask's first pixel, mask) of every object on a plane."""
    from scipy import ndimage

    values, numbers = np.unique(plane, return_inverse=True)
    numbers = numbers.reshape(plane.shape)
    boxes = ndimage.find_objects(numbers.astype(np.int32) + 1)
    for number, (value, box) in enumerate(zip(values.tolist(), boxes)):
        if value:
            yield value, (box[0].start, box[1].start), numbers[box] == number


def _name(label: int, names: Mapping[int, str]) -> str:
    return names.get(label) or f"object {label}"


def _geojson(labels: Slabs, names: Mapping[int, str]) -> Iterator[str]:
    yield f'{{"type": "FeatureCollection", "image": {_json(_about(labels))}, "features": '
    yield from _listed(_features(labels, names))
    yield "}"


def _features(labels: Slabs, names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    axes = [axis.name for axis in labels.geometry.world]
    for place, plane in labels.planes():
        at = dict(zip(axes, place))
        # What QuPath calls the plane of a shape; c is the channel, -1 for all.
        where = {"c": -1, "z": at.get("z", 0), "t": at.get("t", 0)}
        for label, corner, mask in _objects(plane):
            found = polygons(mask, corner)
            kind = "Polygon" if len(found) == 1 else "MultiPolygon"
            yield {
                "type": "Feature",
                "geometry": {
                    "type": kind,
                    "coordinates": found[0] if len(found) == 1 else found,
                    "plane": where,
                },
                "properties": {
                    "objectType": "annotation",
                    "label": label,
                    "name": _name(label, names),
                    "position": list(place),
                },
            }


def polygons(mask: np.ndarray, corner: tuple[int, int]) -> list[list[list[list[float]]]]:
    """Each part of a mask as its outline and those of its holes: lists of [x, y], the last one the first.

    The outline runs through the middles between pixels of the part and their neighbours, so the centres that
    lie inside are those of the mask. Pixels that share an edge belong to one part. Outlines run
    counter-clockwise and holes clockwise where y grows upward, as RFC 7946 wants it.

    Parameters
    ----------
    mask
        (rows, cols) bool.
    corner
        (row, col) of its first pixel on the plane.
    """
    from scipy import ndimage
    from skimage.measure import approximate_polygon, find_contours

    found = []
    parts, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        part = np.pad(parts[box] == number, 1).astype(np.float32)
        # Pixel centres have half coordinates here; the padding moves by one more.
        shift = np.array([corner[0] + box[0].start, corner[1] + box[1].start]) - 0.5
        rings = [approximate_polygon(ring, 0)[:, ::-1] + shift[::-1] for ring in find_contours(part, 0.5)]
        areas = [_area(ring) for ring in rings]
        outer = int(np.argmax(np.abs(areas)))
        ordered = [outer, *(i for i in range(len(rings)) if i != outer)]
        found.append(
            [(rings[i] if (areas[i] > 0) == (i == outer) else rings[i][::-1]).tolist() for i in ordered]
        )
    return found


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _coco(labels: Slabs, names: Mapping[int, str]) -> Iterator[str]:
    about = {"description": "labels of lowlat-seg", "image": _about(labels)}
    images: list[dict[str, Any]] = []
    found: set[int] = set()
    yield f'{{"info": {_json(about)}, "annotations": '
    yield from _listed(_annotations(labels, images, found))
    categories = [{"id": label, "name": _name(label, names)} for label in sorted(found)]
    yield f', "images": {_json(images)}, "categories": {_json(categories)}}}'


def _annotations(labels: Slabs, images: list[dict[str, Any]], found: set[int]) -> Iterator[dict[str, Any]]:
    """An annotation for each object on each plane; planes and labels go into the lists."""
    number = itertools.count(1)
    axes = [axis.name for axis in labels.geometry.world]
    for place, plane in labels.planes():
        rows, cols = plane.shape
        at = "".join(f"_{name}{i}" for name, i in zip(axes, place))
        images.append(
            {"id": len(images) + 1, "file_name": (labels.name or "image") + at, "height": rows,
             "width": cols, "position": list(place)}
        )  # fmt: skip
        for label, (top, left), mask in _objects(plane):
            found.add(label)
            yield {
                "id": next(number),
                "image_id": len(images),
                "category_id": label,
                "segmentation": {
                    "size": [rows, cols],
                    "counts": run_lengths(mask, (top, left), (rows, cols)),
                },
                "area": int(np.count_nonzero(mask)),
                "bbox": [left, top, mask.shape[1], mask.shape[0]],
                "iscrowd": 0,
            }
