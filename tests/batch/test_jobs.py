"""Work on a cluster: each job is done once, also when workers crash."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_lowlat_seg.batch import jobs, workers
from napari_lowlat_seg.batch.jobs import BatchJob, BatchSettings, connected, map_jobs
from worker_jobs import crash, fail, fail_strangely, slow_file


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_worker_changes_no_result(tmp_path: Path) -> None:
    """Its jobs are done by others, results come once each."""
    done = []
    with connected(None, 2) as client:
        for _, number in map_jobs(client, slow_file, [(tmp_path, number) for number in range(24)]):
            done.append(number)
            if len(done) == 4:
                os.kill(client.pids[0], signal.SIGKILL)
    assert sorted(done) == list(range(24))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(24))
    assert client.pids == []


@pytest.mark.slow
def test_an_error_that_repeats_itself_is_raised() -> None:
    """With its own sentence, and where it was raised; one that cannot travel as its sentence."""
    with connected(None, 1) as client:
        with pytest.raises(ValueError, match=r"job 3 cannot be done") as caught:
            list(map_jobs(client, fail, [3]))
        assert "worker_jobs.py" in caught.value.__notes__[0]
        with pytest.raises(RuntimeError, match=r"Unsendable: 4 and 4"):
            list(map_jobs(client, fail_strangely, [4]))
        assert list(map_jobs(client, abs, [-3])) == [(-3, 3)]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_job_that_crashes_every_worker_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sentence; the workers are gone afterwards."""
    monkeypatch.setattr(workers, "CRASHES", 1)
    with connected(None, 1) as client, pytest.raises(OSError, match=r"every worker that took it crashed"):
        list(map_jobs(client, crash, [1]))
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_workers_end_with_a_parent_that_was_killed(until) -> None:
    """Their pipe ends, so they do."""
    code = """
import time
from napari_lowlat_seg.batch.workers import LocalWorkers
if __name__ == "__main__":
    with LocalWorkers(2) as workers:
        list(workers.map(abs, [1, 2]))
        print(*workers.pids, flush=True)
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    until(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_another_user_finds_no_door(tmp_path: Path) -> None:
    """Workers listen nowhere, by no address and no name; as another user their pipes cannot be opened."""
    with connected(None, 2) as client:
        working = map_jobs(client, slow_file, [(tmp_path, number) for number in range(6)])
        next(working)
        assert [listening(pid) for pid in (os.getpid(), *client.pids)] == [set()] * 3
        attacker = ATTACK.format(pids=[os.getpid(), *client.pids])
        if os.getuid() == 0:  # only then can a second user be had
            opened = subprocess.run([sys.executable, "-I", "-c", attacker], capture_output=True, text=True)
            assert opened.stdout.split() == ["refused"] * 3, opened
        assert len(list(working)) == 5


ATTACK = """
import os
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for pid in {pids}:
    try:
        for fd in os.listdir(f"/proc/{{pid}}/fd"):
            os.open(f"/proc/{{pid}}/fd/{{fd}}", os.O_WRONLY)
        print("open")
    except PermissionError:
        print("refused")
"""


def listening(pid: int) -> set[str]:
    """Sockets of a process that others can connect to: TCP ones that listen, and local ones with a name."""
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if os.path.lexists(fd)]
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
        found |= {f"{table} {row[1]}" for row in rows if row[9] in own and row[3] == "0A"}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
    return found | {row[7] for row in rows if row[6] in own and len(row) > 7}


def test_a_job_is_split_into_batches() -> None:
    """In order; the rest is the last."""
    parts = BatchJob(image=Path("a.tif"), settings=BatchSettings(device="cpu"), items=tuple(range(5))).split(
        2
    )
    assert [part.items for part in parts] == [(0, 1), (2, 3), (4,)]
    assert {part.settings.device for part in parts} == {"cpu"}


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


@pytest.mark.slow
def test_an_address_without_a_scheduler_is_refused() -> None:
    """And a negative number of workers."""
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'nonsense://'; check"):
        connected("nonsense://", 0, insecure=True).__enter__()
    with pytest.raises(ValueError, match=r"0 workers or more; got -1"):
        connected(None, -1).__enter__()


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.1:8786", "tcp://127.0.0.1:8786", "10.0.0.1:8786", "ws://a:1", "ucx://a:1", "TLS://a:1"],
)
def test_a_scheduler_without_tls_needs_leave(address: str) -> None:
    """Nothing is sent to it before."""
    with pytest.raises(ValueError, match=r"has no TLS, so anybody who .* --insecure-scheduler"):
        connected(address, 0).__enter__()


def test_tls_without_an_authority_is_refused() -> None:
    """Any server would do."""
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=r"needs the certificate of its authority; .*ca-file"):
        connected("tls://127.0.0.1:8786", 0).__enter__()


def test_without_dask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine alone does not bring it; workers of this machine do without."""
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=r"needs Dask.*pip install 'dask\[distributed\]' \(the extra"):
        connected("tls://127.0.0.1:8786", 0).__enter__()
    with connected(None, 1) as client:
        assert list(map_jobs(client, abs, [-1])) == [(-1, 1)]


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
