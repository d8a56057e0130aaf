"""The commands for journals and sessions: lists, bounds, refusals. For replays see test_replay."""

import json
import os

import numpy as np
import pytest

from benchmarks.kill_journal import PIXELS, volume
from napari_lowlat_seg import Click, Session, sample_path
from napari_lowlat_seg.annotation.journal import Journal, list_journals
from napari_lowlat_seg.cli.app import main
from napari_lowlat_seg.serving import process


@pytest.fixture
def three(journals, tmp_path):
    """Three journals of the user, the first one the oldest, and their image."""
    np.save(tmp_path / "stack.npy", PIXELS)
    paths = []
    for age in range(3):
        session = Session(volume())
        journal = Journal(session, journals, image=tmp_path / "stack.npy")
        session.add(session.volume.planes()[0], Click((1, 1 + age)))
        journal.close()
        os.utime(journal.path, (10**9 + age, 10**9 + age))
        paths.append(journal.path)
    return paths


def run(capsys, *arguments):
    """Exit status, output and errors."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_journals_are_listed_the_newest_first(capsys, three, tmp_path):
    """With day, size and where the image lay; as JSON too."""
    status, out, _ = run(capsys, "sessions", "list")
    assert status == 0
    assert [line.strip() for line in out.splitlines() if "journals/" in line] == [str(p) for p in three[::-1]]
    assert "2001-09-09" in out
    assert str(tmp_path / "stack.npy") in out
    assert out.splitlines()[-1].startswith("3 journals, 0.0 MB")
    _, out, _ = run(capsys, "sessions", "list", "--json")
    assert [row["path"] for row in json.loads(out)] == [str(path) for path in three[::-1]]
    assert run(capsys, "sessions", "list", "--folder", tmp_path / "none")[1] == "0 journals, 0.0 MB\n"


def test_journals_are_pruned_by_number_size_and_age(capsys, three, journals):
    """The oldest first; without options those that are older than 90 days."""
    assert run(capsys, "sessions", "prune", "--keep-count", 2, "--keep-days", 10**6)[1].split()[0] == str(
        three[0]
    )
    assert [info.path for info in list_journals(journals)] == [three[2], three[1]]
    status, out, _ = run(capsys, "sessions", "prune", "--keep-mb", 0, "--keep-days", 10**6)
    assert (status, out.splitlines()[-1]) == (0, "2 journals deleted")
    assert run(capsys, "sessions", "prune")[1] == "0 journals deleted\n"


def test_a_script_is_printed_or_written(capsys, three, tmp_path):
    """The image is found where it lay."""
    status, out, _ = run(capsys, "export-script", three[0])
    assert status == 0
    assert "session.set_prompts(" in out
    compile(out, "script", "exec")
    assert run(capsys, "export-script", three[0], "-o", tmp_path / "again.py")[0] == 0
    assert (tmp_path / "again.py").read_text() == out


@pytest.mark.parametrize("command", ["replay", "export-script"])
def test_what_is_no_session_of_this_image_is_refused(capsys, three, tmp_path, command):
    """Status 2 and one sentence; nothing is loaded."""
    em = sample_path("em_fly_medulla.tif")
    (tmp_path / "notes.txt").write_text("milk")
    for arguments, words in (
        ((tmp_path / "missing.lowlat",), "no such file"),
        ((tmp_path / "notes.txt",), "this is no session of napari-lowlat-seg"),
        ((three[0], em), "has other pixels"),
        ((three[0], tmp_path / "none.tif"), "none.tif"),
    ):
        status, out, err = run(capsys, command, *arguments)
        assert (status, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "asked"),
    [("ssh://far.example", None), ("cpu of gpu1, 5 ms away", "cpu"), ("cuda:1", "cuda:1")],
)
def test_a_session_never_sends_its_image_to_another_machine(
    capsys, journals, tmp_path, monkeypatch, device, asked
):
    """The device in it may be a stranger's wish; one of another machine is given by the user."""
    np.save(tmp_path / "stack.npy", PIXELS)
    session = Session(volume())
    journal = Journal(session, journals, image=tmp_path / "stack.npy")
    session.model = {"model": "default", "device": device}
    session.add(session.volume.planes()[0], Click((1, 1)))
    journal.close()
    made = []

    class Noting:
        def __init__(self, model, device, *rest, **more):
            made.append(device)

        def describe(self):
            return {}

        def close(self):
            """Nothing runs."""

    monkeypatch.setattr(process, "PredictionProcess", Noting)
    status, _, err = run(capsys, "replay", journal.path)
    if asked is None:
        assert status == 2
        assert "a device of another machine, ssh://far.example; say with --device" in err
        assert run(capsys, "replay", journal.path, "--device", device)[0] == 0
        asked = device
    assert made == [asked]


def test_labels_of_a_replay_never_take_the_place_of_the_session(capsys, three):
    """Inputs are never written over."""
    status, _, err = run(capsys, "replay", three[0], "-o", three[0])
    assert status == 2
    assert "is the session itself" in err
