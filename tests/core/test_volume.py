"""Volume and Plane: axes, channels, windows, identity."""

from __future__ import annotations

import dataclasses

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_lowlat_seg.core.volume import Plane, Volume, any_finite, intensity_window, to_gray, to_uint8


@pytest.fixture
def stack() -> np.ndarray:
    return np.arange(4 * 5 * 6, dtype=np.uint16).reshape(4, 5, 6)


def test_plane_knows_its_row_and_column_axis() -> None:
    """The two None, in order, whatever the position of the index."""
    assert [Plane(i).axes for i in ((None, None), (3, None, None), (None, 2, None), (None, None, 1))] == [
        (0, 1),
        (1, 2),
        (0, 2),
        (0, 1),
    ]


def test_moving_a_plane_changes_its_last_position_only() -> None:
    """In 4-D the slice moves, not the time point."""
    assert Plane((2, 7, None, None)).moved(-3) == Plane((2, 4, None, None))
    assert Plane((7, None, None)).moved(1).position == 8
    assert Plane((None, None)).position == 0


def test_a_2d_plane_cannot_move() -> None:
    """There is no axis to move along."""
    with pytest.raises(ValueError, match=r"plane of a 2-D image cannot move; got an offset of 1"):
        Plane((None, None)).moved(1)


@pytest.mark.parametrize("index", [(None,), (None, None, None), (1, 2, None), (-1, None, None)])
def test_plane_index_needs_two_none(index: tuple[int | None, ...]) -> None:
    """Neither more nor fewer, and no negative positions."""
    with pytest.raises(ValueError, match=r"two None .* and positions of 0 or more; got \("):
        Plane(index)


def test_planes_are_hashable_values() -> None:
    """They are keys of caches; numpy integers count as integers."""
    assert {Plane((np.int64(3), None, None)): 1}[Plane((3, None, None))] == 1  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap", [np.asarray, dask.array.from_array, zarr.array], ids=["numpy", "dask", "zarr"]
)
def test_every_array_library_gives_the_same_pixels_and_identity(wrap, stack: np.ndarray) -> None:
    """A plane along each axis equals numpy's own indexing."""
    volume = Volume(wrap(stack))
    for axis in range(3):
        for i, plane in enumerate(volume.planes(axis)):
            np.testing.assert_array_equal(volume.plane(plane), np.take(stack, i, axis))
    assert volume.identity == Volume(stack).identity


def test_planes_of_a_4d_volume_walk_all_other_axes(stack: np.ndarray) -> None:
    """Every (time, slice) pair once, the asked axis last."""
    volume = Volume(np.stack([stack, stack]))
    assert [p.index[:2] for p in volume.planes(1)] == [(t, z) for t in range(2) for z in range(4)]
    assert volume.planes(-1)[0] == Plane((0, None, None, 0))


def test_a_2d_image_has_one_plane() -> None:
    """Whatever axis is asked for."""
    assert Volume(np.zeros((3, 4))).planes(0) == [Plane((None, None))]


@pytest.mark.parametrize("channel_axis", [0, 1, 2, 3, -1])
def test_rgb_planes_have_their_channels_last(channel_axis: int) -> None:
    """Wherever the file keeps the channels, and along every axis; alpha is dropped."""
    rgb = np.random.default_rng(0).integers(0, 255, (4, 5, 6, 4), np.uint8)
    volume = Volume(np.moveaxis(rgb, -1, channel_axis), channel_axis=channel_axis)
    assert volume.shape == (4, 5, 6)
    for axis in range(3):
        got = volume.plane(volume.planes(axis)[2])
        np.testing.assert_array_equal(got, np.take(rgb, 2, axis)[..., :3])


@pytest.mark.parametrize("channel_axis", [0, 1, 3])
def test_a_chosen_channel_gives_gray_planes(channel_axis: int) -> None:
    """Any number of channels, one of them chosen."""
    data = np.random.default_rng(0).random((2, 4, 5, 6))
    volume = Volume(np.moveaxis(data, 0, channel_axis), channel_axis=channel_axis, channel=1)
    np.testing.assert_array_equal(volume.plane(Plane((None, 3, None))), data[1, :, 3])


