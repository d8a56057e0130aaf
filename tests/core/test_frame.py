"""Frame: plane pixels and network pixels agree in both directions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Box, Click, dense_maps

GOLDEN = Path(__file__).parents[1] / "golden"

sides = st.one_of(st.integers(1, 300), st.just(20_000))
shapes = st.tuples(sides, sides)
spacings = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """Any frame: both fits, any crop, anisotropic pixels."""
    rows, cols = draw(shapes)
    top, left = draw(st.integers(0, rows - 1)), draw(st.integers(0, cols - 1))
    crop = (top, left, draw(st.integers(1, rows - top)), draw(st.integers(1, cols - left)))
    fit = draw(st.sampled_from(["letterbox", "official"]))
    return Frame((rows, cols), draw(st.sampled_from([1, 64, 448, 1024])), crop, fit, draw(spacings))


@pytest.mark.slow
@given(frames(), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5))
def test_to_network_and_back_is_the_same_point(frame: Frame, where: list[tuple[float, float]]) -> None:
    """Within rounding, everywhere on the plane."""
    points = np.array(where) * frame.shape - 0.5
    np.testing.assert_allclose(frame.to_plane(frame.to_network(points)), points, atol=1e-7)


@pytest.mark.slow
@given(frames())
def test_the_edges_of_the_crop_are_the_edges_of_the_content(frame: Frame) -> None:
    """Half a pixel before the first and after the last, in both grids."""
    top, left, rows, cols = frame.crop
    edges = [(top - 0.5, left - 0.5), (top + rows - 0.5, left + cols - 0.5)]
    expected = [(-0.5, -0.5), (frame.content[0] - 0.5, frame.content[1] - 0.5)]
    np.testing.assert_allclose(frame.to_network(edges), expected, atol=1e-7)
    assert all(1 <= n <= frame.size for n in frame.content)


@given(shapes, spacings)
def test_letterbox_makes_network_pixels_square_in_the_world(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    """The longer side fills the grid; the shorter one is right to half a network pixel."""
    frame = Frame.whole(shape, 512, spacing=spacing)
    world = np.array(shape) * spacing
    assert max(frame.content) == 512
    np.testing.assert_allclose(frame.content, np.maximum(512 * world / world.max(), 1), atol=0.5 + 1e-9)


@pytest.mark.slow
@given(frames(), st.data())
def test_every_letterbox_point_of_the_crop_falls_on_a_content_pixel(
    frame: Frame, data: st.DataObject
) -> None:
    """So clicks on the picture never end in the padding."""
    top, left, rows, cols = frame.crop
    point = (data.draw(st.integers(top, top + rows - 1)), data.draw(st.integers(left, left + cols - 1)))
    row, col = frame.pixels([point])[0]
    if frame.fit == "letterbox":
        assert 0 <= row < frame.content[0]
        assert 0 <= col < frame.content[1]


@given(
    shapes,
    spacings,
    st.tuples(*[st.floats(-0.2, 1.2)] * 4),
    st.floats(0, 3),
    st.integers(0, 400),
)
def test_a_crop_around_a_box_contains_it_and_lies_inside_the_plane(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    corners: tuple[float, float, float, float],
    margin: float,
    least: int,
) -> None:
    """Whatever the box, what of it lies in the plane is seen; the crop is square if it can be."""
    box = tuple(c * n for c, n in zip(corners, (*shape, *shape), strict=True))
    frame = Frame.whole(shape, 256, spacing=spacing).around(box, margin, least)
    top, left, rows, cols = frame.crop
    for first, count, length, a, b in (
        (top, rows, shape[0], box[0], box[2]),
        (left, cols, shape[1], box[1], box[3]),
    ):
        low, high = sorted(min(max(math.floor(v + 0.5), 0), length - 1) for v in (a, b))
        assert 0 <= first <= low
        assert high < first + count <= length
    if rows < shape[0] and cols < shape[1]:
        assert abs(rows * spacing[0] - cols * spacing[1]) <= max(spacing) + 1e-6


def test_a_crop_around_a_box_has_the_given_margin() -> None:
    """A box of 10 x 20 pixels, half its longer side added on each side."""
    assert Frame.whole((200, 300), 512).around((100, 100, 109, 119), 0.5, 0).crop == (85, 90, 40, 40)
    assert Frame.whole((200, 300), 512).around((100, 100, 100, 100), 0.5, 64).crop == (69, 69, 64, 64)
    assert Frame.whole((200, 300), 512).around((0, 0, 9, 9), 1, 0).crop == (0, 0, 30, 30)
    assert Frame.whole((20, 300), 512).around((5, 5, 14, 14), 1, 0).crop == (0, 0, 20, 30)
    # Rows are four times as thick as columns are wide: fewer of them make the same square.
    assert Frame.whole((200, 300), 512, spacing=(4, 1)).around((100, 100, 104, 119), 0, 0).crop == (
        100,
        100,
        5,
        20,
    )


def test_a_prompt_beside_a_crop_of_thick_rows_leaves_no_trace() -> None:
    """The crop is filled up to whole rows: no strip of padding takes the prompt for one of its own."""
    closer = Frame.whole((100, 400), 256, spacing=(10, 1)).around((50, 200, 50, 203), 0.35, 32)
    assert closer.crop[2:] == (4, 40)
    assert closer.content == (256, 256)
    beside = closer.crop[1] + closer.crop[3] + 2
    assert not dense_maps([Click((50, beside)), Box((50, beside), (60, beside + 20))], closer).any()


def test_the_far_edge_of_the_plane_belongs_to_the_last_pixel() -> None:
    """As the near edge belongs to the first."""
    frame = Frame.whole((40, 60), 30)
    assert frame.pixels([(39.5, 59.5), (-0.5, -0.5)]).tolist() == [[19, 29], [0, 0]]


def test_official_click_scaling_equals_the_recording() -> None:
    """Every pixel of an axis, as the official code rounds it."""
    with np.load(GOLDEN / "click_scaling.npz") as recorded:
        for name, expected in recorded.items():
            size, length = (int(part[1:]) for part in name.split("_"))
            diagonal = np.repeat(np.arange(length)[:, None], 2, axis=1)
            got = Frame.whole((length, length), size, "official").pixels(diagonal)
            np.testing.assert_array_equal(got[:, 0], expected, err_msg=name)
            np.testing.assert_array_equal(got[:, 1], expected, err_msg=name)


def test_an_official_click_on_the_last_row_may_be_off_the_grid() -> None:
    """One past it, when the plane is twice the network's side or more."""
    assert Frame.whole((512, 512), 256, "official").pixels([(511, 0)]).tolist() == [[256, 0]]


