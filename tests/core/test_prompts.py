"""Prompts and dense maps: the fast stamping against plain definitions, and against SegNext's own disks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble, dense_maps, dotted
from napari_lowlat_seg.core.raster import swept

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = (40, 60)

points = st.tuples(st.floats(-0.5, SHAPE[0] - 0.5), st.floats(-0.5, SHAPE[1] - 0.5))
signs = st.booleans()


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """A prompt of any kind, somewhere on a plane of SHAPE."""
    kind = draw(st.sampled_from([Click, Scribble, Box, Polygon, Mask]))
    if kind is Click:
        return Click(draw(points), draw(signs))
    if kind is Box:
        return Box(draw(points), draw(points), draw(signs))
    if kind is Mask:
        seed, share = draw(st.integers(0, 99)), draw(st.floats(0, 1))
        pixels = np.random.default_rng(seed).random(SHAPE)
        pixels[3, 4] = 1
        return Mask(pixels >= share if draw(st.booleans()) else pixels, draw(signs))
    least = 3 if kind is Polygon else 1
    return kind(tuple(draw(st.lists(points, min_size=least, max_size=8))), draw(signs))


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    """The whole plane or a crop of it, shrunk or enlarged, in both fits."""
    fit = draw(st.sampled_from(["letterbox", "official"]))
    spacing = draw(st.sampled_from([(1.0, 1.0), (3.0, 1.0), (0.4, 1.0)]))
    frame = Frame.whole(SHAPE, draw(st.sampled_from([16, 32, 96])), fit, spacing)
    if draw(st.booleans()):
        r, c = draw(points)
        frame = frame.around((r, c, r, c), 0, draw(st.integers(4, 50)))
    return frame


def distance2(pixel: tuple[int, int], start: np.ndarray, end: np.ndarray) -> Fraction:
    """Squared distance of a pixel to a segment, exactly."""
    p, a, b = ([Fraction(int(v)) for v in x] for x in (pixel, start, end))
    d = [b[0] - a[0], b[1] - a[1]]
    length2 = d[0] ** 2 + d[1] ** 2
    t = ((p[0] - a[0]) * d[0] + (p[1] - a[1]) * d[1]) / length2 if length2 else Fraction(0)
    t = min(max(t, Fraction(0)), Fraction(1))
    return (p[0] - a[0] - t * d[0]) ** 2 + (p[1] - a[1] - t * d[1]) ** 2


grid = st.tuples(st.integers(-30, 45), st.integers(-30, 45))


@pytest.mark.slow
@given(st.lists(st.tuples(grid, grid), min_size=1, max_size=4), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_fast_stamping_equals_the_distance_to_each_segment(
    segments: list[tuple[tuple[int, int], tuple[int, int]]], radius: int
) -> None:
    """Every pixel of a 16 x 20 grid, by exact arithmetic; segments may lie outside or cross the grid."""
    array = np.array(segments)
    rows, cols = swept(array, radius, (16, 20))
    got = np.zeros((16, 20), bool)
    got[rows, cols] = True
    expected = [
        [any(distance2((r, c), a, b) <= radius**2 for a, b in array) for c in range(20)] for r in range(16)
    ]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("radius", [3, 5])
def test_disks_equal_the_official_ones_bit_for_bit(radius: int) -> None:
    """All recorded cases: corners, edges, outside, overlap, fractional coordinates."""
    with np.load(GOLDEN / "disks.npz") as recorded:
        cases = [name.removeprefix("points_") for name in recorded if name.startswith("points_")]
        assert len(cases) == 13
        for case in cases:
            slots = recorded[f"points_{case}"][0]
            for sign, rows_of_sign in enumerate(np.split(slots, 2)):
                # The official tensor has room for as many clicks of each sign; unused slots are negative.
                used = rows_of_sign[rows_of_sign[:, :2].max(axis=1) >= 0, :2]
                rows, cols = swept(np.stack([used, used], axis=1), radius, (48, 72))
                got = np.zeros((48, 72), np.uint8)
                got[rows, cols] = 1
                np.testing.assert_array_equal(got, recorded[f"disk_r{radius}_{case}"][sign], err_msg=case)


def test_official_maps_equal_the_recorded_disks_on_a_square_grid() -> None:
    """The same through dense_maps, for the cases whose clicks are on the plane."""
    frame = Frame.whole((72, 72), 72, "official")
    with np.load(GOLDEN / "disks.npz") as recorded:
        for case in ("centre_pos", "centre_neg", "overlap", "same_pixel_pos_neg"):
            slots = recorded[f"points_{case}"][0, :, :2]
            half = len(slots) // 2
            clicks = [Click(tuple(p), i < half) for i, p in enumerate(slots) if p.max() >= 0]
            maps = dense_maps(clicks, frame, radius=5, regions="channel")
            np.testing.assert_array_equal(maps[1:, :48], recorded[f"disk_r5_{case}"], err_msg=case)
            assert maps[0].max() == 0


def test_a_click_off_the_official_grid_leaves_part_of_its_disk() -> None:
    """Row 511 of 512 falls on row 256 of 256: rows 251 to 255 remain."""
    maps = dense_maps([Click((511, 256))], Frame.whole((512, 512), 256, "official"), radius=5)
    rows, cols = np.nonzero(maps[1])
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (251, 255, 124, 132)
    assert maps[1, 255].sum() == 9


@pytest.mark.slow
@given(st.lists(prompts(), max_size=6), frames(), st.sampled_from(["prior", "channel"]))
@settings(max_examples=150, deadline=None)
def test_maps_hold_each_prompt_where_it_belongs(items: list[Prompt], frame: Frame, regions: str) -> None:
    """dense_maps equals the footprints written one after the other."""
    maps = dense_maps(items, frame, radius=3, regions=regions)  # type: ignore[arg-type]
    expected = np.zeros((3, frame.size, frame.size), np.float32)
    for item in items:
        covered = np.zeros((frame.size, frame.size), np.float32)
        footprint = item.footprint(frame, 3)
        covered[footprint.box.slices] = footprint.pixels
        if isinstance(item, Click | Scribble):
            channel = expected[1 if item.positive else 2]
            np.maximum(channel, covered, out=channel)
        elif regions == "channel":
            channel = expected[1 if item.positive else 2]
            np.maximum(channel, covered / 2, out=channel)
        else:
            if isinstance(item, Mask) and item.pixels.dtype != bool:
                (row, col), share = item.share(frame)
                covered[:] = 0
                covered[row : row + share.shape[0], col : col + share.shape[1]] = share
            new = np.maximum(expected[0], covered) if item.positive else np.minimum(expected[0], 1 - covered)
            expected[0] = new
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, expected)


@pytest.mark.slow
@given(st.lists(prompts(), min_size=1, max_size=4), frames())
@settings(max_examples=50, deadline=None)
def test_asking_twice_gives_the_same_maps_and_changes_nothing(items: list[Prompt], frame: Frame) -> None:
    """Prompts are values: equal before and after, hash included."""
    before = [(hash(p), p.pixels.copy() if isinstance(p, Mask) else repr(p)) for p in items]
    first = dense_maps(items, frame)
    second = dense_maps(items, frame)
    np.testing.assert_array_equal(first, second)
    for item, (digest, content) in zip(items, before, strict=True):
        assert hash(item) == digest
        if isinstance(item, Mask):
            np.testing.assert_array_equal(item.pixels, content)
        else:
            assert repr(item) == content


@pytest.mark.slow
@given(prompts())
@settings(deadline=None)
def test_a_prompt_is_never_invisible_on_the_whole_plane(item: Prompt) -> None:
    """However much the plane is shrunk, at least one network pixel is covered, inside the bounds."""
    frame = Frame.whole(SHAPE, 7)
    footprint = item.footprint(frame, 0)
    assert footprint.pixels.any()
    rows, cols = (index + start for index, start in zip(np.nonzero(footprint.pixels), footprint.corner))
    r0, c0, r1, c1 = item.bounds()
    (low_r, low_c), (high_r, high_c) = frame.to_network([(r0 - 0.5, c0 - 0.5), (r1 + 0.5, c1 + 0.5)])
    assert low_r - 1 <= rows.min() <= rows.max() <= high_r + 1
    assert low_c - 1 <= cols.min() <= cols.max() <= high_c + 1


def test_a_box_covers_the_pixels_between_its_corners() -> None:
    """Both corners included, in any order, at any scale."""
    whole = Frame.whole((32, 32), 32)
    expected = np.zeros((32, 32), np.float32)
    expected[3:9, 10:21] = 1
    for box in (Box((3, 10), (8, 20)), Box((8, 10), (3, 20)), Box((8, 20), (3, 10))):
        np.testing.assert_array_equal(dense_maps([box], whole)[0], expected)
    halved = dense_maps([Box((0, 0), (31, 15))], Frame.whole((32, 32), 16))[0]
    assert halved.sum() == 16 * 8


corners = st.tuples(st.integers(-4, 40), st.integers(-4, 40))


@pytest.mark.slow
@given(st.lists(corners, min_size=3, max_size=7))
@settings(deadline=None)
def test_polygon_fill_equals_the_even_odd_rule_pixel_by_pixel(outline: list[tuple[int, int]]) -> None:
    """A ray from each pixel centre to the left crosses the outline an odd number of times."""
    frame = Frame.whole((32, 32), 32)
    footprint = Polygon(tuple(outline)).footprint(frame)
    got = np.zeros((32, 32), bool)
    got[footprint.box.slices] = footprint.pixels
    expected = np.zeros((32, 32), bool)
    for (r0, c0), (r1, c1) in zip(outline, outline[1:] + outline[:1], strict=True):
        for row in range(32):
            if min(r0, r1) <= row < max(r0, r1):
                crossing = c0 + Fraction((row - r0) * (c1 - c0), r1 - r0)
                expected[row] ^= np.array([crossing <= col for col in range(32)])
    if expected.any():
        # Floating point may move a crossing that lies exactly on a pixel centre by one pixel.
        assert np.sum(got != expected) <= 1
    else:
        assert got.sum() <= 1


def test_a_mask_on_the_network_grid_is_its_area_mean() -> None:
    """Shrinking by 4 averages 4 x 4 blocks; enlarging repeats; half covered counts."""
    pixels = np.random.default_rng(3).random((32, 32))
    blocks = pixels.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    (row, col), share = Mask(pixels).share(Frame.whole((32, 32), 8))
    assert (row, col) == (0, 0)
    np.testing.assert_allclose(share, blocks, atol=1e-6)
    (_, _), share = Mask(pixels).share(Frame.whole((32, 32), 64))
    np.testing.assert_allclose(share, np.repeat(np.repeat(pixels, 2, 0), 2, 1), atol=1e-6)
    half = np.zeros((4, 4), bool)
    half[:2, :1] = True
    assert dense_maps([Mask(half)], Frame.whole((4, 4), 2))[0].tolist() == [[1, 0], [0, 0]]


def test_a_mask_follows_the_crop() -> None:
    """A closer look shows its part of the mask at full resolution."""
    pixels = np.zeros((64, 64), bool)
    pixels[20:30, 40:50] = True
    frame = Frame((64, 64), 32, (16, 32, 16, 16))
    expected = np.zeros((32, 32), np.float32)
    expected[8:28, 16:32] = 1
    np.testing.assert_array_equal(dense_maps([Mask(pixels)], frame)[0], expected)
    assert dense_maps([Mask(pixels)], Frame((64, 64), 32, (40, 0, 16, 16))).max() == 0


def test_negative_regions_cut_holes_in_the_order_given() -> None:
    """The last region wins."""
    frame = Frame.whole((32, 32), 32)
    whole, hole = Box((0, 0), (31, 31)), Box((10, 10), (19, 19), positive=False)
    assert dense_maps([whole, hole], frame)[0].sum() == 32 * 32 - 100
    assert dense_maps([hole, whole], frame)[0].sum() == 32 * 32


def test_strokes_win_over_regions_in_a_channel() -> None:
    """Whatever the order: 1 where a stroke is, 0.5 elsewhere in the region."""
    frame = Frame.whole((32, 32), 32)
    both = [Box((0, 0), (31, 31)), Click((16, 16))]
    for order in (both, both[::-1]):
        maps = dense_maps(order, frame, radius=2, regions="channel")
        assert (maps[1] == 1).sum() == 13
        assert (maps[1] == 0.5).sum() == 32 * 32 - 13
        assert maps[0].max() == maps[2].max() == 0


def test_a_prompt_outside_the_crop_leaves_no_trace() -> None:
    """A long scribble far outside costs nothing and shows nothing."""
    frame = Frame((20_000, 20_000), 256, (19_000, 19_000, 32, 32))
    far = [Click((3, 3)), Scribble(((0, 0), (0, 19_999))), Box((1, 1), (500, 500))]
    assert dense_maps(far, frame).max() == 0
    crossing = Scribble(((0, 0), (19_999, 19_999)))
    maps = dense_maps([crossing], frame)
    assert maps[1].diagonal().min() == 1


def test_a_one_pixel_plane_takes_prompts() -> None:
    """Everything falls on the only pixel."""
    frame = Frame.whole((1, 1), 16)
    maps = dense_maps([Click((0, 0)), Box((0, 0), (0, 0)), Mask(np.ones((1, 1), bool))], frame, radius=2)
    assert maps[0].min() == 1
    assert maps[1].sum() > 0


def test_a_scribble_of_one_point_is_a_click() -> None:
    """So is one whose points all fall on the same network pixel."""
    frame = Frame.whole((64, 64), 32)
    click = dense_maps([Click((30, 30))], frame)
    np.testing.assert_array_equal(dense_maps([Scribble(((30, 30),))], frame), click)
    np.testing.assert_array_equal(dense_maps([Scribble(((30, 30), (30.4, 30.4)))], frame), click)


def test_a_scribble_becomes_dots_evenly_along_it() -> None:
    """Half a step from its ends, round its corners, with its sign; other prompts and the order stay."""
    frame, box = Frame.whole(SHAPE, 32), Box((1, 1), (5, 5))
    line = Scribble(((0, 0), (0, 4), (4, 4)), positive=False)
    at = [(0, 1), (0, 3), (1, 4), (3, 4)]
    assert dotted([box, line], 4, frame) == (box, *(Click(point, False) for point in at))
    assert dotted([Scribble(((2, 3),))], 2, frame) == (Click((2, 3)), Click((2, 3)))
    assert dotted([box, line], 0, frame) == (box, line)


def test_a_scribble_that_ends_outside_is_refused_as_dots_too() -> None:
    """No dot is at its end."""
    with pytest.raises(
        ValueError, match=r"Scribble at .* = \(-0\.7, 5\) is outside the plane of shape \(40, 60\)"
    ):
        dotted([Scribble(((30, 5), (-0.7, 5)))], 2, Frame.whole(SHAPE, 32))


@pytest.mark.parametrize("kind", [Click, Scribble])
@pytest.mark.parametrize("at", [(-0.6, 5), (40, 5), (5, 60), (5, -1)])
def test_prompts_outside_the_plane_are_refused(kind, at: tuple[float, float]) -> None:
    """The sentence has the coordinate and the shape."""
    prompt = Click(at) if kind is Click else Scribble(((5, 5), at))
    with pytest.raises(
        ValueError, match=rf"{kind.__name__} at .*{at[0]:g}.* is outside the plane of shape \(40, 60\)"
    ):
        dense_maps([prompt], Frame.whole(SHAPE, 32))


@pytest.mark.parametrize("region", [Box((0, 0), (40, 5)), Polygon(((0, 0), (5, 5), (0, 60)))])
def test_regions_outside_the_plane_are_refused(region: Prompt) -> None:
    """As strokes are; half a pixel is tolerated."""
    with pytest.raises(ValueError, match=r"is outside the plane of shape \(40, 60\); rows go from 0 to 39"):
        dense_maps([region], Frame.whole(SHAPE, 32))
    assert dense_maps([Click((-0.5, 59.5)), Click((39.5, -0.5))], Frame.whole(SHAPE, 32)).sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Click((1, np.nan)),
            r"a click needs 1 or more finite points \(row, col\); got \[\(1, nan\)\]",
        ),
        (lambda: Click((1, 2, 3)), r"a click needs"),
        (lambda: Click("here"), r"a click needs"),
        (lambda: Scribble(()), r"a scribble needs 1 or more finite points"),
        (lambda: Scribble(((1, 2), (3,))), r"a scribble needs"),
        (lambda: Box((1, 2), (np.inf, 3)), r"a box needs 2 or more finite points"),
        (lambda: Polygon(((1, 2), (3, 4))), r"a polygon needs 3 or more finite points"),
        (lambda: Mask(np.zeros((3, 3, 3), bool)), r"\(H, W\) bool or float; got bool of shape \(3, 3, 3\)"),
        (lambda: Mask(np.ones((3, 3), int)), r"bool or float; got int64 of shape \(3, 3\)"),
        (lambda: Mask(np.full((3, 3), 1.5)), r"soft mask must lie between 0 and 1; got 1.5 to 1.5"),
        (lambda: Mask(np.full((3, 3), np.nan)), r"soft mask must lie between 0 and 1; got nan"),
        (lambda: Mask(np.zeros((3, 3), bool)), r"at least one pixel that is set; all 9 are 0"),
    ],
)
def test_impossible_prompts_are_refused(make, message: str) -> None:
    """When they are made, not when they are used."""
    with pytest.raises(ValueError, match=message):
        make()


def test_misfitting_masks_regions_and_radii_are_refused() -> None:
    """Each with its values."""
    frame = Frame.whole(SHAPE, 32)
    with pytest.raises(ValueError, match=r"a mask must have the plane's shape \(40, 60\); got \(3, 3\)"):
        dense_maps([Mask(np.ones((3, 3), bool))], frame)
    with pytest.raises(ValueError, match=r"regions must be 'prior' or 'channel'; got 'both'"):
        dense_maps([], frame, regions="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"radius of 0 or more pixels; got -1"):
        dense_maps([Click((1, 1))], frame, radius=-1)


def test_prompts_are_hashable_values() -> None:
    """Equal content, equal key; a mask by its content, not its identity."""
    assert Click(np.array([1, 2])) == Click((1.0, 2.0))  # type: ignore[arg-type]
    assert hash(Scribble([[1, 2], [3, 4]])) == hash(Scribble(((1, 2), (3, 4))))  # type: ignore[arg-type]
    pixels = np.ones((3, 3), bool)
    mask = Mask(pixels)
    pixels[0] = False
    assert mask == Mask(np.ones((3, 3), bool))
    assert len({mask, Mask(pixels), Mask(np.ones((3, 3), bool), positive=False), Mask(np.ones((3, 3)))}) == 4
    assert mask != Click((1, 2))
    assert not mask.pixels.flags.writeable
