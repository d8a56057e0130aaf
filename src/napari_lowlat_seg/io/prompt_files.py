"""Prompts in a file of JSON, beside the labels that they made; the format is described in docs/prompts.md.

Every point is there twice: in voxels of the image, in the order of its array, and in the world. Voxels count;
the world is for other programs, and tells whether another image holds the same places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble, dense_maps
from napari_lowlat_seg.core.raster import from_run_lengths, run_lengths
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.placed import Turn, described, geometry_of

FORMAT = "napari-lowlat-seg prompts"

VERSION = 1

LARGEST = 2**28
"""Bytes of a file that is read."""

_KINDS: dict[str, type[Click] | type[Scribble] | type[Box] | type[Polygon]] = {
    "click": Click,
    "scribble": Scribble,
    "box": Box,
    "lasso": Polygon,
}


@dataclass(frozen=True)
class ObjectPrompts:
    """The prompts of one object.

    Attributes
    ----------
    label
        In the labels, 1 to 2^32 - 1.
    prompts
        By plane, in the order in which they were given there.
    name
        For people; "" for none.
    """

    label: int
    prompts: Mapping[Plane, tuple[Prompt, ...]] = field(default_factory=dict)
    name: str = ""


def save_prompts(path: str | Path, volume: Volume, objects: Iterable[ObjectPrompts]) -> Path:
    """Write the prompts of objects in a volume, and give back the path.

    Parameters
    ----------
    path
        A .json; what is there is replaced when the new file is complete.
    volume
        The image, whose shape and place are written too.

    Raises
    ------
    ValueError
        For another suffix, a soft mask, and labels that occur twice.
    OSError
        As `atomic_file`.
    """
    path = check_prompts_path(path)
    geometry = geometry_of(volume)
    objects = list(objects)
    _check_labels([one.label for one in objects])
    content = {
        "format": FORMAT,
        "version": VERSION,
        "image": {"name": volume.name, "shape": list(volume.shape), **described(geometry)},
        "objects": [
            {
                "label": one.label,
                "name": one.name,
                "prompts": [
                    _written(prompt, plane, geometry)
                    for plane, prompts in one.prompts.items()
                    for prompt in prompts
                ],
            }
            for one in objects
        ],
    }
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
    return path


def check_prompts_path(path: str | Path) -> Path:
    """The path, if prompts can have its name; raises ValueError for another suffix than .json."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        raise ValueError(f"prompts are written as .json; got {path.name!r}")
    return path


