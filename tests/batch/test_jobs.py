"""Work on a cluster: each job is done once, also when workers crash."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.batch import jobs
from napari_lowlat_seg.batch.jobs import BatchJob, connected, map_jobs

pytest.importorskip("distributed")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_worker_changes_no_result(tmp_path: Path) -> None:
    """Its jobs are done by others, results come once each."""

    def slow_file(number: int) -> int:
        path = tmp_path / str(number)
        if not path.exists():
            time.sleep(0.2)
            path.write_text("done")
        return number

    done = []
    with connected(None, 2) as client:
        pids = client.run(os.getpid)
        for _, number in map_jobs(client, slow_file, range(24)):
            done.append(number)
            if len(done) == 4:
                os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert sorted(done) == list(range(24))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(24))


@pytest.mark.slow
def test_an_error_that_repeats_itself_is_raised() -> None:
    """With its own sentence."""

    def fail(job: int) -> int:
        raise ValueError(f"job {job} cannot be done")

    with connected(None, 1) as client, pytest.raises(ValueError, match=r"job 3 cannot be done"):
        list(map_jobs(client, fail, [3]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_job_that_crashes_every_worker_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence, not with the traceback of the cluster."""
    monkeypatch.setattr(jobs, "CRASHES", 0)

    def crash(job: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with connected(None, 1) as client, pytest.raises(OSError, match=r"every worker that took it crashed"):
        list(map_jobs(client, crash, [1]))


def test_a_job_is_split_into_batches() -> None:
    """In order; the rest is the last."""
    parts = BatchJob(image=Path("a.tif"), device="cpu", items=tuple(range(5))).split(2)
    assert [part.items for part in parts] == [(0, 1), (2, 3), (4,)]
    assert {part.device for part in parts} == {"cpu"}


def test_a_file_that_has_changed_is_opened_again(tmp_path: Path) -> None:
    """A worker lives for many runs and keeps the last image."""
    path = tmp_path / "a.tif"
    job = BatchJob(image=path, window=(0.0, 9.0))
    tifffile.imwrite(path, np.zeros((4, 5), np.uint8))
    first = job.volume()
    assert job.volume().data is first.data
    assert first.window == (0.0, 9.0)
    tifffile.imwrite(path, np.ones((4, 6), np.uint8))
    assert job.volume().shape == (4, 6)


def test_no_workers_is_no_cluster() -> None:
    """The caller works by itself."""
    with connected(None, 0) as client:
        assert client is None


def test_an_address_without_a_scheduler_is_refused() -> None:
    """And a negative number of workers."""
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'nonsense://'; check"):
        connected("nonsense://", 0).__enter__()
    with pytest.raises(ValueError, match=r"0 workers or more; got -1"):
        connected(None, -1).__enter__()


def test_without_dask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine alone does not bring it."""
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=r"needs Dask.*pip install 'dask\[distributed\]' \(the extra"):
        connected(None, 1).__enter__()


class LostResult:
    """A future whose result went with its worker some times, and came back; or an error of the job."""

    def __init__(self, losses: int, status: str = "pending") -> None:
        self.losses, self.status = losses, status

    def result(self) -> str:
        self.losses -= 1
        if self.losses >= 0:
            raise KeyError("lost")
        return "here"


def test_a_result_lost_with_its_worker_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it has been computed anew; what stays lost, and errors of the job itself, are raised."""
    monkeypatch.setattr(jobs, "FETCHES", 4)
    assert jobs._result(LostResult(0)) == jobs._result(LostResult(3)) == "here"
    with pytest.raises(KeyError, match="lost"):
        jobs._result(LostResult(4))
    failed = LostResult(1, "error")
    with pytest.raises(KeyError, match="lost"):
        jobs._result(failed)
    assert failed.losses == 0
