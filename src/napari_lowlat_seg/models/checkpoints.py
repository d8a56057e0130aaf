"""Loading, saving, downloading and importing of models; which models there are is in `registry`.

Our own files are safetensors whose metadata hold the family, the config as JSON and a digest of the tensors,
which is checked whenever the file is loaded. `segnext_checkpoint` reads the original's .pth files.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from napari_lowlat_seg.core.atomic_file import atomic_file
from napari_lowlat_seg.models.archives import check_safetensors
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.downloads import Progress, fetch, file_sha256
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.registry import (
    WEIGHTS,
    cache_dir,
    known_names,
    known_path,
    known_sha256,
    record_path,
)
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig
from napari_lowlat_seg.models.segnext_checkpoint import read_official

# By family: its config, a dataclass whose fields are JSON values, and the network that is built from it.
FAMILIES: dict[str, tuple[type[Any], type[Any]]] = {
    "segnext": (SegNextConfig, SegNext),
    "compact": (CompactConfig, Compact),
}

MAX_CONFIG = 1 << 16
"""Characters of a config as JSON."""

OLD_HEAD = "candidate_head."
"""How the tensors of a head for further masks begin in compact files of November 2026: it is dropped."""


def load_model(name_or_path: str | Path) -> Network:
    """The network of a model, in evaluation mode, float32, on the CPU.

    Parameters
    ----------
    name_or_path
        A name of `list_models` (downloaded at first use), or the path of one of our .safetensors files or of
        an official .pth file.

    Raises
    ------
    ValueError
        For an unknown name, and for a file that is missing, damaged, hostile or of another kind.
    """
    name = str(name_or_path)
    if name in WEIGHTS and WEIGHTS[name].url:
        return _load_downloaded(name, None)[1]
    return load_file(model_path(name))


def load_file(path: Path) -> Network:
    """The network of a .safetensors or an official .pth file; see `load_model`."""
    if path.suffix.lower() == ".safetensors":
        family, config, state = _read_safetensors(path)
    else:
        family = "segnext"
        config, state = read_official(path)
    return _filled(path, family, config, state)


def download_model(name: str, progress: Progress | None = None) -> Path:
    """The file of a model, which is downloaded if it is not on this machine; it is checked that it loads.

    Parameters
    ----------
    name
        A name of the table `WEIGHTS`.
    progress
        Called with (bytes so far, bytes in all or None); whatever it raises cancels the download and leaves
        nothing behind. None draws a bar on stderr.

    Raises
    ------
    ValueError
        For an unknown name, a failed download, and a file that is not the expected one.
    """
    if name not in WEIGHTS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(WEIGHTS)}")
    return _load_downloaded(name, progress)[0] if WEIGHTS[name].url else model_path(name)


def import_model(path: str | Path, into: str | Path | None = None) -> Path:
    """Copy a model into the cache folder, or another one, as safetensors; returns the new file.

    One of our own files is copied as it is; an official one is converted.

    Parameters
    ----------
    path
        A .safetensors or an official .pth file.
    into
        A folder, or a name that ends in .safetensors. None: the cache folder, where `load_model` finds the
        model by its name without the ending; a file with the sha256 of a known model becomes its download.

    Raises
    ------
    ValueError
        If the file cannot be read, another file is there already, or the name is that of a known model.
    """
    source = model_path(str(path))
    network, digest = load_file(source), file_sha256(source)
    target = _import_target(source, digest, into)
    if target.exists():
        if digest in (file_sha256(target), _metadata(target).get("source_sha256")):
            return target
        raise ValueError(f"{target} is there already and holds another model; remove it or take another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix.lower() != target.suffix:
        return save_model(network, target, source=source.name, source_sha256=digest)
    with atomic_file(target) as part:
        shutil.copyfile(source, part)
    return target


def _import_target(source: Path, sha256: str, into: str | Path | None) -> Path:
    if into is not None:
        chosen = Path(into)
        return chosen if chosen.suffix == ".safetensors" else chosen / f"{source.stem}.safetensors"
    for name, row in WEIGHTS.items():
        if row.sha256 == sha256:
            return known_path(name)
    if source.stem in WEIGHTS:
        expected = WEIGHTS[source.stem].sha256 or "not published"
        raise ValueError(
            f"the name {source.stem!r} is kept for a known model (sha256 {expected}), but {source} has "
            f"sha256 {sha256}; rename the file, or say where to write it"
        )
    return cache_dir() / f"{source.stem}.safetensors"


def save_model(network: Network, path: Path, *, half: bool = False, **notes: str) -> Path:
    """Write a network as a safetensors file that `load_model` reads; returns the path.

    Parameters
    ----------
    network
        Of a family in `FAMILIES`.
    path
        Ends in .safetensors. Written completely or not at all.
    half
        Store float16, for half the size.
    notes
        Further metadata, such as where the weights come from.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    family = next(name for name, (_, kind) in FAMILIES.items() if isinstance(network, kind))
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    config = json.dumps(asdict(network.config))  # type: ignore[call-overload]
    return _write(path, state, {**notes, "family": family, "config": config, "sha256": _digest(state)})


