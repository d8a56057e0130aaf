"""Loaders on tiny trees in the published layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_lowlat_seg.evaluation.inputs.datasets import (
    DATASETS,
    FolderOptions,
    Target,
    by_picture,
    find_targets,
    per_set,
    read_samples,
)

BLANK = np.zeros((12, 16), np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def square(value: int = 255, at: tuple[int, int] = (2, 3), side: int = 4) -> np.ndarray:
    mask = BLANK.copy()
    mask[at[0] : at[0] + side, at[1] : at[1] + side] = value
    return mask


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Sets `a` (ids 1, 7 in two parts, 255 to ignore) and `b` (16-bit ids)."""
    mask = square(1) + square(7, (7, 8), 3) + square(7, (1, 12), 2)
    mask[11] = 255
    write(tmp_path / "images" / "a" / "one.webp", np.dstack([BLANK] * 3))
    write(tmp_path / "masks" / "a" / "one.png", mask)
    write(tmp_path / "images" / "b" / "two.png", BLANK)
    write(tmp_path / "masks" / "b" / "two.png", square(1, (0, 0), 3).astype(np.uint16) * 300)
    return tmp_path


def test_a_folder_has_one_object_an_id(instances: Path) -> None:
    """8-bit and 16-bit ids, sets named after their folders."""
    targets = find_targets("folder", instances)
    assert [(t.group, t.label) for t in targets] == [("a", 1), ("a", 7), ("a", 255), ("b", 300)]
    samples = list(read_samples(targets))
    assert [int(s.truth.sum()) for s in samples] == [16, 13, 16, 9]
    assert [s.image.shape for s in samples] == [(12, 16, 3)] * 3 + [(12, 16)]
    assert samples[0].image is samples[1].image


def test_an_ignored_id_is_no_object_but_not_counted(instances: Path) -> None:
    """Given for one set only; the other set keeps its ids."""
    targets = find_targets("folder", instances, options=FolderOptions(ignore={"a": 255}))
    assert [(t.group, t.label) for t in targets] == [("a", 1), ("a", 7), ("b", 300)]
    truth = next(read_samples(targets)).truth
    assert (truth[11] == -1).all()
    assert int((truth == 1).sum()) == 16


def test_components_are_objects_of_their_own(instances: Path) -> None:
    """The two parts of id 7, and the ignored row in neither."""
    targets = find_targets(
        "folder", instances, options=FolderOptions(ignore=255, components=True, sets=("a",))
    )
    samples = list(read_samples(targets))
    assert sorted(int((s.truth == 1).sum()) for s in samples) == [4, 9, 16]
    assert all((s.truth[11] == -1).all() for s in samples)


def test_small_objects_are_left_out(instances: Path) -> None:
    """A least area for all sets, and another for one of them."""
    everywhere = find_targets("folder", instances, options=FolderOptions(min_area=14))
    assert [t.label for t in everywhere] == [1, 255]
    by_set = find_targets("folder", instances, options=FolderOptions(min_area={"a": 14, "*": 1}))
    assert [t.label for t in by_set] == [1, 255, 300]


def test_values_by_set_are_read_from_texts() -> None:
    """One for all, one for a set, none."""
    assert per_set(["100", "em/a=5"]) == {"*": 100, "em/a": 5}
    assert per_set([]) is None


@pytest.mark.parametrize("text", ["", "a=", "=3", "a=b", "-1"])
def test_a_value_by_set_has_a_form(text: str) -> None:
    """The text is shown."""
    with pytest.raises(ValueError, match=f"expected a whole number or SET=NUMBER, got '{text}'"):
        per_set([text])


def test_a_root_of_several_folders_is_one_data_set(instances: Path) -> None:
    """Each child with images/ and masks/ gives its name to its sets."""
    home = instances.parent / "all"
    home.mkdir()
    instances.rename(home / "em")
    assert {t.group for t in find_targets("folder", home)} == {"em/a", "em/b"}


def test_a_flat_folder_is_a_set_of_its_own(tmp_path: Path) -> None:
    """Named after the root."""
    write(tmp_path / "flat" / "images" / "x.png", BLANK)
    write(tmp_path / "flat" / "masks" / "x.png", square())
    assert [t.group for t in find_targets("folder", tmp_path / "flat")] == ["flat"]


