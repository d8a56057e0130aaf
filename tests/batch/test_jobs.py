"""Work on a cluster: all of it is done once, whoever dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from napari_lowlat_seg.batch.jobs import connected, spread

pytest.importorskip("distributed")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_killed_in_the_middle_costs_nothing_but_time(tmp_path: Path) -> None:
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
        for number in spread(client, slow_file, range(24)):
            done.append(number)
            if len(done) == 4:
                os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert sorted(done) == list(range(24))
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == list(range(24))


def test_an_error_that_repeats_itself_is_told() -> None:
    """With its own sentence."""

    def fail(job: int) -> int:
        raise ValueError(f"job {job} cannot be done")

    with connected(None, 1) as client, pytest.raises(ValueError, match=r"job 3 cannot be done"):
        list(spread(client, fail, [3]))


def test_no_workers_is_no_cluster() -> None:
    """The caller works by itself."""
    with connected(None, 0) as client:
        assert client is None


def test_an_address_where_nobody_answers_is_refused() -> None:
    """And a negative number of workers."""
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'nonsense://'; check"):
        connected("nonsense://", 0).__enter__()
    with pytest.raises(ValueError, match=r"0 workers or more; got -1"):
        connected(None, -1).__enter__()


def test_without_dask_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine alone does not bring it."""
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    with pytest.raises(ImportError, match=r"needs Dask.*pip install napari-lowlat-seg\[cluster\]"):
        connected(None, 1).__enter__()
