"""The packed COCO + LVIS annotation: real files are read, what a hostile one asks for is not done."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lowlat_seg.evaluation.inputs.coco_lvis import read_codes, read_index, read_layers
from napari_lowlat_seg.evaluation.inputs.datasets import find_targets, read_samples


def png(pixels: np.ndarray) -> np.ndarray:
    """PNG bytes as OpenCV's encoder returns them: an array of uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


@pytest.fixture
def layers() -> np.ndarray:
    """Two layers, because object 2 lies over object 1."""
    layers = np.zeros((2, 10, 14), np.uint8)
    layers[0, 1:6, 1:6], layers[0, 8:, 8:] = 1, 2
    layers[1, 3:5, 3:5] = 1
    return layers


@pytest.fixture
def annotation(tmp_path: Path, layers: np.ndarray) -> Path:
    """A root with one picture of three objects; the third is 'stuff'."""
    for folder in ("images", "masks"):
        (tmp_path / "val" / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((10, 14, 3), np.uint8)).save(tmp_path / "val" / "images" / "0001.jpg")
    places = [(0, 1), (1, 1), (0, 2)]
    (tmp_path / "val" / "masks" / "0001.pickle").write_bytes(pickle.dumps(([png(x) for x in layers], places)))
    index = {"0001": {"num_instance_masks": 2, "hierarchy": {0: None, 1: {"parent": 0, "children": []}}}}
    (tmp_path / "val" / "hannotation.pickle").write_bytes(pickle.dumps(index))
    return tmp_path


def test_instances_are_read_and_stuff_is_not(annotation: Path, layers: np.ndarray) -> None:
    """Two objects that overlap, each whole."""
    first, second = read_samples(find_targets("coco-lvis", annotation))
    assert (first.truth == (layers[0] == 1)).all()
    assert (second.truth == (layers[1] == 1)).all()


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_every_pickle_protocol_are_read(
    tmp_path: Path, layers: np.ndarray, protocol: int, fortran: bool
) -> None:
    """Plain, Fortran-ordered and big-endian arrays, numpy scalars, ordered dictionaries."""
    places = np.array([[0, 1], [1, 1]], ">i4", order="F" if fortran else "C")
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps([[png(x) for x in layers], places], protocol))
    assert (read_layers(path) == layers).all()
    assert read_codes(path) == [1, 65537]
    path.write_bytes(pickle.dumps(([], OrderedDict(a=(np.int64(2), np.uint8(3)))), protocol))
    assert read_codes(path) == [2 * 65536 + 3]


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    """The same file does its harm with the standard loader."""
    path, trace = tmp_path / "x.pickle", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(
        ValueError, match=r"not an annotation of plain numbers and arrays: it asks for builtins.exec"
    ):
        read_codes(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists()


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    """Only numbers."""
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps(([np.array([None])], [])))
    with pytest.raises(ValueError, match="an array of type 'O8', which is refused"):
        read_layers(path)


def forged(shape: tuple[int, ...]) -> bytes:
    """A pickle whose array claims a shape that its four bytes do not fill."""
    good = pickle.dumps(([np.zeros(4, np.uint8)], []), 2)
    return good.replace(
        b"K\x04\x85", b"".join([b"(", *(b"M" + n.to_bytes(2, "little") for n in shape), b"t"])
    )


def test_a_forged_shape_is_refused(tmp_path: Path) -> None:
    """More elements than bytes."""
    path = tmp_path / "x.pickle"
    path.write_bytes(forged((9999, 9999)))
    with pytest.raises(ValueError, match=r"an array of shape \(9999, 9999\) with 4 bytes"):
        read_layers(path)


def test_state_for_a_stand_in_is_refused(tmp_path: Path) -> None:
    """A pickle cannot change what answers it: BUILD on the stand-in for codecs.encode."""
    path = tmp_path / "x.pickle"
    path.write_bytes(b"\x80\x02c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.")
    with pytest.raises(ValueError, match="not an annotation of plain numbers and arrays"):
        read_codes(path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04garbage", b"hello"])
def test_damaged_files_get_one_sentence(tmp_path: Path, content: bytes) -> None:
    """Empty, truncated, text."""
    path = tmp_path / "x.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.pickle is not an annotation of plain numbers and arrays"):
        read_index(path)


def test_other_plain_data_gets_one_sentence(tmp_path: Path) -> None:
    """Plain, but neither an index nor masks."""
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(ValueError, match="to map picture names to entries with num_instance_masks"):
        read_index(path)
    with pytest.raises(ValueError, match=r"expected PNG layers and \(layer, value\) pairs"):
        read_codes(path)
    path.write_bytes(pickle.dumps(([b"no png"], [])))
    with pytest.raises(ValueError, match="expected PNG layers of one size"):
        read_layers(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With the reason of the system."""
    with pytest.raises(ValueError, match=r"annotation file at .*x.pickle: No such file"):
        read_codes(tmp_path / "x.pickle")
