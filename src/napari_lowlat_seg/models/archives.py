"""A look at a model file before anything is unpacked from it: .pth (a zip with a pickle) and .safetensors.

torch reads .pth files with a zip reader of its own that checks little, and a pickle can name one tensor many
times or nest lists without end. What passes here is as `torch.save` writes it: members stored as they are,
with unique names and right checksums, one after the other, and a small pickle of tensors and plain values.
"""

from __future__ import annotations

import json
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

TORCH = (2, 10)
"""From this release on `weights_only` is not known to be broken (CVE-2025-32434, CVE-2026-24747)."""

MAX_MEMBERS = 20_000
MAX_PICKLE = 1 << 20
"""Bytes of the pickle; that of a ViT-B's state dict and config takes 60,000."""

MAX_HEADER = 1 << 20
"""Bytes of the header of a .safetensors file; that of a ViT-B takes 40,000."""

FLOATS = ("F16", "BF16", "F32", "F64")

MAX_DEPTH = 16
MAX_VALUES = 100_000
MAX_TEXT = 4096

NOT_A_MODEL = "expected an official SegNext checkpoint (a .pth with 'state_dict' and 'config')"

GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        *(f"torch {name}Storage" for name in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool")),
    }
)
"""What the pickle may import: the parts of a tensor."""

# What torch.save writes, at the protocol that it always uses (2).
OPCODES = frozenset(
    (
        *(
            "PROTO",
            "STOP",
            "MARK",
            "GLOBAL",
            "REDUCE",
            "BUILD",
            "BINPERSID",
            "BINPUT",
            "LONG_BINPUT",
            "BINGET",
        ),
        *(
            "LONG_BINGET",
            "EMPTY_DICT",
            "SETITEM",
            "SETITEMS",
            "EMPTY_LIST",
            "APPEND",
            "APPENDS",
            "EMPTY_TUPLE",
        ),
        *(
            "TUPLE",
            "TUPLE1",
            "TUPLE2",
            "TUPLE3",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "BININT",
            "BININT1",
            "BININT2",
        ),
        *("LONG1", "BINFLOAT", "BINUNICODE"),
    )
)


def check_torch() -> None:
    """Raise ValueError if this torch cannot be trusted to read a .pth file."""
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if found < TORCH:
        raise ValueError(
            f".pth files are read with torch {TORCH[0]}.{TORCH[1]} or later, because a hostile one can run "
            f"code in earlier ones (this is {torch.__version__}); update torch, or have the file converted "
            "elsewhere by `lowlat-seg models import`: .safetensors files load with any torch"
        )


def read_torch_file(path: Path, expected: str = NOT_A_MODEL, device: str = "cpu") -> Any:
    """What a .pth file holds: tensors and plain values.

    Parameters
    ----------
    expected
        The end of a refusal: what should have come.
    device
        Where the tensors go.

    Raises
    ------
    ValueError
        For a file that is damaged or hostile, and for a torch that cannot be trusted with one.
    """
    check_torch()
    check_archive(path, expected)
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what is about to be refused anyway
        try:
            return torch.load(file, map_location=device, weights_only=True)
        except MemoryError:
            raise
        except Exception:
            # For a pickle that fits its archive badly, torch raises errors of many kinds.
            raise ValueError(f"{path.name} is damaged; download it again: {expected}") from None


def check_archive(path: Path, expected: str = NOT_A_MODEL) -> None:
    """Raise ValueError unless a file is an archive as torch.save writes it, whole and unchanged.

    Reads the file once, a piece at a time.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = _members(path, archive, expected)
            content = archive.read(pickled)
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        OSError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise ValueError(
            f"{path.name} is damaged or not a torch file ({error!s:.80}); download it again or choose "
            f"another: {expected}"
        ) from None
    _check_pickle(path, content, expected)


def _members(path: Path, archive: zipfile.ZipFile, expected: str) -> zipfile.ZipInfo:
    """The member that is the pickle, when all members are as they should be."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    folder = members[0].filename.partition("/")[0] if members else ""
    pickled = f"{folder}/data.pkl"
    problem = _problem_of_names(members, folder, pickled) or _problem_of_bytes(
        path, archive, members, pickled
    )
    if problem:
        raise ValueError(
            f"{path.name} is damaged or not as torch writes it: {problem}; download it again: {expected}"
        )
    return archive.getinfo(pickled)


def _problem_of_names(members: list[zipfile.ZipInfo], folder: str, pickled: str) -> str:
    """What is wrong with the list of members; empty if nothing is."""
    names = {member.filename for member in members}
    if len(members) > MAX_MEMBERS:
        return f"it has {len(members)} members; {MAX_MEMBERS} at most"
    if len(names) < len(members):
        return "two members have one name"
    if any(member.compress_type or member.flag_bits & 1 for member in members):
        return "a member is compressed or encrypted"
    if any(member.file_size != member.compress_size for member in members):
        return "a member's two sizes differ"
    if any(name.partition("/")[0] != folder or ".." in name for name in names):
        return "its members are not in one folder"
    return "" if pickled in names else "there is no data.pkl"


