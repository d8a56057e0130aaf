"""Broken files, and such as somebody could make to harm: a table of makers, with what must be said of each.

Each maker writes one input into an empty folder and gives back its path. All are small.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hostile.bombs import bomb, gzip_bomb, zlib_bomb

Maker = Callable[[Path], Path]
CASES: dict[str, tuple[Maker, str]] = {}
NOISE = np.random.default_rng(0).integers(0, 200, (3, 8, 10)).astype(np.uint8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"


def case(name: str, sentence: str = "cannot be read") -> Callable[[Maker], Maker]:
    """Enter a maker in the table."""

    def enter(maker: Maker) -> Maker:
        assert name not in CASES, name
        CASES[name] = maker, sentence
        return maker

    return enter


def raw(name: str, content: bytes, sentence: str = "cannot be read", file: str = "") -> None:
    """A case that is nothing but bytes."""

    def make(folder: Path) -> Path:
        path = folder / (file or name.split(": ")[-1])
        path.write_bytes(content)
        return path

    case(name, sentence)(make)


def pipe(name: str) -> None:
    """A case that is a pipe, which nobody writes to."""

    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    case(f"pipe: {name}", "no regular file|no image file")(make)


# Any format: empty, text, and pipes ----------------------------------------------------------------------

SUFFIXES = ("nii", "nii.gz", "tif", "ome.tif", "svs", "png", "jpg", "gif", "bmp", "webp", "jp2", "nrrd",
            "nhdr", "mha", "mhd", "mrc", "mrc.gz", "mgz", "mnc", "img", "par", "h5", "npy", "npz",
            "dcm")  # fmt: skip
for suffix in SUFFIXES:
    raw(f"empty: a.{suffix}", b"")
    raw(f"text: a.{suffix}", b"this is no image\n" * 100)
for suffix in ("nii.gz", "tif", "png", "nrrd", "mha", "mrc", "h5", "npy", "npz"):
    pipe(f"a.{suffix}")


# NIfTI -----------------------------------------------------------------------------------------------------


def nifti(dim: list[int] | None = None, datatype: int = 2, bits: int = 8, offset: float = 352) -> bytes:
    """A header of NIfTI-1 with what it declares."""
    head = bytearray(352)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *(dim or [3, 10, 8, 3, 1, 1, 1, 1]))
    struct.pack_into("<2h", head, 70, datatype, bits)
    struct.pack_into("<8f", head, 76, *[1.0] * 8)
    struct.pack_into("<f", head, 108, offset)
    head[344:348] = b"n+1\0"
    return bytes(head)


HUGE = [3, 30000, 30000, 3000, 1, 1, 1, 1]
raw(
    "nifti: more than a gzip can hold.nii.gz",
    gzip.compress(nifti(HUGE) + NOISE.tobytes()),
    "cannot hold them",
)
raw(
    "nifti: far more behind the pixels.nii.gz",
    gzip_bomb(nifti(), 190),
    "unpacks to far more",
)
raw(
    "nifti: fewer pixels.nii.gz",
    gzip.compress(nifti() + bytes(100)),
    "declares 592 bytes of pixels and holds 452",
)
raw("nifti: fewer pixels.nii", nifti() + bytes(100))
raw("nifti: huge.nii", nifti(HUGE) + bytes(100), "cannot hold them")
raw("nifti: every side.nii", nifti([7, *[32767] * 7]) + bytes(100), "cannot hold them")
raw("nifti: every side.nii.gz", gzip.compress(nifti([7, *[32767] * 7]) + bytes(100)), "cannot hold them")
raw("nifti: negative side.nii", nifti([3, -10, 8, 3, 1, 1, 1, 1]) + NOISE.tobytes())
raw("nifti: nine axes.nii", nifti([9, *[2] * 7]) + NOISE.tobytes())
raw("nifti: no axes.nii", nifti([0, *[2] * 7]) + NOISE.tobytes(), "needs at least 2")
raw("nifti: unknown type.nii", nifti(datatype=999) + NOISE.tobytes())
raw("nifti: pixels far away.nii", nifti(offset=1e12) + NOISE.tobytes())
raw("nifti: pixels nowhere.nii", nifti(offset=float("nan")) + NOISE.tobytes())
raw("nifti: pixels before the file.nii", nifti(offset=-900) + NOISE.tobytes())
raw("nifti: cut gzip.nii.gz", gzip.compress(nifti() + NOISE.tobytes())[:-20])
raw("nifti: wrong checksum.nii.gz", gzip.compress(nifti() + NOISE.tobytes())[:-8] + bytes(8))
raw("nifti: gzip in gzip.nii.gz", gzip.compress(gzip.compress(nifti() + NOISE.tobytes())))


# TIFF ------------------------------------------------------------------------------------------------------


def tiff(tags: dict[int, tuple[int, int, int]], more: bytes = b"", following: int = 0) -> bytes:
    """A little TIFF of one page: (type, count, value) by tag; `more` lies at byte 1000."""
    entries = b"".join(struct.pack("<2H2I", tag, *value) for tag, value in sorted(tags.items()))
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", following)
    return head.ljust(1000, b"\0") + more


def page(**changed: int) -> dict[int, tuple[int, int, int]]:
    """Tags of a gray page of 10 x 8 bytes that lie at byte 1000."""
    value = {"width": 10, "length": 8, "bits": 8, "compression": 1, "photometric": 1, "offset": 1000,
             "samples": 1, "rows": 8, "count": 80} | changed  # fmt: skip
    numbers = {"width": 256, "length": 257, "bits": 258, "compression": 259, "photometric": 262,
               "offset": 273, "samples": 277, "rows": 278, "count": 279, "tile_width": 322,
               "tile_length": 323, "tile_offset": 324, "tile_count": 325}  # fmt: skip
    return {numbers[name]: (4, 1, number) for name, number in value.items()}


PACKED = zlib.compress(bytes(80))
SQUARE = {"width": 100_000, "length": 100_000, "rows": 100_000}
TIFFS = {
    "wider than the file": (page(width=2**31 - 1), b"cannot hold them|damaged"),
    "longer than the file": (page(length=2**31 - 1, rows=2**31 - 1), b"cannot hold them|damaged"),
    "more than zlib can hold": (page(compression=8, **SQUARE), b"cannot hold them"),
    "more than LZW can hold": (page(compression=5, **SQUARE), b"cannot hold them"),
    "more than PackBits can hold": (page(compression=32773, **SQUARE), b"cannot hold"),
    "a tile of a million": (page(compression=34925, tile_width=2**20, tile_length=2**20, tile_offset=1000,
                                 tile_count=80, width=2**20, length=2**20), b"cannot be read"),
    "no width": (page(width=0), b"cannot be read"),
    "no bits": (page(bits=0), b"needs at least one voxel"),
    "255 bits": (page(bits=255), b"needs at least one voxel"),
    "unknown compression": (page(compression=9999), b"cannot be read"),
    "pixels far away": (page(offset=2**31), b"cannot be read"),
    "as many samples as can be": (page(samples=65535), b"cannot be read"),
    "rows of nothing": (page(rows=0, compression=8), b"cannot be read"),
}  # fmt: skip
for name, (tags, sentence) in TIFFS.items():
    raw(f"tiff: {name}.tif", tiff(tags, PACKED.ljust(80, b"\0")), sentence.decode())
raw("tiff: pages in a circle.tif", tiff(page(), bytes(80), following=8), "lead in a circle")
raw("tiff: page beyond the file.tif", struct.pack("<2sHI", b"II", 42, 2**31))
raw(
    "tiff: a tag of four billion.tif",
    tiff({**page(), 270: (2, 2**32 - 1, 1000)}, bytes(80)).replace(b"II", b"II", 1)[:900],
)


def ome(folder: Path, xml: str, name: str = "a.ome.tif") -> Path:
    """An OME-TIFF of three planes whose metadata are replaced."""
    import tifffile

    with tifffile.TiffWriter(folder / name) as file:
        for i, plane in enumerate(NOISE):
            file.write(plane, description=xml if i == 0 else "", metadata=None, contiguous=False)
    return folder / name


def ome_xml(z: Any = 3, more: str = "", x: Any = 10, data: str = "<TiffData/>") -> str:
    """OME metadata of one image."""
    return (f'<?xml version="1.0"?>{more}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{x}" '
            f'SizeY="8" SizeZ="{z}" SizeC="1" SizeT="1">{data}</Pixels></Image></OME>')  # fmt: skip


def part(file: str) -> str:
    """A plane that lies in another file."""
    return f'<TiffData IFD="0" PlaneCount="3"><UUID FileName="{file}">urn:uuid:1</UUID></TiffData>'


for name, xml, sentence in (
    ("a billion planes", ome_xml(10**9), "declare 1000000000 planes, there are 3 pages"),
    ("four planes", ome_xml(4), "declare 4 planes, there are 3 pages"),
    ("fewer than none", ome_xml(-3), "declare -3 planes"),
    ("no number", ome_xml("many"), "cannot be read"),
    ("another width", ome_xml(3, x=11), "cannot be read"),
    ("entities", ome_xml(3, '<!DOCTYPE a [<!ENTITY b "bb">]>'), "define entities"),
    ("part above", ome_xml(3, data=part("../b.tif")), "which is not in its folder"),
    ("part anywhere", ome_xml(3, data=part("/etc/passwd")), "which is not in its folder"),
    ("part missing", ome_xml(3, data=part("b.tif")), "which is not beside it"),
    ("part in a folder", ome_xml(3, data=part("sub/b.tif")), "which is not in its folder"),
):
    case(f"ome: {name}", sentence)(lambda folder, xml=xml: ome(folder, xml))  # type: ignore[misc]


@case("ome: part that is a link out", "which is not in its folder")
def _linked_part(folder: Path) -> Path:
    (folder / "in").mkdir()
    shutil.copy(ome(folder, "", "b.tif"), folder / "out.tif")
    (folder / "in" / "b.tif").symlink_to(folder / "out.tif")
    return ome(folder / "in", ome_xml(3, data=part("b.tif")))


@case("ome: part that is a pipe", "no regular file")
def _piped_part(folder: Path) -> Path:
    os.mkfifo(folder / "b.tif")
    return ome(folder, ome_xml(3, data=part("b.tif")))


# Pictures --------------------------------------------------------------------------------------------------


def png(width: int, height: int, pixels: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A gray PNG."""
    head = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


