"""Zeros that take next to nothing, made at once: they are put together, not compressed."""

from __future__ import annotations

import struct
import zlib

MIB = 2**20


def bomb(size: int) -> bytes:
    """Deflated zeros, so many MiB of them: one piece that ends at a byte, over and over."""
    packer = zlib.compressobj(9, wbits=-15)
    return (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)) * size + b"\x03\0"


def zlib_bomb(size: int) -> bytes:
    """The same as a zlib stream, with the checksum of that many zeros."""
    return b"\x78\xda" + bomb(size) + struct.pack(">2H", size * MIB % 65521, 1)


def gzip_bomb(head: bytes, size: int) -> bytes:
    """A gzip file of `head` and so many MiB of zeros, with its checksum and length."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum, zeros = zlib.crc32(head), bytes(MIB)
    for _ in range(size):
        checksum = zlib.crc32(zeros, checksum)
    ends = struct.pack("<2I", checksum, (len(head) + size * MIB) % 2**32)
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + packed + bomb(size) + ends
