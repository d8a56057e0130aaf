"""The closed format between two processes: what it carries, and what it refuses."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile.case import sentence
from hostile.messages import CHILDREN, FRAMES, soft_mask, truncated
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.core.requests import FoundOnPlane, PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.propagation.sweep import PropagatedMask, RefusedPlane
from napari_lowlat_seg.serving import wire, worker_process
from napari_lowlat_seg.serving.wire import HELLO, MOST_REPLY, Message, ProtocolError, find_hello, read, write

PLANE = Plane((3, None, None))
SOFT = SoftMask.of(np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10), 0.7)
PROMPTS = (
    Click((1, 2.5)),
    Scribble(((1, 2), (3, 4)), positive=False),
    Box((1, 2), (3, 4)),
    Polygon(((1, 2), (3, 4), (5, 1))),
    Mask(np.eye(4, dtype=bool)),
    Mask(np.full((2, 3), 0.5, np.float32), positive=False),
)


def there_and_back(value: Any) -> Any:
    stream = io.BytesIO()
    write(stream, Message(7, "item", value))
    stream.seek(0)
    message = read(stream, MOST_REPLY)
    assert message is not None
    assert (message.number, message.kind) == (7, "item")
    assert read(stream, MOST_REPLY) is None
    return message.content


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    if type(one) in wire._FIELDS:
        return type(one) is type(other) and all(
            same(getattr(one, name), getattr(other, name)) for name in wire._FIELDS[type(one)]
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(
    "value",
    [
        None,
        (1, -(2**40), 2.5, "a", b"b", True, ()),
        {"a": (1, {"b": None}), 3: "c", PLANE: SOFT},
        (Path("/a/b"), BoundingBox(1, 2, 3, 4), PLANE),
        *PROMPTS,
        SOFT,
        SoftMask.from_mask(np.zeros((3, 4), bool)),
        Request(3, 1, PLANE, PROMPTS, SOFT),
        Request(0, 1, Plane(), (), None),
        PlaneSource(5, wire.unreadable, (0.0, 9.5), (1.0, 2.0), "z 3", PLANE, (Path("/e"),), 2.5),
        PropagationRequest(
            (PLANE, PLANE.moved(1)), {2: {PLANE: SOFT}}, {4: (PLANE, PROMPTS[0])}, (PLANE,), True
        ),
        PropagatedMask(PLANE, SOFT, 0.5, False, 0, "plane 3 is blank"),
        PropagatedMask(PLANE, SOFT, 0.5, False, 1, "blank", (RefusedPlane(PLANE, 0.4, 12, "is dark"),)),
        FoundOnPlane(3, 9),
        FoundOnPlane(9, 9, np.array([[0, 2], [1, 1]], np.uint32), np.array([0.5, 0.25], np.float32)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_that_travels_arrives_as_it_was(value: Any) -> None:
    """Type, fields and order."""
    assert same(value, there_and_back(value))


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.recursive(PLAIN, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)))
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    """Nested as deep as may be."""
    assert same(value, there_and_back(value))


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", ">u2", "<i4", ">i8", "<u8", "<f2", "<f4", ">f4", "<f8"]
)
def test_arrays_arrive_bit_for_bit(dtype: str) -> None:
    """In any order in memory, also empty ones and single numbers."""
    whole = np.random.default_rng(0).integers(0, 100, (6, 8)).astype(dtype)
    for array in (whole, whole[::2, ::-1], np.asfortranarray(whole), whole[:0], np.array(whole[0, 0])):
        back = there_and_back(array)
        assert same(np.asarray(array), back)
        assert back.flags.writeable


def test_numbers_of_numpy_become_plain_ones() -> None:
    """As every reader of a message expects."""
    back = there_and_back((np.float64(0.5), np.uint8(3), np.bool_(True), np.longdouble(2)))
    assert back == (0.5, 3, True, 2.0)
    assert [type(value) for value in back[:3]] == [float, int, bool]
    assert there_and_back(np.ones(2, np.longdouble)).dtype == np.float64


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "a object cannot be sent"),
        (datetime(2026, 1, 1), "a datetime cannot be sent"),
        ({1, 2}, "a set cannot be sent"),
        (np.array([1j]), "expected real numbers as pixels, got complex128"),
        (np.array([None]), "expected real numbers as pixels, got object"),
        (np.array(["a"]), "expected real numbers as pixels, got <U1"),
    ],
)
def test_nothing_else_is_sent(value: Any, message: str) -> None:
    """It is refused here, before the other side has heard anything."""
    stream = io.BytesIO()
    with pytest.raises(ValueError, match=message):
        write(stream, Message(1, "item", (value,)))
    assert stream.getvalue() == b""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (FoundOnPlane(9, 3), "a part of the clicks"),
        (FoundOnPlane(1, 1, np.zeros((2, 2), np.uint32)), "labels with scores, or neither"),
        (FoundOnPlane(1, 1, np.ones((2, 2), np.uint32), np.zeros(2, np.float32)), "expected 2 labels"),
        (FoundOnPlane(1, 1, np.ones(2, np.uint32), np.zeros(1, np.float32)), "expected 1 labels of a plane"),
    ],
)
def test_found_objects_of_another_kind_are_refused(found: FoundOnPlane, message: str) -> None:
    """Labels are those of a plane, each with a score."""
    with pytest.raises(ProtocolError, match=message):
        there_and_back(found)


def test_the_table_names_the_fields_there_are() -> None:
    """All of them but what does not travel."""
    for kind, known in wire._FIELDS.items():
        assert [f.name for f in fields(kind) if f.init and f.name != "read"] == list(known), kind


@pytest.mark.parametrize("name", FRAMES)
def test_what_is_no_message_is_refused(name: str, tmp_path: Path) -> None:
    """In one sentence, before memory is taken for it."""
    assert re.search(FRAMES[name].match, sentence(FRAMES[name].prepare(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_that_misbehaves_is_ended(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason; its parent goes on."""
    monkeypatch.setattr(worker_process, "MOST_STRAY", 100)
    assert re.search(CHILDREN[name].match, sentence(CHILDREN[name].prepare(tmp_path)))


def test_a_message_that_is_cut_is_the_end() -> None:
    """Wherever: the other side has gone."""
    for raw in truncated(soft_mask()):
        assert read(io.BytesIO(raw), MOST_REPLY) is None


def test_a_login_that_talks_is_skipped() -> None:
    """Up to the greeting, which may come in the middle of a line."""
    stream = io.BytesIO(b"Welcome!\nLast login: today\n" + HELLO + b"rest")
    assert find_hello(stream)
    assert stream.read() == b"rest"
    assert not find_hello(io.BytesIO(b"Welcome"))
    with pytest.raises(ProtocolError, match="expected a greeting"):
        find_hello(io.BytesIO(b"x" * 10**6))


@given(st.binary(max_size=200), st.integers(0, 200))
def test_noise_raises_nothing_else(noise: bytes, at: int) -> None:
    """Bytes put anywhere into a good message."""
    good = soft_mask()
    at = min(at, len(good))
    for raw in (good[:at] + noise + good[at:], good[:at] + noise + good[at + len(noise) :]):
        with suppress(ProtocolError):
            read(io.BytesIO(raw), MOST_REPLY)