for suffix in ("png", "jpg", "gif", "bmp", "webp", "jp2"):
    raw(f"eps: a.{suffix}", EPS)
raw("picture: PSD.png", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(40))
raw("picture: TGA.png", struct.pack("<3B2HB4H2B", 0, 0, 2, 0, 0, 0, 0, 0, 4, 4, 24, 0) + bytes(48))
raw("picture: PPM.png", b"P6 4 4 255 " + bytes(48))
raw("picture: SVG.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>")
raw("picture: PDF.png", b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n")
raw("picture: a hundred thousand squared.png", png(100_000, 100_000, bytes(100)))
raw("picture: two billion squared.png", png(2**31 - 1, 2**31 - 1, bytes(100)))
raw("picture: more than it holds.png", png(10_000, 10_000, bytes(100)), "cannot hold them")
raw(
    "picture: text that unpacks.png",
    png(10, 8, bytes(88), (b"zTXt", b"a\0\0" + zlib_bomb(76))),
)
raw("picture: cut.png", png(10, 8, bytes(88))[:45])
raw("picture: wrong sum.png", png(10, 8, bytes(88)).replace(b"IDAT", b"IDAT\1", 1))
raw(
    "picture: huge.bmp",
    b"BM"
    + struct.pack("<I4xI", 100, 54)
    + struct.pack("<Iii2H6I", 40, 2**30, 2**30, 1, 8, *[0] * 6)
    + bytes(60),
)
raw(
    "picture: huge.jpg",
    b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0" + bytes(20),
)


# numpy -----------------------------------------------------------------------------------------------------


def npy(text: str, content: bytes = b"") -> bytes:
    """An .npy with a header of one's own."""
    head = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + content


def npz(members: dict[str, bytes], **declared: int) -> bytes:
    """An .npz of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


PLAIN = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (3, 8, 10), }", NOISE.tobytes())
OBJECT = io.BytesIO()
np.save(OBJECT, np.array([{"a": 1}, 2], object), allow_pickle=True)
raw("numpy: objects.npy", OBJECT.getvalue())
raw("numpy: objects.npz", npz({"a.npy": OBJECT.getvalue()}))
raw("numpy: a pickle.npy", pickle.dumps({"a": 1}))
raw("numpy: a pickle.npz", pickle.dumps({"a": 1}))
raw("numpy: code.npy", npy("__import__('os').system('id')"))
raw(
    "numpy: huge.npy",
    npy("{'descr': '|u1', 'fortran_order': False, 'shape': (30000, 30000, 9000), }", bytes(80)),
)
raw(
    "numpy: beyond counting.npy",
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9), }"),
)
raw("numpy: negative.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-3, 8), }", bytes(80)))
raw(
    "numpy: words.npy",
    npy("{'descr': '<U9', 'fortran_order': False, 'shape': (2, 2), }", bytes(144)),
    "needs real numbers",
)
raw("numpy: long header.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + bytes(100))
raw("numpy: version 9.npy", b"\x93NUMPY\x09\0" + PLAIN[8:])
raw(
    "numpy: huge.npz",
    npz({"a.npy": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (30000, 30000, 9000), }")}),
)
raw("numpy: nothing.npz", npz({}))
raw("numpy: two.npz", npz({"a.npy": PLAIN, "b.npy": PLAIN}), "choose one with series: a, b")
raw("numpy: cut.npz", npz({"a.npy": PLAIN})[:-30])
raw("numpy: no array.npz", npz({"a.npy": b"text"}))


def _declared(size: int) -> bytes:
    """An .npz whose directory declares another size."""
    content = bytearray(npz({"a.npy": PLAIN}))
    at = content.rindex(b"PK\1\2")
    struct.pack_into("<I", content, at + 24, size)
    return bytes(content)


raw("numpy: declares 4 GiB.npz", _declared(2**32 - 2), "cannot hold them")


# NRRD and MetaImage ----------------------------------------------------------------------------------------


def nrrd(content: bytes = NOISE.tobytes(), **changed: Any) -> bytes:
    """A NRRD; None leaves a field out."""
    fields = {"type": "uint8", "dimension": 3, "sizes": "10 8 3", "encoding": "raw"}
    fields |= {name.replace("_", " "): value for name, value in changed.items()}
    lines = "".join(f"{name}: {value}\n" for name, value in fields.items() if value is not None)
    return f"NRRD0004\n{lines}\n".encode() + content


NRRDS: dict[str, tuple[bytes, str]] = {
    "huge": (nrrd(sizes="30000 30000 3000"), "declares 2.5 TiB of pixels, the file holds 240 bytes"),
    "beyond counting": (nrrd(sizes="9223372036854775807 9223372036854775807 9"), "cannot be read"),
    "huge gzip": (
        nrrd(gzip.compress(bytes(99)), encoding="gzip", sizes="30000 30000 3000"),
        "cannot hold them",
    ),
    "huge bzip2": (nrrd(bz2.compress(bytes(99)), encoding="bzip2", sizes="300000 30000 30000"), "of memory"),
    "huge text": (nrrd(b"1 2 3", encoding="ascii", sizes="30000 30000 3000"), "cannot hold them"),
    "short gzip": (
        nrrd(gzip.compress(bytes(99)), encoding="gzip"),
        "declares 240 bytes of pixels and holds 99",
    ),
    "short text": (nrrd(b"1 2 3 " * 90, encoding="ascii", sizes="10 8 9"), "cannot be read"),
    "far more behind": (nrrd(gzip_bomb(b"", 190), encoding="gzip"), "unpacks to far more"),
    "no gzip": (nrrd(encoding="gzip"), "cannot be read"),
    "unknown encoding": (nrrd(encoding="zrl"), "cannot be read"),
    "unknown type": (nrrd(type="quaternion"), "holds no numbers"),
    "blocks": (nrrd(type="block", block_size=8), "holds no numbers"),
    "sizes of another dimension": (nrrd(dimension=2), "cannot be read"),
    "a side of 0": (nrrd(sizes="10 0 3"), "cannot be read"),
    "a negative side": (nrrd(sizes="-10 8 -3"), "cannot be read"),
    "sizes in words": (nrrd(sizes="ten eight three"), "cannot be read"),
    "no sizes": (nrrd(sizes=None), "cannot be read"),
    "no type": (nrrd(type=None), "cannot be read"),
    "no encoding": (nrrd(encoding=None), "cannot be read"),
    "skips the file": (nrrd(byte_skip=2**40), "the file holds 0 bytes"),
    "skips backwards": (nrrd(byte_skip=-5000), "cannot be read"),
    "skips a billion lines": (nrrd(line_skip=10**9), "cannot be read"),
    "pixels above": (nrrd(b"", data_file="../b.raw"), "which is not in its folder"),
    "pixels anywhere": (nrrd(b"", data_file="/etc/passwd"), "which is not in its folder"),
    "pixels missing": (nrrd(b"", data_file="b.raw"), "which is not beside it"),
    "pixels in a list": (nrrd(b"a.raw\nb.raw\n", data_file="LIST"), "cannot be read"),
    "no directions": (nrrd(space_dimension=3, space_directions="none none none"), "cannot be read"),
    "flat directions": (
        nrrd(space_dimension=3, space_directions="(0,0,0) (0,0,0) (0,0,0)"),
        "cannot be read",
    ),
    "another space": (nrrd(space_dimension=2, space_directions="(1,0) (0,1) (1,1)"), "cannot be read"),
}
for name, (content, sentence) in NRRDS.items():
    raw(f"nrrd: {name}.nrrd", content, sentence)


def mha(content: bytes = NOISE.tobytes(), **changed: Any) -> bytes:
    """A MetaImage; None leaves a field out."""
    fields = {"ObjectType": "Image", "NDims": 3, "DimSize": "10 8 3", "ElementType": "MET_UCHAR"} | changed
    fields.setdefault("ElementDataFile", "LOCAL")
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last
    lines = "".join(f"{name} = {value}\n" for name, value in fields.items() if value is not None)
    return lines.encode() + content


MHAS: dict[str, tuple[bytes, str]] = {
    "huge": (mha(DimSize="30000 30000 3000"), "declares 2.5 TiB of pixels"),
    "huge and packed": (
        mha(zlib.compress(bytes(99)), DimSize="30000 30000 3000", CompressedData=True),
        "cannot hold",
    ),
    "short and packed": (
        mha(zlib.compress(bytes(99)), CompressedData=True),
        "240 bytes of pixels and holds 99",
    ),
    "not packed": (mha(CompressedData=True), "cannot be read"),
    "pixels above": (mha(b"", ElementDataFile="../b.raw"), "which is not in its folder"),
    "pixels anywhere": (mha(b"", ElementDataFile="/etc/passwd"), "which is not in its folder"),
    "pixels missing": (mha(b"", ElementDataFile="b.raw"), "which is not beside it"),
    "pixels in a list": (mha(b"", ElementDataFile="LIST"), "text or in several files"),
    "pixels by a pattern": (mha(b"", ElementDataFile="b%03d.raw 1 3 1"), "text or in several files"),
    "pixels as text": (mha(BinaryData=False), "text or in several files"),
    "pixels nowhere": (mha(ElementDataFile=None), "names no pixels"),
    "unknown type": (mha(ElementType="MET_STRING"), "cannot be read"),
    "sizes of another dimension": (mha(NDims=2), "cannot be read"),
    "a side of 0": (mha(DimSize="10 0 3"), "cannot be read"),
    "a negative side": (mha(DimSize="10 -8 -3"), "cannot be read"),
    "negative dimensions": (mha(NDims=-3), "cannot be read"),
    "no components": (mha(ElementNumberOfChannels=0), "cannot be read"),
    "skips the file": (mha(HeaderSize=2**40), "the file holds 0 bytes"),
    "a spacing that is none": (mha(ElementSpacing="1 nan 1"), "numbers that are none"),
    "a matrix of another dimension": (mha(TransformMatrix="1 0 0 1"), "cannot be read"),
    "an origin in words": (mha(Offset="here and there"), "cannot be read"),
}
for name, (content, sentence) in MHAS.items():
    raw(f"metaimage: {name}.mha", content, sentence)


@case("metaimage: pixels that are a link out", "which is not in its folder")
def _linked_pixels(folder: Path) -> Path:
    (folder / "in").mkdir()
    (folder / "out.raw").write_bytes(NOISE.tobytes())
    (folder / "in" / "b.raw").symlink_to(folder / "out.raw")
    (folder / "in" / "a.mhd").write_bytes(mha(b"", ElementDataFile="b.raw"))
    return folder / "in" / "a.mhd"


@case("nrrd: pixels that are a pipe", "no regular file")
def _piped_pixels(folder: Path) -> Path:
    os.mkfifo(folder / "b.raw")
    (folder / "a.nhdr").write_bytes(nrrd(b"", data_file="b.raw"))
    return folder / "a.nhdr"


# MRC and MGZ -----------------------------------------------------------------------------------------------


def mrc(sides: tuple[int, int, int] = (10, 8, 3), mode: int = 0, extended: int = 0) -> bytes:
    """A header of MRC with what it declares."""
    head = bytearray(1024)
    struct.pack_into("<4i", head, 0, *sides, mode)
    struct.pack_into("<3i3f", head, 28, *sides, *[10.0] * 3)
    struct.pack_into("<3i", head, 64, 1, 2, 3)
    struct.pack_into("<2i", head, 88, 1, extended)
    head[208:216] = b"MAP DD\0\0"
    return bytes(head)


raw("mrc: huge.mrc", mrc((30000, 30000, 3000)) + NOISE.tobytes())
raw("mrc: negative.mrc", mrc((-10, 8, 3)) + NOISE.tobytes())
raw("mrc: huge.mrc.gz", gzip.compress(mrc((30000, 30000, 3000)) + NOISE.tobytes()), "cannot hold them")
raw("mrc: huge.mrc.bz2", bz2.compress(mrc((300000, 30000, 3000)) + NOISE.tobytes()), "of memory")
raw("mrc: short.mrc.gz", gzip.compress(mrc() + bytes(9)))
raw("mrc: no header.mrc.gz", gzip.compress(bytes(9)), "the header of MRC alone has 1024")
raw("mrc: long extended header.mrc", mrc(extended=2**30) + NOISE.tobytes(), "is not in a file of")
raw("mrc: negative extended header.mrc", mrc(extended=-5) + NOISE.tobytes(), "is not in a file of")
raw("mrc: unknown mode.mrc", mrc(mode=99) + NOISE.tobytes())
raw("mrc: cut.mrc", mrc()[:900])
MGZ = struct.pack(">7i", 1, 30000, 30000, 3000, 1, 0, 0).ljust(284, b"\0")
raw("mgz: huge.mgz", gzip.compress(MGZ + bytes(99)))
raw("mgz: huge.mgh", MGZ + bytes(99), "cannot hold them")


# HDF5 ------------------------------------------------------------------------------------------------------


def hdf5(name: str, sentence: str = "cannot be read") -> Callable[[Callable[[Any, Path], None]], None]:
    """A case that fills an HDF5 file; the second argument is a folder beside that of the file."""

    def enter(fill: Callable[[Any, Path], None]) -> None:
        def make(folder: Path) -> Path:
            import h5py

            (folder / "in").mkdir()
            with h5py.File(folder / "in" / "a.h5", "w") as file:
                fill(file, folder)
            return folder / "in" / "a.h5"

        case(f"hdf5: {name}", sentence)(make)

    return enter


@hdf5("a link to another folder", "holds no image|not in its folder")
def _external_link(file: Any, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "b.h5", "w") as other:
        other["x"] = NOISE
    file["x"] = h5py.ExternalLink(str(folder / "b.h5"), "x")


@hdf5("pixels in another folder", "not in its folder")
def _external_pixels(file: Any, folder: Path) -> None:
    (folder / "b.raw").write_bytes(NOISE.tobytes())
    file.create_dataset("x", (3, 8, 10), np.uint8, external=[(str(folder / "b.raw"), 0, 240)])


@hdf5("pixels of a password file", "not in its folder")
def _password_pixels(file: Any, folder: Path) -> None:
    file.create_dataset("x", (3, 8, 10), np.uint8, external=[("/etc/passwd", 0, 240)])


@hdf5("virtual pixels in another folder", "not in its folder")
def _virtual(file: Any, folder: Path) -> None:
    import h5py

    with h5py.File(folder / "b.h5", "w") as other:
        other["x"] = NOISE
    layout = h5py.VirtualLayout(NOISE.shape, NOISE.dtype)
    layout[:] = h5py.VirtualSource(str(folder / "b.h5"), "x", NOISE.shape)
    file.create_virtual_dataset("x", layout)


@hdf5("chunks of gigabytes", "chunks of .* take 3.2 GiB each")
def _large_chunks(file: Any, folder: Path) -> None:
    file.create_dataset("x", (9, 60000, 57000), np.uint8, chunks=(1, 60000, 57000), compression="gzip")


@hdf5("a size that cannot be", "what cannot be")
def _impossible(file: Any, folder: Path) -> None:
    file.create_dataset("x", (2**31, 2**31, 4), np.uint8, chunks=(8, 8, 1))


@hdf5("words", "holds no image")
def _words(file: Any, folder: Path) -> None:
    file["x"] = np.array([[b"a", b"b"]], object) if False else np.array([[b"aa", b"bb"]])


@hdf5("records", "holds no image")
def _records(file: Any, folder: Path) -> None:
    file["x"] = np.zeros((3, 4), [("a", "i4"), ("b", "f4")])


@hdf5("nothing", "holds no image")
def _nothing(file: Any, folder: Path) -> None:
    file.create_group("x")


@hdf5("axes that are no axes")
def _axes(file: Any, folder: Path) -> None:
    file["x"] = NOISE
    file["x"].attrs["axistags"] = "{"


@hdf5("two images", "choose one with series: a")
def _two(file: Any, folder: Path) -> None:
    file["a"], file["b"] = NOISE, NOISE


@case("hdf5: cut.h5")
def _cut_hdf5(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = np.zeros((40, 80, 100), np.uint8)
    content = (folder / "a.h5").read_bytes()
    (folder / "a.h5").write_bytes(content[:1500])
    return folder / "a.h5"


# OME-Zarr --------------------------------------------------------------------------------------------------

AXES = [{"name": name, "type": "space"} for name in "zyx"]


def zarr(name: str, sentence: str = "cannot be read") -> Callable[[Callable[[Path], None]], None]:
    """A case that spoils a good OME-Zarr of version 0.4."""

    def enter(spoil: Callable[[Path], None]) -> None:
        def make(folder: Path) -> Path:
            image = folder / "a.ome.zarr"
            (image / "0").mkdir(parents=True)
            write(image / ".zgroup", {"zarr_format": 2})
            scale = [{"type": "scale", "scale": [1, 1, 1]}]
            datasets = [{"path": "0", "coordinateTransformations": scale}]
            write(
                image / ".zattrs", {"multiscales": [{"version": "0.4", "axes": AXES, "datasets": datasets}]}
            )
            write(image / "0" / ".zarray", {
                "zarr_format": 2, "shape": [3, 8, 10], "chunks": [1, 8, 10], "dtype": "|u1", "order": "C",
                "compressor": None, "filters": None, "fill_value": 0, "dimension_separator": ".",
            })  # fmt: skip
            for i, plane in enumerate(NOISE):
                (image / "0" / f"{i}.0.0").write_bytes(plane.tobytes())
            spoil(image)
            return image

        case(f"zarr: {name}", sentence)(make)

    return enter


def write(path: Path, about: Any) -> None:
    """JSON."""
    path.write_text(json.dumps(about))


def array(**changed: Any) -> Callable[[Path], None]:
    """What changes the metadata of the array."""

    def spoil(image: Path) -> None:
        about = json.loads((image / "0" / ".zarray").read_text())
        write(image / "0" / ".zarray", about | changed)

    return spoil


def attributes(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """What changes the pyramid of the image."""

    def spoil(image: Path) -> None:
        about = json.loads((image / ".zattrs").read_text())
        change(about["multiscales"][0])
        write(image / ".zattrs", about)

    return spoil


for codec in ("pickle", "json2", "msgpack2", "vlen-utf8", "vlen-bytes"):
    more = {"dtype": "|u1"} if codec == "vlen-utf8" else {}
    settings = {"pickle": {"protocol": 5}, "json2": {"encoding": "utf-8"}}.get(codec, {})
    zarr(f"objects by {codec}")(array(dtype="|O", filters=[{"id": codec, **settings}]))
    zarr(f"{codec} behind numbers", "makes objects|cannot be read")(
        array(filters=[{"id": codec, **settings}], **more)
    )
zarr("a compressor that is pickle", "makes objects|cannot be read")(
    array(compressor={"id": "pickle", "protocol": 5})
)
zarr("words", "must be numbers|cannot be read")(array(dtype="<U9"))
zarr("records", "must be numbers|cannot be read")(array(dtype=[["a", "<i4"]]))
zarr("complex numbers", "must be numbers|cannot be read")(array(dtype="<c8"))
zarr("chunks of gigabytes", "chunks of .* take")(array(shape=[9, 60000, 60000], chunks=[1, 60000, 60000]))
zarr("a size that cannot be", "which cannot be")(array(shape=[2**31, 2**31, 4], chunks=[1, 8, 10]))
zarr("a negative size")(array(shape=[-3, 8, 10]))
zarr("chunks of nothing")(array(chunks=[0, 8, 10]))
zarr("an unknown codec")(array(compressor={"id": "nonsense"}))
zarr("an unknown type")(array(dtype="|Q9"))
zarr("metadata that are none")(lambda image: (image / "0" / ".zarray").write_text("{") and None)
zarr("attributes that are none")(lambda image: (image / ".zattrs").write_text("[") and None)
zarr("a level above", "is no array inside it")(
    attributes(lambda one: one["datasets"][0].update(path="../b.zarr/0"))
)
zarr("a level anywhere", "is no array inside it")(
    attributes(lambda one: one["datasets"][0].update(path="/etc"))
)
zarr("a level without a path", "is no array inside it")(
    attributes(lambda one: one["datasets"][0].update(path=""))
)
zarr("a level that is the image", "is no array inside it")(
    attributes(lambda one: one["datasets"][0].update(path="."))
)
zarr("a level that is not there", "is no array inside it")(
    attributes(lambda one: one["datasets"][0].update(path="7"))
)
zarr("no levels", "name no level")(attributes(lambda one: one.update(datasets=[])))
zarr("levels that are none")(attributes(lambda one: one.update(datasets="0")))
zarr("other axes", "names 2 axes, its arrays have 3")(attributes(lambda one: one.update(axes=AXES[1:])))
zarr("axes that are none")(attributes(lambda one: one.update(axes=[1, 2, 3])))
zarr("two axes of one name")(attributes(lambda one: one.update(axes=[AXES[0]] * 3)))
zarr("a scale of another length")(
    attributes(
        lambda one: one["datasets"][0].update(coordinateTransformations=[{"type": "scale", "scale": [1]}])
    )
)
zarr("a scale of nothing")(
    attributes(
        lambda one: one["datasets"][0].update(
            coordinateTransformations=[{"type": "scale", "scale": [0, 1, 1]}]
        )
    )
)
zarr("a transformation in a file", "of type 'affine' cannot be read")(
    attributes(
        lambda one: one["datasets"][0].update(coordinateTransformations=[{"type": "affine", "path": "m"}])
    )
)


@zarr("a chunk that is a pipe", "no regular file")
def _piped_chunk(image: Path) -> None:
    (image / "0" / "0.0.0").unlink()
    os.mkfifo(image / "0" / "0.0.0")


@zarr("attributes that are a pipe", "no regular file")
def _piped_attributes(image: Path) -> None:
    (image / ".zattrs").unlink()
    os.mkfifo(image / ".zattrs")


@zarr("a chunk that is a link out", "leads out of the folder")
def _linked_chunk(image: Path) -> None:
    (image.parent / "secret").write_bytes(bytes(80))
    (image / "0" / "0.0.0").unlink()
    (image / "0" / "0.0.0").symlink_to(image.parent / "secret")


@zarr("a level that is a link out", "leads out of the folder")
def _linked_level(image: Path) -> None:
    shutil.move(image / "0", image.parent / "other")
    (image / "0").symlink_to(image.parent / "other")


@zarr("a chunk that is cut")
def _cut_chunk(image: Path) -> None:
    (image / "0" / "0.0.0").write_bytes(bytes(7))


@zarr("a chunk that is no zlib")
def _no_zlib(image: Path) -> None:
    array(compressor={"id": "zlib", "level": 1})(image)


@zarr("a chunk that unpacks to a gigabyte")
def _chunk_bomb(image: Path) -> None:
    array(compressor={"id": "zlib", "level": 1})(image)
    packed = b"\x78\xda" + bomb(1024)
    (image / "0" / "0.0.0").write_bytes(packed)


for blosc_name, blosc_change in (
    ("cut", lambda content: content[:-20]),
    ("that declares more than it has", lambda content: content[:12] + b"\xff\xff\xff\x7f" + content[16:]),
    ("that unpacks to gigabytes", lambda content: content[:4] + b"\xff\xff\xff\x7f" + content[8:]),
    ("shorter than its header", lambda content: content[:9]),
):

    @zarr(f"a chunk of Blosc {blosc_name}", "is damaged: it declares")
    def _blosc(image: Path, change: Callable[[bytes], bytes] = blosc_change) -> None:
        from numcodecs import Blosc

        array(compressor=Blosc().get_config())(image)
        (image / "0" / "0.0.0").write_bytes(change(Blosc().encode(NOISE[0].tobytes())))


@zarr("a plate of nothing", "found none")
def _plate(image: Path) -> None:
    write(image / ".zattrs", {"plate": {"wells": []}})


@zarr("a plate with a well above", "found none|cannot be read")
def _plate_above(image: Path) -> None:
    write(image / ".zattrs", {"plate": {"wells": [{"path": "../.."}]}})


@zarr("no images of bioformats2raw", "found none")
def _no_images(image: Path) -> None:
    write(image / ".zattrs", {"bioformats2raw.layout": 3})
    shutil.move(image / "0", image / "x")


@zarr("words in version 3", "must be numbers|cannot be read")
def _words_3(image: Path) -> None:
    shutil.rmtree(image)
    image.mkdir()
    write(image / "zarr.json", {
        "zarr_format": 3, "node_type": "array", "shape": [3, 8], "data_type": "string", "fill_value": "",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 8]}},
        "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "vlen-utf8"}],
    })  # fmt: skip


# DICOM, N5, precomputed, folders ---------------------------------------------------------------------------


def write_slice(path: Path, **about: Any) -> None:
    """One DICOM slice with fields of its own."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    fields = {
        "SOPClassUID": MRImageStorage, "SOPInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2",
        "Modality": "MR",
        "Rows": 8, "Columns": 10, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelSpacing": [1, 1],
        "ImagePositionPatient": [0, 0, 0], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }  # fmt: skip
    for name, value in (fields | about).items():
        setattr(one, name, value)
    one.PixelData = NOISE[0].tobytes()
    with pydicom.config.disable_value_validation():
        one.save_as(path, enforce_file_format=True)


