"""The packed masks of the merged COCO + LVIS annotation, read without trusting the files.

The annotation is published as pickles, and a pickle is a program: the standard loader imports and calls whatever the
file names. Here a file may only build plain containers, numbers, strings and bytes. The few numpy names that such
files contain are answered by stand-ins of our own, which check type, length and shape before numpy sees a byte; any
other name is refused. Masks inside are PNG pictures, decoded by Pillow with its limit on the number of pixels.
What remains possible is a file that makes us use much memory; nothing in it can run.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

LAYER = 1 << 16  # an object's code is layer * LAYER + its value in that layer
_KINDS = {"b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"}


def read_index(path: Path) -> list[tuple[str, int]]:
    """Picture names and their numbers of instances (later entries of a picture's list are 'stuff'), by name.

    Raises:
        ValueError: if the file is damaged, not an index, or names anything but plain data.
    """
    index = _load(path)
    try:
        return sorted((str(name), int(entry["num_instance_masks"])) for name, entry in index.items())
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ValueError(
            f"expected {path} to map picture names to entries with num_instance_masks: {problem!r}"
        ) from problem


def read_codes(path: Path) -> list[int]:
    """The code of every object of one picture, in the annotation's order.

    Raises:
        ValueError: if the file is damaged, or holds or names anything but packed masks.
    """
    return _halves(path)[1]


def read_layers(path: Path) -> np.ndarray:
    """(L, H, W) integer layers of one picture; objects that overlap lie in different layers.

    Raises:
        ValueError: as `read_codes`.
    """
    layers = []
    for raw in _halves(path)[0]:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as picture:
            layers.append(np.asarray(picture))
    return np.stack(layers)


def _halves(path: Path) -> tuple[list[bytes], list[int]]:
    """The PNG files and the object codes of one picture."""
    content = _load(path)
    try:
        encoded, places = content  # type: ignore[misc]
        raws = [code.values.tobytes() if isinstance(code, _Array) else bytes(code) for code in encoded]
        pairs = (
            places.values()
            if isinstance(places, dict)
            else places.values
            if isinstance(places, _Array)
            else places
        )
        return raws, [int(layer) * LAYER + int(value) for layer, value in pairs]
    except (TypeError, ValueError) as problem:
        raise ValueError(
            f"expected {path} to hold PNG layers and a (layer, value) pair an object: {problem}"
        ) from problem


def _load(path: Path) -> object:
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin1").load()
    except OSError as problem:
        raise ValueError(f"expected an annotation file at {path}: {problem.strerror}") from problem
    except Exception as problem:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} is not an annotation of plain numbers and arrays: {problem}") from problem


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain data and plain arrays; imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        module = module.replace("numpy._core", "numpy.core")
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused") from None


class _Kind:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *rest: object) -> None:
        if code.lstrip("|<>=") not in _KINDS:
            raise pickle.UnpicklingError(f"an array of type {code!r}, which is refused")
        self.order, self.code = "<", code.lstrip("|<>=")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def array(self, raw: bytes, shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
        kind = np.dtype(self.order + self.code)
        if any(side < 0 for side in shape) or len(raw) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError(f"an array of shape {shape} with {len(raw)} bytes")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


class _Array:
    """Stands for numpy.ndarray; holds the real one once the pickle has filled it."""

    def __init__(self, *placeholder: object) -> None:
        self.values = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Kind, bool, bytes]) -> None:
        _, shape, kind, fortran, raw = state
        self.values = kind.array(raw, shape, fortran)


def _from_buffer(raw: bytes, kind: _Kind, shape: tuple[int, ...], order: str) -> _Array:
    filled = _Array()
    filled.values = kind.array(bytes(raw), shape, order == "F")
    return filled


def _scalar(kind: _Kind, raw: bytes) -> object:
    return kind.array(raw, ()).item()


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for codecs.encode, which old pickles use to write bytes."""
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): dict,
}