def test_cut_is_a_view_and_place_puts_it_back() -> None:
    """Outside the crop nothing changes."""
    frame = Frame((6, 7), 64, (2, 1, 3, 4))
    plane = np.arange(42).reshape(6, 7)
    cut = frame.cut(plane)
    assert np.shares_memory(cut, plane)
    placed = frame.place(-cut, plane.copy())
    np.testing.assert_array_equal(frame.cut(placed), -cut)
    placed[2:5, 1:5] = plane[2:5, 1:5]
    np.testing.assert_array_equal(placed, plane)


def test_no_points_are_no_points() -> None:
    """Empty in, empty out."""
    frame = Frame.whole((4, 4), 8)
    assert frame.pixels([]).shape == frame.to_network([]).shape == frame.to_plane([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 4), 8, (0, 0, 1, 1)), r"at least 1 x 1 pixel; got shape \(0, 4\)"),
        (((4, 4), 0, (0, 0, 1, 1)), r"network side of 1 or more; got 0"),
        (((4, 4), 8, (0, 0, 5, 1)), r"must lie inside the plane of \(4, 4\); got \(0, 0, 5, 1\)"),
        (((4, 4), 8, (-1, 0, 1, 1)), r"must lie inside the plane"),
        (((4, 4), 8, (0, 0, 0, 1)), r"must lie inside the plane"),
        (((4, 4), 8, (0, 0, 1, 1), "fill"), r"fit must be 'letterbox' or 'official'; got 'fill'"),
        (((4, 4), 8, (0, 0, 1, 1), "letterbox", (1, 0)), r"two positive pixel sizes; got \(1.0, 0.0\)"),
    ],
)
def test_impossible_frames_are_refused(arguments: tuple, message: str) -> None:
    """With the values in the sentence."""
    with pytest.raises(ValueError, match=message):
        Frame(*arguments)


def test_misfitting_arguments_are_refused() -> None:
    """Pixels of another shape, points of another form, boxes of nothing."""
    frame = Frame((6, 7), 64, (2, 1, 3, 4))
    with pytest.raises(ValueError, match=r"needs pixels of shape \(6, 7\); got \(5, 7\)"):
        frame.cut(np.zeros((5, 7)))
    with pytest.raises(ValueError, match=r"needs pixels of shape \(3, 4\); got \(6, 7\)"):
        frame.place(np.zeros((6, 7)), np.zeros((6, 7)))
    with pytest.raises(ValueError, match=r"points must be \(N, 2\) numbers \(row, col\); got shape \(1, 3\)"):
        frame.to_network([(1, 2, 3)])
    with pytest.raises(ValueError, match=r"finite box and a margin of 0 or more; got .*nan"):
        frame.around((0, 0, np.nan, 1), 0, 0)
    with pytest.raises(ValueError, match=r"margin of 0 or more; got .* and -1"):
        frame.around((0, 0, 1, 1), -1, 0)


def test_a_spacing_counts_by_its_ratio() -> None:
    """Who knows it in nm and who knows it in um see one frame."""
    assert Frame.whole((8, 8), 16, spacing=(10, 30)) == Frame.whole((8, 8), 16, spacing=(0.01, 0.03))
    assert Frame.whole((8, 8), 16, spacing=(3, 6)).spacing == (1.0, 2.0)
