"""Tiles of huge planes: which, what they show, and that nothing else is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lowlat_seg.core.boxes import HALO, TILE, BoundingBox, Tiling, tile_of
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.requests import Request
from napari_lowlat_seg.core.volume import Plane, Volume

HUGE = (20_000, 30_000)


def test_planes_of_usual_size_are_taken_whole() -> None:
    """Whatever the prompts are."""
    assert tile_of((4096, 300), [Click((5, 5))]) == (0, 0, 4096, 300)


def test_prompts_near_each_other_share_a_tile() -> None:
    """One embedding serves them; at the border the tile is moved inside."""
    first = tile_of(HUGE, [Click((5000, 7000))])
    assert first == tile_of(HUGE, [Click((5010, 6990)), Click((4990, 7010), positive=False)])
    assert first.shape == (TILE, TILE)
    assert tile_of(HUGE, [Click((0, 0))]) == (0, 0, TILE, TILE)
    assert tile_of(HUGE, [Click((19_999, 29_999))]) == (20_000 - TILE, 30_000 - TILE, 20_000, 30_000)
    assert tile_of((20_000, 900), [Click((9000, 5))]).shape[1] == 900


@given(st.lists(st.tuples(st.floats(-0.5, 19_999.5), st.floats(-0.5, 29_999.5)), min_size=1, max_size=4))
def test_every_prompt_has_context_around_it(points: list[tuple[float, float]]) -> None:
    """The halo, or the border of the plane; also where prompts are far apart."""
    tile = tile_of(HUGE, [Click(point) for point in points])
    assert 0 <= tile.top <= tile.bottom <= HUGE[0]
    assert 0 <= tile.left <= tile.right <= HUGE[1]
    for row, col in points:
        assert tile.top == 0 or row - tile.top >= HALO - 1
        assert tile.left == 0 or col - tile.left >= HALO - 1
        assert tile.bottom == HUGE[0] or tile.bottom - row >= HALO - 1
        assert tile.right == HUGE[1] or tile.right - col >= HALO - 1


class Recorder:
    """An array that remembers what was read of it."""

    def __init__(self, data: np.ndarray) -> None:
        self.data, self.read = data, 0
        self.shape, self.dtype = data.shape, data.dtype

    def __getitem__(self, key: Any) -> np.ndarray:
        part = self.data[key]
        self.read += part.size
        return part


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cropped_volume_reads_only_the_box_of_every_plane(axis: int) -> None:
    """Along any axis, with spacing; the volume behind stays as it is."""
    data = Recorder(np.arange(10 * 12 * 14).reshape(10, 12, 14))
    volume = Volume(data, spacing=(3, 2, 1), window=(0, 9))
    tile = BoundingBox(2, 3, 6, 8)
    part = volume.cropped(tile, volume.planes(axis)[0])
    assert part.plane_spacing(part.planes(axis)[0]) == volume.plane_spacing(volume.planes(axis)[0])
    for plane in volume.planes(axis):
        data.read = 0
        found = part.plane(plane)
        assert data.read == 20
        np.testing.assert_array_equal(found, data.data[plane.key()][2:6, 3:8])


def test_channels_stay_whole_and_a_plain_index_works() -> None:
    """RGB planes; and arrays asked with slices and steps, as the volume's sample does."""
    data = np.arange(6 * 7 * 3).reshape(6, 7, 3)
    part = Volume(data, channel_axis=-1).cropped(BoundingBox(1, 2, 5, 7), Plane())
    np.testing.assert_array_equal(part.plane(Plane()), data[1:5, 2:7])
    np.testing.assert_array_equal(part.data[1], data[2, 2:7])
    np.testing.assert_array_equal(part.data[::2, 1:3], data[1:5:2, 3:5])


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Click((100, 200), positive=False), Click((90, 180), positive=False)),
        (Scribble([(10, 20), (12, 25)]), Scribble([(0, 0), (2, 5)])),
        (Box((10, 20), (30, 50)), Box((0, 0), (20, 30))),
        (Polygon([(10, 20), (10, 30), (20, 20)]), Polygon([(0, 0), (0, 10), (10, 0)])),
    ],
)
def test_prompts_move_with_their_tile(prompt: Prompt, expected: Prompt) -> None:
    """Sign and order stay."""
    assert prompt.cropped(BoundingBox(10, 20, 510, 520)) == expected


def test_a_mask_is_cut_to_its_tile() -> None:
    """It has the size of the tile then."""
    pixels = np.zeros((30, 40), bool)
    pixels[12:15, 22:25] = True
    found = Mask(pixels, positive=False).cropped(BoundingBox(10, 20, 20, 35))
    assert found == Mask(pixels[10:20, 20:35], positive=False)


SMALL = Tiling(large=300, side=200, halo=32)


def test_a_tile_in_use_stays_in_use() -> None:
    """While half a halo is left around all prompts, or the plane ends there; no second embedding for it."""
    now = tile_of((1000, 1000), [Click((300, 300))], SMALL)
    assert now == (240, 240, 440, 440)
    assert tile_of((1000, 1000), [Click((256, 423))], SMALL, now) == now
    assert tile_of((1000, 1000), [Click((255, 423))], SMALL, now) != now
    corner = tile_of((1000, 1000), [Click((0, 0))], SMALL)
    assert tile_of((1000, 1000), [Click((0, 0)), Click((183, 183))], SMALL, corner) == corner


def test_a_request_is_cropped_to_its_tile() -> None:
    """Prompts and previous mask are moved; the request itself stays what it was."""
    mask = np.zeros((1000, 1000), bool)
    mask[290:310, 200:260] = True
    previous = SoftMask.from_mask(mask)
    asked = Request(3, 1, Plane(), (Click((300, 301)), Box((250, 251), (310, 312))), previous)
    tile = tile_of((1000, 1000), asked.prompts, SMALL)
    sent = asked.cropped(tile)
    assert sent.prompts == (Click((82, 82)), Box((32, 32), (92, 93)))
    assert sent.previous is not None
    np.testing.assert_array_equal(sent.previous.probability, mask[218:440, 219:440])
    assert (sent.ticket, sent.object, asked.previous) == (3, 1, previous)
