"""Hostile and broken model files: .pth archives, the pickles in them, and .safetensors."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hostile.case import Attempt, Case
from napari_lowlat_seg.models.checkpoints import load_file, save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig

TINY = SegNextConfig(
    size=64, dim=16, depth=2, heads=2, fusion_heads=2, neck_dims=(4, 4, 8, 8), head_dim=8, global_every=2
)
COMPACT = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=8, skip4=8)


def official_content(network: SegNext) -> dict[str, Any]:
    """An official checkpoint of a network of `TINY`'s geometry, as torch.load gives it back."""
    params = {
        "backbone_params": {
            "img_size": (64, 64),
            "patch_size": (16, 16),
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "global_atten_freq": 2,
        },
        "neck_params": {"in_dim": 16, "out_dims": [4, 4, 8, 8]},
        "head_params": {"out_channels": 8, "in_select_index": [0, 1, 2, 3], "num_classes": 1},
        "fusion_params": {"type": "self_attention", "depth": 1, "params": {"num_heads": 2}},
        "norm_radius": 5,
        "use_disks": True,
        "norm_mean_std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    }
    rows = {name: {"type": "builtin", "value": value, "specified": True} for name, value in params.items()}
    config = {"class": "isegm.model.is_plainvit_model.PlainVitModel", "params": rows}
    return {"state_dict": dict(network.state_dict()), "config": config}


def content() -> dict[str, Any]:
    torch.manual_seed(0)
    return official_content(SegNext(TINY).eval())


def loading(path: Path, raw: bytes) -> Attempt:
    path.write_bytes(raw)
    return partial(load_file, path)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def pth(make: Callable[[], bytes], match: str) -> Case:
    return Case(lambda folder: loading(folder / "some.pth", make()), match)


def changed(change: Callable[[dict[str, Any]], object], match: str) -> Case:
    """An official file after a change to what it holds."""

    def make() -> bytes:
        value = content()
        change(value)
        return saved(value)

    return pth(make, match)


# --- the archive -----------------------------------------------------------------------------------------


def zipped(
    members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, raw in members:
            archive.writestr(name, raw)
        archive.comment = comment
    return buffer.getvalue()


def members() -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(saved(content()))) as archive:
        return [(member.filename, archive.read(member)) for member in archive.infolist()]


def rezipped(
    change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]] = lambda m: m, **how: Any
) -> bytes:
    return zipped(change(members()), **how)


def patched(at: Callable[[bytes], int], new: bytes, raw: bytes | None = None) -> bytes:
    """An official file with other bytes at a place."""
    whole = bytearray(saved(content()) if raw is None else raw)
    place = at(bytes(whole))
    whole[place : place + len(new)] = new
    return bytes(whole)


def central(offset: int) -> Callable[[bytes], int]:
    """A field of the first entry of the central directory."""
    return lambda raw: raw.index(b"PK\x01\x02") + offset


def same_offset() -> bytes:
    """The second entry of the directory points to the first member."""
    raw = saved(content())
    second = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 4)
    return patched(lambda _: second + 42, struct.pack("<I", 0), raw)


def flipped(where: float) -> bytes:
    raw = bytearray(saved(content()))
    raw[int(where * len(raw))] ^= 4
    return bytes(raw)


def flipped_tensor() -> bytes:
    raw = saved(content())
    at = raw.index(struct.pack("<3f", *content()["state_dict"]["backbone.pos_embed"].flatten()[:3].tolist()))
    return patched(lambda _: at, bytes([raw[at] ^ 1]), raw)


NOT_WRITTEN = r"some\.pth is damaged or not as torch writes it: "
NOT_TORCH = r"some\.pth is damaged or not a torch file"

