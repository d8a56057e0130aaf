"""Training pictures and views: geometry to the half pixel, colours in range, and who gets which share."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.inference.closer_look import MARGIN, MAX_SHARE, MIN_PIXELS, MIN_SHARE
from napari_lowlat_seg.training.data.pictures import (
    Crop,
    Picture,
    PictureSet,
    PictureStore,
    read_picture,
    read_sets,
)
from napari_lowlat_seg.training.data.views import (
    AGENT,
    UPRIGHT,
    ColourAugmentation,
    Views,
    choose_view,
    contrast_agent,
    recolour,
    warp,
)

STILL = np.eye(2)


def picture(rows: int, cols: int, seed: int = 0) -> Picture:
    """Random colours, one object of a third of the sides in the middle."""
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (3, rows, cols), dtype=np.uint8))
    ids = np.zeros((rows, cols), np.int32)
    box = rows // 3, cols // 3, rows - rows // 3, cols - cols // 3
    ids[box[0] : box[2], box[1] : box[3]] = 7
    area = (ids == 7).sum(keepdims=True)[0].astype(float)
    return Picture(pixels, torch.from_numpy(ids), np.array([7]), area, np.array([box], float))


def cut(
    one: Picture, target: int, view: tuple[float, float, float], matrix: NDArray[np.float64], size: int
) -> Tensor:
    """One view (5, S, S), out of an atlas where another picture comes first."""
    return PictureStore([picture(7, 9), one], "cpu").sample([Crop(1, (target,), view, matrix)], size)[0]


def write(root: Path, domain: str, name: str, count: int, shape: tuple[int, int] = (40, 50)) -> None:
    """A set of pictures with two objects each, of 300 and of 30 pixels."""
    rng = np.random.default_rng(len(name))
    for kind in ("images", "masks"):
        (root / domain / kind / name).mkdir(parents=True)
    for number in range(count):
        ids = np.zeros(shape, np.uint8)
        ids[5:20, 10:30], ids[30:35, 40:46] = 1, 2
        pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / domain / "images" / name / f"{number}.jpg")
        Image.fromarray(ids).save(root / domain / "masks" / name / f"{number}.png")


def boxes_and_shapes(seed: int, count: int = 300) -> list[tuple[tuple[int, int], NDArray[np.float64], float]]:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        shape = (int(rng.integers(10, 600)), int(rng.integers(10, 600)))
        top, left = (int(rng.integers(0, length)) for length in shape)
        bottom, right = (int(rng.integers(at + 1, n + 1)) for at, n in zip((top, left), shape, strict=True))
        box = np.array([top, left, bottom, right], float)
        cases.append((shape, box, (bottom - top) * (right - left) * rng.uniform(0.05, 1)))
    return cases


class NeverCutsThrough(np.random.Generator):
    """A generator that never cuts through an object: `random` stays in the middle."""

    def random(self) -> float:  # type: ignore[override]
        return 0.5


def test_a_view_shows_the_whole_object_unless_it_cuts_through_it() -> None:
    """300 pictures and objects of all shapes."""
    rng = NeverCutsThrough(np.random.PCG64(0))
    for shape, box, area in boxes_and_shapes(0):
        top, left, side = choose_view(rng, shape, box, area)
        assert top <= box[0]
        assert left <= box[1]
        assert top + side >= box[2]
        assert left + side >= box[3]


def test_a_view_lies_in_the_picture_and_shows_some_of_the_object() -> None:
    """Where it is wider than the picture it starts at 0; any shows the object's middle."""
    rng = np.random.default_rng(1)
    whole = 0
    for shape, box, area in boxes_and_shapes(1):
        top, left, side = choose_view(rng, shape, box, area)
        whole += (top, left, side) == (0, 0, max(shape))
        for start, low, high, length in ((top, box[0], box[2], shape[0]), (left, box[1], box[3], shape[1])):
            assert start == 0 if side >= length else 0 <= start <= length - side
            assert start <= (low + high) / 2 <= start + side
        assert 24 <= side <= max(24, 1.08 * max(shape))
    assert whole > 90