def dicom(name: str, sentence: str = "cannot be read", **about: Any) -> None:
    """A case of one slice, with fields of its own; None leaves one out."""

    def make(folder: Path) -> Path:
        write_slice(folder / "a.dcm", **about)
        return folder / "a.dcm"

    case(f"dicom: {name}", sentence)(make)


dicom("a billion frames", "declares 1000000000 frames", NumberOfFrames=10**9)
dicom("no frames", "declares -1 frames", NumberOfFrames=-1)
dicom("more rows than there are", Rows=65535, Columns=65535)
dicom("12 bits of 8", BitsAllocated=12)
dicom("a position of two numbers", ImagePositionPatient=[0, 0])
dicom("directions of nothing", ImageOrientationPatient=[0, 0, 0, 0, 0, 0])
dicom("a spacing of nothing", PixelSpacing=[0, 0])


@case("dicom: a pipe in the folder", "no DICOM images|cannot be read")
def _dicom_pipe(folder: Path) -> Path:
    (folder / "s").mkdir()
    os.mkfifo(folder / "s" / "a.dcm")
    return folder / "s"


@case("dicom: deflated to a gigabyte")
def _deflated(folder: Path) -> Path:
    import pydicom

    write_slice(folder / "a.dcm")
    one = pydicom.dcmread(folder / "a.dcm")
    one.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    one.save_as(folder / "a.dcm", enforce_file_format=True)
    content = (folder / "a.dcm").read_bytes()
    length = struct.unpack_from("<I", content, 140)[0]
    (folder / "a.dcm").write_bytes(content[: 144 + length] + bomb(4096))
    return folder / "a.dcm"


