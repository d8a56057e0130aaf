"""Edge crops: where children lie, what they see, and what they inherit from their parents."""

import numpy as np
import pytest
import torch

from napari_lowlat_seg.training.data.pictures import Crop, Picture, PictureSet, PictureStore, part_geometry
from napari_lowlat_seg.training.data.views import (
    SIDES,
    EdgeCrops,
    Views,
    choose_crops,
    continue_from_parents,
    crop_masks,
)
from napari_lowlat_seg.training.prompts import BatchAnnotator, PromptMix, stamp


def disk(size: int, row: float, col: float, radius: float) -> torch.Tensor:
    """A bool map (size, size) of a filled circle."""
    at = torch.arange(size)
    return (at[:, None] - row) ** 2 + (at[None, :] - col) ** 2 <= radius**2


def picture(size: int = 96) -> Picture:
    """A smooth ramp with one round object."""
    ramp = torch.arange(size).float()
    pixels = torch.stack(
        [ramp[:, None].expand(size, size), ramp[None].expand(size, size), ramp[None] + ramp[:, None]]
    )
    ids = disk(size, 40, 50, 22).int()
    box = np.array([[18.0, 28, 63, 73]])
    return Picture(pixels.clamp(0, 255).byte(), ids, np.array([1]), np.array([float(ids.sum())]), box)


def test_a_crop_lies_in_its_parent_and_meets_the_outline() -> None:
    """Sides between the limits; inside and outside of the object are both in view."""
    cover = torch.stack([disk(64, 20 + number, 30, 12).float() for number in range(12)])
    crops = choose_crops(cover, torch.ones_like(cover), torch.Generator().manual_seed(0))
    top, left, side = crops.unbind(1)
    assert bool(((side >= SIDES[0]) & (side <= SIDES[1])).all())
    assert bool(((top >= 0) & (left >= 0) & (top + side <= 1.0001) & (left + side <= 1.0001)).all())
    for region, (y, x, s) in zip(cover, (crops * 64).tolist(), strict=True):
        part = region[int(y) : int(y + s) + 1, int(x) : int(x + s) + 1]
        assert 0 < float(part.mean()) < 1


def test_a_view_without_an_outline_gets_some_crop() -> None:
    """A lost object is no error: the crop lies in the view."""
    crops = choose_crops(torch.zeros(3, 32, 32), torch.ones(3, 32, 32), torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(crops).all())
    assert bool((crops[:, :2] >= 0).all() & (crops[:, :2] + crops[:, 2:] <= 1.0001).all())


@pytest.mark.parametrize("matrix", [[[1.0, 0], [0, 1]], [[0.0, 1], [1, 0]], [[0.8, -0.6], [0.6, 0.8]]])
def test_a_child_shows_the_same_place_of_the_picture(matrix: list[list[float]]) -> None:
    """A quarter of the parent, cut again, equals the enlarged quarter of a smooth picture, warped or not."""
    store = PictureStore([picture()], "cpu")
    geometry, source = store.locate([Crop(0, (1,), (10, 20, 64), np.array(matrix))], 64)
    parent = store.sample_at(geometry, source, 64, False)
    crops = torch.tensor([[0.25, 0.5, 0.5]])
    child = store.sample_at(part_geometry(geometry, crops, 64), source, 64, False)
    expected = crop_masks(parent[:, :3], crops)
    inside = (crop_masks(parent[:, 4:], crops) == 1) & (child[:, 4:] == 1)
    inside[..., :2, :] = inside[..., -2:, :] = inside[..., :2] = inside[..., -2:] = False
    gap = (child[:, :3] - expected).abs()[inside.expand(1, 3, 64, 64)]
    assert gap.numel() > 3000
    assert float(gap.max()) < 0.2


def test_a_child_is_sampled_as_finely_as_its_side_needs() -> None:
    """Four samples a pixel while it shrinks the picture, one where it enlarges it."""
    geometry, _ = PictureStore([picture()], "cpu").locate([Crop(0, (1,), (0, 0, 96), np.eye(2))], 32)
    wide = part_geometry(geometry, torch.tensor([[0.0, 0, 0.6]]), 32)
    near = part_geometry(geometry, torch.tensor([[0.0, 0, 0.4]]), 32)
    assert float(wide[0, -1]) == pytest.approx(0.6 * 96 / 32 / 4)
    assert float(near[0, -1]) == 0