ARCHIVES = {
    "empty file": pth(lambda: b"", NOT_TORCH),
    "web page": pth(lambda: b"<html>quota exceeded</html>", NOT_TORCH),
    "noise": pth(lambda: bytes(range(256)) * 99, NOT_TORCH),
    "zip magic only": pth(lambda: b"PK\x03\x04" + bytes(60), NOT_TORCH),
    "end record only": pth(lambda: b"PK\x05\x06" + bytes(18), NOT_WRITTEN + r"there is no data\.pkl"),
    "end record with a wrong count": pth(
        lambda: b"PK\x05\x06" + bytes(4) + b"\xff\xff" * 2 + bytes(10), r"some\.pth is damaged"
    ),
    "cut in the first member": pth(lambda: saved(content())[:300], NOT_TORCH),
    "cut in the middle": pth(lambda: saved(content())[:-20_000], NOT_TORCH),
    "cut in the directory": pth(lambda: saved(content())[:-100], NOT_TORCH),
    "cut by one byte": pth(lambda: saved(content())[:-1], NOT_TORCH),
    "bytes after the end": pth(lambda: saved(content()) + b"x", NOT_WRITTEN),
    "a comment": pth(lambda: rezipped(comment=b"hello"), NOT_WRITTEN + "something follows"),
    "a prefix": pth(lambda: b"#!/bin/sh\n" + saved(content()), NOT_WRITTEN + "its members overlap"),
    "compressed": pth(
        lambda: rezipped(compression=zipfile.ZIP_DEFLATED), NOT_WRITTEN + "a member is compressed"
    ),
    "a bomb of zeros": pth(
        lambda: zipped(
            [("a/data.pkl", pickle.dumps({}, 2)), ("a/data/0", bytes(2**27))], zipfile.ZIP_DEFLATED
        ),
        NOT_WRITTEN + "a member is compressed",
    ),
    "a bzip2 member": pth(
        lambda: rezipped(compression=zipfile.ZIP_BZIP2), NOT_WRITTEN + "a member is compressed"
    ),
    "encrypted": pth(
        lambda: patched(central(8), b"\x01\x00"), NOT_WRITTEN + "a member is compressed or encrypted"
    ),
    "an unknown method": pth(
        lambda: patched(central(10), b"\x63\x00"), NOT_WRITTEN + "a member is compressed"
    ),
    "a size of 4 GB": pth(
        lambda: patched(central(24), b"\xfe\xff\xff\xff"), NOT_WRITTEN + "a member's two sizes"
    ),
    "both sizes of 4 GB": pth(
        lambda: patched(central(20), b"\xfe\xff\xff\xff" * 2), NOT_WRITTEN + "its members overlap"
    ),
    "two members at one place": pth(same_offset, NOT_WRITTEN + "its members overlap"),
    "a member that begins in another": pth(
        lambda: patched(lambda raw: 28, struct.pack("<H", 60_000)), NOT_WRITTEN + "its members overlap"
    ),
    "one name twice": pth(lambda: rezipped(lambda m: [*m, m[0]]), NOT_WRITTEN + "two members have one name"),
    "two folders": pth(
        lambda: rezipped(lambda m: [*m, ("other/data/0", b"")]),
        NOT_WRITTEN + "its members are not in one folder",
    ),
    "a name out of the folder": pth(
        lambda: rezipped(lambda m: [*m, ("archive/../../etc/x", b"")]),
        NOT_WRITTEN + "its members are not in one",
    ),
    "a folder as a member": pth(
        lambda: rezipped(lambda m: [*m, ("archive/x/", b"")]), NOT_WRITTEN + "it holds folders"
    ),
    "no pickle": pth(lambda: rezipped(lambda m: m[1:]), NOT_WRITTEN + r"there is no data\.pkl"),
    "another name in the member": pth(lambda: patched(lambda raw: 31, b"zz"), NOT_WRITTEN),
    "20,001 members": pth(
        lambda: zipped([(f"a/{i}", b"") for i in range(20_001)]), NOT_WRITTEN + "it has 20001 members"
    ),
    "a pickle of 2 MB": pth(
        lambda: zipped([("a/data.pkl", bytes(2**21))]), NOT_WRITTEN + "its pickle has 2097152 bytes"
    ),
    "a bit of a tensor": pth(flipped_tensor, NOT_WRITTEN + ".* does not match its checksum"),
    "a bit of the pickle": pth(
        lambda: patched(lambda raw: raw.index(b"backbone_params"), b"B"),
        NOT_WRITTEN + r".*data\.pkl does not",
    ),
    "a bit of a checksum": pth(lambda: patched(central(16), b"\0\0\0\0"), NOT_WRITTEN + ".* does not match"),
    "torch's format of 2019": pth(lambda: saved(content(), _use_new_zipfile_serialization=False), NOT_TORCH),
    "a bare pickle": pth(lambda: pickle.dumps({"state_dict": {}, "config": {}}), NOT_TORCH),
}

