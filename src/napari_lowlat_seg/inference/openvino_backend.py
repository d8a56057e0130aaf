"""OpenVINO on a processor: a network's encoder and click, converted once, give the same masks in less time.

An optional extra. The converted network is kept in the cache folder, so that only the first start converts.
Why, with which precision, and what it costs: docs/decisions/hot-path.md.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_lowlat_seg.inference.recorded_step import Step
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.registry import cache_dir

POLL_MS = 10
"""How often a running network is checked for cancellation. A result that arrives is returned at once."""

DIGEST_BYTES = hashlib.sha256().digest_size

CALLS = 2
"""Calls of a divided step at a time."""

MAX_CONVERTED = 8
"""Compiled networks in the cache folder; the least recently used are removed."""

TOLERANCE = {"f32": 1e-3, "bf16": 0.1}
"""Largest difference to torch's result that is accepted, as a share of the largest value."""

Check = Callable[[], object]


class ConversionError(RuntimeError):
    """OpenVINO cannot be loaded, cannot convert this network, or computes something else with it."""


class StepUnderWay:
    """A step that was started; ask for its `result`, or `cancel` it.

    Parameters
    ----------
    request
        OpenVINO's request, which nothing else uses until this has ended.
    inputs
        Arrays that it reads.
    check
        As for `CompiledStep`.
    end
        Called once, when it has ended either way.
    """

    def __init__(
        self, request: Any, inputs: Sequence[np.ndarray], check: Check, end: Callable[[], object]
    ) -> None:
        self._request, self._check, self._end = request, check, end
        self._inputs = inputs  # kept here until the work is done
        tensor = openvino().Tensor
        for index, array in enumerate(inputs):
            request.set_input_tensor(index, tensor(array, shared_memory=True))
        request.start_async()

    def result(self) -> tuple[Tensor, ...]:
        """Wait for the output tensors, which are copies: the next call does not change them. Call it once."""
        request = self._request
        try:
            while not request.wait_for(POLL_MS):
                self._check()
        except BaseException:
            self.cancel()
            raise
        found = tuple(torch.from_numpy(output.data.copy()) for output in request.output_tensors)
        self._end()
        return found

    def cancel(self) -> None:
        """Stop before the network's next layer, and wait until then."""
        self._request.cancel()
        while not _over(self._request):
            pass
        self._end()


