"""The stack, the simulated user's clicks, models without weights, and waiting."""

from itertools import islice

import numpy as np
import pytest

from benchmarks.window import common
from benchmarks.window.common import (
    FakeService,
    GapTimer,
    in_process,
    large_stack,
    load_busy,
    random_clicks,
    wait,
    wait_until,
)
from napari_lowlat_seg.core.requests import PlaneSource


def test_the_stack_is_the_sample_mirrored() -> None:
    """Real pixels everywhere, as large as the figures say."""
    stack = large_stack()
    assert stack.shape == (50, 1024, 1024)
    assert np.array_equal(stack[:, 250:500, :250], stack[:, 249::-1, :250])


def test_clicks_go_through_the_planes_in_threes() -> None:
    """And start again after the last; within the range that was asked for."""
    clicks = list(islice(random_clicks(2, 10, 20), 8))
    assert [position for position, _ in clicks] == [0, 0, 0, 1, 1, 1, 0, 0]
    assert all(10 <= value <= 20 for _, click in clicks for value in click.at)


def test_a_fake_service_embeds_a_plane_once() -> None:
    """It has the methods of a prediction service."""
    spent: list[float] = []
    service = FakeService("idle", spent.append, 3.0, 1.0)
    source = PlaneSource(1, lambda: np.zeros((2, 2)))
    assert service.embed(source) > 0
    assert service.embed(source) == 0.0
    ((mask, final),) = service.predict(None, source)  # type: ignore[arg-type]
    assert spent == [3.0, 1.0]
    assert (mask.quality, final) == (None, True)


def test_a_fake_service_describes_itself() -> None:
    """As any service describes its model."""
    assert load_busy("default", "cpu").describe()["model"] == "busy"


def test_the_models_entry_points_exist() -> None:
    """A child process imports them by name."""
    for entry in common.MODELS.values():
        module, _, function = entry.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_a_child_process_imports_the_benchmarks(monkeypatch) -> None:
    """By name, whatever folder it runs in; a second call changes nothing more."""
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    for _ in range(2):
        service = in_process("any", load=common.MODELS["busy"])
    try:
        assert service.describe()["model"] == "busy"
    finally:
        service.close()
    assert common.os.environ["PYTHONPATH"].split(common.os.pathsep)[1:] == ["elsewhere"]


def test_gaps_are_recorded_between_start_and_stop(qtbot) -> None:
    """A second start forgets the first."""
    timer = GapTimer()
    timer.start()
    wait(0.1)
    first = timer.stop()
    assert len(first) > 1
    timer.start()
    assert timer.stop() == []


def test_waiting_too_long_is_an_error(qtbot) -> None:
    """The message says how long it waited."""
    with pytest.raises(TimeoutError, match=r"nothing came in 0\.05 s; look whether"):
        wait_until(lambda: False, 0.05)