# --- the pickle ------------------------------------------------------------------------------------------


def pickled(code: bytes, *data: bytes) -> bytes:
    """An archive with a pickle of these opcodes and storages."""
    stored = [(f"a/data/{i}", raw) for i, raw in enumerate(data)]
    return zipped([("a/data.pkl", code), ("a/version", b"3\n"), ("a/byteorder", b"little"), *stored])


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def storage(key: str = "0", count: int = 4, kind: bytes = b"FloatStorage") -> bytes:
    return (
        b"(" + text("storage") + b"ctorch\n" + kind + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    )


def tensor(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, of: bytes = b"") -> bytes:
    """Opcodes of a tensor: torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, {})."""
    shape = b"(" + b"".join(map(number, size)) + b"t" + b"(" + b"".join(map(number, stride)) + b"t"
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (of or storage())
        + number(offset)
        + shape
        + b"\x89"
        + hooks
        + b"tR"
    )


def with_tensor(code: bytes) -> bytes:
    """A checkpoint whose only tensor is made by these opcodes."""
    state = b"}" + text("x") + code + b"s"
    return b"\x80\x02}" + text("state_dict") + state + b"s" + text("config") + b"}s."


def with_config(code: bytes) -> bytes:
    state = b"}" + text("x") + tensor((4,), (1,)) + b"s"
    return (
        b"\x80\x02}" + text("state_dict") + state + b"s" + text("config") + b"}" + text("c") + code + b"ss."
    )


def crafted(code: bytes, match: str, *data: bytes) -> Case:
    return pth(lambda: pickled(code, *(data or (bytes(16),))), match)


def imports(name: str, code: bytes | None = None) -> Case:
    module, _, function = name.rpartition(".")
    call = b"c" + module.encode() + b"\n" + function.encode() + b"\n" if code is None else code
    return crafted(
        b"\x80\x02" + call + text("echo owned") + b"\x85R.", rf"holds Python objects besides .*{function}"
    )


def laughs(levels: int = 30) -> bytes:
    """Lists of ten times the list before: 10^30 values in a few hundred bytes."""
    code = b"]q\x00"
    for i in range(1, levels):
        code = b"](" + code + (b"h" + bytes([i - 1])) * 9 + b"eq" + bytes([i])
    return code


def shared_tensor(names: int) -> bytes:
    """One tensor under many names."""
    state = b"}(" + text("x0") + tensor((4,), (1,)) + b"q\x00"
    state += b"".join(text(f"x{i}") + b"h\x00" for i in range(1, names)) + b"u"
    return b"\x80\x02}" + text("state_dict") + state + b"s" + text("config") + b"}s."


CODE = r"holds Python objects besides tensors and plain values"
BROKEN = r"some\.pth is damaged"
MANY = r"names the same bytes as several tensors"
PLAIN = r"is not a plain dense tensor"

