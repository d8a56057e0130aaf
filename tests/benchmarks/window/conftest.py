"""A window needs napari, Qt and a screen; without them these tests skip, unless REQUIRE_GUI is set."""

import os
import sys
from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def _screen() -> None:
    lacking = [name for name in ("napari", "pytestqt") if find_spec(name) is None]
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        lacking.append("screen (xvfb-run)")
    if lacking and os.environ.get("REQUIRE_GUI"):
        raise pytest.UsageError(f"REQUIRE_GUI is set but there is no {' and no '.join(lacking)}")
    if lacking:
        pytest.skip(f"no {' and no '.join(lacking)}")