class CompiledStep:
    """A step of fixed shapes, compiled for this processor.

    Parameters
    ----------
    compiled
        OpenVINO's compiled model.
    check
        Called before the step and every 10 ms during it; an exception that it raises stops the step.
    again
        Reads it once more, for several calls at a time; None if it was kept nowhere.
    """

    def __init__(self, compiled: Any, check: Check, again: Callable[[], Any] | None = None) -> None:
        self._compiled = compiled
        self._check = check
        self._again = again
        self._idle = [compiled.create_infer_request()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The step's output tensors."""
        return self.start(*inputs).result()

    def start(self, *inputs: Tensor) -> StepUnderWay:
        """Start the step and return at once."""
        self._check()
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        arrays = [x.float().contiguous().numpy() for x in inputs]
        return StepUnderWay(request, arrays, self._check, lambda: self._idle.append(request))

    def divided(self) -> CompiledStep | None:
        """The same step for `CALLS` calls at a time, which share the threads; None if it was kept nowhere."""
        return None if self._again is None else CompiledStep(self._again(), self._check, self._again)

    def rest(self) -> None:
        """Give back the memory that only a step under way needs, if none is."""
        with suppress(RuntimeError):  # raised where one is
            self._compiled.release_memory()


@dataclass(frozen=True)
class Conversion:
    """A step that is to be compiled.

    Attributes
    ----------
    step
        Takes and returns tensors of fixed shapes.
    inputs
        Gives tensors to trace and check it with; called only if nothing is kept from earlier.
    hint
        Precision of its products, "f32" or "bf16".
    share
        It gets the threads of torch divided by this: other steps run beside it.
    """

    step: Step
    inputs: Callable[[], tuple[Tensor, ...]]
    hint: str = "f32"
    share: int = 1

    def options(self, calls: int = 1) -> dict[str, Any]:
        """What OpenVINO is told, for this number of calls at a time, which share the threads."""
        return {
            "INFERENCE_PRECISION_HINT": self.hint,
            **({"PERFORMANCE_HINT": "LATENCY"} if calls == 1 else {"NUM_STREAMS": calls}),
            "INFERENCE_NUM_THREADS": max(calls, torch.get_num_threads() // self.share),
            "ENABLE_CPU_PINNING": False,  # a thread bound to one core would share it with the window's
        }


def hint_of(precision: str) -> str:
    """OpenVINO's name for a `Runtime.precision` on a processor."""
    return "bf16" if precision == "bf16" else "f32"


def compiled_steps(
    network: Network, click: Step, precision: str, check: Check = lambda: None
) -> tuple[CompiledStep, CompiledStep]:
    """`network.encode` for one image and `click`, which maps (1, 3, S, S) and features to tensors, compiled.

    Parameters
    ----------
    network
        On the processor, in float32 and evaluation mode.
    precision
        Of the products of `click`, "fp32" or "bf16"; embeddings are always made in float32.
    check
        As for `CompiledStep`.

    Raises
    ------
    ConversionError
        If OpenVINO cannot be loaded, cannot convert the network, or computes other numbers than torch.
    """
    side = (1, 3, network.size, network.size)

    def image() -> tuple[Tensor, ...]:
        return (torch.rand(side) * 255,)

    def clicked() -> tuple[Tensor, ...]:
        return (torch.rand(side), *network.encode(*image()))

    steps = {
        "encode": Conversion(network.encode, image),
        "click": Conversion(click, clicked, hint_of(precision)),
    }
    found = compiled(network, steps, check)
    return found["encode"], found["click"]


def compiled(
    network: nn.Module, steps: Mapping[str, Conversion], check: Check = lambda: None
) -> dict[str, CompiledStep]:
    """Steps of a module by name, compiled or as they were kept from earlier.

    Parameters
    ----------
    network
        Has all weights that the steps use, on the processor, in float32 and evaluation mode, and a `size`.
    steps
        Names are those of files.
    check
        As for `CompiledStep`.

    Raises
    ------
    ConversionError
        As `compiled_steps`. What `check` raises meanwhile comes as it is: nothing is wrong with the network.
    """
    try:
        return _compiled(network, steps, check)
    except ConversionError:
        raise
    except Exception as problem:  # OpenVINO's errors are RuntimeError, torch's tracer has more kinds
        check()  # it may have stopped the work
        reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        raise ConversionError(reason) from problem


def openvino() -> Any:
    """The OpenVINO module, with telemetry switched off.

    Importing it sends an event to Google Analytics through `openvino_telemetry` unless the user has opted
    out. A module that is None in `sys.modules` cannot be imported; OpenVINO then uses its own stub.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _compiled(network: nn.Module, steps: Mapping[str, Conversion], check: Check) -> dict[str, CompiledStep]:
    core = openvino().Core()
    hint = next((one.hint for one in steps.values() if one.hint != "f32"), "f32")
    folder = cache_dir() / "openvino" / _key(network, hint, core)

    def kept() -> dict[str, CompiledStep]:
        return {name: _read(core, folder / name, one, check) for name, one in steps.items()}

    try:
        found = kept()
        os.utime(folder)
        return found
    except (OSError, RuntimeError, ValueError):
        pass  # there is none yet, or it is damaged
    started = time.perf_counter()
    with torch.no_grad():
        inputs = {name: one.inputs() for name, one in steps.items()}
        expected = {name: one.step(*inputs[name]) for name, one in steps.items()}
        models = {name: _converted(network, one.step, *inputs[name]) for name, one in steps.items()}
    made = {name: core.compile_model(model, "CPU", steps[name].options()) for name, model in models.items()}
    _store(made, folder)
    try:
        found = kept()  # as every later start does
    except (OSError, RuntimeError, ValueError):
        found = {name: CompiledStep(model, check) for name, model in made.items()}
    try:
        for name, one in steps.items():
            _check(name, found[name](*inputs[name]), expected[name], one.hint)
    except BaseException:  # what was not compared to the end must not be found by a later start
        shutil.rmtree(folder, ignore_errors=True)
        raise
    seconds = time.perf_counter() - started
    logging.getLogger(__name__).info("converted for OpenVINO in %.1f s, kept in %s", seconds, folder)
    return found


def _read(core: Any, path: Path, step: Conversion, check: Check) -> CompiledStep:
    """A step that `_store` wrote; raises ValueError where a byte of it was changed since.

    Its weights stay in the file, so that memory need not hold them as well.
    """
    data = np.memmap(path, np.uint8, "c")
    code, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:].tobytes()
    if hashlib.sha256(code.data).digest() != digest:
        raise ValueError(f"{path} is damaged")

    def read(calls: int = 1) -> Any:
        return core.import_model(openvino().Tensor(code, shared_memory=True), "CPU", step.options(calls))

    return CompiledStep(read(), check, partial(read, CALLS))  # it keeps `code`, which OpenVINO does not


class _Traced(nn.Module):
    """A step as a module: the converter takes modules only."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        super().__init__()
        self.network = network
        self.step = step

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.step(*inputs)


def _converted(network: nn.Module, step: Step, *inputs: Tensor) -> Any:
    shapes = [openvino().PartialShape(list(x.shape)) for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's: shapes are fixed, and branches hang on them only
        traced = torch.jit.trace(_Traced(network, step).eval(), inputs, check_trace=False)
        return openvino().convert_model(traced, example_input=inputs, input=shapes)


def _check(name: str, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], hint: str) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        apart, largest = float((ours - theirs).abs().max()), float(theirs.abs().max())
        if not apart <= TOLERANCE[hint] * max(largest, 1.0):
            raise ConversionError(
                f"its {name} differs from torch's by {apart:.3g} at values up to {largest:.3g}"
            )


def _key(network: nn.Module, hint: str, core: Any) -> str:
    """A name for all that compiled steps depend on, such as weights, source code, precision and processor."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy())
    sources = {type(module).__module__ for module in network.modules()}
    for name in sorted(name for name in sources if not name.startswith("torch.")):
        digest.update(inspect.getsource(sys.modules[name]).encode())
    digest.update(repr(getattr(network, "config", "")).encode())
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")
    digest.update(f"{hint} {openvino().__version__} {torch.__version__} {processor}".encode())
    return f"{type(network).__name__}-{network.size}-{digest.hexdigest()[:16]}"


def _store(compiled: dict[str, Any], folder: Path) -> None:
    """Write both steps to a folder that appears complete or not at all; a read-only cache is no error."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as made:
            new = Path(made, "new")
            new.mkdir()
            for name, model in compiled.items():
                stream = io.BytesIO()
                model.export_model(stream)
                code = stream.getvalue()
                (new / name).write_bytes(code + hashlib.sha256(code).digest())
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(new, folder)
        _prune(folder.parent)
    except OSError:
        return


def _prune(place: Path) -> None:
    """Remove all but the most recently used converted networks."""
    by_use = sorted(place.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in by_use[:-MAX_CONVERTED]:
        shutil.rmtree(old, ignore_errors=True)


def _over(request: Any) -> bool:
    """Whether a cancelled request has ended."""
    try:
        return bool(request.wait_for(POLL_MS))
    except RuntimeError:  # raised by requests that were cancelled
        return True
