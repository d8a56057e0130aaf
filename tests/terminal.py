"""The command line for tests, as a person calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from napari_lowlat_seg.cli import app


class Done(NamedTuple):
    """How a call ended."""

    status: int
    out: str
    err: str


Call = Callable[..., Done]


def call_with(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command line as a function of its arguments."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            app.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Done(int(left.value.code or 0), captured.out, captured.err)

    return run