def save_corrected(name_or_path: str | Path, into: Path, slope: float, shift: float, note: str) -> Path:
    """Write a model again with a correction of its predicted IoU; tensors and other metadata stay.

    Parameters
    ----------
    name_or_path
        The model to correct; see `load_model`.
    into
        The new file, which ends in .safetensors.
    slope, shift
        The logit x of the predicted IoU becomes slope * x + shift (Platt scaling), after a correction that
        the model has already.
    note
        Where the correction comes from; "calibration" in the metadata.

    Raises
    ------
    ValueError
        For a model without a predicted IoU, a file that exists already, and a correction out of bounds.
    """
    source = model_path(str(name_or_path))
    known = _read_safetensors(source)[1] if source.suffix.lower() == ".safetensors" else None
    if not isinstance(known, CompactConfig):
        raise ValueError(f"{source.name} predicts no IoU that could be corrected; only compact models do")
    if into.suffix != ".safetensors" or into.exists():
        raise ValueError(f"expected the name of a new .safetensors file, got {into}; take another name")
    both, moved = slope * known.quality_slope, slope * known.quality_shift + shift
    replace(known, quality_slope=both, quality_shift=moved)  # refuses what cannot be loaded again
    facts = _metadata(source)
    config = {**json.loads(facts["config"]), "quality_slope": both, "quality_shift": moved}
    with safe_open(source, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    return _write(into, state, {**facts, "config": json.dumps(config), "calibration": note})


def _write(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    try:
        with atomic_file(path) as part:
            save_file(dict(state), part, dict(metadata))
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path} could not be written: {error}") from None
    return path


def list_models() -> list[dict[str, Any]]:
    """`model_info` of every known model and of every imported one, in that order."""
    return [model_info(name) for name in known_names()]


def model_info(name_or_path: str | Path) -> dict[str, Any]:
    """Facts about one model; nothing is downloaded.

    Returns
    -------
    dict
        name, family, parameters (their number), size (side of the input in pixels, 0 if unknown), bytes (of
        the file, None if it is not on this machine), licence, note, sha256 (None if not known yet), path (str
        or None), url (str or None) and downloaded (bool).

    Raises
    ------
    ValueError
        As `load_model`, except for models that are not downloaded yet.
    """
    name = str(name_or_path)
    row = WEIGHTS.get(name)
    if row is None or (not row.url and known_path(name).is_file()):
        path = model_path(name)
        network = load_file(path)
        facts: dict[str, Any] = {
            "family": next(key for key, (_, kind) in FAMILIES.items() if isinstance(network, kind)),
            "parameters": sum(p.numel() for p in network.parameters()),
            "size": network.size,
            "sha256": file_sha256(path),
        }
    else:
        assert row is not None
        path = known_path(name)
        facts = {"family": row.family, "parameters": row.parameters, "size": row.size}
        facts["sha256"] = known_sha256(name)
    here = path.is_file()
    return {
        "name": name,
        **facts,
        "bytes": path.stat().st_size if here else None,
        "licence": row.licence if row else "that of its file",
        "note": row.note if row else "a file of your own",
        "path": str(path) if here else None,
        "url": (row.url or None) if row else None,
        "downloaded": here,
    }


def model_path(name: str) -> Path:
    """The file of a name or path. Raises ValueError if there is none; the message lists the names."""
    known = known_path(name)
    path = known if known.is_file() else Path(name)
    if path.is_file():
        return path
    if name in WEIGHTS:
        raise ValueError(f"model {name!r} is not at {known}; {_how_to_get(name)}")
    if path.suffix in (".safetensors", ".pth", ".pt"):
        raise ValueError(f"there is no model file {name}")
    names = ", ".join(WEIGHTS)
    raise ValueError(f"unknown model {name!r}; choose one of {names}, or give a .safetensors or .pth file")


def _how_to_get(name: str) -> str:
    return f"run `lowlat-seg models download {name}`" if WEIGHTS[name].url else "install the package again"


def _load_downloaded(name: str, progress: Progress | None) -> tuple[Path, Network]:
    """File and network of a model that is downloaded if necessary.

    If the table has no sha256, that of the first file that loads is recorded, and required from then on.
    """
    path, known = known_path(name), known_sha256(name)
    fetch(WEIGHTS[name].url, path, known, progress, most=WEIGHTS[name].most_bytes)
    digest = file_sha256(path) if known is None else known
    try:
        network = load_file(path)
    except ValueError:
        if known is None:
            path.unlink(missing_ok=True)  # what was downloaded was not the model: the next try starts again
        raise
    if known is None:
        with atomic_file(record_path(name)) as part:
            part.write_text(digest + "\n")
    return path, network


def _read_safetensors(path: Path) -> tuple[str, Any, dict[str, Tensor]]:
    """Family, config and float32 parameters of one of our own files."""
    facts = _metadata(path)
    family = facts.get("family", "")
    if family not in FAMILIES or "config" not in facts:
        raise ValueError(
            f"{path.name} is a safetensors file without a model of ours: its metadata should name a 'family' "
            f"({', '.join(FAMILIES)}) and a 'config'; import official files with `lowlat-seg models import`"
        )
    kind = FAMILIES[family][0]
    try:
        values = _config_values(kind, facts["config"])
        headed = kind is CompactConfig and _had_head(values)
        config = kind(**values)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} has a config that does not fit {family}: {error!s:.200}") from None
    with safe_open(path, "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    if facts.get("sha256", digest := _digest(state)) != digest:
        raise ValueError(f"{path.name} was changed since it was written: its tensors do not match its sha256")
    kept = {key: v for key, v in state.items() if not (headed and key.startswith(OLD_HEAD))}
    return family, config, {key: v.float() if v.is_floating_point() else v for key, v in kept.items()}


def _had_head(values: dict[str, Any]) -> bool:
    """Remove "candidates" from a compact config, the number of an old head's masks; whether it had a head."""
    number = values.pop("candidates", 0)
    if type(number) is not int or not 0 <= number <= 4:
        raise ValueError(f"the compact model's candidates must lie in 0..4, got {number!r:.40}")
    return number > 0


def _config_values(kind: type[Any], text: str) -> dict[str, Any]:
    """The fields of a config, each of the type of its default. Raises ValueError for anything else."""
    if len(text) > MAX_CONFIG:
        raise ValueError(f"it has {len(text)} characters; {MAX_CONFIG} at most")
    values = json.loads(text, parse_constant=_not_finite)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object of fields, got {text[:40]!r}")
    for field in fields(kind):
        if field.name in values and not _like(values[field.name], field.default):
            got = f"{values[field.name]!r:.40}"
            raise ValueError(f"{field.name} is like {field.default!r}; got {got}")
    return values


def _like(value: Any, known: Any) -> bool:
    """Whether a JSON value has the type of a field's default."""
    if isinstance(known, tuple):
        return isinstance(value, list) and len(value) == len(known) and all(map(_like, value, known))
    if isinstance(known, float):
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return type(value) is type(known)


def _not_finite(name: str) -> Any:
    raise ValueError(f"{name} is no finite number")


def _metadata(path: Path) -> dict[str, str]:
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged, cut short or no safetensors file: {error}") from None


def _filled(path: Path, family: str, config: Any, state: Mapping[str, Tensor]) -> Network:
    """The network with these parameters; it is allocated only after every key and shape was checked."""
    try:
        with torch.device("meta"):
            blank = FAMILIES[family][1](config)  # allocates nothing
    except (TypeError, ValueError) as error:  # such as a value of another type than its field
        raise ValueError(f"{path.name} has a config that does not fit {family}: {error}") from None
    expected = {key: tuple(value.shape) for key, value in blank.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    problems = [f"{key} is missing" for key in expected if key not in found]
    problems += [f"{key[:60]} is unknown" for key in found if key not in expected]
    problems += [
        f"{key} has shape {shape}, expected {expected[key]}"
        for key, shape in found.items()
        if expected.get(key, shape) != shape
    ]
    problems += [f"{key[:60]} holds NaN or infinity" for key, value in state.items() if not _finite(value)]
    if problems:
        listed = "; ".join(problems[:3])
        raise ValueError(f"{path.name} does not fit {family}: {listed} ({len(problems)} in all)")
    network: Network = FAMILIES[family][1](config)
    network.load_state_dict(state)
    return network.eval()


def _finite(value: Tensor) -> bool:
    """Whether all numbers of a tensor are finite, in one pass without a copy."""
    return value.numel() == 0 or all(isfinite(bound.item()) for bound in value.aminmax())


def _digest(state: Mapping[str, Tensor]) -> str:
    """sha256 of the names and bytes of all tensors, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(state[key].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
