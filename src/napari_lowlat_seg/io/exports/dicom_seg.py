"""DICOM segmentations (the extra `dicom`): one segment for each object, on the slices of a series."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import free_memory, size_text
from napari_lowlat_seg.io.exports.slabs import Slabs
from napari_lowlat_seg.io.placed import Turn, geometry_of

MOST = 65535
"""Segments of a segmentation."""

BYTES = 3
"""Of memory for each voxel, about: the labels, and the file as the library makes it."""


def check(suffix: str, labels: Volume, image: Volume | None = None) -> None:
    """Refuse labels that do not lie voxel by voxel on a DICOM series, or that memory has no room for."""
    if image is None or not hasattr(image.data, "frames"):
        raise ValueError(
            "a DICOM segmentation belongs to a DICOM series; give the folder of that series with --image"
        )
    ours, theirs = geometry_of(image), geometry_of(labels)
    fit = ours.turn_from(theirs, image.shape, labels.shape) if labels.shape == image.shape else None
    if fit is None or not Turn(*fit).is_identity:
        raise ValueError(
            f"the labels of shape {labels.shape} do not lie voxel by voxel on the series of shape "
            f"{image.shape}"
        )
    needed, free = BYTES * math.prod(labels.shape), free_memory()
    if needed > free:
        raise ValueError(
            f"a DICOM segmentation of labels of shape {labels.shape} is made in memory, where it takes about "
            f"{size_text(needed)}; {size_text(free)} are free: close other programs, or write .nii.gz"
        )


def write(path: Path, suffix: str, labels: Slabs, names: Mapping[int, str], image: Volume | None) -> None:
    """Write a binary segmentation that refers to every slice of the series.

    Segments are numbered 1, 2, ...; the label of an object is in the tracking id and, without a name, in the
    name. What an object is in anatomy is not known: it is called tissue, as in other programs.

    Raises
    ------
    ValueError
        For more objects than the format can count, and a series that lacks what a segmentation refers to.
    """
    from highdicom import UID, AlgorithmIdentificationSequence
    from highdicom.seg import (
        SegmentAlgorithmTypeValues,
        Segmentation,
        SegmentationTypeValues,
        SegmentDescription,
    )
    from pydicom.sr.codedict import codes

    assert image is not None
    frames = image.data.frames  # type: ignore[attr-defined]
    values, pixels = _numbered(labels)
    if not values:
        return
    files = list(dict.fromkeys(frame.path for frame in frames))
    if len(files) < len(frames):  # one file of many frames: they are sorted here, but not there
        pixels = pixels[np.argsort([frame.number for frame in frames])]
    algorithm = AlgorithmIdentificationSequence(
        name="napari-lowlat-seg",
        version=version("napari-lowlat-seg"),
        family=codes.cid7162.ArtificialIntelligence,
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=(names.get(value) or f"object {value}")[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=UID(),
            tracking_id=str(value),
        )
        for number, value in enumerate(values, start=1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on values of the scanner that it only copies
            made = Segmentation(
                source_images=[_header(file, labels.geometry.spacing[0]) for file in files],
                pixel_array=pixels,
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=described,
                series_instance_uid=UID(),
                series_number=900,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer="napari-lowlat-seg",
                manufacturer_model_name="lowlat-seg",
                software_versions=version("napari-lowlat-seg"),
                device_serial_number="0",
                series_description="Segmentation",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # An attribute that files of the series lack is one that pydicom's data set does not have.
        lacks = f"it lacks {error.name}" if isinstance(error, AttributeError) else str(error).split("\n")[0]
        raise ValueError(f"no DICOM segmentation can refer to this series ({lacks})") from error
    made.save_as(path)


def _header(path: Path, distance: float) -> Any:
    """A file of the series without its pixels; of slices that say no thickness, it is their distance."""
    import pydicom

    header = pydicom.dcmread(path, stop_before_pixels=True)
    if "SharedFunctionalGroupsSequence" not in header and header.get("SliceThickness") is None:
        header.SliceThickness = f"{distance:.6g}"
    return header


def _numbered(labels: Slabs) -> tuple[list[int], np.ndarray]:
    """The objects in the order of their labels, and (slices, rows, cols) with 1, 2, ... for each of them."""
    found: dict[int, int] = {}
    pixels: np.ndarray = np.zeros(labels.shape, np.uint8)  # the library takes all of them
    for (start,), block in labels.slabs():
        for at, plane in enumerate(block, start):
            values = np.unique(plane)
            numbers = [found.setdefault(value, len(found) + 1) if value else 0 for value in values.tolist()]
            if len(found) > MOST:
                raise ValueError(f"a DICOM segmentation has up to {MOST} segments, these labels have more")
            if len(found) > np.iinfo(pixels.dtype).max:
                pixels = pixels.astype(np.uint16)
            pixels[at] = np.array(numbers, pixels.dtype)[np.searchsorted(values, plane)]
    ordered = sorted(found)
    turned = np.zeros(len(found) + 1, pixels.dtype)
    turned[[found[value] for value in ordered]] = np.arange(1, len(found) + 1)
    for plane in pixels:
        plane[...] = turned[plane]
    return ordered, pixels