def load_prompts(path: str | Path, volume: Volume) -> list[ObjectPrompts]:
    """The objects of a file of prompts, on the planes of a volume.

    The volume is the image that they were made on, or one whose voxels lie in the same places with its axes
    in another order or direction: prompts are turned onto it.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        For another file, a damaged one, one of a newer version, an image that lies elsewhere, and prompts
        outside the image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}; check the path")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is no file of prompts: it has more than {LARGEST >> 20} MiB")
    try:
        content = _mapping(json.loads(path.read_bytes().decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no file of prompts ({_reason(error)})") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of prompts: its format is not {FORMAT!r}")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{path} has version {version}, this program reads {VERSION}; update it")
    try:
        shape, geometry = _image(_mapping(content["image"]))
        turn = _turn(shape, geometry, volume)
        if turn is None:
            raise _Elsewhere
        found = [_object(_mapping(one), shape, turn, volume) for one in _sequence(content["objects"])]
        _check_labels([one.label for one in found])
    except _Elsewhere:
        raise ValueError(
            f"the prompts of {path} were made on an image of shape {shape} that lies elsewhere than "
            f"{volume.name or 'this one'} of shape {volume.shape}; give the image that they belong to"
        ) from None
    except (ValueError, TypeError, KeyError, OverflowError, IndexError) as error:
        raise ValueError(f"{path} is a damaged file of prompts ({_reason(error)})") from error
    return found


class _Elsewhere(Exception):
    """The image is another one."""


def _reason(error: BaseException) -> str:
    text = str(error).split("\n")[0]
    return f"no {text}" if isinstance(error, KeyError) else text[:200] or type(error).__name__


def _check_labels(labels: Sequence[int]) -> None:
    if len(set(labels)) < len(labels):
        raise ValueError(f"each object needs a label of its own; got {', '.join(map(str, labels))[:80]}")
    for label in labels:
        if type(label) is not int or not 1 <= label < 2**32:
            raise ValueError(f"a label is a whole number from 1 to {2**32 - 1}; got {label!r:.40}")


def _written(prompt: Prompt, plane: Plane, geometry: Geometry) -> dict[str, Any]:
    about: dict[str, Any] = {"positive": prompt.positive, "plane": list(plane.index)}
    if isinstance(prompt, Mask):
        if prompt.pixels.dtype != np.bool_:
            raise ValueError("a soft mask is no prompt that can be written; write the labels instead")
        sides, runs = list(prompt.pixels.shape), run_lengths(prompt.pixels)
        return {"kind": "mask", **about, "size": sides, "counts": runs}
    kind = next(name for name, one in _KINDS.items() if isinstance(prompt, one))
    row, col = plane.axes
    points = np.array([[0.0 if at is None else at for at in plane.index]] * len(prompt.points))
    points[:, [row, col]] = prompt.points
    return {"kind": kind, **about, "points": points.tolist(), "world": geometry.to_world(points).tolist()}


def _image(content: Mapping[str, Any]) -> tuple[tuple[int, ...], Geometry]:
    shape = tuple(_whole(n) for n in _sequence(content["shape"]))
    axes = tuple(
        Axis.of(str(axis["name"]), _unit(axis["unit"]), str(axis["kind"]))
        for axis in map(_mapping, _sequence(content["world"]))
    )
    rows = [[_number(value) for value in _sequence(row)] for row in _sequence(content["affine"])]
    geometry = Geometry(axes, np.array(rows, np.float64), content.get("patient") is True)
    if geometry.ndim != len(shape):
        raise ValueError(f"{geometry.ndim} axes for an image of shape {shape}")
    return shape, geometry


def _turn(shape: tuple[int, ...], geometry: Geometry, volume: Volume) -> Turn | None:
    """How the image of the file is turned to lie on a volume; None if it does not."""
    ours = geometry_of(volume)
    if ours.ndim != geometry.ndim:
        return None
    if not (ours.calibrated and geometry.calibrated):
        return Turn(tuple(range(ours.ndim))) if shape == volume.shape else None
    fit = ours.turn_from(geometry, volume.shape, shape)
    return None if fit is None else Turn(*fit)


def _object(content: Mapping[str, Any], shape: tuple[int, ...], turn: Turn, volume: Volume) -> ObjectPrompts:
    prompts: dict[Plane, tuple[Prompt, ...]] = {}
    for one in map(_mapping, _sequence(content["prompts"])):
        plane, prompt = _prompt(one, shape, turn)
        dense_maps([prompt], Frame.whole(volume.sides(plane), 1), radius=0)  # refuses what lies outside
        prompts[plane] = (*prompts.get(plane, ()), prompt)
    name = content.get("name", "")
    return ObjectPrompts(content["label"], prompts, name if isinstance(name, str) else "")


def _prompt(content: Mapping[str, Any], shape: tuple[int, ...], turn: Turn) -> tuple[Plane, Prompt]:
    """A prompt and its plane, both turned as the volume lies."""
    index = [None if at is None else _whole(at) for at in _sequence(content["plane"])]
    plane = Plane(tuple(index))
    if len(index) != len(shape) or any(at is not None and at >= n for at, n in zip(index, shape)):
        raise ValueError(f"plane {index} of an image of shape {shape}")
    turned = Plane(tuple(_turned([-1 if at is None else at for at in index], shape, turn, keep=-1)))
    kind, positive = content["kind"], content["positive"]
    if not isinstance(positive, bool):
        raise ValueError(f"positive is true or false, not {positive!r:.40}")
    if kind == "mask":
        return turned, Mask(_mask(content, plane, shape, turn), positive)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"a prompt is {', '.join(_KINDS)} or mask, not {kind!r:.40}")
    row, col = turned.axes
    there = [_point(point, plane, shape, turn) for point in _sequence(content["points"])]
    return turned, _drawn(kind, [(point[row], point[col]) for point in there], positive)


def _mask(content: Mapping[str, Any], plane: Plane, shape: tuple[int, ...], turn: Turn) -> np.ndarray:
    """(rows, cols) bool of the turned plane, from run lengths of the plane in the file."""
    sides = tuple(_whole(n) for n in _sequence(content["size"]))
    if sides != tuple(shape[axis] for axis in plane.axes):
        raise ValueError(f"a mask of {sides} pixels on a plane of an image of shape {shape}")
    runs = [_whole(count) for count in _sequence(content["counts"])]
    return _turned_mask(from_run_lengths(runs, (sides[0], sides[1])), plane, turn)


def _point(content: Any, plane: Plane, shape: tuple[int, ...], turn: Turn) -> list[float]:
    """A point of a plane, in the turned array."""
    numbers = [_number(value) for value in _sequence(content)]
    if len(numbers) != len(shape) or any(
        at is not None and at != number for at, number in zip(plane.index, numbers)
    ):
        raise ValueError(f"point {numbers} on plane {list(plane.index)}")
    return _turned(numbers, shape, turn)


def _drawn(kind: str, points: list[tuple[float, float]], positive: bool) -> Prompt:
    """A click, scribble, box or lasso."""
    if kind == "click":
        if len(points) != 1:
            raise ValueError(f"a click has one point, not {len(points)}")
        return Click(points[0], positive)
    if kind == "box":
        if len(points) != 2:
            raise ValueError(f"a box has two corners, not {len(points)}")
        return Box(points[0], points[1], positive)
    return (Scribble if kind == "scribble" else Polygon)(tuple(points), positive)


def _turned(numbers: Sequence[Any], shape: Sequence[int], turn: Turn, keep: float | None = None) -> list[Any]:
    """Coordinates in the turned array; the value `keep` stands for a whole axis, and becomes None."""
    moved: list[Any] = []
    for axis, source in enumerate(turn.order):
        value = numbers[source]
        if keep is not None and value == keep:
            moved.append(None)
        else:
            moved.append(shape[source] - 1 - value if axis in turn.flips else value)
    return moved


def _turned_mask(pixels: np.ndarray, plane: Plane, turn: Turn) -> np.ndarray:
    order = [source for source in turn.order if source in plane.axes]
    if order != list(plane.axes):
        pixels = pixels.T
    sides = [axis for axis in range(len(turn.order)) if turn.order[axis] in plane.axes]
    mask: np.ndarray = np.flip(pixels, tuple(i for i, axis in enumerate(sides) if axis in turn.flips))
    return mask


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"an object in braces was expected, not {value!r:.40}")
    return value


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list was expected, not {value!r:.40}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a finite number was expected, not {value!r:.40}")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a whole number of 0 or more was expected, not {value!r:.40}")
    return value


def _unit(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a unit is a text or null, not {value!r:.40}")
    return value