def test_a_limit_spreads_over_each_set(tmp_path: Path) -> None:
    """Four of ten objects: the middles of four equal stretches, always the same."""
    mask = np.arange(1, 11, dtype=np.uint8).repeat(4).reshape(4, 10)
    write(tmp_path / "images" / "x.png", np.zeros_like(mask))
    write(tmp_path / "masks" / "x.png", mask)
    assert [t.label for t in find_targets("folder", tmp_path, 4)] == [2, 4, 7, 9]
    assert len(find_targets("folder", tmp_path, 99)) == 10


def test_targets_are_grouped_by_picture(instances: Path) -> None:
    """Three objects of the first picture, one of the second."""
    assert [len(same) for same in by_picture(find_targets("folder", instances))] == [3, 1]


LAYOUTS = {
    "davis": ("img/x.jpg", "gt/x.png"),
    "coco-mval": ("img/x.jpg", "gt/x.png"),
    "brats": ("image/x.png", "annotation/x.png"),
    "grabcut": ("data_GT/x.jpg", "boundary_GT/x.bmp"),
    "berkeley": ("images/x.jpg", "masks/x.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sets_of_one_object_a_picture(tmp_path: Path, name: str) -> None:
    """The published folders, any suffix."""
    image, mask = LAYOUTS[name]
    write(tmp_path / image, np.dstack([BLANK] * 3))
    write(tmp_path / mask, square())
    [sample] = read_samples(find_targets(name, tmp_path))
    assert (sample.truth == (square() == 255)).all()


def test_davis_takes_any_channel_and_brats_only_blue(tmp_path: Path) -> None:
    """What OpenCV calls the first channel is the last one in RGB."""
    colours = np.dstack([square(1), square(0), square(1, (0, 0), 2)])
    for name, image, mask in (("davis", "img", "gt"), ("brats", "image", "annotation")):
        write(tmp_path / image / "x.png", np.dstack([BLANK] * 3))
        write(tmp_path / mask / "x.png", colours)
        [sample] = read_samples(find_targets(name, tmp_path))
        assert int(sample.truth.sum()) == {"davis": 20, "brats": 4}[name]


def test_grabcut_ignores_128(tmp_path: Path) -> None:
    """255 object, 128 ignored, 64 and 0 background."""
    mask = square() // 255 * 255
    mask[0], mask[11] = 128, 64
    write(tmp_path / "data_GT" / "x.jpg", np.dstack([BLANK] * 3))
    write(tmp_path / "boundary_GT" / "x.bmp", mask)
    [sample] = read_samples(find_targets("grabcut", tmp_path))
    assert (np.unique(sample.truth).tolist(), int((sample.truth == -1).sum())) == ([-1, 0, 1], 16)


def test_sstem_counts_parts_that_touch_at_a_corner_as_one(tmp_path: Path) -> None:
    """8-connected, whatever the gray value: the protocol that counts 389 objects."""
    mask = square(255, (0, 0), 3) + square(254, (3, 3), 3) + square(255, (8, 10), 3)
    write(tmp_path / "raw" / "00.tif", BLANK)
    write(tmp_path / "mitochondria" / "00.png", mask)
    samples = list(read_samples(find_targets("sstem", tmp_path)))
    assert [(s.name, int(s.truth.sum())) for s in samples] == [("00#1", 18), ("00#2", 9)]


def test_hqseg_has_four_parts(tmp_path: Path) -> None:
    """The folders of its public release."""
    for folder, images, masks in (
        ("DIS5K/DIS-VD", "im", "gt"),
        ("thin_object_detection/ThinObject5K", "images_test", "masks_test"),
        ("thin_object_detection/COIFT", "images", "masks"),
        ("thin_object_detection/HRSOD", "images", "masks_max255"),
    ):
        write(tmp_path / folder / images / "x.jpg", np.dstack([BLANK] * 3))
        write(tmp_path / folder / masks / "x.png", square())
    samples = list(read_samples(find_targets("hqseg44k", tmp_path)))
    assert [s.name for s in samples] == ["DIS5K-VD/x", "ThinObject5K-TE/x", "COIFT/x", "HRSOD/x"]
    assert [int(s.truth.sum()) for s in samples] == [16] * 4


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_layout_says_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    """A root that holds something else."""
    (tmp_path / "holiday").mkdir()
    with pytest.raises(ValueError, match=r"expected .*(holds|is read from)"):
        find_targets(name, tmp_path)


def test_an_empty_and_a_missing_root_have_different_errors(tmp_path: Path) -> None:
    """Nothing in it; not there; a part of it not there."""
    with pytest.raises(ValueError, match=r"expected images/ and masks/ in .* it holds nothing"):
        find_targets("folder", tmp_path)
    with pytest.raises(ValueError, match=r"root of davis must be an existing folder, got .*nowhere"):
        find_targets("davis", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="DIS-VD does not exist"):
        find_targets("hqseg44k", tmp_path)


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    """All of them."""
    with pytest.raises(ValueError, match=r"unknown data set 'imagenet'; choose one of davis, .*folder"):
        find_targets("imagenet", tmp_path)


def test_a_limit_is_at_least_one(instances: Path) -> None:
    """Zero objects are no benchmark."""
    with pytest.raises(ValueError, match="limit must be at least 1 object, got 0"):
        find_targets("folder", instances, 0)


def test_options_may_leave_nothing(instances: Path) -> None:
    """A least area larger than every object."""
    with pytest.raises(ValueError, match="folder found no object under"):
        find_targets("folder", instances, options=FolderOptions(min_area=10_000))


def test_every_picture_needs_a_mask(tmp_path: Path) -> None:
    """The first one without is named."""
    write(tmp_path / "img" / "alone.png", BLANK)
    (tmp_path / "gt").mkdir()
    with pytest.raises(ValueError, match=r"expected a mask of the same name .* 1 of 1 have none.*alone.png"):
        find_targets("davis", tmp_path)


def one(tmp_path: Path, rule: str = "nonzero") -> Callable[[str, str], list[Target]]:
    return lambda image, mask: [Target("g", "n", tmp_path / image, tmp_path / mask, rule)]


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """Both shapes are named."""
    write(tmp_path / "i.png", BLANK)
    write(tmp_path / "m.png", BLANK[:5])
    with pytest.raises(ValueError, match=r"of \(12, 16\) pixels for .*i.png, got \(5, 16\)"):
        list(read_samples(one(tmp_path)("i.png", "m.png")))


def test_ids_need_one_channel(tmp_path: Path) -> None:
    """A colour picture is no mask of ids."""
    write(tmp_path / "i.png", BLANK)
    write(tmp_path / "m.png", np.dstack([BLANK] * 3))
    with pytest.raises(ValueError, match=r"mask of ids with one channel in .*m.png, got shape \(12, 16, 3\)"):
        list(read_samples(one(tmp_path, "id")("i.png", "m.png")))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A picture and a mask that are text."""
    write(tmp_path / "i.png", BLANK)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.tif").write_text("no picture")
    with pytest.raises(ValueError, match=r"expected a picture in .*text.tif, but it cannot be read"):
        list(read_samples(one(tmp_path)("text.tif", "i.png")))
    with pytest.raises(ValueError, match=r"expected a mask in .*text.png, but it cannot be read"):
        list(read_samples(one(tmp_path)("i.png", "text.png")))


def test_a_stack_is_not_one_picture(tmp_path: Path) -> None:
    """A TIFF of five planes."""
    write(tmp_path / "stack.tif", np.zeros((5, 12, 16), np.uint8))
    with pytest.raises(
        ValueError, match=r"expected one gray or RGB picture in .*got an array of shape \(5, 12, 16\)"
    ):
        list(read_samples(one(tmp_path)("stack.tif", "stack.tif")))


def test_palettes_are_indices_in_masks_and_colours_in_pictures(tmp_path: Path) -> None:
    """A PNG with a palette, read both ways; alpha is dropped from pictures."""
    picture = Image.fromarray(square(2), mode=None).convert("P")
    picture.putdata(list(square(2).ravel()))
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    picture.save(tmp_path / "p.png")
    write(tmp_path / "rgba.png", np.dstack([BLANK] * 4))
    [sample] = read_samples([Target("g", "n", tmp_path / "p.png", tmp_path / "p.png", "id", 2)])
    assert (sample.image[2, 3].tolist(), int(sample.truth.sum())) == ([200, 0, 0], 16)
    [sample] = read_samples([Target("g", "n", tmp_path / "rgba.png", tmp_path / "p.png", "id", 2)])
    assert sample.image.shape == (12, 16, 3)
