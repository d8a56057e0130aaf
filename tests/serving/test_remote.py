"""Another machine's device over ssh: addresses, and a real sshd on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.remote import RemoteDevice, is_remote
from napari_lowlat_seg.serving.service_predictor import ServicePredictor
from napari_lowlat_seg.serving.worker_process import WorkerProcessEnded
from sshd import LACKING, sshd
from terminal import Call


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssh://gpu1", RemoteDevice("gpu1")),
        ("ssh://gpu1/", RemoteDevice("gpu1")),
        ("ssh://anna@gpu-1.lab.org:2222", RemoteDevice("gpu-1.lab.org", "anna", "2222")),
        ("ssh://gpu1/cuda:1", RemoteDevice("gpu1", device="cuda:1")),
        ("ssh://[::1]:22/cpu", RemoteDevice("::1", "", "22", "cpu")),
        ("ssh://10.0.0.7", RemoteDevice("10.0.0.7")),
    ],
)
def test_an_address_names_a_machine_and_its_device(text: str, expected: RemoteDevice) -> None:
    """As ssh writes it, and what comes after it."""
    assert is_remote(text)
    assert RemoteDevice.parse(text) == expected
    command = expected.command()
    assert command[command.index("--") + 1].endswith(expected.host)
    assert ("-p" in command) == bool(expected.port)


@pytest.mark.parametrize(
    "text",
    [
        "ssh://",
        "ssh://-oProxyCommand=touch owned",
        "ssh://-l@host",
        "ssh://host;touch owned",
        "ssh://host touch",
        "ssh://$(touch owned)",
        "ssh://host`id`",
        "ssh://host|id",
        "ssh://a@b@c",
        "ssh://-user@host",
        "ssh://host:0",
        "ssh://host:99999",
        "ssh://host:-1",
        "ssh://host:22x",
        "ssh://host/cuda 1",
        "ssh://host/../x",
        "ssh://host/cuda;id",
        "ssh://host\n",
        "ssh://host\nLOWLAT",
        "ssh://h\u00f6st",
        "ssh://" + "a@" * 100,
        "SSH://host",
        "http://host",
    ],
)
def test_no_address_becomes_an_option_or_a_command(text: str) -> None:
    """It is refused before ssh sees it."""
    with pytest.raises(ValueError, match=r"expected a device like ssh://HOST"):
        RemoteDevice.parse(text)


def test_other_commands_say_where_they_can_run() -> None:
    """In one sentence."""
    with pytest.raises(
        ValueError, match=r"'ssh://gpu1' is another machine, which the widget, .*run the command"
    ):
        Runtime.find("ssh://gpu1")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device of this machine through a login."""
    if LACKING:
        pytest.skip(LACKING)
    (tmp_path / "ssh").mkdir()
    with sshd(tmp_path / "ssh") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield "ssh://localhost/cpu"


PIXELS = np.random.default_rng(0).integers(0, 200, (90, 120)).astype(np.uint8)
PIXELS[30:50, 40:70] += 50
SOURCE = PlaneSource("plane", lambda: PIXELS)
CLICK = Request(1, 1, Plane((0, None, None)), (Click((40, 55)),), None)


@pytest.mark.slow
def test_a_remote_model_predicts_as_a_local_one(there: str, tiny: Path, until) -> None:
    """The same masks; after its login was cut in the middle, too; it says how far it is."""
    here, remote = PredictionProcess(str(tiny), "cpu", threads=1), PredictionProcess(str(tiny), there)
    try:
        for service in (here, remote):
            service.embed(SOURCE)
        mine, theirs = ([mask.packed for mask, _ in s.predict(CLICK, SOURCE)] for s in (here, remote))
        assert mine == theirs
        assert remote.describe()["device"].startswith("cpu of localhost, ")
        os.kill(remote.describe()["process"], signal.SIGKILL)  # the server there, in a call or before it
        assert [mask.packed for mask, _ in remote.predict(CLICK, SOURCE)] == theirs
        first = remote.pid
        os.kill(first, signal.SIGKILL)  # ssh here
        until(lambda: remote.pid is None)
        assert remote.embed(SOURCE) > 0
        assert remote.pid != first
        predictor = ServicePredictor(remote)
        mask = predictor.predict(predictor.embed(PIXELS), [Click((40, 55))])
        np.testing.assert_array_equal(mask.mask, list(here.predict(CLICK, SOURCE))[-1][0].mask)
    finally:
        here.close()
        remote.close()


@pytest.mark.slow
def test_a_machine_that_cannot_be_reached_says_why(there: str, tmp_path: Path, monkeypatch) -> None:
    """In ssh's words: no key, a stranger's key, no program."""
    monkeypatch.setenv("LOWLAT_SEG_REMOTE", "no-such-program")
    with pytest.raises(
        WorkerProcessEnded,
        match=r"on localhost has ended with exit status 127 \(.*not found.*; install .* LOWLAT",
    ):
        PredictionProcess("default", there).describe()
    known = tmp_path / "ssh" / "known"
    whole = known.read_text()
    known.write_text("")
    with pytest.raises(WorkerProcessEnded, match=r"exit status 255 \(.*Host key verification failed"):
        PredictionProcess("default", there).describe()
    known.write_text(whole)
    (tmp_path / "ssh" / "user.pub").write_text("")
    with pytest.raises(WorkerProcessEnded, match=r"exit status 255 \(.*Permission denied \(publickey"):
        PredictionProcess("default", there).describe()


@pytest.mark.slow
def test_an_error_there_is_a_sentence_here(there: str) -> None:
    """A model that is not there, a device that is not there."""
    with pytest.raises(ValueError, match=r"unknown model 'nonsense'; choose one of default"):
        PredictionProcess("nonsense", there).describe()
    with pytest.raises(ValueError, match=r"device 'cuda:9' is not available"):
        PredictionProcess("default", "ssh://localhost/cuda:9").describe()


@pytest.mark.slow
def test_the_commands_take_it(there: str, tiny: Path, tmp_path: Path, call: Call) -> None:
    """`segment` and `info`."""
    tifffile.imwrite(tmp_path / "a.tif", PIXELS)
    for device, name in ((there, "there.tif"), ("cpu", "here.tif")):
        done = call("segment", "a.tif", "-o", name, "--click", "40,55", "-m", tiny, "-d", device)
        assert done.status == 0, done.err
    theirs, mine = (tifffile.imread(tmp_path / name) for name in ("there.tif", "here.tif"))
    np.testing.assert_array_equal(theirs, mine)
    said = call("info", "-m", tiny, "-d", there).out
    assert "device: cpu of localhost, " in said
    assert "ms away" in said


def test_serve_is_for_programs() -> None:
    """Without --stdio it says so."""
    done = subprocess.run(
        [sys.executable, "-m", "napari_lowlat_seg", "serve"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "serve is started by other programs, with --stdio" in done.stderr
