"""What is drawn on a plane, as prompts, and prompts as drawings."""

import numpy as np
import pytest

from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Scribble
from napari_lowlat_seg.plugin.layers.drawn_shapes import clipped, drawing_of, prompts_of

SIDES = (30, 40)
DRAWN = (
    Click((3, 4)),
    Scribble([(1, 2), (5, 6.5), (7, 7)], False),
    Box((20, 8), (9, 30)),
    Polygon([(1, 1), (1, 9), (9, 1)], False),
    Scribble([(11, 12)]),
)


def test_an_ellipse_is_the_box_around_it():
    """Also a tilted one: around the ellipse, not around its frame."""
    frame = np.array([(10, 10), (10, 20), (16, 20), (16, 10)], float)
    assert prompts_of("ellipse", frame, True, SIDES) == (Box((10, 10), (16, 20)),)
    diamond = np.array([(10, 15), (15, 20), (20, 15), (15, 10)], float)
    (box,) = prompts_of("ellipse", diamond, True, SIDES)
    assert np.allclose(box.bounds(), (15 - 12.5**0.5, 15 - 12.5**0.5, 15 + 12.5**0.5, 15 + 12.5**0.5))


def test_a_tilted_rectangle_is_a_polygon():
    """An upright one is a box, as exact as float32 is at its place."""
    assert isinstance(
        prompts_of("rectangle", np.array([(10, 15), (15, 20), (20, 15), (15, 10)]), True, SIDES)[0], Polygon
    )
    upright = np.array([(10, 10), (10, 20), (16, 20), (16, 10)], np.float32) + np.float32(1e-5) * np.eye(4, 2)
    assert isinstance(prompts_of("rectangle", upright, True, SIDES)[0], Box)


def test_a_line_that_leaves_and_comes_back_is_two():
    """Cut half a pixel beyond the outermost centres."""
    line = np.array([(5, 5), (-5, 5), (-5, 9), (5, 9)], float)
    assert prompts_of("path", line, False, SIDES) == (
        Scribble([(5, 5), (-0.5, 5)], False),
        Scribble([(-0.5, 9), (5, 9)], False),
    )


def test_a_polygon_is_cut_at_the_border():
    """To the part on the plane."""
    (part,) = prompts_of("polygon", np.array([(-10, -10), (-10, 10), (10, 10), (10, -10)]), True, SIDES)
    assert part.bounds() == (-0.5, -0.5, 10, 10)


@pytest.mark.parametrize(
    ("kind", "points", "prompts"),
    [
        ("path", [(3, 3), (3, 3)], (Scribble([(3, 3)]),)),
        ("polygon", [(3, 3), (3, 3), (4, 4)], ()),
        ("polygon", [(-9, -9), (-9, -5), (-5, -5)], ()),
        ("rectangle", [(3, 3)] * 4, (Box((3, 3), (3, 3)),)),
        ("rectangle", [(50, 3)] * 4, ()),
        ("path", [(-3, 3), (-5, 3)], ()),
        ("path", [(3, np.inf), (-5, 3)], ()),
        ("path", np.empty((0, 2)), ()),
    ],
)
def test_shapes_without_extent_say_what_they_can(kind, points, prompts):
    """Never an error."""
    assert prompts_of(kind, np.array(points, float), True, SIDES) == prompts


@pytest.mark.parametrize("prompt", DRAWN)
def test_a_drawing_says_its_prompt(prompt):
    """There and back."""
    kind, points = drawing_of(prompt)
    (again,) = prompts_of(kind, points, prompt.positive, SIDES)
    assert type(again) is type(prompt)
    assert again.bounds() == prompt.bounds()


def test_a_prompt_is_clipped_to_the_plane():
    """A mask has the plane's shape and stays whole."""
    mask = Mask(np.ones(SIDES, bool))
    assert clipped(mask, SIDES) == (mask,)
    assert clipped(Box((1, 1), (99, 99), False), SIDES) == (Box((1, 1), (29.5, 39.5), False),)
    assert clipped(Click((-1, 0)), SIDES) == ()


def test_a_mask_has_no_drawing():
    """It is painted."""
    with pytest.raises(ValueError, match="no outline"):
        drawing_of(Mask(np.ones((2, 2), bool)))
