"""PNG, JPEG, WebP, BMP, GIF, JPEG 2000: gray and RGB pictures without a size; labels as PNG."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.volume import Volume
from napari_lowlat_seg.io.bounds import DEFLATED, check_held, check_memory
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_series
from napari_lowlat_seg.io.placed import Loaded, geometry_of, usual_geometry

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".jp2")

DECODERS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "JPEG2000")
"""Those of Pillow that may look at a file, whatever its name: others start programs (EPS) or follow paths."""


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The pixels of a picture, turned as its EXIF orientation says; palettes become RGB.

    Raises
    ------
    ValueError
        For an animation, whose frames are its series, without a choice, and for sizes that cannot be.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=DECODERS) as opened:
        ratio = DEFLATED if opened.format == "PNG" else math.inf
        size = opened.width * opened.height * len(opened.getbands())
        check_held(size if opened.mode != "1" else size // 8, path.stat().st_size, ratio)
        check_memory(4 * size)
        frames = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
        opened.seek(pick_series([str(i) for i in range(frames)], choice.series, what="frames"))
        image = ImageOps.exif_transpose(opened)
        plain = "RGBA" if "transparency" in image.info else "RGB"
        wanted = {"P": plain, "CMYK": "RGB", "YCbCr": "RGB", "LA": "L", "PA": "RGBA"}.get(
            image.mode, image.mode
        )
        data = np.asarray(image if wanted == image.mode else image.convert(wanted))
    return Loaded(data, usual_geometry(2), 2 if data.ndim == 3 else None)


def check_png(path: Path, shape: tuple[int, ...], like: Volume | None) -> None:
    """Refuse what a PNG cannot hold: volumes. It says no sizes, as everybody knows."""
    if len(shape) != 2:
        raise ValueError(f"a .png holds one plane of labels up to 65535; got an image of shape {shape}")
    if like is not None and geometry_of(like).calibrated and not geometry_of(like).straight:
        raise ValueError("a .png has no place for an image that lies oblique in the world; write .nii.gz")


def write_png(path: Path, labels: np.ndarray, like: Volume | None) -> None:
    """Write one plane of labels up to 65535, without a size."""
    from PIL import Image

    if labels.ndim != 2 or labels.dtype == np.uint32:
        raise ValueError(f"a .png holds one plane of labels up to 65535, these go up to {labels.max()}")
    Image.fromarray(labels).save(path)
