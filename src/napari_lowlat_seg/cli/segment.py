"""`lowlat-seg segment`: prompts on the command line, labels in a file."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.batch.progress import progress
from napari_lowlat_seg.cli.prompt_syntax import read_box, read_click, read_strokes
from napari_lowlat_seg.core.atomic_file import check_not_input, check_writable
from napari_lowlat_seg.core.boxes import BoundingBox, tile_of
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.masks import PostProcessing, SoftMask, postprocess
from napari_lowlat_seg.core.prompts import Mask, Polygon, Prompt, Scribble, dense_maps
from napari_lowlat_seg.core.requests import read_range
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.choice import WHOLE, Choice
from napari_lowlat_seg.io.files import (
    check_labels_path,
    default_axis,
    is_ome_zarr,
    label_output,
    read_aligned,
    read_chosen,
    read_volume,
)
from napari_lowlat_seg.io.formats.nifti import is_nifti
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, check_prompts_path, load_prompts, save_prompts
from napari_lowlat_seg.propagation.propagate import propagate
from napari_lowlat_seg.propagation.sweep import embed_plane
from napari_lowlat_seg.serving.remote import is_remote


@dataclass(frozen=True)
class SegmentRequest:
    """What to segment in an image, as the command line gives it.

    Attributes
    ----------
    clicks, boxes
        Texts that `read_click` and `read_box` understand.
    scribbles, polygons
        Point files that `read_strokes` understands.
    masks
        Image files of the input's shape; non-zero pixels are the object.
    axis
        The axis along which the planes lie; None for the usual one of the format.
    propagate
        "A:B", the planes to propagate the object to; None for those with prompts only.
    choice
        Which image of the file, and which part of it.
    label
        What is written for the object, 1 to 2^32 - 1; None for the lowest number above those in the output.
    replace
        Write the output anew; else the object is added to the labels that are there.
    finish
        How probabilities become the mask on each plane.
    closer_look
        "auto" or "off", as of `load_predictor`.
    prompts
        A file of `io.prompt_files` with one object or several, in place of all other prompts.
    save_prompts
        Where the prompts are written; they are added to those of other objects that are there.
    """

    clicks: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    scribbles: tuple[Path, ...] = ()
    polygons: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    axis: int | None = None
    propagate: str | None = None
    choice: Choice = WHOLE
    label: int | None = None
    replace: bool = False
    finish: PostProcessing = field(default_factory=PostProcessing)
    closer_look: str = "auto"
    prompts: Path | None = None
    save_prompts: Path | None = None


def run_segment(
    image: Path, output: Path, request: SegmentRequest, *, model: str, device: str
) -> dict[str, Any]:
    """Segment one object or several and add them to the labels in the output, which is made if need be.

    Pixels of other objects stay theirs. What is wrong with files, prompts and ranges is found before the
    model is loaded.

    Returns
    -------
    dict
        What was done, as JSON values: "input", "output", "model", "device", "label" (of the first object),
        "objects", "prompts", "planes", "voxels", "notes" (where and why a propagation ended, damaged
        planes stepped over, and voxels left to other objects) and "seconds".

    Raises
    ------
    ValueError, OSError
        With one sentence; no output is written then.
    ImportError
        For a format whose library is not installed.
    """
    started = time.perf_counter()
    if request.closer_look not in ("auto", "off"):
        raise ValueError(f"--closer-look must be auto or off; got {request.closer_look!r}")
    volume = _read(image, request.choice)
    _check_output(output, image, volume, request)
    objects = read_objects(request, volume)
    volume = volume.with_window()
    for plane in (plane for one in objects for plane in one.prompts):
        check_plane(volume, plane)
    existing = None if request.replace else existing_labels(output, volume, [one.label for one in objects])
    saved = _saved(request, volume, objects)

    filled = voxels = taken = 0
    notes: list[str] = []
    with (
        _predictor(model, device, request.closer_look) as (predictor, used),
        label_output(output, volume) as labels,
    ):
        if existing is not None:
            labels.data[...] = existing
        for number, one in enumerate(objects):
            label = one.label or labels.highest() + 1
            objects[number] = replace(one, label=label)
            for plane, mask, corner in segment_object(
                predictor, volume, one.prompts, one.planes, request.finish, notes
            ):
                old = labels.read(plane, BoundingBox.at(corner, mask.shape))
                free = (old == 0) | (old == label)
                taken += int(np.count_nonzero(mask & ~free))
                mask = mask & free
                labels.write_mask(plane, mask, label, corner)
                filled += bool(mask.any())
                voxels += int(np.count_nonzero(mask))
    if taken:
        notes.append(f"other objects in {output} keep the {taken} voxels that this one covers as well")
    _save(request, volume, saved, objects)
    return {
        "input": str(image),
        "output": str(output),
        "model": model,
        "device": used,
        "label": objects[0].label,
        "objects": len(objects),
        "prompts": sum(len(items) for one in objects for items in one.prompts.values()),
        "planes": filled,
        "voxels": voxels,
        "notes": notes,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _save(
    request: SegmentRequest,
    volume: Volume,
    saved: Sequence[ObjectPrompts],
    objects: Sequence[SegmentedObject],
) -> None:
    if request.save_prompts is not None:
        made = [ObjectPrompts(one.label or 0, one.prompts, one.name) for one in objects]
        save_prompts(request.save_prompts, volume, [*saved, *made])


def _read(image: Path, choice: Choice) -> Volume:
    volume = read_chosen(image, choice)
    if is_nifti(image) and volume.ndim == 4:
        raise ValueError(
            f"{image} has a fourth axis of {volume.shape[3]}; choose one with --channel or --time, "
            "counted from 0"
        )
    return volume


@contextmanager
def _predictor(model: str, device: str, closer_look: str) -> Iterator[tuple[Any, str]]:
    """A predictor and the device it has; the device may be one of another machine."""
    if is_remote(device):
        from napari_lowlat_seg.serving.process import PredictionProcess
        from napari_lowlat_seg.serving.service_predictor import ServicePredictor

        service = PredictionProcess(model, device, closer_look)
        try:
            yield ServicePredictor(service), str(service.describe()["device"])
        finally:
            service.close()
        return
    from napari_lowlat_seg.inference.predictor import load_predictor

    predictor = load_predictor(model, device=device, closer_look=closer_look)  # type: ignore[arg-type]
    yield predictor, predictor.runtime.device


@dataclass(frozen=True)
class SegmentedObject:
    """One object to segment.

    Attributes
    ----------
    label
        None for the next free one.
    prompts
        By plane, oldest first.
    planes
        Those to propagate to; none for those with prompts only.
    name
        For people.
    """

    label: int | None
    prompts: Mapping[Plane, tuple[Prompt, ...]]
    planes: Sequence[Plane]
    name: str = ""


def read_objects(request: SegmentRequest, volume: Volume) -> list[SegmentedObject]:
    """The objects that a request asks for: one, or those of its file of prompts.

    Raises
    ------
    ValueError
        As `read_prompts`, `load_prompts` and `propagated_planes`; for prompts of both kinds, and for a label
        of several objects.
    """
    usual = default_axis(volume) if request.axis is None else request.axis
    if request.prompts is None:
        prompts = {plane: tuple(items) for plane, items in read_prompts(request, volume, usual).items()}
        return [SegmentedObject(request.label, prompts, _reached(request, volume, prompts, usual))]
    if request.clicks or request.boxes or request.scribbles or request.polygons or request.masks:
        raise ValueError("--prompts takes the place of --click, --box, --scribble, --polygon and --mask")
    loaded = [one for one in load_prompts(request.prompts, volume) if one.prompts]
    if not loaded:
        raise ValueError(f"nothing to segment: {request.prompts} holds no prompt")
    if request.label is not None and len(loaded) > 1:
        raise ValueError(f"--label is for one object; {request.prompts} has {len(loaded)}")
    return [_from_file(one, request, volume, usual) for one in loaded]


def _from_file(one: ObjectPrompts, request: SegmentRequest, volume: Volume, axis: int) -> SegmentedObject:
    """One object of a file of prompts; in 3-D its prompts say along which axis it is propagated."""
    if len({plane.axes for plane in one.prompts}) > 1:
        raise ValueError(
            f"object {one.label} of {request.prompts} has prompts on planes of several directions; "
            "segment takes those of one"
        )
    if request.axis is None and volume.ndim == 3:
        axis = next(i for i, at in enumerate(next(iter(one.prompts)).index) if at is not None)
    reached = _reached(request, volume, one.prompts, axis)
    return SegmentedObject(request.label or one.label, one.prompts, reached, one.name)


def _reached(
    request: SegmentRequest, volume: Volume, prompts: Mapping[Plane, Any], axis: int
) -> Sequence[Plane]:
    text = request.propagate
    return [] if text is None else propagated_planes(text, volume, list(prompts), axis)


def _saved(
    request: SegmentRequest, volume: Volume, objects: Sequence[SegmentedObject]
) -> list[ObjectPrompts]:
    """The objects that are in the file of prompts already, and stay there; refuses what cannot be written."""
    path = request.save_prompts
    if path is None or not path.exists() or request.replace:
        return []
    found = load_prompts(path, volume)
    taken = {one.label for one in found} & {one.label for one in objects}
    if taken:
        raise ValueError(f"{path} has prompts of label {min(taken)} already; give another file, or --replace")
    return found


def existing_labels(output: Path, volume: Volume, new: Sequence[int | None]) -> np.ndarray | None:
    """The labels in a file that objects are added to; None without a file, and for an OME-Zarr.

    Parameters
    ----------
    new
        Of the new objects; None for a free one.

    Raises
    ------
    ValueError
        If something else is in the file, and if the label is taken there.
    """
    if not output.exists():
        return None
    if is_ome_zarr(output):
        _refuse_taken(output, volume, [label for label in new if label is not None])
        return None
    found = read_volume(output)
    # A TIFF of one slice is read without the axis of length 1.
    ours, theirs = (sorted(n for n in one.shape if n > 1) for one in (volume, found))
    if ours != theirs or found.channel_axis is not None or found.data.dtype.kind not in "bui":
        raise ValueError(
            f"{output} exists and holds no labels of shape {volume.shape}; give another name, or --replace"
        )
    try:
        found = read_aligned(output, volume, "file")
    except ValueError as error:
        raise ValueError(
            f"{output} exists and lies elsewhere than the image; give another name, or --replace"
        ) from error
    labels = np.asarray(found.data)
    _check_labels(output, labels)
    for label in filter(None, new):
        if (labels == label).any():
            raise ValueError(
                f"label {label} is in {output} already; leave out --label for the next free one, or give "
                "--replace"
            )
    return labels


def _check_labels(output: Path, labels: np.ndarray) -> None:
    most, low, high = 2**32 - 1, int(labels.min()), int(labels.max())
    if low < 0 or high > most:
        raise ValueError(
            f"{output} must hold labels from 0 to {most}; got {low} to {high}; use another name or --replace"
        )


def _refuse_taken(output: Path, volume: Volume, new: Sequence[int]) -> None:
    """Refuse labels that an OME-Zarr has already: two objects would become one."""
    if not new:
        return
    from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid, holds_label

    levels = LabelPyramid.at(output, volume).levels
    for label in new:
        if holds_label(levels[0], label):
            raise ValueError(f"label {label} is in {output} already; leave out --label for the next free one")


def segment_object(
    predictor: Any,
    volume: Volume,
    prompts: Mapping[Plane, Sequence[Prompt]],
    planes: Sequence[Plane],
    finish: PostProcessing,
    notes: list[str],
) -> Iterator[tuple[Plane, np.ndarray, tuple[int, int]]]:
    """(plane, mask, corner of the mask on the plane) of an object, each plane once.

    Parameters
    ----------
    prompts
        One plane or more; each has one prompt or more. Without any positive one the object is empty, and a
        warning says so: a network would draw something all the same.
    planes
        Those to propagate to, with the ones that have prompts; none for the latter only.
    finish
        Applied to each mask; what is propagated is the probability before it.
    notes
        Gets why the propagation ended where it did, and which damaged planes it stepped over.
    """
    first = next(iter(prompts))
    if not any(prompt.positive for items in prompts.values() for prompt in items):
        warnings.warn("the object is empty, because no prompt is positive", stacklevel=2)
        yield first, np.zeros(volume.sides(first), np.bool_), (0, 0)
        return
    tile = tile_of(volume.sides(first), [prompt for items in prompts.values() for prompt in items])
    part = volume.cropped(tile, first)
    inside = {plane: [prompt.cropped(tile) for prompt in items] for plane, items in prompts.items()}
    predictions = {plane: _predict(predictor, part, plane, items) for plane, items in inside.items()}
    for plane, prediction in predictions.items():
        yield plane, masked(prediction.probability, finish, inside[plane]), tile.corner
    if not planes:
        return
    with progress(len(planes) - len(predictions), "plane") as bar:
        for step in propagate(predictor, part, predictions, planes):
            if step.note is not None:
                notes.append(f"plane {step.plane.position}: {step.note}")
            elif step.final:
                bar.update()
                yield step.plane, masked(step.prediction.probability, finish), tile.corner


def masked(probability: np.ndarray, finish: PostProcessing, prompts: Sequence[Prompt] = ()) -> np.ndarray:
    """The (rows, cols) bool mask of a probability."""
    return postprocess(SoftMask.of(probability), finish, prompts)


def read_prompts(request: SegmentRequest, volume: Volume, axis: int) -> dict[Plane, list[Prompt]]:
    """All prompts by plane. On each plane regions come first, strokes after them, in the order given.

    Raises
    ------
    ValueError
        If there is none, if one is outside the volume or cannot be understood.
    FileNotFoundError
        For a file of prompts that does not exist.
    """
    placed: list[tuple[Plane, Prompt]] = []
    for path in request.masks:
        placed += _masks(path, volume, axis)
    for path in request.polygons:
        placed += read_strokes(path, Polygon, volume, axis)
    placed += [read_box(text, volume, axis) for text in request.boxes]
    for path in request.scribbles:
        placed += read_strokes(path, Scribble, volume, axis)
    placed += [read_click(text, volume, axis) for text in request.clicks]
    if not placed:
        raise ValueError(
            "nothing to segment without a prompt; give --click, --box, --scribble, --polygon, --mask or "
            "--prompts"
        )
    prompts: dict[Plane, list[Prompt]] = {}
    for plane, prompt in placed:
        # Refuses prompts outside the plane before a model is loaded; the smallest grid is enough to know.
        dense_maps([prompt], Frame.whole(volume.sides(plane), 1), radius=0)
        prompts.setdefault(plane, []).append(prompt)
    return prompts


def propagated_planes(text: str, volume: Volume, prompted: Sequence[Plane], axis: int) -> list[Plane]:
    """The planes of "A:B" along `axis`, both ends included; an end left out is the end of the volume.

    Raises
    ------
    ValueError
        For another text, a 2-D image, and a range that lacks a plane with prompts.
    """
    if volume.ndim == 2:
        raise ValueError("a 2-D image has one plane only; leave out --propagate")
    axis %= volume.ndim
    low, high = read_range(text, volume.shape[axis], "--propagate")
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


def _predict(predictor: Any, volume: Volume, plane: Plane, prompts: Sequence[Prompt]) -> Any:
    """The prediction after the last prompt; each is given in turn, because networks are trained so."""
    embedding = embed_plane(predictor, volume, plane)
    prediction = None
    for count in range(1, len(prompts) + 1):
        prediction = predictor.predict(embedding, prompts[:count], prediction)
    return prediction


def _masks(path: Path, volume: Volume, axis: int) -> Iterator[tuple[Plane, Mask]]:
    mask = read_aligned(path, volume, "mask")
    found = False
    for plane in volume.planes(axis):
        pixels = mask.plane(plane)
        pixels = np.nan_to_num(pixels if pixels.ndim == 2 else pixels.max(axis=2)) != 0
        if pixels.any():
            found = True
            yield plane, Mask(pixels)
    if not found:
        raise ValueError(f"the mask {path} needs at least one pixel that is not 0")


def _check_output(output: Path, image: Path, volume: Volume, request: SegmentRequest) -> None:
    """Refuse, before any work, a place or a format that cannot be written, and the input files."""
    prompts = [("mask", path) for path in request.masks]
    prompts += [("point file", path) for path in (*request.scribbles, *request.polygons)]
    prompts += [("file of prompts", request.prompts)] if request.prompts is not None else []
    if request.save_prompts is not None:
        check_prompts_path(request.save_prompts)
        check_not_input(request.save_prompts, [("image", image), *prompts, ("file of labels", output)])
        check_writable(request.save_prompts)
    check_labels_path(output, [("image", image), *prompts], volume)
    if request.replace and is_ome_zarr(output) and output.exists():
        raise ValueError(f"--replace is for files; remove the folder {output}, or give another name")
    label = request.label or 1
    if output.suffix.lower() == ".png" and (volume.ndim != 2 or label > 65535):
        raise ValueError(
            f"a .png holds one plane of labels up to 65535; got an image of shape {volume.shape} and label "
            f"{label}: use .tif"
        )
