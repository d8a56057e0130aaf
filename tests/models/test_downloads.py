"""Downloads against a local server with TLS that behaves as badly as real ones do."""

import gzip
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme

from napari_lowlat_seg.models import downloads
from napari_lowlat_seg.models.downloads import fetch, file_sha256
from napari_lowlat_seg.models.registry import WEIGHTS, cache_dir

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

    def __init__(self, keys: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), Replies)
        self.asked: list[str] = []
        self.release = threading.Event()
        self.scheme = "https" if keys else "http"
        if keys:
            self.socket = keys.wrap_socket(self.socket, server_side=True)

    def url(self, path: str) -> str:
        return f"{self.scheme}://localhost:{self.server_port}/{path}"

    def handle_error(self, *_: object) -> None:
        """Clients that leave are what is tested."""


class Replies(BaseHTTPRequestHandler):
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
        self.page(CONFIRM.format(action="http://elsewhere:1/drive"))

    def to(self, address: str) -> None:
        self.send_response(302)
        self.send_header("Location", address)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def moved(self) -> None:
        self.to("/file")

    def round(self) -> None:
        self.to("/round")

    def plain(self) -> None:
        self.to(f"http://localhost:{self.server.server_port}/file")

    def local_file(self) -> None:
        self.to("file:///etc/passwd")

    def ftp(self) -> None:
        self.to("ftp://localhost/file")

    def plain_form(self) -> None:
        self.page(CONFIRM.format(action=f"http://localhost:{self.server.server_port}/drive"))

    def named(self) -> None:
        self.send_response(200)
        self.send_header("Content-Disposition", 'attachment; filename="../../owned.pth"')
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT)

    def large(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(10**15))
        self.end_headers()

    def endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        for _ in range(100):
            self.wfile.write(CONTENT)

    def endless_page(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"<p>" * 100_000)

    def trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            if self.server.release.wait(0.02):
                return

    def packed(self) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(gzip.compress(bytes(10_000_000)))

    def short(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "9" * 30)
        self.end_headers()
        self.wfile.write(CONTENT)

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


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whose certificates are trusted here."""
    return trustme.CA()


@pytest.fixture(autouse=True)
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an institute's own authority is trusted: by a file."""
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))


def keys_of(authority: trustme.CA) -> ssl.SSLContext:
    keys = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(keys)
    return keys


@pytest.fixture
def server(authority: trustme.CA) -> Iterator[Server]:
    with Server(keys_of(authority)) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield served
        served.release.set()
        served.shutdown()


@pytest.fixture
def get(server: Server, tmp_path: Path) -> Callable[..., Path]:
    """Fetch a path of the server to tmp_path/cache/model.pth."""

    def get(path: str, sha256: str | None = None, progress=lambda *_: None, patience: float = 0.3) -> Path:
        model = tmp_path / "cache" / "model.pth"
        return fetch(server.url(path), model, sha256, progress, patience, most=2 * len(CONTENT))

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
        ("cut", r"the download of model\.pth from https://.*/cut broke off \(.*\); try again"),
        ("stall", r"the download of model\.pth from https://.*/stall stalled for 0\.3 s; try again"),
        ("silent", r"the download of model\.pth from https://.*/silent stalled for 0\.3 s; try again"),
        ("gone", r"the download of model\.pth from https://.*/gone was answered with 404; it may have moved"),
        ("quota", r"/quota sent a web page instead of model\.pth; perhaps too many people fetched it today"),
        ("again", r"/again sent a web page instead of model\.pth"),
        (
            "elsewhere",
            r"sends the download of model\.pth elsewhere, to http://elsewhere:1/drive; not followed",
        ),
        ("plain", r"the download of model\.pth leads to http://localhost:\d+/file, which is not https"),
        ("local_file", r"the download of model\.pth leads to file:///etc/passwd, which is not https"),
        ("ftp", r"the download of model\.pth leads to ftp://localhost/file, which is not https"),
        ("plain_form", r"the download of model\.pth leads to http://localhost:\d+/drive, which is not https"),
        ("round", r"the download of model\.pth was redirected more than 8 times; not followed"),
        ("large", r"model\.pth has at most 6144000 bytes, but 1000000000000000 are sent or announced"),
        ("endless", r"model\.pth has at most 6144000 bytes, but \d+ are sent or announced; not kept"),
        ("endless_page", r"/endless_page sent a web page instead of model\.pth"),
        ("trickle", r"the download of model\.pth from https://.*/trickle stalled for 0\.3 s; try again"),
        ("packed", r"/packed sends model\.pth compressed, which was not asked for; not followed"),
        ("short", r"broke off"),
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
    with pytest.raises(ValueError, match=r"the download of a\.pth from https://127\.0\.0\.1:1/a broke off"):
        fetch("https://127.0.0.1:1/a", tmp_path / "a.pth", None, lambda *_: None, 0.3)


def test_http_is_not_spoken(tmp_path) -> None:
    """Not even to ask; on this machine neither."""
    with Server(None) as plain:
        with pytest.raises(ValueError, match=r"leads to http://localhost:\d+/file, which is not https"):
            fetch(plain.url("file"), tmp_path / "a.pth", DIGEST, lambda *_: None)
        assert plain.asked == []
    assert not (tmp_path / "a.pth").exists()


def test_a_server_without_a_trusted_certificate_is_refused(tmp_path) -> None:
    """It may be anybody."""
    with Server(keys_of(trustme.CA())) as stranger:
        threading.Thread(target=stranger.serve_forever, args=(0.02,), daemon=True).start()
        with pytest.raises(ValueError, match=r"has no certificate that is trusted .*; not followed"):
            fetch(stranger.url("file"), tmp_path / "a.pth", None, lambda *_: None, 5)
        stranger.shutdown()
    assert stranger.asked == []


def test_redirections_are_followed_and_names_ignored(get, server, left) -> None:
    """The file goes where it was to go, whatever the server calls it."""
    assert get("moved", DIGEST).read_bytes() == CONTENT
    assert server.asked == ["/moved", "/file"]
    get("moved").unlink()
    assert get("named", DIGEST).read_bytes() == CONTENT
    assert left() == ["model.pth"]


def test_a_slow_server_is_waited_for(get, monkeypatch) -> None:
    """As long as enough comes in the time."""
    monkeypatch.setattr(downloads, "LEAST", 1)
    with pytest.raises(ValueError, match="broke off"):
        get("trickle")


def test_every_address_is_https_and_what_we_publish_is_pinned() -> None:
    """The table itself; a size limits each download."""
    for name, row in WEIGHTS.items():
        assert not row.url or row.url.startswith("https://"), name
        assert row.sha256 or "github.com/napari-lowlat-seg" not in row.url, name
        assert row.most_bytes < 2**30 or not row.url, name


def test_another_file_than_promised_is_refused(get, left) -> None:
    """A wrong sha256 after the download."""
    with pytest.raises(
        ValueError, match=f"model.pth from https://.* has sha256 {DIGEST}, expected {'0' * 64}"
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
