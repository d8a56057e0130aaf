"""Labels on disk: every level true after every edit, undone exactly, and never more read than exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.labels import LabelEdit
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.chunked.ome_zarr import HIGHEST
from napari_lowlat_seg.io.chunked.zarr_labels import LabelPyramid, highest_label
from napari_lowlat_seg.io.files import label_output

zarr = pytest.importorskip("zarr")
pytest.importorskip("ome_zarr")

LIKE = Volume(np.zeros((3, 700, 1100), np.uint8))


def _write(pyramid: LabelPyramid, at: tuple[int, int, int], mask: np.ndarray, label: int) -> LabelEdit:
    """Gives the pixels of a mask on plane `at[0]` a label, and returns the edit."""
    plane, box = Plane((at[0], None, None)), BoundingBox.at(at[1:], mask.shape)
    before = pyramid.read(plane, box)
    edit = LabelEdit.between(plane, box, before, np.where(mask, np.asarray(label, before.dtype), before))
    assert edit is not None
    pyramid.write([edit])
    return edit


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_every_level_is_the_finest_one_thinned_and_undone_exactly(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """After any edits, and after taking them back."""
    pyramid = LabelPyramid.at(tmp_path_factory.mktemp("l") / "l.zarr", LIKE)
    expected, done = np.zeros(LIKE.shape, np.uint32), []
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for label in range(1, 4):
        z = data.draw(st.integers(0, 2))
        rows, cols = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        top, left = data.draw(st.integers(0, 700 - rows)), data.draw(st.integers(0, 1100 - cols))
        mask = rng.random((rows, cols)) < data.draw(st.sampled_from([0.1, 0.5, 1.0]))
        mask[rng.integers(rows), rng.integers(cols)] = True
        expected[z, top : top + rows, left : left + cols][mask] = label
        done.append(_write(pyramid, (z, top, left), mask, label))
    assert len(pyramid.levels) == 3
    for k, level in enumerate(pyramid.levels):
        np.testing.assert_array_equal(level[...], expected[:, :: 2**k, :: 2**k])
    pyramid.write([edit.reversed() for edit in reversed(done)])
    assert not any(level[...].any() for level in pyramid.levels)


def test_other_steps_between_levels_are_followed() -> None:
    """Pyramids of other programs shrink all axes, or by three, or not at all."""
    full = np.zeros((4, 30, 31), np.uint16)
    levels = [full, np.zeros((2, 10, 11), np.uint16), np.zeros((4, 30, 31), np.uint16)]
    pyramid = LabelPyramid(levels)
    _write(pyramid, (2, 3, 4), np.ones((20, 25), bool), 7)
    _write(pyramid, (3, 3, 4), np.ones((20, 25), bool), 8)  # a plane that the second level leaves out
    np.testing.assert_array_equal(levels[1], full[::2, ::3, ::3])
    np.testing.assert_array_equal(levels[2], full)
    assert pyramid.highest() == 8


def test_short_axes_are_thinned_by_their_true_steps(tmp_path: Path) -> None:
    """Of 5 rows, levels have 3 and 2: rows 0 and 4, though 5 / 2 is nearer to 2 than to 4."""
    pyramid = LabelPyramid.at(tmp_path / "l.zarr", Volume(np.zeros((2, 5, 1100), np.uint8)))
    labels = np.arange(5 * 1100, dtype=np.uint32).reshape(5, 1100)
    pyramid.fill(Plane((1, None, None)), labels)
    assert [level.shape[1] for level in pyramid.levels] == [5, 3, 2]
    for k, level in enumerate(pyramid.levels):
        np.testing.assert_array_equal(level[1], labels[:: 2**k, :: 2**k])


def test_the_highest_label_is_noted_beside_the_labels(tmp_path: Path) -> None:
    """The next session need not search; undo leaves it, so that no number comes twice."""
    pyramid = LabelPyramid.at(tmp_path / "l.zarr", LIKE)
    assert pyramid.highest() == 0
    edit = _write(pyramid, (1, 5, 7), np.ones((3, 3), bool), 12)
    assert pyramid.highest() == 12
    pyramid.write([edit.reversed()])
    again = LabelPyramid.at(tmp_path / "l.zarr", LIKE)
    assert again.highest() == 12
    _write(again, (1, 5, 7), np.ones((3, 3), bool), 4)
    assert again.highest() == 12
    unasked = LabelPyramid.at(tmp_path / "l.zarr", LIKE)
    _write(unasked, (2, 5, 7), np.ones((3, 3), bool), 13)
    assert LabelPyramid.at(tmp_path / "l.zarr", LIKE).highest() == 13


def test_labels_added_by_the_command_line_are_counted(tmp_path: Path) -> None:
    """It does not count, so it strikes the note out."""
    path = tmp_path / "l.zarr"
    pyramid = LabelPyramid.at(path, LIKE)
    assert pyramid.highest() == 0
    assert HIGHEST in zarr.open_group(path).attrs
    with label_output(path, LIKE) as labels:
        labels.write_mask(Plane((2, None, None)), np.ones((1, 1), bool), 40, (333, 555))
    assert HIGHEST not in zarr.open_group(path).attrs
    assert LabelPyramid.at(path, LIKE).highest() == 40


class _Counting:
    """A zarr array that writes down what is read of it."""

    def __init__(self, array: Any) -> None:
        self._array, self.read = array, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._array, name)

    def __getitem__(self, key: Any) -> Any:
        self.read.append(tuple(part.start for part in key))
        return self._array[key]


@pytest.mark.parametrize("version", [2, 3])
def test_only_chunks_that_exist_are_searched(tmp_path: Path, version: int) -> None:
    """An empty terabyte takes no time."""
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    array = group.create_array("0", shape=(900, 20_000, 20_000), chunks=(1, 512, 512), dtype="u4")
    array[3, 5, 600] = 9
    array[880, 19_999, 19_999] = 21
    counting = _Counting(array)
    assert highest_label(counting) == 21
    assert sorted(counting.read) == [(3, 0, 512), (880, 19_968, 19_968)]
    assert highest_label(group.create_array("1", shape=(9, 9), chunks=(3, 3), dtype="u4")) == 0


def test_labels_of_another_program_are_continued(tmp_path: Path) -> None:
    """OME-Zarr 0.4 as the reference library writes it: its own names for levels, its own steps."""
    from ome_zarr.format import FormatV04
    from ome_zarr.writer import write_multiscale

    data = np.zeros((3, 64, 64), np.uint16)
    data[1, 10:20, 10:20] = 5
    root = zarr.open_group(tmp_path / "l.zarr", mode="w", zarr_format=2)
    write_multiscale(
        [data, data[:, ::2, ::2]],
        root,
        fmt=FormatV04(),
        axes=[{"name": name, "type": "space"} for name in "zyx"],
        coordinate_transformations=[[{"type": "scale", "scale": [1, f, f]}] for f in (1, 2)],
    )
    root.attrs["image-label"] = {}
    pyramid = LabelPyramid.at(tmp_path / "l.zarr", Volume(np.zeros(data.shape, np.uint8)))
    assert pyramid.highest() == 5
    _write(pyramid, (1, 30, 30), np.ones((4, 4), bool), 6)
    assert LabelPyramid.of(pyramid.levels).highest() == 6
    assert np.asarray(pyramid.levels[1][1, 15:17, 15:17]).tolist() == [[6, 6], [6, 6]]


def test_other_folders_are_refused_as_labels(tmp_path: Path) -> None:
    """A folder with something else in it must not be written to."""
    (tmp_path / "l.zarr").mkdir()
    with pytest.raises(ValueError, match=r"must be labels of shape \(3, 700, 1100\) or not exist"):
        LabelPyramid.at(tmp_path / "l.zarr", LIKE)