PICKLES = {
    **{
        f"calls {name}": imports(name)
        for name in (
            "os.system",
            "posix.system",
            "builtins.eval",
            "builtins.exec",
            "builtins.bytearray",
            "builtins.getattr",
            "subprocess.Popen",
            "torch.load",
            "torch.hub.load",
            "torch.storage._load_from_bytes",
            "torch._utils._rebuild_sparse_tensor",
            "torch._utils._rebuild_device_tensor_from_numpy",
            "torch._tensor._rebuild_from_type_v2",
            "torch.jit._script.unpackage_script_module",
            "numpy.core.multiarray._reconstruct",
            "collections.Counter",
            "_codecs.encode",
            "napari_lowlat_seg.models.registry.fetch",
        )
    },
    "a name from the stack": crafted(
        b"\x80\x04" + text("os") + text("system") + b"\x93.", CODE + r" \(STACK_GLOBAL"
    ),
    "an instance": crafted(b"\x80\x02(ios\nsystem\n.", CODE + r" \(INST"),
    "an object": crafted(b"\x80\x02(cos\nsystem\no.", CODE + r" \(.*os system"),
    "an extension": crafted(b"\x80\x02\x82\x01.", CODE + r" \(EXT1"),
    "new style objects": crafted(b"\x80\x02ccollections\nOrderedDict\n)\x81.", CODE + r" \(NEWOBJ"),
    "a buffer": crafted(b"\x80\x05\x97.", CODE + r" \(NEXT_BUFFER"),
    "bytes of 2^60": crafted(b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b".", BROKEN),
    "an unknown opcode": crafted(b"\x80\x02\xfe.", BROKEN),
    "no end": crafted(b"\x80\x02}", BROKEN),
    "nothing": crafted(b"", BROKEN),
    "an empty stack": crafted(b"\x80\x02ss.", BROKEN),
    "a memo that is not there": crafted(b"\x80\x02h\x63.", BROKEN),
    "a text longer than the pickle": crafted(b"\x80\x02X\xff\xff\xff\x7fabc.", BROKEN),
    "a number of 100,000 bytes": crafted(
        with_config(b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000), CODE + r" \(LONG4"
    ),
    "a number of 255 bytes": crafted(
        with_config(b"\x8a\xff" + b"\x7f" * 255), r"holds a int that is too long"
    ),
    "a text of 5,000 characters": crafted(with_config(text("x" * 5000)), r"holds a str that is too long"),
    "infinity": crafted(
        with_config(b"G" + struct.pack(">d", float("inf"))), r"holds a float that is .* not finite"
    ),
    "NaN": crafted(
        with_config(b"G" + struct.pack(">d", float("nan"))), r"holds a float that is .* not finite"
    ),
    "lists 100,000 deep": crafted(with_config(b"]" * 100_000 + b"a" * 99_999), r"nests deeper than 16"),
    "tuples 100,000 deep": crafted(with_config(b")" + b"\x85" * 100_000), r"nests deeper than 16"),
    "a list that holds itself": crafted(with_config(b"]q\x05h\x05a"), r"nests deeper than 16"),
    "10^30 values": crafted(with_config(laughs()), r"nests deeper than 16 or holds more than 100000"),
    "10^6 values": crafted(with_config(laughs(7)), r"nests deeper than 16 or holds more than 100000"),
    "200,000 values": crafted(with_config(b"](" + b"N" * 200_000 + b"e"), r"holds more than 100000 values"),
    "64 names for one tensor": crafted(shared_tensor(64), MANY),
    "2 names for one tensor": crafted(shared_tensor(2), MANY),
    "two views of one storage": crafted(
        b"\x80\x02}"
        + text("state_dict")
        + b"}("
        + text("a")
        + tensor((4,), (1,))
        + text("b")
        + tensor((3,), (1,), 1)
        + b"us"
        + text("config")
        + b"}s.",
        MANY,
    ),
    "10^12 numbers of one": crafted(with_tensor(tensor((10**6, 10**6), (0, 0))), PLAIN),
    "rows that overlap": crafted(with_tensor(tensor((2, 4), (0, 1))), PLAIN),
    "more numbers than stored": crafted(with_tensor(tensor((1000,), (1,))), BROKEN + "|" + PLAIN),
    "a storage that says more than it has": crafted(
        with_tensor(tensor((4000,), (1,), of=storage(count=4000))), BROKEN + "|" + PLAIN
    ),
    "a storage of -4": crafted(with_tensor(tensor((4,), (1,), of=storage(count=-4))), BROKEN),
    "an offset behind the end": crafted(with_tensor(tensor((4,), (1,), 4)), BROKEN + "|" + PLAIN),
    "a negative offset": crafted(with_tensor(tensor((4,), (1,), -4)), BROKEN),
    "a negative size": crafted(with_tensor(tensor((-4,), (1,))), BROKEN),
    "a negative stride": crafted(with_tensor(tensor((4,), (-1,))), BROKEN),
    "more strides than sizes": crafted(with_tensor(tensor((4,), (1, 1))), BROKEN),
    "a storage that is not there": crafted(with_tensor(tensor((4,), (1,), of=storage("7"))), BROKEN),
    "a storage out of the folder": crafted(with_tensor(tensor((4,), (1,), of=storage("../x"))), BROKEN),
    "a storage of another kind": crafted(
        with_tensor(tensor((4,), (1,), of=storage(kind=b"ComplexFloatStorage"))), CODE
    ),
    "a text as a storage": crafted(with_tensor(tensor((4,), (1,), of=text("x"))), BROKEN),
    "a persistent text": crafted(b"\x80\x02" + text("x") + b"Q.", BROKEN),
    "whole numbers as weights": crafted(
        with_tensor(tensor((2,), (1,), of=storage(count=2, kind=b"LongStorage"))), PLAIN
    ),
    "truth values as weights": crafted(
        with_tensor(tensor((4,), (1,), of=storage(kind=b"BoolStorage"))), BROKEN + "|" + PLAIN
    ),
    "a list": crafted(b"\x80\x02].", r"holds a list"),
    "a number": crafted(b"\x80\x02K\x07.", r"holds a int"),
    "numbers as names": changed(lambda c: c["state_dict"].update({7: torch.zeros(1)}), PLAIN),
    "a sparse tensor": changed(
        lambda c: c["state_dict"].update({"head.seg_conv.bias": torch.zeros(9).to_sparse()}), CODE
    ),
    "a quantised tensor": changed(
        lambda c: c["state_dict"].update(x=torch.quantize_per_tensor(torch.zeros(9), 1.0, 0, torch.quint8)),
        CODE,
    ),
}


