"""What a child, or whoever stands in for it, may send instead of a message; and children that misbehave."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from functools import partial
from typing import Any

import msgpack

from hostile.bombs import zlib_bomb
from hostile.case import Attempt, Case
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.serving import wire
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.wire import MOST_REPLY, read

CODE = {kind.__name__: code for kind, code in wire._CODES.items()}


def frame(head: bytes, *parts: bytes, magic: bytes = b"LSEG", sizes: tuple[int, ...] | None = None) -> bytes:
    lengths = tuple(map(len, parts)) if sizes is None else sizes
    start = struct.pack("<4sII", magic, len(head), len(lengths))
    return start + struct.pack(f"<{len(lengths)}Q", *lengths) + head + b"".join(parts)


def ext(code: int, value: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, value if isinstance(value, bytes) else msgpack.packb(value))


def message(content: Any, *parts: bytes) -> bytes:
    return frame(msgpack.packb([1, "item", content]), *parts)


def array(place: Any, dtype: Any, shape: Any, *parts: bytes) -> bytes:
    return message(ext(1, [place, dtype, shape]), *parts)


def soft_mask(**changes: Any) -> bytes:
    fields = {
        "shape": [4, 5],
        "box": ext(3, [1, 1, 3, 4]),
        "packed": zlib.compress(bytes(6)),
        "quality": 0.5,
        "drawn": False,
    } | changes
    return message(ext(CODE["SoftMask"], list(fields.values())))


def row(raw: bytes, match: str = r"a message could not be read: ") -> Case:
    return Case(lambda folder: partial(read, io.BytesIO(raw), MOST_REPLY), match)


EXPECTED = r"expected a message, got "
TOO_LARGE = r"a message of \d+ bytes came; \d+ at most"
UNPACK = r"a soft mask that does not unpack to its box"

FRAMES = {
    "a web page": row(b"HTTP/1.1 200 OK\r\n\r\n<html>", EXPECTED),
    "zeros": row(bytes(100), EXPECTED),
    "a pickle": row(b"\x80\x05cos\nsystem\n(S'echo owned'\ntR.", EXPECTED),
    "another magic": row(frame(b"\x90", magic=b"LSEX"), EXPECTED),
    "a head of 4 GB": row(struct.pack("<4sII", b"LSEG", 2**32 - 1, 0) + b"x" * 99, EXPECTED),
    "a billion parts": row(struct.pack("<4sII", b"LSEG", 1, 10**9) + b"x" * 99, EXPECTED),
    "a part of 2^63 bytes": row(frame(b"\x90", sizes=(2**63,)), TOO_LARGE),
    "a part of 1 GB": row(frame(b"\x90", sizes=(2**30,)), TOO_LARGE),
    "parts that are too large together": row(frame(b"\x90", sizes=(2**26,) * 9), TOO_LARGE),
    "an empty head": row(frame(b"")),
    "a head that is no msgpack": row(frame(b"\xc1")),
    "a head that is cut": row(frame(msgpack.packb([1, "item", "x" * 40])[:-5])),
    "two heads": row(frame(msgpack.packb([1, "item", None]) * 2)),
    "a number": row(frame(msgpack.packb(7))),
    "a map": row(frame(msgpack.packb({"number": 1}))),
    "one value": row(frame(msgpack.packb([1]))),
    "four values": row(frame(msgpack.packb([1, "item", None, None]))),
    "a text as number": row(frame(msgpack.packb(["1", "item", None])), r"without a number and a kind"),
    "true as number": row(frame(msgpack.packb([True, "item", None])), r"without a number and a kind"),
    "a number as kind": row(frame(msgpack.packb([1, 2, None])), r"without a number and a kind"),
    "a text of 4 GB": row(frame(b"\x93\x01\xa4item\xdb\xff\xff\xff\xffx")),
    "a list of 4 billion": row(frame(b"\x93\x01\xa4item\xdd\xff\xff\xff\xff")),
    "a map of 4 billion": row(frame(b"\x93\x01\xa4item\xdf\xff\xff\xff\xff")),
    "lists 100,000 deep": row(frame(b"\x93\x01\xa4item" + b"\x91" * 100_000 + b"\x00")),
    "maps as keys": row(message({1: 2}).replace(b"\x81\x01\x02", b"\x81\x80\x02")),
    "a text that is no text": row(frame(b"\x93\x01\xa2\xff\xfe\xc0")),
    "a time": row(frame(b"\x93\x01\xa4item\xc7\x0c\xff" + b"\xff" * 12)),
    "an unknown type": row(message(ext(99, [1]))),
    "a type without a meaning": row(message(ext(5, [1]))),
    "an array of objects": row(array(0, "|O", [1], bytes(8)), r"an array of \|O"),
    "an array of records": row(array(0, [["a", "<i4"]], [1], bytes(8))),
    "an array of texts": row(array(0, "<U4", [1], bytes(16)), r"an array of <U4"),
    "an array of complex numbers": row(array(0, "<c8", [1], bytes(8)), r"an array of <c8"),
    "an array of times": row(array(0, "<M8[s]", [1], bytes(8)), r"an array of <M8"),
    "an array of an unknown type": row(array(0, "nonsense", [1], bytes(8))),
    "an array without its part": row(array(0, "<u1", [1])),
    "an array of part -1": row(array(-1, "<u1", [4], bytes(4)), r"an array of <u1"),
    "an array of part 7": row(array(7, "<u1", [4], bytes(4))),
    "an array of more than there is": row(array(0, "<u1", [2**40], bytes(4))),
    "an array of half numbers": row(array(0, "<u4", [1], bytes(3))),
    "an array of a negative shape": row(array(0, "<u1", [-2, -2], bytes(4)), r".*"),
    "an array of a shape of texts": row(array(0, "<u1", ["4"], bytes(4))),
    "an array of 100 axes": row(array(0, "<u1", [1] * 100, bytes(1))),
    "an array of two facts": row(message(ext(1, [0, "<u1"]))),
    "a box of three": row(message(ext(3, [1, 2, 3]))),
    "a box of texts": row(message(ext(3, ["1", "2", "3", "4"]))),
    "a box of 2^60": row(message(ext(3, [0, 0, 2**60, 1]))),
    "a negative box": row(message(ext(3, [-1, 0, 4, 4]))),
    "a path that is no text": row(message(ext(2, b"\xff\xfe"))),
    "a path with a zero": row(message(ext(CODE["Plane"], [ext(2, b"/a\0b")]))),
    "a plane of nothing": row(message(ext(CODE["Plane"], []))),
    "a plane of a text": row(message(ext(CODE["Plane"], ["x"]))),
    "a plane at -1": row(message(ext(CODE["Plane"], [[-1, None, None]]))),
    "a plane of three axes": row(message(ext(CODE["Plane"], [[None, None, None]]))),
    "a click at NaN": row(message(ext(CODE["Click"], [[float("nan"), 1.0], True]))),
    "a click of a text": row(message(ext(CODE["Click"], [["a", "b"], True]))),
    "a scribble of nothing": row(message(ext(CODE["Scribble"], [[], True]))),
    "a mask that is no array": row(message(ext(CODE["Mask"], [b"x", True]))),
    "a source with a text as key": row(
        message(ext(CODE["PlaneSource"], ["k", None, [1, 1], "n", None, [], 1.0]))
    ),
    "a request without a plane": row(message(ext(CODE["Request"], [1, 1, None, [], None]))),
    "a request of texts": row(
        message(ext(CODE["Request"], [1, 1, ext(CODE["Plane"], [[None, None]]), ["x"], None])),
        r"prompts that are",
    ),
    "a propagation of texts": row(
        message(ext(CODE["PropagationRequest"], [["x"], {}, {}, None, False])),
        r"a propagation without planes",
    ),
    "a soft mask of nothing": row(message(ext(CODE["SoftMask"], []))),
    "a soft mask without a box": row(soft_mask(box=[1, 1, 3, 4]), r"a SoftMask whose box is a tuple"),
    "a soft mask of a text": row(soft_mask(packed="x"), r"a SoftMask whose packed is a str"),
    "a soft mask of no zlib": row(soft_mask(packed=b"x")),
    "a soft mask that is cut": row(soft_mask(packed=zlib.compress(bytes(6))[:-2]), UNPACK),
    "a soft mask of too much": row(soft_mask(packed=zlib.compress(bytes(7))), UNPACK),
    "a soft mask of too little": row(soft_mask(packed=zlib.compress(bytes(5))), UNPACK),
    "a soft mask that is a bomb": row(soft_mask(packed=zlib_bomb(256)), UNPACK),
    "a soft mask of 255": row(soft_mask(packed=zlib.compress(b"\xff" * 6)), UNPACK),
    "a soft mask beside its plane": row(soft_mask(box=ext(3, [1, 1, 9, 9])), r"a soft mask with the box"),
    "a soft mask backwards": row(soft_mask(box=ext(3, [3, 4, 1, 1])), r"a soft mask with the box"),
    "a soft mask of 2^39 pixels": row(
        soft_mask(shape=[2**20, 2**20], box=ext(3, [0, 0, 2**20, 2**19])), r"a soft mask with the box"
    ),
    "a soft mask of three axes": row(soft_mask(shape=[4, 5, 6])),
    "a soft mask of half pixels": row(soft_mask(shape=[4.0, 5.0])),
    "a soft mask drawn by 1": row(soft_mask(drawn=1), r"a SoftMask whose drawn is a int"),
    "a soft mask of a quality of text": row(soft_mask(quality="good"), r"whose quality is a str"),
    "a propagated mask without a mask": row(
        message(
            ext(CODE["PropagatedMask"], [ext(CODE["Plane"], [[None, None]]), None, 0.5, True, 0, "", []])
        ),
        r"whose prediction",
    ),
    "a refused plane without pixels": row(
        message(ext(CODE["RefusedPlane"], [ext(CODE["Plane"], [[None, None]]), 0.5, 1.5, "no"])),
        r"whose pixels",
    ),
}


def truncated(raw: bytes) -> list[bytes]:
    """A message cut at every place: the stream has ended, nothing else."""
    return [raw[:stop] for stop in range(len(raw))]


# --- children --------------------------------------------------------------------------------------------

TALK = """
import os, sys, time
from napari_lowlat_seg.serving.wire import HELLO, Message, read, write
from napari_lowlat_seg.core.masks import SoftMask
import numpy as np
source, out = os.fdopen(0, "rb", 0), os.fdopen(os.dup(1), "wb", 0)
def say(*message): write(out, Message(*message))
def hear(): return read(source, 1 << 30)
def loaded():
    out.write(HELLO)
    say(hear().number, "item", {{"model": "fake"}})
    say(1, "end")
    return hear()
{}
"""


class Child(PredictionProcess):
    """A process whose child runs this code."""

    def __init__(self, code: str) -> None:
        super().__init__("fake", "cpu")
        self.command = [sys.executable, "-c", TALK.format(code)]

    def _started(self) -> Any:
        from napari_lowlat_seg.serving.worker_process import WorkerProcess

        return WorkerProcess(self.command, {"OMP_NUM_THREADS": "1"})


def asked(code: str, what: str = "embed") -> Attempt:
    """Ask such a child something, and end it."""
    import numpy as np

    process = Child(code)
    source = PlaneSource(0, lambda: np.zeros((4, 5), np.uint8))

    def attempt() -> object:
        try:
            if what == "embed":
                return process.embed(source)
            request = Request(1, 1, Plane((None, None)), (Click((1, 1)),), None)
            return list(process.predict(request, source))
        finally:
            process.close()

    return attempt


def child(code: str, match: str, what: str = "embed") -> Case:
    return Case(lambda folder: asked(code, what), match)


CHILDREN = {
    "a child that talks of something else": child(
        "print('hello ' * 20_000)", r"ended, because expected a greeting"
    ),
    "a child of noise": child("out.write(os.urandom(2**20))", r"was ended, because expected a greeting"),
    "a child of another version": child(
        "out.write(HELLO[:20] + b' 999\\n'); time.sleep(60)", r"it speaks another version of the protocol"
    ),
    "a child that ends": child("sys.exit(7)", r"has ended with exit status 7"),
    "a child that ends when it should load": child("out.write(HELLO); hear(); sys.exit(0)", r"exit status 0"),
    "a child that sends no message": child(
        "loaded(); out.write(b'x' * 999)", r"because expected a message, got b'xxxx'"
    ),
    "a child that sends a message of 1 TB": child(
        "loaded(); import struct; out.write(struct.pack('<4sIIQ', b'LSEG', 1, 1, 2**40)); time.sleep(60)",
        r"because a message of \d+ bytes came",
    ),
    "a child that floods": child(
        "loaded()\nwhile True: say(999, 'item', 'x' * 1000)", r"sent messages that nobody asked for"
    ),
    "a child that answers with a text": child(
        "say(loaded().number, 'item', 'done')", r"something else than was asked"
    ),
    "a child that answers with true": child(
        "say(loaded().number, 'item', True)", r"something else than was asked"
    ),
    "a child whose facts are a list": child(
        "out.write(HELLO); say(hear().number, 'item', [1]); say(1, 'end'); hear()",
        r"did not say what it has loaded",
    ),
    "a child that calls what it may not": child(
        "say(loaded().number, 'system', ('echo owned',)); hear()",
        r"a message of an unknown kind \('system'\)",
    ),
    "a child that reads without a place": child(
        "say(loaded().number, 'read'); hear()", r"of an unknown kind \('read'\)"
    ),
    "a child that reads plane 1": child(
        "say(loaded().number, 'read', (1,)); hear()", r"asked for plane 1 of 1"
    ),
    "a child that reads plane -1": child(
        "say(loaded().number, 'read', (-1,)); hear()", r"asked for plane -1 of 1"
    ),
    "a child that reads 'x'": child(
        "say(loaded().number, 'read', ('x',)); hear()", r"asked for plane 'x' of 1"
    ),
    "a child that gives up without a reason": child(
        "say(loaded().number, 'failed'); hear()", r"gave up for a call that has not failed"
    ),
    "a child that fails without saying how": child(
        "say(loaded().number, 'error', 7); hear()", r"failed without saying how"
    ),
    "a child that ends the reading": child(
        "say(loaded().number, 'error', (('StopIteration',), 'enough', '')); hear()", r"^enough$"
    ),
    "a child that sends a mask alone": child(
        "say(loaded().number, 'item', SoftMask.from_mask(np.ones((4, 5), bool))); hear()",
        r"something else than was asked",
        "predict",
    ),
    "a child that sends half an answer": child(
        "say(loaded().number, 'item', (None, True)); hear()", r"something else than was asked", "predict"
    ),
    "a child that stops itself": child(
        "loaded(); import signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)",
        r"was ended by SIGTERM",
    ),
    "a child that closes its output": child(
        "loaded(); out.close(); os.close(1); time.sleep(600)", r"was killed"
    ),
}

CASES: dict[str, Case] = FRAMES | CHILDREN