def test_spacing_follows_the_plane() -> None:
    """Row and column of an axial and a sagittal cut."""
    volume = Volume(np.zeros((3, 4, 5)), spacing=(5, 0.5, 0.25))
    assert volume.plane_spacing(Plane((0, None, None))) == (0.5, 0.25)
    assert volume.plane_spacing(Plane((None, None, 0))) == (5.0, 0.5)
    assert Volume(np.zeros((3, 4, 5))).plane_spacing(Plane((0, None, None))) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": np.zeros(3)}, r"at least 2 spatial axes; got shape \(3,\)"),
        ({"data": np.zeros((0, 3))}, r"at least one voxel; got shape \(0, 3\)"),
        (
            {"data": np.zeros((3, 3)), "spacing": (1,)},
            r"spacing needs 2 positive numbers, one per axis; got \(1.0,\)",
        ),
        ({"data": np.zeros((3, 3)), "spacing": (1, 0)}, r"spacing needs 2 positive numbers"),
        ({"data": np.zeros((3, 3)), "spacing": (1, np.nan)}, r"spacing needs 2 positive numbers"),
        (
            {"data": np.zeros((3, 3, 2)), "channel_axis": 2},
            r"2 channels needs a channel from 0 to 1; got none",
        ),
        (
            {"data": np.zeros((3, 3, 2)), "channel_axis": 2, "channel": 2},
            r"channel must be from 0 to 1; got 2",
        ),
        ({"data": np.zeros((3, 3, 2)), "channel_axis": 3}, r"shape \(3, 3, 2\) has no channel axis 3"),
        ({"data": np.zeros((3, 3)), "channel_axis": 0}, r"at least 2 spatial axes"),
    ],
)
def test_impossible_volumes_are_refused(arguments: dict, message: str) -> None:
    """With the values in the sentence."""
    with pytest.raises(ValueError, match=message):
        Volume(**arguments)


@pytest.mark.parametrize("index", [(4, None, None), (None, None), (0, 0, None, None)])
def test_planes_outside_the_volume_are_refused(index: tuple[int | None, ...], stack: np.ndarray) -> None:
    """A position past the end, or an index of other length."""
    with pytest.raises(ValueError, match=r"plane .* is not inside a volume of shape \(4, 5, 6\)"):
        Volume(stack).plane(Plane(index))


def test_an_axis_outside_the_volume_is_refused(stack: np.ndarray) -> None:
    """The sentence says which axes there are."""
    with pytest.raises(ValueError, match=r"axis must be from 0 to 2 in a volume of \(4, 5, 6\); got 3"):
        Volume(stack).planes(3)


def test_a_plane_is_found_by_its_positions() -> None:
    """One per axis that is neither rows nor columns."""
    volume = Volume(np.zeros((2, 3, 4, 5)))
    assert volume.plane_at([1, 2]) == Plane((1, 2, None, None))
    assert volume.plane_at([1, 4], axis=3) == Plane((1, None, None, 4))
    assert Volume(np.zeros((3, 4))).plane_at([], axis=1) == Plane((None, None))
    with pytest.raises(ValueError, match=r"volume of \(2, 3, 4, 5\) needs 2 positions; got \[1\]"):
        volume.plane_at([1])
    with pytest.raises(ValueError, match=r"position 3 is outside axis 1, which goes from 0 to 2"):
        volume.plane_at([0, 3])


def test_one_window_serves_all_planes() -> None:
    """A dark plane stays dark when the window was chosen from the whole stack."""
    data = np.stack([np.full((8, 8), 10.0), np.full((8, 8), 1000.0)])
    volume = Volume(data).with_window()
    assert volume.window == (10.0, 1000.0)
    assert volume.with_window() is volume
    assert dataclasses.replace(volume, window=(0.0, 1.0)).with_window().window == (0.0, 1.0)


