"""Cut-outs, headings and sheets; panels themselves are tested with the demo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.evaluation.analysis.pictures import (
    CAPTION,
    GAP,
    OUTSIDE,
    Panel,
    crop_panel,
    draw_panels,
    draw_sheet,
    with_heading,
)


@pytest.fixture
def panel() -> Panel:
    """A plane of 20 x 30 whose left half is bright, with an outline around its middle."""
    image = np.zeros((20, 30), np.uint8)
    image[:, :15] = 200
    mask = np.zeros((20, 30), bool)
    mask[5:15, 10:20] = True
    return Panel(image, [(mask, (1, 2, 3))], [Click((7, 12))], "middle")


def test_a_crop_panel_is_a_square_of_the_panel(panel: Panel) -> None:
    """Twice as large: pixels, outlines and prompts in the same place; the panel stays as it is."""
    found = crop_panel(panel, 5, 10, 10, 20)
    assert found.image.shape == (20, 20)
    assert (found.image[:, :7] == 200).all()
    assert (found.image[:, 13:] == 0).all()
    ((mask, colour),) = found.outlines
    assert (mask.dtype, mask.all(), colour) == (np.dtype(bool), True, (1, 2, 3))
    assert found.prompts == [Click((4.5, 4.5))]
    assert (found.caption, panel.image.shape) == ("middle", (20, 30))


def test_a_large_square_is_shrunk(panel: Panel) -> None:
    """By means of areas, so that nothing thin vanishes by chance."""
    found = crop_panel(panel, 0, 0, 20, 10)
    assert found.image[0].tolist() == [200] * 7 + [100, 0, 0]
    assert found.prompts == [Click((3.25, 5.75))]


@pytest.mark.parametrize(("row", "col"), [(-5, -5), (15, 25), (-40, 0), (40, 50)])
def test_beyond_the_plane_there_is_gray_and_no_mask(panel: Panel, row: int, col: int) -> None:
    """On any side, even where the square does not touch the plane."""
    found = crop_panel(panel, row, col, 10, 10)
    rows, cols = np.mgrid[row : row + 10, col : col + 10]
    outside = (rows < 0) | (rows >= 20) | (cols < 0) | (cols >= 30)
    assert ((found.image == OUTSIDE) == outside).all()
    assert not found.outlines[0][0][outside].any()


def test_colours_are_cut_like_grays() -> None:
    """Three channels stay three."""
    rgb = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(4, 4, 3)
    assert (crop_panel(Panel(rgb), 1, 1, 2, 2).image == rgb[1:3, 1:3]).all()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (Click((3, 4), False), Click((2.5, 4.5), False)),
        (Scribble(((3, 4), (5, 6))), Scribble(((2.5, 4.5), (6.5, 8.5)))),
        (Box((3, 4), (5, 6), False), Box((2.5, 4.5), (6.5, 8.5), False)),
        (Polygon(((3, 4), (5, 6), (3, 6))), Polygon(((2.5, 4.5), (6.5, 8.5), (2.5, 8.5)))),
    ],
)
def test_prompts_move_with_their_pixels(prompt: Prompt, expected: Prompt) -> None:
    """Of every kind and sign; an area is not a mark and is left out."""
    area = Mask(np.ones((20, 20), bool))
    found = crop_panel(Panel(np.zeros((20, 20), np.uint8), prompts=[prompt, area]), 2, 2, 10, 20)
    assert found.prompts == [expected]


def test_marks_may_be_small() -> None:
    """By their radius."""
    covered = []
    for mark in (3, 6):
        panel = Panel(np.zeros((40, 40), np.uint8), prompts=[Click((20, 20))], mark=mark)
        covered.append((np.asarray(draw_panels([panel], zoom=1))[:40].max(axis=2) > 0).sum())
    assert 2 * covered[0] < covered[1]


def test_a_click_beyond_the_plane_does_not_cover_the_caption(panel: Panel) -> None:
    """Its mark would reach over the text."""
    rows = panel.image.shape[0]
    drawn, plain = (
        np.asarray(draw_panels([replace(panel, prompts=prompts)], zoom=1))
        for prompts in ([Click((rows + 8.0, 5.0))], [])
    )
    np.testing.assert_array_equal(drawn, plain)


def test_a_heading_is_shortened_to_the_picture() -> None:
    """A long name loses its middle: text ends inside, and begins and ends as the name does."""
    picture = Image.new("RGB", (120, 30), (9, 9, 9))
    found = with_heading(picture, ["em/a very long name of a set/and of a picture#1", ""])
    assert found.size == (120, 30 + 2 * CAPTION)
    pixels = np.asarray(found)
    assert (pixels[2 * CAPTION :] == 9).all()
    assert pixels[:CAPTION].min() < 100
    assert (pixels[:, -2:][: 2 * CAPTION] == 255).all()
    assert (pixels[CAPTION : 2 * CAPTION] == 255).all()
    whole = np.asarray(with_heading(Image.new("RGB", (600, 30)), ["em/a very long name of a set"]))
    assert (whole[:CAPTION, :20] == pixels[:CAPTION, :20]).all()


def test_a_picture_too_narrow_for_any_letter_gets_what_fits() -> None:
    """It ends, rather than cutting for ever."""
    assert with_heading(Image.new("RGB", (3, 3)), ["name"]).size == (3, 3 + CAPTION)


@pytest.mark.parametrize(("count", "across", "down"), [(1, 1, 1), (3, 3, 1), (4, 3, 2)])
def test_a_sheet_has_rows_of_pictures_under_a_title(count: int, across: int, down: int) -> None:
    """No two touch, and none is lost."""
    pictures = [Image.new("RGB", (30, 20), (0, 0, i + 1)) for i in range(count)]
    pixels = np.asarray(draw_sheet(pictures, 3, "t"))
    step = (20 + 3 * GAP, 30 + 3 * GAP)
    assert pixels.shape == (CAPTION + down * step[0] - GAP, across * step[1] - GAP, 3)
    for i in range(count):
        places = np.argwhere((pixels == (0, 0, i + 1)).all(axis=2))
        y, x = divmod(i, 3)
        assert places.min(axis=0).tolist() == [CAPTION + GAP + y * step[0], GAP + x * step[1]]
        assert len(places) == 600
