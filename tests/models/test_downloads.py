"""Downloads against a local server that behaves as badly as real ones do."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from napari_lowlat_seg.models.registry import cache_dir, fetch, file_sha256

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CONFIRM = """<!DOCTYPE html><html><body><p>too large to scan for viruses</p>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="abc"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="1-2"></form></body></html>"""


class Server(ThreadingHTTPServer):
    """Serves CONTENT under several kinds of trouble; `asked` lists the queries, `release` ends a stall."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SoftMask)
        self.asked: list[str] = []
        self.release = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class SoftMask(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path, query = urlsplit(self.path).path.strip("/"), parse_qs(urlsplit(self.path).query)
        if path == "drive":
            confirmed = (
                query.get("confirm") == ["t"] and query.get("uuid") == ["1-2"] and query["id"] == ["abc"]
            )
            self.file() if confirmed else self.page(CONFIRM.format(action="/drive"))
        else:
            getattr(self, path)()

    def file(self, sent: int = len(CONTENT)) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:sent])

    def cut(self) -> None:
        self.file(1_500_000)

    def stall(self) -> None:
        self.file(1_500_000)
        self.wfile.flush()
        self.server.release.wait(300)

    def silent(self) -> None:
        self.server.release.wait(300)

    def gone(self) -> None:
        self.send_error(404)

    def quota(self) -> None:
        self.page("<html><body>Sorry, too many users have downloaded this file.</body></html>")

    def again(self) -> None:
        self.page(CONFIRM.format(action="/again"))

    def elsewhere(self) -> None:
        self.page(CONFIRM.format(action="http://localhost:1/drive"))

    def unknown_length(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)

    def page(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield served
        served.release.set()
        served.shutdown()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch a path of the server to tmp_path/cache/model.pth."""

    def get(path: str, sha256: str | None = None, progress=lambda *_: None, patience: float = 0.3) -> Path:
        return fetch(server.url(path), tmp_path / "cache" / "model.pth", sha256, progress, patience)

    return get


@pytest.fixture
def left(tmp_path: Path) -> Callable[[], list[str]]:
    """Names of the files that are in the cache folder now."""
    return lambda: sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_file_is_downloaded_completely_and_reports_progress(get, left) -> None:
    """Bytes, progress up to the end, and nothing beside the file."""
    steps: list[tuple[int, int | None]] = []
    path = get("file", DIGEST, lambda done, total: steps.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT), len(CONTENT))
    assert len(steps) > 1
    assert left() == ["model.pth"]


def test_the_form_of_a_large_file_is_confirmed(get, server) -> None:
    """The page's hidden fields are sent back, and the file is what is kept."""
    assert get("drive?id=abc&export=download", DIGEST).read_bytes() == CONTENT
    assert server.asked == [
        "/drive?id=abc&export=download",
        "/drive?id=abc&export=download&confirm=t&uuid=1-2",
    ]


def test_a_file_that_is_there_is_not_fetched_again(get, server) -> None:
    """Its sha256 is enough."""
    get("file", DIGEST)
    get("file", DIGEST)
    assert len(server.asked) == 1


def test_a_changed_file_is_reported_and_kept(get) -> None:
    """It is the user's to remove."""
    path = get("file", DIGEST)
    path.write_bytes(b"other")
    with pytest.raises(ValueError, match=f"is not the file it should be: expected sha256 {DIGEST}, got"):
        get("file", DIGEST)
    assert path.read_bytes() == b"other"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("cut", r"the download of model\.pth from http://.*/cut broke off \(.*\); try again"),
        ("stall", r"the download of model\.pth from http://.*/stall stalled for 0\.3 s; try again"),
        ("silent", r"the download of model\.pth from http://.*/silent stalled for 0\.3 s; try again"),
        ("gone", r"the download of model\.pth from http://.*/gone was answered with 404; it may have moved"),
        ("quota", r"/quota sent a web page instead of model\.pth; perhaps too many people fetched it today"),
        ("again", r"/again sent a web page instead of model\.pth"),
        (
            "elsewhere",
            r"sends the download of model\.pth elsewhere, to http://localhost:1/drive; not followed",
        ),
    ],
)
def test_trouble_is_one_sentence_and_leaves_nothing(get, left, path, message) -> None:
    """No half file, no temporary file, and the next try succeeds."""
    with pytest.raises(ValueError, match=message):
        get(path)
    assert left() == []
    assert get("file", DIGEST).read_bytes() == CONTENT


def test_no_server_is_one_sentence(tmp_path) -> None:
    """A refused connection."""
    with pytest.raises(ValueError, match=r"the download of a\.pth from http://127\.0\.0\.1:1/a broke off"):
        fetch("http://127.0.0.1:1/a", tmp_path / "a.pth", None, lambda *_: None, 0.3)


def test_another_file_than_promised_is_refused(get, left) -> None:
    """A wrong sha256 after the download."""
    with pytest.raises(
        ValueError, match=f"model.pth from http://.* has sha256 {DIGEST}, expected {'0' * 64}"
    ):
        get("file", "0" * 64)
    assert left() == []


def test_a_download_without_a_length_is_taken_as_it_comes(get) -> None:
    """Without a length, the end of the connection ends the file; the sha256 is still checked."""
    steps: list[int | None] = []
    assert get("unknown_length", DIGEST, lambda _, total: steps.append(total)).read_bytes() == CONTENT
    assert set(steps) == {None}


def test_whatever_the_progress_raises_cancels(get, left) -> None:
    """The caller's own exception comes back, and nothing is left."""

    class Cancelled(Exception):
        pass

    def stop(done: int, _total: int | None) -> None:
        if done > 1_000_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        get("file", DIGEST, stop)
    assert left() == []


def test_without_a_listener_a_bar_is_drawn(server, tmp_path, capsys) -> None:
    """On stderr, so that --json on stdout stays clean; nothing else is printed."""
    fetch(server.url("file"), tmp_path / "model.pth", None)
    captured = capsys.readouterr()
    assert "model.pth" in captured.err
    assert "known_hash" not in captured.err
    assert captured.out == ""


def test_the_cache_can_be_moved(monkeypatch, tmp_path) -> None:
    """LOWLAT_SEG_CACHE decides, else the system's cache folder."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("LOWLAT_SEG_CACHE")
    assert cache_dir().parts[-2:] == ("napari-lowlat-seg", "models")


def test_a_digest_is_that_of_the_bytes(tmp_path) -> None:
    """64 hexadecimal digits."""
    (tmp_path / "a").write_bytes(CONTENT)
    assert file_sha256(tmp_path / "a") == DIGEST