def test_a_plane_of_nan_does_not_spoil_the_window_of_the_volume() -> None:
    """Only finite values are looked at."""
    data = np.stack([np.full((8, 8), np.nan), np.linspace(0, 1, 64).reshape(8, 8)])
    low, high = Volume(data).with_window().window or (np.nan, np.nan)
    assert 0 <= low < high <= 1


def test_the_window_is_found_on_the_only_plane_that_has_pixels() -> None:
    """The sample of a few planes may miss it."""
    data = np.full((100, 4, 4), np.nan, np.float32)
    data[5] = 7
    assert Volume(data).with_window().window == (7.0, 8.0)


def test_identity_notices_content_shape_type_and_channel(stack: np.ndarray) -> None:
    """Each alone changes the digest; the name does not."""
    other = stack.copy()
    other[0, 0, 0] += 1
    rgb = np.zeros((4, 5, 3), np.uint8)
    volumes = [
        Volume(stack),
        Volume(other),
        Volume(stack.reshape(4, 6, 5)),
        Volume(stack.astype(np.int16)),
        Volume(rgb, channel_axis=2),
        Volume(rgb, channel_axis=2, channel=0),
    ]
    assert len({v.identity for v in volumes}) == len(volumes)
    assert Volume(stack, name="a").identity == Volume(stack, name="b").identity


class _Huge:
    """An array of numbers that are never made: it counts what is read of it."""

    shape = (20_000, 20_000)
    dtype = np.dtype(np.uint8)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return np.broadcast_to(np.uint8(3), self.shape)[key]


def test_a_huge_plane_is_sampled_not_copied() -> None:
    """20,000 x 20,000 pixels cost a few thinned rows."""
    volume = Volume(_Huge())
    assert volume.with_window().window == (0.0, 255.0)
    assert len(volume.identity) == 32


