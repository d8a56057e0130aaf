"""Which processors may be used, and how OpenMP's threads wait; what the user has set stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from napari_lowlat_seg.inference import processors
from napari_lowlat_seg.inference.processors import (
    SPIN_TURNS,
    STREAMS,
    configure,
    cpu_quota,
    streams,
    threads_set_by_user,
    usable,
)

OURS = {"GOMP_SPINCOUNT": str(SPIN_TURNS)}


@pytest.fixture
def bound_to(monkeypatch):
    """A machine of so many processors, and a container's quota or none."""

    def machine(count, quota=None):
        monkeypatch.setattr(processors, "_affinity", lambda: count)
        monkeypatch.setattr(processors, "cpu_quota", lambda: quota)

    return machine


@pytest.mark.parametrize(
    ("given", "added"),
    [
        ({}, OURS),
        ({"PATH": "/bin"}, OURS),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"OMP_WAIT_POLICY": ""}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {}),
        ({"OMP_NUM_THREADS": "3"}, OURS),
    ],
)
def test_what_the_user_has_set_stays(bound_to, given, added):
    """One setting of how threads wait is all of them."""
    bound_to(8)
    environment = dict(given)
    assert configure(environment) == added
    assert environment == {**given, **added}


def test_a_quota_bounds_the_threads_unless_the_user_says_how_many(bound_to):
    """Without a quota the runtime counts by itself, by affinity."""
    bound_to(64, 2.5)
    assert configure({}) == {**OURS, "OMP_NUM_THREADS": "3"}
    assert configure({"OMP_NUM_THREADS": "64"}) == OURS
    bound_to(64, 100.0)
    assert configure({}) == OURS


@pytest.mark.parametrize(
    ("count", "quota", "found"), [(4, None, 4), (4, 1.5, 2), (4, 0.2, 1), (4, 4.0, 4), (2, 8.0, 2)]
)
def test_usable_is_the_smaller_of_affinity_and_quota(bound_to, count, quota, found):
    """A part of a processor counts as one."""
    bound_to(count, quota)
    assert usable() == found


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no affinity")
def test_affinity_counts(run_python):
    """Not the processors of the machine, but those this process is bound to."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    assert (
        run_python(f"{code}from napari_lowlat_seg.inference.processors import usable; print(usable())") == "1"
    )


def groups(root: Path, lines: str, **limits: str) -> float | None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return cpu_quota(root)


@pytest.mark.parametrize(
    ("lines", "limits", "quota"),
    [
        ("0::/\n", {"cpu_max": "250000 100000"}, 2.5),
        ("0::/\n", {"cpu_max": "max 100000"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a__b__cpu_max": "400000 100000", "a__cpu_max": "150000 100000"}, 1.5),
        ("0::/of/the/host\n", {"cpu_max": "300000 100000"}, 3.0),
        ("4:memory:/m\n1:cpu,cpuacct:/a\n",
         {"cpu,cpuacct__a__cpu_cfs_quota_us": "50000", "cpu,cpuacct__a__cpu_cfs_period_us": "100000"}, 0.5),
        ("1:cpu:/of/the/host\n0::/\n",
         {"cpu__cpu_cfs_quota_us": "200000", "cpu__cpu_cfs_period_us": "100000"}, 2.0),
        ("1:cpu:/\n", {"cpu__cpu_cfs_quota_us": "-1", "cpu__cpu_cfs_period_us": "100000"}, None),
        ("1:cpuset:/\n", {"cpu_max": "100000 100000"}, None),
        ("0::/\n", {"cpu_max": "nonsense"}, None),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_read(tmp_path, lines, limits, quota):
    """Both versions of control groups, and the strictest of all groups above."""
    assert groups(tmp_path, lines, **limits) == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    """As macOS and Windows."""
    assert cpu_quota(tmp_path) is None


def test_our_own_setting_is_not_taken_for_the_users(monkeypatch, bound_to):
    """A child gets all processors but one although a quota has bounded the parent."""
    bound_to(64, 4.0)
    monkeypatch.setattr(processors, "_ours", {})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert not threads_set_by_user()
    configure()
    assert os.environ["OMP_NUM_THREADS"] == "4"
    assert not threads_set_by_user()
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    assert threads_set_by_user()


def fresh(code: str, stream: str = "stdout", **environment: str) -> str:
    """What a Python of its own prints that starts without any setting of OpenMP's but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**kept, **environment})
    assert done.returncode == 0, done.stderr
    printed: str = getattr(done, stream)
    return printed.strip()


@pytest.mark.slow
def test_importing_the_package_sets_it_before_torch_is_there():
    """At the moment when torch is looked for, by whichever module."""
    code = """
import os, sys

class Look:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit

import napari_lowlat_seg
assert "torch" not in sys.modules and "numpy" not in sys.modules
sys.meta_path.insert(0, Look())
napari_lowlat_seg.load_predictor
"""
    assert fresh(code) == str(SPIN_TURNS)
    assert fresh(code, GOMP_SPINCOUNT="5") == "5"
    assert fresh(code, OMP_WAIT_POLICY="active") == "None"


@pytest.mark.slow
def test_every_kind_of_child_inherits_it():
    """The model's process, spawned workers, and those of the batch commands."""
    code = """
import json, os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from napari_lowlat_seg.serving.process import call_in_process
from napari_lowlat_seg.batch.workers import LocalWorkers

if __name__ == "__main__":
    found = [call_in_process("os:getenv", "GOMP_SPINCOUNT")]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found.append(pool.submit(os.getenv, "GOMP_SPINCOUNT").result())
    with LocalWorkers(1) as workers:
        found += [value for _, value in workers.map(os.getenv, ["GOMP_SPINCOUNT"])]
    print(json.dumps(found))
"""
    assert json.loads(fresh(code)) == [str(SPIN_TURNS)] * 3
    assert json.loads(fresh(code, GOMP_SPINCOUNT="5")) == ["5"] * 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems' torch brings another runtime")
def test_the_runtime_has_read_it():
    """GNU's runtime prints the settings it has come to when OMP_DISPLAY_ENV says so: the only proof."""
    code = "import napari_lowlat_seg, torch; assert 'libgomp' in open('/proc/self/maps').read()"
    printed = fresh(code, "stderr", OMP_DISPLAY_ENV="verbose")
    assert f"GOMP_SPINCOUNT = '{SPIN_TURNS}'" in printed


@pytest.mark.parametrize(("value", "count"), [(None, 1), ("2", 2), ("0", 1), ("", 1), ("-3", 1), ("many", 1)])
def test_streams_are_those_of_the_environment(monkeypatch, value, count) -> None:
    """Whatever else it may say, one step can be under way."""
    monkeypatch.delenv(STREAMS, raising=False)
    if value is not None:
        monkeypatch.setenv(STREAMS, value)
    assert streams() == count
