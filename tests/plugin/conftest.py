"""A window needs napari, a Qt binding and a screen; without them tests skip, unless REQUIRE_GUI is set."""

import os
import sys
from importlib.util import find_spec
from typing import Any

import pytest

PATIENCE = 300_000
"""Milliseconds until a wait gives up, as in tests/conftest.py: a ceiling, no bar for speed."""


def _lacking() -> str:
    for module in ("napari", "pytestqt"):
        if find_spec(module) is None:
            return f"no {module}: pip install --group gui"
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        return "no screen: run under xvfb-run, as scripts/test does"
    return ""


# What a user would be shown counts as a failure. napari says of every turned image that it shows it so.
KINDS = ("UserWarning", "RuntimeWarning", "FutureWarning")
STRICT = (*(f"error::{kind}" for kind in KINDS), "ignore:Non-orthogonal slicing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Warnings are errors; skip with the reason, or fail with it where the run was asked to open windows."""
    for item in items:
        if "plugin" in item.path.parts:
            for rule in reversed(STRICT):
                item.add_marker(pytest.mark.filterwarnings(rule), append=False)  # a test may know better
    lacking = _lacking()
    if not lacking:
        return
    if os.environ.get("REQUIRE_GUI"):
        raise pytest.UsageError(f"REQUIRE_GUI is set but there is {lacking}")
    for item in items:
        if "plugin" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=lacking))


if find_spec("pytestqt") is not None:
    from pytestqt.qtbot import QtBot

    class PatientBot(QtBot):  # type: ignore[misc]
        """pytest-qt's helper; waits for a condition end after `PATIENCE`, not after 5 s."""

        def waitUntil(self, callback: Any, *, timeout: int = PATIENCE) -> None:
            super().waitUntil(callback, timeout=timeout)

        def waitSignal(self, signal: Any, *, timeout: int = PATIENCE, **options: Any) -> Any:
            return super().waitSignal(signal, timeout=timeout, **options)

        def waitSignals(self, signals: Any, *, timeout: int = PATIENCE, **options: Any) -> Any:
            return super().waitSignals(signals, timeout=timeout, **options)

    @pytest.fixture
    def qtbot(qapp: Any, request: pytest.FixtureRequest) -> QtBot:
        """In place of pytest-qt's, also for napari's fixtures."""
        return PatientBot(request)
