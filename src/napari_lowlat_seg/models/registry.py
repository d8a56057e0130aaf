"""The models there are, where they are downloaded from, and where their files are kept.

Importing this module does not import torch, so that a window can list models without waiting for it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import platformdirs
import pooch
import requests
from tqdm import tqdm

PACKAGED = Path(__file__).parent / "weights"
DRIVE = "https://drive.usercontent.google.com/download?export=download&id="
RELEASES = "https://github.com/napari-lowlat-seg/napari-lowlat-seg/releases/download/"


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


UPSTREAM = "not stated for the weights; their code is MIT (Copyright 2024 uncbiag)"

WEIGHTS: dict[str, Weights] = {
    "default": Weights("compact", "Apache-2.0; see its model card", "compact model, inside the package"),
    "base": Weights(
        "compact",
        "Apache-2.0; see its model card",
        "larger member for a GPU: a DINOv2 ViT-S beside the encoder, 768 x 768",
        RELEASES + "weights-1/base.safetensors",
        "489d5c9be967b7098aec1d7998eb729ff44e97379f78c25066718bcd34f406ee",
        parameters=31_295_909,
        size=768,
    ),
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


Progress = Callable[[int, int | None], object]

CHUNK = 1 << 20
STALLED_AFTER = 30.0  # seconds without a byte
MAX_PAGE = 1 << 20  # bytes of a confirmation page that are read
GOOGLE = (".google.com", ".googleusercontent.com")

_GOT_A_PAGE = (
    "{} sent a web page instead of {}; perhaps too many people fetched it today: "
    "try again later or download it with a browser"
)


def file_sha256(path: Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    path: Path,
    sha256: str | None,
    progress: Progress | None = None,
    patience: float = STALLED_AFTER,
) -> Path:
    """Download `url` to `path` if there is no file yet; check its sha256; return `path`.

    Parameters
    ----------
    url
        A file, or a page of Google Drive that asks for confirmation.
    path
        Where to write it.
    sha256
        What the file must have; None accepts any file.
    progress
        Called with (bytes so far, bytes in all or None); what it raises cancels. None draws a bar on stderr.
    patience
        Seconds without a byte after which the download is given up.

    Raises
    ------
    ValueError
        If the file at `path`, or the downloaded one, is not the expected one, and if the download fails.
    """
    if path.is_file():
        if sha256 is not None and (got := file_sha256(path)) != sha256:
            raise ValueError(
                f"{path} is not the file it should be: expected sha256 {sha256}, got {got}; "
                "remove it to download it again"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    what = f"the download of {path.name} from {url}"
    try:
        with _quiet():
            download = _Download(path.name, sha256, progress, patience)
            pooch.retrieve(url, sha256, path.name, path.parent, downloader=download)
    except requests.HTTPError as error:
        code = "an error" if error.response is None else error.response.status_code
        raise ValueError(f"{what} was answered with {code}; it may have moved") from None
    except requests.RequestException as error:
        # A pause before the first byte is a Timeout; one in the middle is a ConnectionError, and only its
        # message tells.
        stalled = isinstance(error, requests.Timeout) or "timed out" in str(error)
        how = f"stalled for {patience:g} s" if stalled else f"broke off ({type(error).__name__})"
        raise ValueError(f"{what} {how}; try again") from None
    return path


class _Download:
    """A downloader for pooch, which calls it with its temporary file."""

    def __init__(self, name: str, sha256: str | None, progress: Progress | None, patience: float) -> None:
        self.name, self.sha256, self.progress, self.patience = name, sha256, progress, patience

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        with requests.Session() as session:
            response = self._open(session, url, {})
            if _is_page(response):
                response = self._open(session, *_confirmed(response, self.name))
            if _is_page(response):
                raise ValueError(_GOT_A_PAGE.format(url, self.name))
            with response, _Counter(self.name, _length(response), self.progress) as counter:
                with open(output_file, "wb") as file:
                    for chunk in response.iter_content(CHUNK):
                        file.write(chunk)
                        counter.add(chunk)
                counter.finish(url, self.sha256)

    def _open(self, session: requests.Session, url: str, fields: dict[str, str]) -> requests.Response:
        response = session.get(url, params=fields, stream=True, timeout=self.patience)
        response.raise_for_status()
        return response


class _Counter:
    """Counts and digests the bytes, reports progress, and checks length and sha256 at the end."""

    def __init__(self, name: str, total: int | None, progress: Progress | None) -> None:
        self.name, self.total, self.done, self.digest = name, total, 0, hashlib.sha256()
        bar = None if progress else tqdm(desc=name, total=total, unit="B", unit_scale=True, leave=False)
        self.bar, self.progress = bar, progress

    def __enter__(self) -> _Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, chunk: bytes) -> None:
        self.done += len(chunk)
        self.digest.update(chunk)
        if self.bar is not None:
            self.bar.update(len(chunk))
        if self.progress is not None:
            self.progress(self.done, self.total)

    def finish(self, url: str, sha256: str | None) -> None:
        if self.total is not None and self.done != self.total:
            raise requests.ConnectionError(f"{self.done} of {self.total} bytes")
        if sha256 is not None and (got := self.digest.hexdigest()) != sha256:
            raise ValueError(f"{self.name} from {url} has sha256 {got}, expected {sha256}; it was not kept")


class _Form(HTMLParser):
    """The first form of an HTML page: its action and its fields."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = {key: value or "" for key, value in attrs}
        if tag == "form" and self.action is None:
            self.action = facts.get("action", "")
        elif tag == "input" and self.action is not None and facts.get("name"):
            self.fields.setdefault(facts["name"], facts.get("value", ""))


def _confirmed(response: requests.Response, name: str) -> tuple[str, dict[str, str]]:
    """Address and fields of the request that a confirmation page asks for.

    Why this is not gdown: docs/decisions/libraries.md.
    """
    with response:
        page = b"".join(response.iter_content(CHUNK))[:MAX_PAGE]
    form = _Form()
    form.feed(page.decode("utf-8", "replace"))
    if form.action is None or not form.fields:
        raise ValueError(_GOT_A_PAGE.format(response.url, name))
    target = urljoin(response.url, form.action)
    if not _same_owner(urlsplit(response.url).hostname, urlsplit(target).hostname):
        raise ValueError(f"{response.url} sends the download of {name} elsewhere, to {target}; not followed")
    return target, form.fields


def _same_owner(here: str | None, there: str | None) -> bool:
    """Whether both hosts are the same, or both Google's."""
    return here == there or all((host or "").endswith(GOOGLE) for host in (here, there))


def _is_page(response: requests.Response) -> bool:
    return response.headers.get("Content-Type", "").lower().startswith("text/html")


def _length(response: requests.Response) -> int | None:
    """Bytes announced; None if unknown, and if they are those of the compressed file."""
    announced = response.headers.get("Content-Length", "")
    return int(announced) if announced.isdigit() and "Content-Encoding" not in response.headers else None


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which pooch logs errors only: it would log the hash of every download."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