@pytest.fixture
def annotators() -> BatchAnnotator:
    """Two parents, one plain view and two children with one object each; there are no wrong clicks."""
    truth = torch.stack(
        [disk(64, 30, 30, 12), disk(64, 20, 44, 9), disk(64, 30, 30, 8)] + [disk(64, 60, 4, 40)] * 2
    )
    everything = torch.ones(5, 1, 64, 64)
    made = BatchAnnotator(
        truth[:, None].float(), everything, 3, PromptMix(), torch.Generator().manual_seed(0)
    )
    made.begin()
    return made


@pytest.mark.slow
def test_a_child_gets_its_parents_mask_and_prompts(annotators: BatchAnnotator) -> None:
    """Clicks at their places in the crop, with whole disks; the child's own ones are gone."""
    maps = torch.zeros_like(annotators.maps)
    at = torch.tensor([[[40, 60]], [[100, 100]], [[5, 5]], [[64, 64]], [[64, 64]]])
    sign = torch.tensor([1, 2, 1, 1, 1])
    annotators.stamped = [(at, torch.ones(5, 1, dtype=torch.bool), sign)]
    stamp(maps, at, torch.ones(5, 1, dtype=torch.bool), sign, 3)
    annotators.maps = maps
    edge_crops = EdgeCrops(3, torch.tensor([[0.25, 0.25, 0.5], [0.0, 0.0, 0.5]]))
    probability = torch.rand(5, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    before = probability.clone()
    uncorrected = 0
    for seed in range(20):  # channel 0 is at times coarse or missing
        annotators.maps, annotators.stamped = maps.clone(), annotators.stamped[:1]
        annotators.generator.manual_seed(seed)
        continue_from_parents(annotators, probability, edge_crops)
        assert torch.equal(probability, before)
        expected = torch.zeros(2, 3, 128, 128)
        moved = torch.tensor([[[17, 57]], [[0, 0]]])  # (40.5 / 128 - .25) / .5 * 128; the other lies outside
        stamp(expected, moved, torch.tensor([[True], [False]]), torch.tensor([1, 2]), 3)
        inherited = annotators.maps[3:, 1:]
        assert bool((inherited >= expected[:, 1:]).all())
        uncorrected += sum(
            torch.equal(one, want) for one, want in zip(inherited, expected[:, 1:], strict=True)
        )
    assert 8 <= uncorrected <= 32


def test_parents_and_other_views_are_corrected_as_ever(annotators: BatchAnnotator) -> None:
    """What the annotator would have done without edge crops."""
    probability = torch.full((5, 1, 64, 64), 0.2)
    twin = BatchAnnotator(
        annotators.truth[:, None].float(),
        annotators.valid[:, None].float(),
        3,
        annotators.mix,
        torch.Generator(),
    )
    twin.generator.set_state(annotators.generator.get_state())
    twin.maps, twin.prior = annotators.maps.clone(), annotators.prior.clone()
    torch.manual_seed(0)
    continue_from_parents(
        annotators, probability, EdgeCrops(3, torch.tensor([[0.25, 0.25, 0.5], [0.0, 0.0, 0.5]]))
    )
    torch.manual_seed(0)
    twin.correct(probability)
    assert torch.equal(annotators.maps[:3], twin.maps[:3])


def test_a_batch_holds_pictures_edge_crops_and_synthetic_views() -> None:
    """Eight views: five of pictures, two children of the first two, one synthetic."""
    views = Views([PictureSet("a", 1, [picture()])], 64, 8, 0, torch.zeros(3), edges=0.25, synthetic=0.125)
    batch = views.next()
    assert tuple(batch.image.shape) == (8, 3, 64, 64)
    assert tuple(batch.truth.shape) == (8, 1, 32, 32)
    assert (batch.edge_crops.first, tuple(batch.edge_crops.squares.shape)) == (5, (2, 3))
    seen = crop_masks(batch.truth[:2], batch.edge_crops.squares)
    both = batch.valid[5:7] > 0.5
    assert float(((seen > 0.5) == (batch.truth[5:7] > 0.5))[both].float().mean()) > 0.9


@pytest.mark.parametrize(
    ("edges", "synthetic"), [(0.6, 0.0), (0.3, 0.5), (0.0, 1.0), (-0.2, 0.0), (0.0, -0.2)]
)
def test_shares_that_leave_too_few_pictures_are_refused(edges: float, synthetic: float) -> None:
    """A child needs a parent, and a batch some picture."""
    with pytest.raises(ValueError, match=r"got edges .* of 10 views; lower them"):
        Views([PictureSet("a", 1, [picture()])], 64, 10, 0, torch.zeros(3), edges=edges, synthetic=synthetic)