def test_8_bit_pixels_pass_unchanged() -> None:
    """The same array, not a copy; bool becomes black and white."""
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert intensity_window(pixels) == (0.0, 255.0)
    assert to_uint8(pixels) is pixels
    assert to_uint8(np.array([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize("value", [0, -7.5, 1e30, 65535])
def test_a_constant_plane_is_a_black_image(value: float) -> None:
    """It is valid: window (v, v + 1), all pixels 0."""
    pixels = np.full((3, 4), value)
    low, high = intensity_window(pixels)
    assert low == value < high
    assert to_uint8(pixels).max() == 0


def test_the_largest_constant_is_an_image_too() -> None:
    """There is no number above it, so its window lies below."""
    largest = np.full((2, 2), np.finfo(np.float64).max)
    low, high = intensity_window(largest)
    assert low < high == largest[0, 0]
    assert to_uint8(largest).shape == (2, 2)


def test_few_bright_pixels_still_have_a_window() -> None:
    """Equal percentiles fall back to the extremes."""
    pixels = np.zeros((100, 100))
    pixels[0, 0] = 5
    assert intensity_window(pixels) == (0.0, 5.0)


def test_values_outside_the_window_are_clipped_and_nan_is_black() -> None:
    """Infinite values too."""
    pixels = np.array([[-np.inf, np.inf, np.nan, 0.5, -1, 2]])
    assert to_uint8(pixels, (0, 1)).tolist() == [[0, 255, 0, 128, 0, 255]]


def test_the_window_of_a_huge_image_is_that_of_a_sample() -> None:
    """Even if the sample meets nothing but NaN."""
    pixels = np.full((4, 2**22), np.nan)
    pixels[:, 1:3] = 5, 6
    assert intensity_window(pixels) == (5.0, 6.0)


@pytest.mark.slow
@given(
    pixels=hnp.arrays(
        st.sampled_from(
            [np.uint8, np.int16, np.uint16, np.int32, np.uint64, np.float16, np.float32, np.float64]
        ),
        st.sampled_from([(1, 1), (3, 2), (4, 1, 3)]),
    )
)
@settings(deadline=None)
def test_every_real_type_becomes_8_bit_without_being_changed(pixels: np.ndarray) -> None:
    """Any values at all, extremes included, unless nothing is finite."""
    before = pixels.copy()
    if not np.isfinite(pixels).any():
        with pytest.raises(ValueError, match="at least one finite pixel"):
            to_uint8(pixels)
        return
    shown = to_uint8(pixels)
    assert (shown.dtype, shown.shape) == (np.uint8, pixels.shape)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.slow
@given(hnp.arrays(np.float32, (5, 5), elements=st.floats(-1e3, 1e3, width=32)))
def test_brighter_stays_brighter(pixels: np.ndarray) -> None:
    """to_uint8 never reorders intensities."""
    shown = to_uint8(pixels).ravel()[np.argsort(pixels, axis=None)].astype(int)
    assert np.all(np.diff(shown) >= 0)


@pytest.mark.parametrize(
    ("pixels", "window", "message"),
    [
        (np.zeros((0, 3)), None, r"at least one pixel; got shape \(0, 3\)"),
        (np.full((2, 2), np.nan), None, r"at least one finite pixel; all 4 are NaN or infinite"),
        (np.full((2, 2), np.nan), (0, 1), r"at least one finite pixel"),
        (np.zeros((2, 2), complex), None, r"needs real numbers; got type complex128"),
        (np.array([["a"]]), None, r"needs real numbers; got type <U1"),
        (np.zeros(3), None, r"\(rows, cols\) or \(rows, cols, 3\); got shape \(3,\)"),
        (np.zeros((3, 3, 4)), None, r"got shape \(3, 3, 4\)"),
        (np.zeros((3, 3)), (1, 1), r"finite low < high; got \(1.0, 1.0\)"),
        (np.zeros((3, 3)), (0, np.inf), r"finite low < high"),
    ],
)
def test_unusable_pixels_are_refused(pixels: np.ndarray, window, message: str) -> None:
    """Each with one sentence."""
    with pytest.raises(ValueError, match=message):
        to_uint8(pixels, window)


class Watched:
    """An array that writes down how many pixels are read of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.shape, self.dtype, self.read = data, data.shape, data.dtype, 0

    def __getitem__(self, key):
        part = self.data[key]
        self.read += part.size
        return part


def test_of_huge_planes_blocks_are_sampled() -> None:
    """The window and the identity of 25 megapixels come from sixteen blocks, and bytes need none."""
    data = np.broadcast_to(np.arange(5000, dtype=np.uint16), (5000, 5000))
    watched = Watched(data)
    low, high = Volume(watched).with_window().window
    assert low < 100
    assert high > 4900
    assert watched.read == 16 * 256 * 256
    assert Volume(watched).identity == Volume(data).identity
    narrow = Watched(np.zeros((5000, 60), np.uint16))
    assert Volume(narrow).with_window().window == (0.0, 1.0)
    assert narrow.read == 4 * 256 * 60
    byte = Watched(np.zeros((3, 5000, 5000), np.uint8))
    assert Volume(byte).with_window().window == (0.0, 255.0)
    assert byte.read == 0


def test_gray_is_the_mean_of_the_colours_through_the_window():
    """From 0 to 255; one channel is itself."""
    colours = np.array([[[0, 10, 10], [10, 10, 10]]], np.float64)
    np.testing.assert_array_equal(to_gray(colours, (0.0, 10.0)), np.float32([[170.0, 255.0]]))
    assert to_gray(colours[..., 0], (0.0, 10.0)).tolist() == [[0.0, 255.0]]
    assert to_gray(colours).dtype == np.float32


@pytest.mark.parametrize(
    ("pixels", "expected"), [([np.nan, np.inf], False), ([np.nan, 1.0], True), ([0, 0], True)]
)
def test_any_finite_pixel_is_found(pixels, expected):
    """Integers always are."""
    assert any_finite(np.array([pixels])) is expected
