"""Downloads of model files, by https only, bounded in bytes and in time without progress.

Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests
from tqdm import tqdm

from napari_lowlat_seg.core.atomic_file import atomic_file

Progress = Callable[[int, int | None], object]

CHUNK = 1 << 16
STALLED_AFTER = 30.0  # seconds in which `LEAST` bytes must come
LEAST = 1 << 14
MAX_PAGE = 1 << 20  # bytes of a confirmation page that are read
MAX_HOPS = 8
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
    most: int = 2**31,
) -> Path:
    """Download `url` to `path` if there is no file yet; check its sha256; return `path`.

    Names that the server gives are not used. Every address on the way, redirections included, is https.

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
        Seconds in which at least `LEAST` bytes must come, or the download is given up.
    most
        Bytes that it may have.

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
        with requests.Session() as session, closing(_opened(session, url, path.name, patience)) as response:
            counter = _Counter(path.name, _length(response), progress, most)
            with atomic_file(path) as part, part.open("wb") as file, closing(counter):
                for chunk in _chunks(response, patience):
                    counter.add(chunk)
                    file.write(chunk)
                counter.finish(url, sha256)
    except requests.HTTPError as error:
        code = "an error" if error.response is None else error.response.status_code
        raise ValueError(f"{what} was answered with {code}; it may have moved") from None
    except requests.exceptions.SSLError as error:
        raise ValueError(
            f"{what} has no certificate that is trusted ({error!s:.120}); not followed"
        ) from None
    except (requests.RequestException, _Stalled) as error:
        # A pause before the first byte is a Timeout; one in the middle is a ConnectionError, and only its
        # message tells.
        stalled = isinstance(error, requests.Timeout | _Stalled) or "timed out" in str(error)
        how = f"stalled for {patience:g} s" if stalled else f"broke off ({type(error).__name__})"
        raise ValueError(f"{what} {how}; try again") from None
    return path


class _Stalled(Exception):
    """Too few bytes came in the time."""


def _opened(session: requests.Session, url: str, name: str, patience: float) -> requests.Response:
    """The response that is the file; Google Drive's page in between is confirmed."""
    response = _followed(session, url, {}, name, patience)
    if _is_page(response):
        response = _followed(session, *_confirmed(response, name, patience), name, patience)
    if _is_page(response):
        response.close()
        raise ValueError(_GOT_A_PAGE.format(url, name))
    return response


def _followed(
    session: requests.Session, url: str, fields: dict[str, str], name: str, patience: float
) -> requests.Response:
    """The response at the end of all redirections, each of which must lead to https."""
    for _ in range(MAX_HOPS):
        if urlsplit(url).scheme != "https":
            raise ValueError(
                f"the download of {name} leads to {url:.200}, which is not https: anybody on the way could "
                "change it; not followed"
            )
        # Compressed on the way a small answer could become any size.
        response = session.get(
            url,
            params=fields,
            stream=True,
            timeout=patience,
            allow_redirects=False,
            headers={"Accept-Encoding": "identity"},
        )
        if not response.is_redirect:
            response.raise_for_status()
            if response.headers.get("Content-Encoding", "identity") != "identity":
                response.close()
                raise ValueError(f"{url:.200} sends {name} compressed, which was not asked for; not followed")
            return response
        response.close()
        url, fields = urljoin(response.url, response.headers["Location"]), {}
    raise ValueError(f"the download of {name} was redirected more than {MAX_HOPS} times; not followed")


def _chunks(response: requests.Response, patience: float) -> Iterator[bytes]:
    """What comes, as it comes; raises `_Stalled` when it is less than `LEAST` in the time."""
    since, few = time.monotonic(), 0
    while chunk := _some(response):
        yield chunk
        few += len(chunk)
        now = time.monotonic()
        if few >= LEAST:
            since, few = now, 0
        elif now > since + patience:
            raise _Stalled


def _some(response: requests.Response) -> bytes:
    """The next bytes, without waiting for a full chunk: one that trickles must not pass for a slow one."""
    import urllib3

    try:
        got: bytes = response.raw.read1(CHUNK, decode_content=False)
    except urllib3.exceptions.ReadTimeoutError:
        raise _Stalled from None
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from None
    return got


class _Counter:
    """Counts and digests the bytes, reports progress, and checks length and sha256 at the end."""

    def __init__(self, name: str, total: int | None, progress: Progress | None, most: int) -> None:
        self.name, self.total, self.most = name, total, most
        self.done, self.digest = 0, hashlib.sha256()
        bar = None if progress else tqdm(desc=name, total=total, unit="B", unit_scale=True, leave=False)
        self.bar, self.progress = bar, progress
        self._bounded(total or 0)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def add(self, chunk: bytes) -> None:
        self.done += len(chunk)
        self._bounded(self.done)
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

    def _bounded(self, size: int) -> None:
        if size > self.most:
            self.close()
            raise ValueError(
                f"{self.name} has at most {self.most} bytes, but {size} are sent or announced; not kept"
            )


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


def _confirmed(response: requests.Response, name: str, patience: float) -> tuple[str, dict[str, str]]:
    """Address and fields of the request that a confirmation page asks for.

    Why this is not gdown: docs/decisions/libraries.md.
    """
    page = b""
    with response:
        for chunk in _chunks(response, patience):
            page += chunk
            if len(page) > MAX_PAGE:
                raise ValueError(_GOT_A_PAGE.format(response.url, name))
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
    """Bytes announced; None if unknown."""
    announced = response.headers.get("Content-Length", "")
    return int(announced) if announced.isdigit() and len(announced) < 20 else None
