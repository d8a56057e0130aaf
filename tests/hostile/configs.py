"""Training files and reports with values of the wrong kind."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from hostile.case import Attempt, Case
from napari_lowlat_seg.training.train import read_config


def toml(text: str | bytes, match: str) -> Case:
    def prepare(folder: Path) -> Attempt:
        path = folder / "run.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return partial(read_config, path)

    return Case(prepare, match)


NO_TOML = r"expected a TOML file of training settings, got .*run\.toml: "

TOMLS = {
    "no TOML": toml("steps 5", NO_TOML),
    "JSON": toml('{"steps": 5}', NO_TOML),
    "a picture": toml(b"\x89PNG\r\n\x1a\n\xff\xfe", NO_TOML),
    "latin-1": toml("out = 'Läufe'".encode("latin-1"), NO_TOML),
    "one name twice": toml("steps = 5\nsteps = 6", NO_TOML),
    "arrays 5,000 deep": toml("rounds = " + "[" * 5000 + "]" * 5000, NO_TOML),
    "an unknown setting": toml("wings = 2", r"got \['wings'\]"),
    "an unknown table": toml("[wings]\na = 2", r"got \['wings'\]"),
    "steps of a text": toml("steps = '5'", r"expected a value like 6000 for steps, got '5'"),
    "steps with a fraction": toml("steps = 5.0", r"expected a value like 6000 for steps, got 5\.0"),
    "steps of true": toml("steps = true", r"expected a value like 6000 for steps, got True"),
    "steps of a date": toml("steps = 2026-01-01", r"for steps, got datetime\.date"),
    "steps of a table": toml("[steps]\na = 1", r"for steps, got \{'a': 1\}"),
    "a rate of a text": toml("rate = 'fast'", r"expected a value like 0\.0006 for rate, got 'fast'"),
    "a rate of NaN": toml("rate = nan", r"for rate, got nan"),
    "a rate of infinity": toml("rate = inf", r"for rate, got inf"),
    "a rate of true": toml("rate = true", r"for rate, got True"),
    "a folder of a number": toml("out = 3", r"expected a value like 'run' for out, got 3"),
    "a folder of a list": toml("data = ['a']", r"expected a value like 'data' for data, got \['a'\]"),
    "compile of a text": toml("compile = 'no'", r"expected a value like True for compile, got 'no'"),
    "a limit of a text": toml("limit = 'all'", r"for limit, got 'all'"),
    "rounds of a number": toml("rounds = 3", r"for rounds, got 3"),
    "rounds of texts": toml("rounds = ['3']", r"for rounds, got \['3'\]"),
    "rounds with a fraction": toml("rounds = [3, 4.5]", r"for rounds, got \[3, 4\.5\]"),
    "domains of a list": toml("domains = [1]", r"expected a table of numbers for domains, got \[1\]"),
    "domains of texts": toml("[domains]\nem = 'all'", r"expected a table of numbers for domains, got"),
    "shares of NaN": toml("[shares]\nem = nan", r"expected a table of numbers for shares, got"),
    "a model of a text": toml(
        "model = 'default'", r"expected a table of (settings|numbers for \w+), got 'default'"
    ),
    "a model's size of a text": toml(
        "[model]\nsize = '512'", r"expected a value like 512 for size, got '512'"
    ),
    "a model's windows of texts": toml("[model]\nwindows = ['a']", r"for windows, got \['a'\]"),
    "a model's correction": toml(
        "[model]\nquality_slope = 2.0", r"not corrected yet, got \['quality_slope'\]"
    ),
    "prompts of a number": toml("prompts = 7", r"expected a table of (settings|numbers for \w+), got 7"),
    "looks of a text": toml("[looks]\nnonsense = 1", r"got \['nonsense'\]"),
    "a loss of a text": toml("loss = 'dice'", r"expected a table of (settings|numbers for \w+), got 'dice'"),
    "a number of 400 digits": toml("rate = " + "9" * 400, r"for rate, got 9{20,}|expected a TOML"),
}


def report(**changes: Any) -> dict[str, Any]:
    """A report of `benchmark quality` with so little in it, and these changes."""
    curve = {
        "model": "m",
        "form": "f",
        "group": "g",
        "object": "o",
        "area": 0.1,
        "ious": [0.5],
        "predicted": [0.4],
    }
    return (
        {"kind": "quality", "sha256": {"m": "abc"}, "calibration": [], "dataset": "folder"}
        | {"curves": [curve | changes.pop("curve", {})]}
        | changes
    )


def reported(content: Any, match: str) -> Case:
    def prepare(folder: Path) -> Attempt:
        from napari_lowlat_seg.evaluation.analysis.calibration import _curves_of, _model_in, _read_report

        path = folder / "r.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))

        def attempt() -> object:
            found = _read_report(path)
            return _curves_of(found, path, _model_in(found, path, None))

        return attempt

    return Case(prepare, match)


NO_REPORT = r"expected the JSON of `benchmark quality` with the predicted IoUs in it"
CURVES = r"the curves of m in .* are not as `benchmark quality` writes them"

REPORTS = {
    "an empty report": reported("", NO_REPORT),
    "a report that is no JSON": reported("{", NO_REPORT),
    "a report 100,000 deep": reported("[" * 100_000, NO_REPORT),
    "a report that is a list": reported([1], NO_REPORT),
    "a report that is a text": reported('"quality"', NO_REPORT),
    "a report of another kind": reported(report(kind="latency"), NO_REPORT),
    "a report whose sha256 is a text": reported(report(sha256="abc"), NO_REPORT),
    "a report whose dataset is a number": reported(report(dataset=7), NO_REPORT),
    "a report whose curves are a number": reported(report(curves=7), NO_REPORT),
    "a report whose curves are texts": reported(report(curves=["m"]), NO_REPORT),
    "a report whose model is a number": reported(report(curve={"model": 7}), NO_REPORT),
    "a curve of texts": reported(report(curve={"ious": ["high"]}), CURVES),
    "a curve of 7": reported(report(curve={"ious": 7}), CURVES),
    "a curve above 1": reported(report(curve={"ious": [1.5]}), CURVES),
    "a curve of NaN": reported(json.dumps(report(curve={"predicted": [float("nan")]})), CURVES),
    "a curve of lists": reported(report(curve={"predicted": [[0.5]]}), CURVES),
    "a curve with wings": reported(report(curve={"wings": 2}), CURVES),
    "a curve of a group 7": reported(report(curve={"group": 7}), CURVES),
}

CASES: dict[str, Case] = TOMLS | REPORTS
