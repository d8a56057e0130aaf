"""`lowlat-seg segment`: prompts on the command line, labels in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.cli.prompt_syntax import read_box, read_click, read_range, read_strokes
from napari_lowlat_seg.core.prompts import Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.tiles import crop, tile_of
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import (
    NIFTI_SUFFIXES,
    check_labels_path,
    default_axis,
    is_ome_zarr,
    read_volume,
    write_labels,
)
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import embed_plane


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for: prompts as text and files, where, and how far to carry the object."""

    clicks: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    scribbles: tuple[Path, ...] = ()
    polygons: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    axis: int | None = None
    carry: str | None = None
    channel: int | None = None
    label: int = 1


def run_segment(image: Path, output: Path, wanted: Wanted, *, model: str, device: str) -> dict[str, Any]:
    """Segment one object and write its labels; what was done, as JSON values.

    What is wrong with files, prompts and ranges is found before the model is loaded. Raises ValueError or
    OSError with one sentence; no output is written then.
    """
    started = time.perf_counter()
    volume = read_volume(image, channel=wanted.channel)
    check_labels_path(output)
    _check_output(output, image, volume, wanted.label)
    if image.name.lower().endswith(NIFTI_SUFFIXES) and volume.ndim == 4:
        raise ValueError(
            f"{image} has a fourth axis of {volume.shape[3]}; choose one with --channel, counted from 0"
        )
    axis = default_axis(image) if wanted.axis is None else wanted.axis
    axis = min(axis, volume.ndim - 1) if wanted.axis is None else axis
    prompts = read_prompts(wanted, volume, axis)
    planes = carried_range(wanted.carry, volume, list(prompts), axis) if wanted.carry is not None else []
    volume = volume.with_window()
    for plane in prompts:
        check_plane(volume, plane)

    from napari_lowlat_seg.inference.predictor import load_predictor

    predictor = load_predictor(model, device=device)
    labels = _Labels(output, volume, wanted.label)
    start = next(iter(prompts))
    rows, cols = (volume.shape[a] for a in start.axes)
    region = tile_of((rows, cols), [prompt for items in prompts.values() for prompt in items])
    part = crop(volume, region, start)
    answers = {
        plane: _answer(predictor, part, plane, [prompt.cropped(region) for prompt in items])
        for plane, items in prompts.items()
    }
    for plane, answer in answers.items():
        labels.add(plane, answer.mask, region.corner)
    if planes:
        walk = propagate(predictor, part, answers, planes)
        final = (step for step in walk if step.final)
        for step in _progress(final, len(planes) - len(answers)):
            labels.add(step.plane, step.prediction.mask, region.corner)
    labels.finish()
    return {
        "input": str(image),
        "output": str(output),
        "model": model,
        "device": predictor.runtime.device,
        "label": wanted.label,
        "prompts": sum(len(items) for items in prompts.values()),
        "planes": labels.planes,
        "voxels": labels.voxels,
        "seconds": round(time.perf_counter() - started, 3),
    }


class _Labels:
    """Where the object is written: to an OME-Zarr at once, to a file when all is known."""

    def __init__(self, output: Path, volume: Volume, label: int) -> None:
        self._output, self._volume, self._label = output, volume, label
        self._zarr: Any = None
        if is_ome_zarr(output):
            from napari_lowlat_seg.io.ome_zarr import OmeZarrLabels

            self._zarr = OmeZarrLabels(output, volume)
        else:
            self._whole = np.zeros(volume.shape, np.uint32)
        self.planes = self.voxels = 0

    def add(self, plane: Plane, mask: np.ndarray, corner: tuple[int, int]) -> None:
        """A plane is added once; its mask lies at a corner of it."""
        self.planes += bool(mask.any())
        self.voxels += int(np.count_nonzero(mask))
        if self._zarr is not None:
            self._zarr.write(plane, mask, self._label, corner)
        else:
            (top, left), (rows, cols) = corner, mask.shape
            self._whole[plane.key()][top : top + rows, left : left + cols][mask] = self._label

    def finish(self) -> None:
        if self._zarr is None:
            write_labels(self._output, self._whole, self._volume)


