"""One device and one precision, chosen once."""

import numpy as np
import pytest
import torch
from torch import nn

from napari_lowlat_seg.inference import runtime
from napari_lowlat_seg.inference.runtime import Runtime, available_devices


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices."""
    monkeypatch.setattr(runtime, "available_devices", lambda: ("cuda:0", "cuda:1", "cpu"))
    monkeypatch.setattr(runtime, "has_bf16", lambda: False)
    monkeypatch.setattr(runtime, "has_openvino", lambda: False)


@pytest.mark.parametrize(("capable", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_cpu_is_always_there(monkeypatch: pytest.MonkeyPatch, capable, precision) -> None:
    """And multiplies in bf16 where it has instructions for that."""
    monkeypatch.setattr(runtime, "has_bf16", lambda: capable)
    monkeypatch.setattr(runtime, "has_openvino", lambda: False)
    assert available_devices()[-1] == "cpu"
    assert Runtime.find("cpu") == Runtime("cpu", precision)


def test_embeddings_are_made_in_full_on_a_processor() -> None:
    """Whatever the precision of its clicks."""
    layer = nn.Linear(4, 4)
    with Runtime("cpu", "bf16").inference(embedding=True):
        assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_tf32_is_on_inside_the_context_only() -> None:
    """Torch's global switch is back where it was."""
    before = torch.backends.cuda.matmul.allow_tf32
    with Runtime("cuda:0", "tf32").inference():
        assert torch.backends.cuda.matmul.allow_tf32
    with Runtime("cuda:0", "fp32").inference():
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_arrays_travel_in_their_own_type() -> None:
    """Up and down again, never shared."""
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    tensor = Runtime().upload(array)
    tensor += 1
    assert tensor.dtype == torch.uint8
    (back,) = Runtime().download(tensor)
    np.testing.assert_array_equal(back, array + 1)
    fetch = Runtime().downloading(tensor, tensor + 1)
    for found, expected in zip(fetch(), (array + 1, array + 2), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_no_autocast_of_the_caller_reaches_a_gpu() -> None:
    """Inside it is off, outside it is what it was."""
    for enabled in (True, False):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            before = torch.is_autocast_enabled()
            with Runtime("cuda:0", "fp16").inference():
                assert not torch.is_autocast_enabled()
                assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled() == before


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    ("asked", "found"),
    [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")],
)
def test_a_device_is_found_by_name(asked, found) -> None:
    """CUDA multiplies in half precision unless float32 is requested."""
    assert Runtime.find(asked) == Runtime(found, "fp32" if found == "cpu" else "fp16")
    assert Runtime.find(asked, "bf16") == Runtime(found, "bf16")


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("asked", ["mps", "cuda:7", "tpu", ""])
def test_a_device_that_is_not_there_lists_those_that_are(asked) -> None:
    """The message names both."""
    with pytest.raises(
        ValueError, match=f"device '{asked}' is not available; .* 'auto' or one of cuda:0, cuda:1, cpu"
    ):
        Runtime.find(asked)


def test_an_unknown_precision_is_refused() -> None:
    """The message names the known ones."""
    with pytest.raises(ValueError, match="precision is one of fp32, tf32, fp16, bf16; got 'int8'"):
        Runtime("cpu", "int8")  # type: ignore[arg-type]


def test_inference_takes_no_gradients_and_leaves_nothing_behind() -> None:
    """Short products inside, torch as it was outside."""
    layer = Runtime("cpu", "bf16").prepare(nn.Linear(4, 4).train())
    assert not layer.training
    with Runtime("cpu", "bf16").inference():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
        assert torch.is_inference_mode_enabled()
    with Runtime("cpu").inference():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_tensors_are_copies_in_float32() -> None:
    """Views, other types and read-only arrays are welcome, and the array is never shared."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array.setflags(write=False)
    tensor = Runtime().tensor(array)
    tensor += 1
    assert array[0, 0] == 0
    assert Runtime().tensor(array[:, ::-1].astype(np.float64)).dtype == torch.float32