def _problem_of_bytes(
    path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], pickled: str
) -> str:
    """What is wrong with how members lie in the file, and with what they hold; empty if nothing is."""
    if not _ends_with_directory(path):
        return "something follows its directory"
    if archive.comment or any(member.is_dir() for member in members):
        return "it holds folders or a comment"
    if _overlap(path, members, archive.start_dir):
        return "its members overlap, or it does not begin with one"
    size = archive.getinfo(pickled).file_size
    if size > MAX_PICKLE:
        return f"its pickle has {size} bytes; {MAX_PICKLE} at most"
    broken = archive.testzip()
    return f"{broken[:60]} does not match its checksum" if broken else ""


def _ends_with_directory(path: Path) -> bool:
    """Whether the record that ends an archive without a comment is at the end of the file."""
    with path.open("rb") as file:
        file.seek(-22, 2)
        return file.read(4) == b"PK\x05\x06"


def _overlap(path: Path, members: list[zipfile.ZipInfo], end: int) -> bool:
    """Whether members take the same bytes, or the file begins with something else than a member."""
    starts = [member.header_offset for member in members]
    if starts[0] != 0:
        return True
    with path.open("rb") as file:
        for member, following in zip(members, [*starts[1:], end]):
            file.seek(member.header_offset + 26)  # lengths of name and extra field, then both, then the data
            name, extra = struct.unpack("<HH", file.read(4))
            if member.header_offset + 30 + name + extra + member.file_size > following:
                return True
    return False


def _check_pickle(path: Path, content: bytes, expected: str) -> None:
    """Raise ValueError unless a pickle holds tensors and plain values only; nothing is made of it."""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name not in OPCODES or (opcode.name == "GLOBAL" and argument not in GLOBALS):
                what = f"{argument!s:.60}" if opcode.name == "GLOBAL" else opcode.name
                raise ValueError(
                    f"{path.name} holds Python objects besides tensors and plain values ({what}), which "
                    f"could run code; it was not loaded: {expected}"
                )
    except (ValueError, IndexError, UnicodeError) as error:
        if "could run code" in str(error):
            raise
        raise ValueError(
            f"{path.name} is damaged: its pickle breaks off ({error!s:.60}); download it again: {expected}"
        ) from None


def check_safetensors(path: Path) -> None:
    """Raise ValueError unless a .safetensors file has a small header, of float tensors with unique names."""
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8):
            raise ValueError(
                f"{path.name} is damaged, cut short or no safetensors file: its header should have up to "
                f"{MAX_HEADER} bytes and lie within the file, it says {length}"
            )
        header = file.read(length)
    try:
        tensors = json.loads(header, object_pairs_hook=_unique)
        kinds = {name: row["dtype"] for name, row in tensors.items() if name != "__metadata__"}
        other = next((name for name, kind in kinds.items() if kind not in FLOATS), None)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged, cut short or no safetensors file: {error!s:.80}") from None
    if other is not None:
        raise ValueError(
            f"{path.name}: {other[:60]!r} holds {kinds[other]!s:.20}; weights are one of {', '.join(FLOATS)}"
        )


def _unique(rows: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(rows)
    if len(found) < len(rows):
        raise ValueError("a name is there twice")
    return found


def check_values(path: Path, content: Any) -> None:
    """Raise ValueError for nested, huge or infinite values: messages and comparisons must stay short.

    What is named many times counts many times. Tensors count as one value each; together they may not need
    more bytes than the storages that they are views of.
    """
    count, needed = 0, 0
    storages: dict[int, int] = {}
    pending: list[tuple[Any, int]] = [(content, 0)]
    while pending:
        value, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError(
                f"{path.name} nests deeper than {MAX_DEPTH} or holds more than {MAX_VALUES} values; "
                f"{NOT_A_MODEL}"
            )
        if isinstance(value, torch.Tensor):
            if value.layout == torch.strided:
                storage = value.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
                size = value.numel() * value.element_size()
                needed += size if size <= storage.nbytes() else 0  # the others are refused one by one
        elif isinstance(value, dict):
            pending += [(part, depth + 1) for row in value.items() for part in row]
        elif isinstance(value, list | tuple):
            pending += [(part, depth + 1) for part in value]
        elif not _short(value):
            raise ValueError(
                f"{path.name} holds a {type(value).__name__} that is too long or not finite; {NOT_A_MODEL}"
            )
    if needed > sum(storages.values()):
        raise ValueError(
            f"{path.name} names the same bytes as several tensors: they need {needed} bytes, the file has "
            f"{sum(storages.values())}; {NOT_A_MODEL}"
        )


def _short(value: Any) -> bool:
    """Whether this is a plain value that a message can show."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return abs(value) < 1 << 63
    if isinstance(value, float):
        return abs(value) < float("inf")
    return value is None