def read_prompts(wanted: Wanted, volume: Volume, axis: int) -> dict[Plane, list[Prompt]]:
    """All prompts by plane. On each plane regions come first, strokes after them, in the order given.

    Raises ValueError if there is none, if one is outside the volume or cannot be understood.
    """
    placed: list[tuple[Plane, Prompt]] = []
    for path in wanted.masks:
        placed += _masks(path, volume, axis)
    for path in wanted.polygons:
        placed += read_strokes(path, Polygon, volume, axis)
    placed += [read_box(text, volume, axis) for text in wanted.boxes]
    for path in wanted.scribbles:
        placed += read_strokes(path, Scribble, volume, axis)
    placed += [read_click(text, volume, axis) for text in wanted.clicks]
    if not placed:
        raise ValueError(
            "nothing to segment without a prompt; give --click, --box, --scribble, --polygon or --mask"
        )
    prompts: dict[Plane, list[Prompt]] = {}
    for plane, prompt in placed:
        _check_inside(prompt, volume, plane)
        prompts.setdefault(plane, []).append(prompt)
    return prompts


def carried_range(text: str, volume: Volume, prompted: Sequence[Plane], axis: int) -> list[Plane]:
    """The planes of "A:B" along `axis`, both ends included; an end left out is the end of the volume.

    The range must hold every plane with prompts. Raises ValueError otherwise, for other texts and 2-D images.
    """
    if volume.ndim == 2:
        raise ValueError("a 2-D image has one plane only; leave out --propagate")
    axis %= volume.ndim
    length = volume.shape[axis]
    low, high = read_range(text, length, "--propagate")
    index = list(prompted[0].index)
    planes = [Plane((*index[:axis], place, *index[axis + 1 :])) for place in range(low, high + 1)]
    outside = [plane for plane in prompted if plane not in planes]
    if outside:
        raise ValueError(
            f"--propagate {text} must hold all planes with prompts; {outside[0].index} is outside"
        )
    return planes


def check_plane(volume: Volume, plane: Plane) -> None:
    """Refuse a plane without a finite pixel. A constant plane is an image like any other, if a dull one."""
    pixels = volume.plane(plane)
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"{volume.name} must hold real numbers; got type {pixels.dtype}")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).any():
        raise ValueError(f"plane {plane.index} of {volume.name} has no finite pixel; choose another plane")


def _answer(predictor: Any, volume: Volume, plane: Plane, prompts: Sequence[Prompt]) -> Any:
    """The answer after the last prompt. Each is given in turn, as a person would: networks are trained so."""
    embedding = embed_plane(predictor, volume, plane)
    answer = None
    for count in range(1, len(prompts) + 1):
        answer = predictor.predict(embedding, prompts[:count], answer)
    return answer


def _masks(path: Path, volume: Volume, axis: int) -> Iterator[tuple[Plane, Mask]]:
    mask = read_volume(path)
    if mask.shape != volume.shape:
        raise ValueError(f"the mask {path} must have the image's shape {volume.shape}; got {mask.shape}")
    found = False
    for plane in volume.planes(axis):
        pixels = mask.plane(plane)
        pixels = np.nan_to_num(pixels if pixels.ndim == 2 else pixels.max(axis=2)) != 0
        if pixels.any():
            found = True
            yield plane, Mask(pixels)
    if not found:
        raise ValueError(f"the mask {path} needs at least one pixel that is not 0")


def _check_output(output: Path, image: Path, volume: Volume, label: int) -> None:
    """Refuse, before any work, to write over the image, and a .png for what it cannot hold."""
    if output.exists() and output.samefile(image):
        raise ValueError(f"{output} is the image itself; give the labels another name")
    if output.suffix.lower() == ".png" and (volume.ndim != 2 or label > 65535):
        raise ValueError(
            f"a .png holds one plane of labels up to 65535; got an image of shape {volume.shape} and label "
            f"{label}: use .tif"
        )


def _check_inside(prompt: Prompt, volume: Volume, plane: Plane) -> None:
    """Refuse prompts outside the plane before a model is loaded; the smallest grid is enough to know."""
    from napari_lowlat_seg.core.frame import Frame
    from napari_lowlat_seg.core.prompts import dense_maps

    dense_maps([prompt], Frame.whole(volume.sides(plane), 1), radius=0)


def _progress(walk: Iterable[Any], total: int) -> Iterable[Any]:
    from tqdm import tqdm

    # Nothing on a pipe or in a log file.
    bar: Iterable[Any] = tqdm(walk, total=total, unit="plane", file=sys.stderr, disable=None)
    return bar
