"""Poor pictures and careless clicks, on squares and bars."""

from __future__ import annotations

import numpy as np
import pytest

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import to_uint8
from napari_lowlat_seg.evaluation.analysis.perturbations import (
    PERTURBATIONS,
    THIN,
    hot_pixels,
    inverted,
    low_contrast,
    middle_rows,
    noisy,
    off_centre,
    repairing_click,
    thick_rows,
    thinness,
    with_outliers,
    wrong_click,
)
from napari_lowlat_seg.evaluation.annotator import deepest

SHAPE = (60, 90)


@pytest.fixture
def image() -> np.ndarray:
    """A ramp of gray from 20 to 220."""
    return np.linspace(20, 220, SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype(np.uint8)


@pytest.fixture
def truth() -> np.ndarray:
    """A square of 21 pixels: inscribed radius 11, middle (30, 40)."""
    truth = np.zeros(SHAPE, np.int8)
    truth[20:41, 30:51] = 1
    return truth


def bar(rows: int, cols: int) -> np.ndarray:
    truth = np.zeros(SHAPE, np.int8)
    truth[5 : 5 + rows, 5 : 5 + cols] = 1
    return truth


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_perturbation_is_deterministic_and_mutates_nothing(name, channels, image) -> None:
    """Gray or RGB; picture and truth keep one shape."""
    picture = np.broadcast_to(image.reshape(*SHAPE, *[1] * len(channels)), SHAPE + channels).copy()
    before = picture.copy()
    once, again = (PERTURBATIONS[name].image(picture) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(picture, before)
    assert once.shape[:2] == PERTURBATIONS[name].truth(np.zeros(SHAPE, np.int8)).shape
    assert once.shape[2:] == channels


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_constant_picture_can_be_perturbed(name) -> None:
    """One value has no range; the engine still gets numbers."""
    seen = PERTURBATIONS[name].image(np.full((9, 9), 7, np.uint8))
    assert np.isfinite(seen).any()


def test_low_contrast_keeps_the_mean_and_a_quarter_of_the_range(image) -> None:
    """In whole numbers."""
    seen = low_contrast(image)
    assert seen.dtype == np.uint8
    assert (int(seen.min()), int(seen.max())) == (95, 145)


def test_low_contrast_of_a_float_picture_looks_past_nan() -> None:
    """The mean is that of what is finite."""
    assert low_contrast(np.array([[0.0, 8.0, np.nan]]))[0, :2].tolist() == [3.0, 5.0]


def test_noise_is_a_tenth_of_the_range() -> None:
    """As a standard deviation, where nothing is cut off."""
    image = np.full((200, 200), 100.0)
    image[0, :2] = 0, 200
    assert (noisy(image) - image)[1:].std() == pytest.approx(20, rel=0.02)


def test_inverting_twice_restores_the_image(image) -> None:
    """The range stays."""
    np.testing.assert_array_equal(inverted(inverted(image)), image)
    assert inverted(image)[0, 0] == 220


def test_hot_pixels_are_one_in_a_thousand() -> None:
    """Of 16 bits; the rest has the 12 bits of a camera."""
    seen = hot_pixels(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    hot = seen == 65535
    assert (seen.dtype, int(seen[~hot].max())) == (np.uint16, 4095)
    assert hot.mean() == pytest.approx(0.001, rel=0.3)


def test_a_missing_pixel_is_black_to_a_camera() -> None:
    """NaN has no place in whole numbers."""
    assert hot_pixels(np.array([[0.0, 1.0, np.nan]])).tolist() == [[0, 4095, 0]]


def test_outliers_and_nan_do_not_change_the_image() -> None:
    """What the engine shows of all other pixels is what it shows of the plain picture, to a gray level."""
    plain = np.tile(np.arange(256, dtype=np.float32), (256, 1))
    seen = with_outliers(plain)
    odd = np.isnan(seen) | (seen > 2e-6)
    assert np.isnan(seen).mean() == pytest.approx(0.001, rel=0.3)
    assert np.nanmax(seen) > 0.1
    difference = to_uint8(seen).astype(int) - to_uint8(plain)
    assert np.abs(difference[~odd]).max() <= 1


def test_thick_rows_average_three_and_the_truth_is_in_the_middle() -> None:
    """Rows left over are cut."""
    image = np.repeat(np.array([0, 30, 60, 90, 90, 90, 7], np.uint8)[:, None], 2, axis=1)
    assert thick_rows(image)[:, 0].tolist() == [30, 90]
    assert middle_rows(image)[:, 0].tolist() == [30, 90]


def test_an_off_centre_click_is_30_percent_of_the_radius_away(truth) -> None:
    """In any direction, to half a pixel's diagonal."""
    radius, middle = deepest(truth == 1)
    places = [off_centre(truth, np.random.default_rng(seed)).at for seed in range(40)]
    distances = np.linalg.norm(np.array(places) - middle, axis=1)
    assert np.abs(distances - 0.3 * radius).max() <= 0.71
    assert len(set(places)) > 8


@pytest.mark.parametrize("side", range(1, 9))
def test_an_off_centre_click_stays_on_the_object(side) -> None:
    """However small it is."""
    truth = bar(side, side)
    for seed in range(40):
        row, col = (int(v) for v in off_centre(truth, np.random.default_rng(seed)).at)
        assert truth[row, col] == 1


def test_a_wrong_click_is_one_to_three_radii_outside(truth) -> None:
    """Positive, on background; ignored pixels are none."""
    truth[:, 52:] = -1
    rows, cols = np.nonzero(truth == 1)
    for seed in range(20):
        click = wrong_click(truth, np.random.default_rng(seed))
        row, col = (int(v) for v in click.at)
        assert click.positive
        assert truth[row, col] == 0
        assert 11 <= np.hypot(rows - row, cols - col).min() <= 33


def test_a_wrong_click_is_as_far_as_the_picture_allows() -> None:
    """An object that nearly fills it; none where there is no background at all."""
    truth = np.ones((30, 30), np.int8)
    assert wrong_click(truth, np.random.default_rng(0)) is None
    truth[:, 28:] = 0
    assert wrong_click(truth, np.random.default_rng(0)).at[1] == 29


def test_a_wrong_click_is_repaired_at_its_deepest_excess(truth) -> None:
    """In the excess around it, though there is larger excess elsewhere."""
    mask = truth == 1
    mask[2:9, 2:9] = True
    mask[40:60, 60:90] = True
    wrong = Click((3, 3))
    assert repairing_click(truth, mask, [wrong], wrong) == Click((5, 5), positive=False)


def test_an_ignored_wrong_click_needs_no_repair(truth) -> None:
    """The protocol goes on, or the annotator is content."""
    wrong, mask = Click((3, 3)), truth == 1
    assert repairing_click(truth, mask, [wrong], wrong) is None
    assert repairing_click(truth, np.zeros(SHAPE, bool), [wrong], wrong) == Click((30, 40))
    mask[3, 3] = True  # one pixel, which is clicked already
    assert repairing_click(truth, mask, [wrong], wrong) is None


def test_thinness_is_length_over_width() -> None:
    """Of a bar four times that; of the largest part only."""
    assert [thinness(bar(3, cols)) for cols in (3, 15, 30)] == pytest.approx([4, 20, 40])
    assert thinness(bar(3, 30)) > THIN >= thinness(bar(3, 15))
    both = bar(20, 20)
    both[50, :] = 1
    assert thinness(both) == thinness(bar(20, 20))


def test_an_empty_truth_has_no_thinness() -> None:
    """A truth without an object is a mistake."""
    with pytest.raises(ValueError, match=r"has no pixel of value 1, so nothing can be drawn around it"):
        thinness(np.zeros(SHAPE, np.int8))
