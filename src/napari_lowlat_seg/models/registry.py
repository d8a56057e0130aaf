"""The models there are, where they are downloaded from, and where their files are kept.

Importing this module does not import torch, so that a window can list models without waiting for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

PACKAGED = Path(__file__).parent / "weights"
DRIVE = "https://drive.usercontent.google.com/download?export=download&id="


@dataclass(frozen=True)
class Weights:
    """One row of the table of known models.

    Attributes
    ----------
    family
        A key of `FAMILIES`.
    licence
        Licence of the weights, as far as their authors state one.
    note
        What the model is, in one line.
    url
        Address of the file, ours (.safetensors) or an official .pth; empty for files inside the package.
    sha256
        Of the file; empty if its authors publish none: then that of the first download is recorded.
    parameters
        Number of parameters, for models that are not on this machine.
    size
        Side of the network's input in pixels, likewise.
    """

    family: str
    licence: str
    note: str
    url: str = ""
    sha256: str = ""
    parameters: int = 0
    size: int = 0

    @property
    def most_bytes(self) -> int:
        """More than its file can have: float32 and a tenth for all else; 2 GiB if nothing is known."""
        return int(4.4 * self.parameters) + 2**20 if self.parameters else 2**31


UPSTREAM = "not stated for the weights; their code is MIT (Copyright 2024 uncbiag)"

WEIGHTS: dict[str, Weights] = {
    "default": Weights("compact", "Apache-2.0; see its model card", "compact model, inside the package"),
    "segnext-sax1": Weights(
        "segnext",
        UPSTREAM,
        "official ViT-B with one fusion block, COCO+LVIS",
        DRIVE + "1G_m9_sVYVD2MBDf5ulrAUz-iSvi8bQfZ",
        parameters=106_701_761,
        size=1024,
    ),
    "segnext-sax2": Weights(
        "segnext",
        UPSTREAM,
        "official ViT-B with two fusion blocks, COCO+LVIS",
        DRIVE + "1uHEcvwA2spsLQqDJiYKqv1pf3vgLAG7-",
        parameters=113_789_633,
        size=1024,
    ),
    "segnext-sax2-hq": Weights(
        "segnext",
        UPSTREAM + "; fine-tuned on HQSeg-44K, parts of which are for non-commercial use only",
        "official ViT-B with two fusion blocks, COCO+LVIS then HQSeg-44K",
        DRIVE + "1qkXIvxnlY3Z4xLYGWJcoAHBUNyDmvwPS",
        parameters=113_789_633,
        size=1024,
    ),
}


def cache_dir() -> Path:
    """The folder of downloaded and imported models: LOWLAT_SEG_CACHE, else in the user's cache folder."""
    chosen = os.environ.get("LOWLAT_SEG_CACHE")
    return (
        Path(chosen)
        if chosen
        else platformdirs.user_cache_path("napari-lowlat-seg", appauthor=False) / "models"
    )


def known_names() -> list[str]:
    """Names of the models in the table, then of imported ones."""
    # A name that begins with a dot is a file that is being written.
    imported = sorted(path.stem for path in cache_dir().glob("[!.]*.safetensors"))
    return [*WEIGHTS, *(name for name in imported if name not in WEIGHTS)]


def known_path(name: str) -> Path:
    """The path of a model's file, whether or not it is there already."""
    row = WEIGHTS.get(name)
    if row is None:
        return cache_dir() / f"{Path(name).name}.safetensors" if Path(name).name == name else Path(name)
    if not row.url:
        return PACKAGED / f"{name}.safetensors"
    # Google Drive's addresses contain no file name.
    ending = ".safetensors" if row.url.endswith(".safetensors") else ".pth"
    return cache_dir() / f"{name}{ending}"


def record_path(name: str) -> Path:
    """The file that records the sha256 of the first download."""
    path = known_path(name)
    return path.with_name(f"{path.name}.sha256")


def known_sha256(name: str) -> str | None:
    """The sha256 that the file of a model in the table must have; None if it is not known yet."""
    record = record_path(name)
    # An empty record is one whose writing was interrupted.
    return WEIGHTS[name].sha256 or (record.read_text().strip() if record.is_file() else "") or None