def weight(value: float) -> Callable[[dict[str, Any]], None]:
    def change(into: dict[str, Any]) -> None:
        into["state_dict"]["head.seg_conv.weight"].view(-1)[1] = value

    return change


def half(value: dict[str, Any]) -> None:
    value["state_dict"] = {key: (1e9 * part).half() for key, part in value["state_dict"].items()}


WEIGHTS = {
    "NaN in a weight": changed(weight(float("nan")), r"head\.seg_conv\.weight holds NaN or infinity"),
    "infinity in a weight": changed(weight(float("inf")), r"head\.seg_conv\.weight holds NaN or infinity"),
    "-infinity in a weight": changed(weight(float("-inf")), r"head\.seg_conv\.weight holds NaN or infinity"),
    "half precision that overflowed": changed(half, r"holds NaN or infinity"),
    "a million names": changed(
        lambda c: c["state_dict"].update({f"x{i}": 0 for i in range(200_000)}), r"its pickle has \d+ bytes"
    ),
    "1,000 unknown tensors": changed(
        lambda c: c["state_dict"].update({f"x{i}": torch.zeros(1) for i in range(1000)}),
        r"x0 is unknown; .*1000 in",
    ),
    "a state dict only": pth(lambda: saved({"state_dict": {}}), r"has no 'config' beside"),
    "an OrderedDict with a text": pth(lambda: saved({"state_dict": OrderedDict(x="y"), "config": {}}), PLAIN),
}

# --- safetensors -----------------------------------------------------------------------------------------


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def rows(tensors: dict[str, Any], data: bytes = bytes(16), **metadata: str) -> bytes:
    facts = {"family": "compact", "config": "{}"} | metadata
    return framed(json.dumps({"__metadata__": facts, **tensors}).encode(), data)