def precomputed(name: str, sentence: str = "cannot be read", **about: Any) -> None:
    """A case of an info, with fields of its own in its only scale."""

    def make(folder: Path) -> Path:
        scale = {"key": "s", "size": [10, 8, 3], "resolution": [4, 4, 40], "voxel_offset": [0, 0, 0],
                 "chunk_sizes": [[4, 4, 2]], "encoding": "raw"} | about  # fmt: skip
        (folder / "p").mkdir()
        info = {"@type": "neuroglancer_multiscale_volume", "data_type": "uint8", "num_channels": 1,
                "type": "image", "scales": [scale]}  # fmt: skip
        write(folder / "p" / "info", info)
        return folder / "p"

    case(f"precomputed: {name}", sentence)(make)


precomputed("a scale above", "is not inside it", key="../x")
precomputed("a scale anywhere", "is not inside it", key="/etc")
precomputed("a negative size", size=[-10, 8, 3])
precomputed("an unknown encoding", encoding="nonsense")
precomputed(
    "chunks of gigabytes", "chunks of .* take", size=[60000, 60000, 9], chunk_sizes=[[60000, 60000, 1]]
)
precomputed("sizes that are none", resolution=[float("inf"), 4, 4])
precomputed("a key that is none", key=None)


def n5(name: str, sentence: str = "cannot be read", **about: Any) -> None:
    """A case of one N5 data set."""

    def make(folder: Path) -> Path:
        (folder / "a.n5" / "x").mkdir(parents=True)
        fields = {"dataType": "uint8", "dimensions": [10, 8, 3], "blockSize": [4, 4, 2],
                  "compression": {"type": "raw"}}  # fmt: skip
        write(folder / "a.n5" / "x" / "attributes.json", fields | about)
        return folder / "a.n5"

    case(f"n5: {name}", sentence)(make)


