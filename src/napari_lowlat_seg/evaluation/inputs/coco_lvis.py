"""Packed masks of the merged COCO + LVIS annotation, read safely from pickle files.

A pickle can run any code when the standard loader reads it. Here a file may only build plain containers,
numbers, strings and bytes. The few numpy names that such files contain are replaced by classes that check
type, length and shape before numpy reads a byte; any other name is refused. Masks are PNG pictures, decoded
by Pillow with its limit on the number of pixels. A malicious file may use much memory, but runs nothing.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LAYER = 1 << 16  # an object's code is layer * LAYER + its value in that layer
_KINDS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}


def read_index(path: Path) -> list[tuple[str, int]]:
    """Read picture names and their numbers of instances, by name; later objects of a picture are 'stuff'.

    Raises
    ------
    ValueError
        If the file is damaged, not an index, or names anything but plain data.
    """
    index = _load(path)
    try:
        return sorted((str(name), int(entry["num_instance_masks"])) for name, entry in index.items())
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(
            f"expected {path} to map picture names to entries with num_instance_masks: {problem!r}"
        ) from problem


def read_codes(path: Path) -> list[int]:
    """Read the code of every object of one picture, in the annotation's order.

    Raises
    ------
    ValueError
        If the file is damaged, or holds or names anything but packed masks.
    """
    return _halves(path)[1]


def read_layers(path: Path) -> np.ndarray:
    """Read the (L, H, W) integer layers of one picture; overlapping objects are in different layers.

    Raises
    ------
    ValueError
        As `read_codes`.
    """
    try:
        return np.stack([_decoded(png) for png in _halves(path)[0]])
    except (OSError, ValueError) as problem:
        raise ValueError(f"expected PNG layers of one size in {path}: {problem}") from problem


def _decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        return np.asarray(picture)


def _halves(path: Path) -> tuple[list[bytes], list[int]]:
    """The PNG files and the object codes of one picture."""
    content = _load(path)
    try:
        encoded, places = content
        pairs = places.values() if isinstance(places, dict) else _values(places)
        return [memoryview(_values(png)).tobytes() for png in encoded], [
            int(layer) * LAYER + int(value) for layer, value in pairs
        ]
    except (TypeError, ValueError) as problem:
        raise ValueError(f"expected PNG layers and (layer, value) pairs in {path}: {problem}") from problem


def _values(maybe_array: Any) -> Any:
    return maybe_array.values if isinstance(maybe_array, _Array) else maybe_array


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except OSError as problem:
        raise ValueError(f"expected an annotation file at {path}: {problem.strerror}") from problem
    except Exception as problem:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} is not an annotation of plain numbers and arrays: {problem}") from problem


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain data and arrays; imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy._core", "numpy.core")
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused") from None


class _StandIn:
    """Replaces a name that a pickle asks for; a class, because a pickle can set attributes of functions."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError(f"state for a {type(self).__name__}, which has none")


class _Kind(_StandIn):
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *rest: object) -> None:
        self.order, self.code = "<", code.lstrip("|<>=")
        if self.code not in _KINDS:
            raise pickle.UnpicklingError(f"an array of type {code!r}, which is refused")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def array(self, raw: bytes, shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
        """Return the array of these bytes; raises unless their number fits the shape."""
        kind = np.dtype(self.order + self.code)
        if any(side < 0 for side in shape) or len(raw) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(raw)} bytes")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


class _Array(_StandIn):
    """Stands for numpy.ndarray; holds the real one once the pickle has filled it."""

    def __init__(self, *placeholder: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _, shape, kind, fortran, raw = state
        self.values = kind.array(raw, shape, fortran)


class _Filled(_Array):
    """Stands for the function that newer pickles fill an array with."""

    def __init__(self, raw: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> None:
        self.values = kind.array(raw, shape, order == "F")


class _Scalar(_StandIn):
    """Stands for numpy's scalars; made into a plain number."""

    def __new__(cls, kind: _Kind, raw: bytes) -> Any:
        return kind.array(raw, ()).item()


class _Bytes(_StandIn):
    """Stands for codecs.encode, which old pickles write bytes with."""

    def __new__(cls, text: str, encoding: str) -> Any:
        return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _Filled,
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): dict,
}