def test_a_view_may_be_cut_as_a_closer_look_cuts_it() -> None:
    """Around the object with its margin, but for misjudged lengths; never where no closer look is taken."""
    rng = np.random.default_rng(2)
    lengths, whole = [], 0
    for shape, box, area in boxes_and_shapes(2):
        top, left, side = choose_view(rng, shape, box, area, closer=1.0)
        reach = max(box[2] - box[0], box[3] - box[1])
        if side > MAX_SHARE * max(shape):
            whole += 1
            continue
        for start, low, high, length in ((top, box[0], box[2], shape[0]), (left, box[1], box[3], shape[1])):
            assert start == 0 if side >= length else 0 <= start <= length - side
            assert start < high
            assert low < start + side
        if side > max(MIN_PIXELS, MIN_SHARE * max(shape)):
            lengths.append(side / reach)
    assert whole > 50
    assert 0.8 * (1 + 2 * MARGIN) < np.median(lengths) < 1.2 * (1 + 2 * MARGIN)
    assert np.std(np.log(lengths)) > 0.1


def test_views_of_one_object_differ_in_scale() -> None:
    """An object of 1 % of the picture covers less than 0.2 % of some views and more than 30 % of others."""
    rng = np.random.default_rng(0)
    box = np.array([500.0, 500, 600, 600])
    shares = [1e4 / choose_view(rng, (1000, 1000), box, 1e4)[2] ** 2 for _ in range(500)]
    assert min(shares) <= 0.011
    assert max(shares) > 0.3
    big = [1e4 / choose_view(rng, (4000, 4000), box, 1e4)[2] ** 2 for _ in range(500)]
    assert min(big) < 0.002


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal up to float32 places in a picture: a hundredth of a gray value."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)


def test_a_whole_square_picture_is_a_plain_resize() -> None:
    """Enlarged bilinearly with pixel centres as everywhere: no shift by half a pixel."""
    one = picture(40, 40)
    view = cut(one, 7, (0, 0, 40), STILL, 64)
    stack = torch.cat([one.pixels.float(), (one.ids == 7)[None].float()])
    assert_same(view[:4], F.interpolate(stack[None], (64, 64), mode="bilinear")[0])
    assert bool((view[4] == 1).all())


def test_a_view_at_its_own_size_is_a_plain_crop() -> None:
    """32 x 32 pixels from (5, 9), pixel for pixel."""
    one = picture(50, 60)
    view = cut(one, 7, (5, 9, 32), STILL, 32)
    assert_same(view[:3], one.pixels[:, 5:37, 9:41].float())
    assert_same(view[3], (one.ids == 7)[5:37, 9:41].float())


def test_an_enlarged_crop_equals_crop_and_resize_away_from_its_rim() -> None:
    """At the rim the view knows its neighbours, a crop does not."""
    one = picture(50, 60)
    view = cut(one, 7, (5, 9, 32), STILL, 64)
    crop = F.interpolate(one.pixels[None, :, 5:37, 9:41].float(), (64, 64), mode="bilinear")[0]
    assert_same(view[:3, 1:-1, 1:-1], crop[:, 1:-1, 1:-1])


@pytest.mark.parametrize("shape", [(128, 128), (127, 128), (128, 101)])
def test_shrinking_moves_nothing(shape: tuple[int, int]) -> None:
    """A ramp of positions, shrunk threefold: every pixel encodes its position, as in `Frame`."""
    rows, cols = shape
    at = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij"))
    one = Picture(torch.cat([at, at[:1]]).byte(), at[0].int(), np.array([1]), np.ones(1), np.zeros((1, 4)))
    size = 42
    side = max(shape)
    view = cut(one, 5, (0, 0, side), STILL, size)
    inside = [(y, x) for y in range(2, size - 2) for x in range(2, size - 2) if view[4, y + 2, x + 2] == 1]
    frame = Frame((side, side), size, (0, 0, side, side))
    expected = frame.to_plane(inside)
    found = view[:2].permute(1, 2, 0).numpy()[tuple(np.array(inside).T)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(30, 60), (60, 30)])
