"""Which image of a file, and which part of it: series, level, time and channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from napari_lowlat_seg.io.placed import Held, Loaded, Unreadable

LISTED = 8
"""So many images of a file are named in a sentence."""


@dataclass(frozen=True)
class Choice:
    """What to read of a file that holds more than one image, or more than two or three axes.

    Attributes
    ----------
    channel
        Counted from 0; None for gray and RGB images.
    series
        The name or path of an image in the file, or its number, counted from 0; "" for the only one.
    time
        A point in time, counted from 0; None for all of them.
    level
        Of a pyramid, 0 for the finest; None means that.
    inside
        Where the path of the image led inside its file or folder: a series lies there.
    """

    channel: int | None = None
    series: str = ""
    time: int | None = None
    level: int | None = None
    inside: str = ""


WHOLE = Choice()
"""Nothing is chosen: the only image, all of it."""


class SeveralImages(Unreadable):
    """A file with several images, none of which was chosen or one that is not there.

    Attributes
    ----------
    names
        What `Choice.series` may be.
    """

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = tuple(names)


def pick_series(names: Sequence[str], series: str, about: Sequence[str] = (), what: str = "images") -> int:
    """The index of the image that is chosen by its name or number; of the only one without a choice.

    Parameters
    ----------
    names
        Of the images in the file, in its order, all different.
    series
        As of `Choice`.
    about
        What the sentence says of each beside its name.
    what
        What the sentence calls them.

    Raises
    ------
    SeveralImages
        For several images without a choice, and a choice that is none of them.

    Examples
    --------
    >>> pick_series(["raw", "labels"], "labels"), pick_series(["raw", "labels"], "0")
    (1, 0)
    """
    if series in names:
        return list(names).index(series)
    if series.isdecimal() and int(series) < len(names):
        return int(series)
    if not series and len(names) == 1:
        return 0
    some = ", ".join(
        f"{name} ({text})" if text else name
        for name, text in zip(names[:LISTED], [*about, *("" for _ in names)], strict=False)
    )
    more = ", ..." if len(names) > LISTED else ""
    if series:
        raise SeveralImages(f"there is no series {series!r} in it; there are {some}{more}", names)
    raise SeveralImages(f"there are {len(names)} {what} in it; choose one with series: {some}{more}", names)


def pick_level(level: int | None, shapes: Sequence[Sequence[int]]) -> int:
    """The level of a pyramid that is chosen, the finest without a choice.

    Raises
    ------
    Unreadable
        For a level that is not there, with those that are.
    """
    if level is None:
        return 0
    if not 0 <= level < len(shapes):
        some = ", ".join(f"{i} {tuple(shape)}" for i, shape in enumerate(shapes[:LISTED]))
        raise Unreadable(f"there is no level {level} in it; there are {some}")
    return level


def at_time(loaded: Loaded, time: int) -> Loaded:
    """The image at one point in time, without the axis of time.

    Raises
    ------
    Unreadable
        For an image without such an axis, and a point that is not on it.
    """
    geometry = loaded.geometry
    axis = next((i for i, one in enumerate(geometry.axes) if one.kind == "time"), None)
    if axis is None:
        raise Unreadable(f"it has no axis of time, but {', '.join(geometry.names)}; leave out time {time}")
    channel_axis = loaded.channel_axis
    at = axis + (channel_axis is not None and channel_axis <= axis)
    length = loaded.data.shape[at]
    if not 0 <= time < length:
        raise Unreadable(f"time must be from 0 to {length - 1}; got {time}")
    if isinstance(loaded.data, np.ndarray):
        data: Any = loaded.data[(slice(None),) * at + (time,)]
    else:
        data = Held(loaded.data, {at: time})
    if channel_axis is not None:
        channel_axis -= channel_axis > at
    spacing = loaded.spacing and tuple(step for i, step in enumerate(loaded.spacing) if i != axis)
    # The axes that a TIFF's header names are others now; a NIfTI's affine is of space alone.
    header = loaded.header if hasattr(loaded.header, "set_qform") else None
    return replace(
        loaded,
        data=data,
        geometry=geometry.squeeze([axis]),
        channel_axis=channel_axis,
        spacing=spacing,
        header=header,
    )
