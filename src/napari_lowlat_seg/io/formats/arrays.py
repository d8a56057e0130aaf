"""numpy's .npy and .npz: arrays that say nothing of their axes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from napari_lowlat_seg.io.bounds import DEFLATED, check_held, check_memory
from napari_lowlat_seg.io.choice import WHOLE, Choice, pick_series
from napari_lowlat_seg.io.placed import Loaded, usual_geometry


def read(path: Path, choice: Choice = WHOLE) -> Loaded:
    """The array of a .npy, mapped and not loaded; the only one of a .npz, or the one named inside it.

    Bytes of shape (rows, columns, 3 or 4) are colours. With a channel asked for, the shortest of the first
    and the last axis holds channels. Objects are not unpickled.

    Raises
    ------
    ValueError
        For several arrays without a choice, and for a name that is not there.
    """
    if path.suffix.lower() == ".npy":
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                check_held(member.file_size, member.compress_size, DEFLATED)
            declared = {
                member.filename.removesuffix(".npy"): member.file_size for member in archive.infolist()
            }
        with np.load(path, allow_pickle=False) as file:
            name = file.files[pick_series(file.files, choice.inside or choice.series, what="arrays")]
            check_memory(declared[name])
            data = file[name]
    channel_axis = None
    if data.ndim == 3 and data.dtype == np.uint8 and data.shape[-1] in (3, 4):
        channel_axis = 2
    elif choice.channel is not None and data.ndim > 2:
        channel_axis = 0 if data.shape[0] <= data.shape[-1] else data.ndim - 1
    return Loaded(data, usual_geometry(data.ndim - (channel_axis is not None)), channel_axis)