def test_an_oblong_picture_lies_top_left_on_padding(shape: tuple[int, int]) -> None:
    """As a letterboxed frame has it; the padding is not valid."""
    one = picture(*shape)
    view = cut(one, 7, (0, 0, 60), STILL, 60)
    valid = torch.zeros(60, 60)
    valid[: shape[0], : shape[1]] = 1
    assert torch.equal(view[4], valid)
    assert_same(view[:3, : shape[0], : shape[1]], one.pixels.float())


@pytest.mark.parametrize(
    ("matrix", "dims"), [([[-1, 0], [0, 1]], [1]), ([[1, 0], [0, -1]], [2]), ([[-1, 0], [0, -1]], [1, 2])]
)
def test_a_flip_reverses_the_view(matrix: list[list[float]], dims: list[int]) -> None:
    """Picture, target and validity together; the content stays top left."""
    one = picture(30, 60)
    still = cut(one, 7, (0, 0, 60), STILL, 60)
    flipped = cut(one, 7, (0, 0, 60), np.array(matrix, float), 60)
    assert_same(flipped[:, :30], still[:, :30].flip(dims))
    assert float(flipped[4, 30:].sum()) == 0


@pytest.mark.parametrize("shape", [(60, 60), (30, 60), (60, 30)])
def test_a_quarter_turn_shows_the_whole_picture_top_left(shape: tuple[int, int]) -> None:
    """Rows become columns; an oblong picture loses nothing."""
    one = picture(*shape)
    rows, cols = shape
    turned = cut(one, 7, (0, 0, 60), np.array([[0.0, 1], [1, 0]]), 60)
    assert_same(turned[:3, :cols, :rows], one.pixels.float().transpose(1, 2))
    valid = torch.zeros(60, 60)
    valid[:cols, :rows] = 1
    assert torch.equal(turned[4], valid)
    assert float(turned[3].sum()) == pytest.approx(float(one.areas[0]), rel=1e-4)


def test_a_turned_view_shows_its_surroundings_as_far_as_the_picture_goes() -> None:
    """By 45 degrees, the corners of a view in the middle are picture; those of the whole picture are not."""
    one = picture(90, 90)
    c = np.sqrt(0.5)
    turn = np.array([[c, -c], [c, c]])
    assert bool((cut(one, 7, (30, 30, 30), turn, 32)[4] == 1).all())
    valid = cut(one, 7, (0, 0, 90), turn, 90)[4]
    assert [float(valid[y, x]) for y in (0, -1) for x in (0, -1)] == [0, 0, 0, 0]
    assert float(valid[45, 45]) == 1


def test_a_warp_keeps_areas_and_upright_pictures_upright() -> None:
    """The determinant is 1 but for its sign; photographs keep their sky above."""
    rng = np.random.default_rng(0)
    for free in (True, False):
        matrices = np.array([warp(rng, free) for _ in range(300)])
        np.testing.assert_allclose(np.abs(np.linalg.det(matrices)), 1)
        assert (matrices[:, 0, 0] > 0.5).all() == (not free)
    assert "duts_tr" in UPRIGHT


@pytest.fixture
def colours() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(16, 3, 32, 40) * 255


def test_recolouring_stays_in_range_and_in_shape(colours: Tensor) -> None:
    """Colours change, pixels stay where they are, the argument is not changed."""
    before = colours.clone()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        out = recolour(colours, ColourAugmentation(), generator)
        assert out.shape == colours.shape
        assert bool(((out >= 0) & (out <= 255)).all())
    assert torch.equal(colours, before)