n5(
    "blocks of gigabytes",
    "chunks of .* take|cannot be read",
    dimensions=[60000] * 3,
    blockSize=[60000, 60000, 1],
)
n5("a negative size", dimensions=[-1, 8, 3])
n5("words", dataType="string")
n5("an unknown compression", compression={"type": "nonsense"})
n5("sizes that are none", pixelResolution=[float("nan")] * 3)


def folder_of(name: str, sentence: str, files: dict[str, bytes]) -> None:
    """A case of a folder of pages."""

    def make(folder: Path) -> Path:
        (folder / "pages").mkdir()
        for file, content in files.items():
            (folder / "pages" / file).write_bytes(content)
        return folder / "pages"

    case(f"folder: {name}", sentence)(make)


PAGE = png(10, 8, bytes(88))
folder_of("pages of two sizes", "a stack needs pages alike", {"a.png": PAGE, "b.png": png(8, 8, bytes(72))})
folder_of("pages of two kinds", "of several kinds", {"a.png": PAGE, "b.tif": PAGE})
folder_of("a page that is EPS", "cannot be read", {"a.png": PAGE, "b.png": EPS})
folder_of("a page that is cut", "cannot be read", {"a.png": PAGE, "b.png": PAGE[:45]})
folder_of("nothing", "no DICOM images", {})