def row(dtype: str = "F32", shape: tuple[int, ...] = (4,), at: tuple[int, int] = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": at}


def safe(make: Callable[[], bytes], match: str) -> Case:
    return Case(lambda folder: loading(folder / "some.safetensors", make()), match)


def config(values: Any, family: str = "compact") -> Case:
    """A file with such a config, as JSON unless it is a text already, and one tensor."""
    given = values if isinstance(values, str) else json.dumps(values)

    def prepare(folder: Path) -> Attempt:
        path = folder / "some.safetensors"
        save_file({"a": torch.zeros(2)}, path, {"family": family, "config": given})
        return partial(load_file, path)

    return Case(prepare, rf"some\.safetensors (has a config that )?does not fit {family}")


def ours(change: Callable[[dict[str, Any]], object], match: str, **more: Any) -> Case:
    """A file of ours with other tensors, `more` in its config and no digest."""

    def prepare(folder: Path) -> Attempt:
        torch.manual_seed(0)
        path = save_model(Compact(COMPACT).eval(), folder / "some.safetensors")
        state = dict(Compact(COMPACT).state_dict())
        change(state)
        save_file(state, path, {"family": "compact", "config": json.dumps({**COMPACT.__dict__, **more})})
        return partial(load_file, path)

    return Case(prepare, match)


def first(value: float) -> Callable[[dict[str, Any]], None]:
    return lambda state: next(iter(state.values())).view(-1)[:1].fill_(value)  # type: ignore[return-value]


DAMAGED = r"some\.safetensors is damaged, cut short or no safetensors file"

SAFETENSORS = {
    "no bytes": safe(lambda: b"", DAMAGED),
    "four bytes": safe(lambda: bytes(4), DAMAGED),
    "a header of nothing": safe(lambda: framed(b""), DAMAGED),
    "a header of 2^63 bytes": safe(lambda: framed(b"{}", length=2**63), DAMAGED),
    "a header of 2^64 - 1 bytes": safe(lambda: framed(b"{}", length=2**64 - 1), DAMAGED),
    "a header behind the end": safe(lambda: framed(b"{}", length=3), DAMAGED),
    "a header of 50 MB of spaces": safe(lambda: framed(b"{}" + b" " * 50_000_000), DAMAGED),
    "a header that is no JSON": safe(lambda: framed(b"{]"), DAMAGED),
    "a header that is no text": safe(lambda: framed(b"\xff\xfe\xfd"), DAMAGED),
    "a header that is a list": safe(lambda: framed(b"[1]"), DAMAGED),
    "a header 100,000 deep": safe(lambda: framed(b"[" * 100_000), DAMAGED),
    "a number of 5,000 digits": safe(lambda: framed(b'{"a": ' + b"9" * 5000 + b"}"), DAMAGED),
    "a name twice in the header": safe(
        lambda: framed(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'), DAMAGED
    ),
    "a tensor that is a number": safe(lambda: rows({"a": 7}), DAMAGED),
    "a tensor without a type": safe(lambda: rows({"a": {"shape": [4]}}), DAMAGED),
    "a type that is a list": safe(lambda: rows({"a": row(dtype=["F32"])}), r"'a' holds \['F32'\]"),  # type: ignore
    "whole numbers": safe(lambda: rows({"a": row("I64", (2,))}), r"'a' holds I64; weights are one of F16"),
    "truth values": safe(lambda: rows({"a": row("BOOL", (16,))}), r"'a' holds BOOL; weights"),
    "eight-bit floats": safe(lambda: rows({"a": row("F8_E4M3", (16,))}), r"'a' holds F8_E4M3; weights"),
    "an unknown type": safe(lambda: rows({"a": row("F1024")}), r"'a' holds F1024; weights"),
    "a shape that does not fit": safe(lambda: rows({"a": row(shape=(5,))}), DAMAGED),
    "a shape of 2^64 numbers": safe(lambda: rows({"a": row(shape=(2**32, 2**32))}), DAMAGED),
    "a negative shape": safe(lambda: rows({"a": row(shape=(-4,))}), DAMAGED),
    "offsets backwards": safe(lambda: rows({"a": row(at=(16, 0))}), DAMAGED),
    "offsets behind the end": safe(lambda: rows({"a": row(at=(16, 32))}), DAMAGED),
    "a gap": safe(lambda: rows({"a": row(at=(16, 32))}, bytes(32)), DAMAGED),
    "bytes left over": safe(lambda: rows({"a": row()}, bytes(17)), DAMAGED),
    "64 names for one tensor's bytes": safe(lambda: rows({f"a{i}": row() for i in range(64)}), DAMAGED),
    "two tensors that overlap": safe(lambda: rows({"a": row(), "b": row(at=(8, 24))}, bytes(24)), DAMAGED),
    "metadata that are numbers": safe(
        lambda: framed(b'{"__metadata__":{"family":7},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        DAMAGED,
    ),
    "no metadata": safe(
        lambda: framed(json.dumps({"a": row()}).encode(), bytes(16)), r"without a model of ours"
    ),
    "another family": safe(lambda: rows({"a": row()}, family="os"), r"without a model of ours"),
    "a config that is no JSON": config("{"),
    "a config that is a list": config([1, 2]),
    "a config that is a number": config(7),
    "a config 100,000 deep": config("[" * 60_000),
    "a config of 100,000 characters": config('{"size": 512' + " " * 100_000 + "}"),
    "a size of 5,000 digits": config('{"size": ' + "9" * 5000 + "}"),
    "an unknown field": config({"wings": 2}),
    "a size of NaN": config('{"size": NaN}'),
    "a slope of infinity": config('{"quality_slope": 1e999}'),
    "a slope of NaN": config('{"quality_slope": NaN}'),
    "a size that is a text": config({"size": "512"}),
    "a size that is true": config({"size": True}),
    "a size with a fraction": config({"size": 512.0}),
    "a size of a list": config({"size": [512]}),
    "a negative size": config({"size": -256}),
    "a size of 10^9": config({"size": 10**9}),
    "disks of 1": config({"disks": 1}),
    "regions of nothing": config({"regions": None}),
    "windows of 64": config({"windows": [64, 64, 64]}),
    "windows of texts": config({"windows": ["8", "16", "8"]}),
    "two windows": config({"windows": [8, 16]}),
    "10^5 windows": config({"windows": [8] * 20_000}),
    "100 candidates": config({"candidates": 100}),
    "10^400 candidates": config({"candidates": 10**400}),
    "-1 candidates": config({"candidates": -1}),
    "candidates of true": config({"candidates": True}),
    "candidates of a list": config({"candidates": [2] * 5000}),
    "candidates of SegNext": config({"candidates": 2}, "segnext"),
    "a head that the config denies": ours(
        lambda state: state.update({"candidate_head.draw.weight": torch.zeros(1)}),
        r"candidate_head\.draw\.weight is unknown \(1 in all\)",
    ),
    "a head and a tensor too few": ours(
        lambda state: (state.popitem(), state.update({"candidate_head.a": torch.zeros(1)})),
        r"is missing \(1 in all\)",
        candidates=2,
    ),
    "a head and a tensor too many": ours(
        lambda state: state.update({"candidate_heads": torch.zeros(1)}),
        r"candidate_heads is unknown \(1 in all\)",
        candidates=2,
    ),
    "heads that do not divide": config({"heads": 7}),
    "a depth of 10^9": config({"depth": 10**9}, "segnext"),
    "the largest SegNext": config(
        {
            "size": 4096,
            "patch": 4,
            "dim": 4096,
            "depth": 64,
            "heads": 64,
            "fusion_heads": 64,
            "fusion_blocks": 16,
        },
        "segnext",
    ),
    "the largest compact": config(
        {
            "size": 2048,
            "width": 1024,
            "blocks": 12,
            "candidates": 4,
            "windows": [32, 32, 32],
        }
    ),
    "a weight of NaN": ours(first(float("nan")), r"holds NaN or infinity"),
    "a weight of infinity": ours(first(float("inf")), r"holds NaN or infinity"),
    "a tensor too many": ours(lambda state: state.update(x=torch.zeros(1)), r"x is unknown \(1 in all\)"),
    "a tensor too few": ours(lambda state: state.popitem(), r"is missing \(1 in all\)"),
}

CASES: dict[str, Case] = ARCHIVES | PICKLES | WEIGHTS | SAFETENSORS