def test_a_colour_change_is_applied_to_its_share(colours: Tensor) -> None:
    """All inverted and nothing else: the picture's complement, but for the blacks that gamma keeps off 0."""
    nothing = ColourAugmentation(**dict.fromkeys((one.name for one in fields(ColourAugmentation)), 0.0))
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(recolour(colours, nothing, generator), colours, atol=0.03)
    out = recolour(colours, replace(nothing, inverted=1.0), generator)
    assert torch.allclose(out, 255 - colours, atol=0.03)


def test_a_contrast_agent_changes_the_object_alone(colours: Tensor) -> None:
    """By one gray value of the range in all channels, brighter or darker; its share of the views, 0 none."""
    image, cover = colours * 0.5 + 60, torch.zeros(16, 1, 32, 40)
    cover[:, :, 8:24, 10:30] = 1
    generator = torch.Generator().manual_seed(0)
    change = contrast_agent(image, cover, 1.0, generator) - image
    inside = change[:, :, 10:22, 12:28].flatten(1)
    assert bool((change[:, :, :6] == 0).all())
    assert torch.allclose(inside, inside[:, :1].expand_as(inside), atol=1e-3)
    assert AGENT[0] - 1e-3 <= float(inside.abs().min()) <= float(inside.abs().max()) <= AGENT[1] + 1e-3
    assert 0 < int((inside[:, 0] > 0).sum()) < 16
    assert torch.equal(contrast_agent(image, cover, 0.0, generator), image)


def test_recolouring_keeps_edges_where_they_are() -> None:
    """A step in the middle stays the steepest place, whatever the look; darker may become brighter."""
    step = torch.full((64, 3, 32, 32), 60.0)
    step[..., 16:] = 190
    out = recolour(step, ColourAugmentation(), torch.Generator().manual_seed(0))
    slope = out.mean((1, 2)).diff(dim=-1)  # (64, 31)
    assert float((slope.abs().argmax(-1) == 15).float().mean()) > 0.8
    assert 0.02 < float((slope[:, 15] < 0).float().mean()) < 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_one_seed_gives_one_sequence_of_batches(seed: int) -> None:
    """Two sources alike give the same batches, another seed gives others."""
    sets = [
        PictureSet("a", 1, [picture(60, 50), picture(40, 80, 1)]),
        PictureSet("b", 2, [picture(70, 70, 2)]),
    ]
    one, same, other = (Views(sets, 64, 3, number, torch.zeros(3)) for number in (seed, seed, seed + 1))
    for _ in range(2):
        batch, again, else_ = one.next(), same.next(), other.next()
        assert torch.equal(batch.image, again.image)
        assert torch.equal(batch.truth, again.truth)
        assert not torch.equal(batch.image, else_.image)


def test_a_batch_has_the_networks_shapes_and_ranges() -> None:
    """Views in 0..255, targets and validity of half the side in {0, 1}, padding of the mean colour."""
    mean = torch.tensor([10.0, 20.0, 30.0])
    batch = Views([PictureSet("a", 1, [picture(30, 90)])], 64, 12, 0, mean).next()
    assert (tuple(batch.image.shape), tuple(batch.truth.shape)) == ((12, 3, 64, 64), (12, 1, 32, 32))
    assert batch.valid.shape == batch.truth.shape
    assert set(batch.truth.unique().tolist()) == {0.0, 1.0}
    assert set(batch.valid.unique().tolist()) == {0.0, 1.0}
    assert not bool((batch.truth * (1 - batch.valid)).any())
    beside = F.interpolate(batch.valid, (64, 64)) == 0
    deep_in = (
        -F.max_pool2d(-beside.float(), 5, 1, 2) > 0
    )  # away from the rim, where half of a cell may be picture
    assert bool(deep_in.any())
    for channel, value in enumerate(mean.tolist()):
        assert batch.image[:, channel][deep_in[:, 0]].unique().tolist() == [value]


def test_sets_are_drawn_by_their_shares() -> None:
    """A set with three times the share gives about three quarters of the views."""
    dark, bright = (
        Picture(torch.full((3, 30, 30), value, dtype=torch.uint8), one.ids, one.objects, one.areas, one.boxes)
        for value, one in ((0, picture(30, 30)), (255, picture(30, 30)))
    )
    views = Views(
        [PictureSet("dark", 1, [dark]), PictureSet("bright", 3, [bright])], 16, 1, 0, torch.zeros(3)
    )
    drawn = [views.choose().picture == 1 for _ in range(300)]
    assert 0.68 < np.mean(drawn) < 0.82


def test_a_picture_lists_its_objects(tmp_path: Path) -> None:
    """Ids, areas and boxes with exclusive ends; objects below the least area are left out."""
    write(tmp_path, "em", "a", 1)
    paths = tmp_path / "em/images/a/0.jpg", tmp_path / "em/masks/a/0.png"
    both, large = (read_picture(*paths, min_area=least) for least in (30, 31))
    assert both is not None
    assert large is not None
    assert (both.objects.tolist(), both.areas.tolist()) == ([1, 2], [300, 30])
    assert both.boxes.tolist() == [[5, 10, 20, 30], [30, 40, 35, 46]]
    assert large.objects.tolist() == [1]
    assert (tuple(both.pixels.shape), both.pixels.dtype) == ((3, 40, 50), torch.uint8)
    assert read_picture(*paths, min_area=301) is None


def test_shares_follow_the_root_of_the_number_and_the_factors(tmp_path: Path) -> None:
    """Within em, sets of 4 and 1 pictures share as 2 to 1, and a factor of 2 makes them even."""
    write(tmp_path, "em", "a", 4)
    write(tmp_path, "em", "b", 1)
    write(tmp_path, "med", "c", 2)
    domains = {"em": 0.6, "med": 0.4}
    plain = {one.name: one.share for one in read_sets(tmp_path, domains, {})}
    assert plain == pytest.approx({"a": 0.4, "b": 0.2, "c": 0.4})
    even = {one.name: one.share for one in read_sets(tmp_path, domains, {"b": 2.0})}
    assert even == pytest.approx({"a": 0.3, "b": 0.3, "c": 0.4})


def test_a_limit_takes_the_first_pictures(tmp_path: Path) -> None:
    """For trying things out."""
    write(tmp_path, "em", "a", 3)
    (one,) = read_sets(tmp_path, {"em": 1}, {}, limit=2)
    assert len(one.pictures) == 2


def test_a_set_without_large_objects_is_left_out(tmp_path: Path) -> None:
    """Its share goes to the others of its domain."""
    write(tmp_path, "em", "a", 1)
    write(tmp_path, "em", "empty", 1)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "em/masks/empty/0.png")
    (one,) = read_sets(tmp_path, {"em": 1}, {})
    assert (one.name, one.share) == ("a", 1)


def test_a_domain_without_pictures_is_refused(tmp_path: Path) -> None:
    """The error names the folder and what to change."""
    write(tmp_path, "em", "a", 1)
    with pytest.raises(ValueError, match=r"pictures with objects under .*med/images/SET/, found none; check"):
        read_sets(tmp_path, {"em": 0.5, "med": 0.5}, {})


def test_a_factor_for_an_unknown_set_is_refused(tmp_path: Path) -> None:
    """A typing error does not change the mixture silently."""
    write(tmp_path, "em", "a", 1)
    with pytest.raises(ValueError, match=r"expected `shares` of sets out of \['a'\], got \['aa'\]"):
        read_sets(tmp_path, {"em": 1}, {"aa": 2.0})


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    """The error names both files and both sizes."""
    write(tmp_path, "em", "a", 1)
    Image.fromarray(np.ones((40, 40), np.uint8)).save(tmp_path / "em/masks/a/0.png")
    with pytest.raises(ValueError, match=r"mask of \(40, 50\) for .*0\.jpg, got \(40, 40\) in .*0\.png"):
        read_sets(tmp_path, {"em": 1}, {})
