"""Synthetic anatomies: views in the form of those of pictures, targets that are regions, seeds."""

import pytest
import torch

from napari_lowlat_seg.training.data.synthetic import (
    FIRST_CELL,
    FIRST_ORGAN,
    LABELS,
    LARGEST_SHARE,
    LEAST_SHARE,
    SyntheticAnatomies,
)


@pytest.fixture(scope="module")
def anatomies() -> SyntheticAnatomies:
    return SyntheticAnatomies(96, seed=3)


@pytest.fixture(scope="module")
def labels(anatomies: SyntheticAnatomies) -> torch.Tensor:
    return anatomies.labels(24)


def test_views_have_the_form_of_those_cut_from_pictures(anatomies: SyntheticAnatomies) -> None:
    """RGB in 0..255, coverage and validity in {0, 1}; the whole view is valid."""
    views = anatomies.draw(6)
    assert tuple(views.shape) == (6, 5, 96, 96)
    assert views.dtype == torch.float32
    assert bool(torch.isfinite(views).all())
    assert 0 <= float(views[:, :3].min()) < float(views[:, :3].max()) <= 255
    assert set(views[:, 3].unique().tolist()) == {0.0, 1.0}
    assert bool((views[:, 4] == 1).all())


def test_one_seed_gives_one_sequence() -> None:
    """Two sources alike give the same views, another seed gives others."""
    one, same, other = (SyntheticAnatomies(64, seed) for seed in (0, 0, 1))
    for _ in range(2):
        views = one.draw(2)
        assert torch.equal(views, same.draw(2))
        assert not torch.equal(views, other.draw(2))


def test_label_maps_hold_cells_organs_and_often_a_background(labels: torch.Tensor) -> None:
    """All labels are known ones; most bodies leave some background, and most anatomies have organs."""
    assert int(labels.min()) == 0
    assert int(labels.max()) < LABELS
    outside = (labels == 0).flatten(1).any(1).float().mean()
    organs = (labels >= FIRST_ORGAN).flatten(1).any(1).float().mean()
    cells = ((labels >= FIRST_CELL) & (labels < FIRST_ORGAN)).flatten(1).any(1).float().mean()
    assert 0.4 < float(outside) < 1
    assert float(organs) > 0.8
    assert float(cells) > 0.9


def test_a_target_is_a_region_of_the_label_map(anatomies: SyntheticAnatomies, labels: torch.Tensor) -> None:
    """One label, or an organ's wall and inside together; never the background, never nearly everything."""
    target = anatomies.target(labels)
    joined = 0
    for region, ids in zip(target, labels, strict=True):
        found = ids[region].unique().tolist()
        assert found
        assert 0 not in found
        if len(found) == 2:
            assert found[0] >= FIRST_ORGAN
            assert (found[0] - FIRST_ORGAN) % 2 == 0
            assert found[1] == found[0] + 1
            joined += 1
        else:
            assert len(found) == 1
        # the whole of each label, none of others
        assert torch.equal(region, torch.isin(ids, torch.tensor(found)))
        assert LEAST_SHARE < float(region.float().mean()) < 2 * LARGEST_SHARE
    assert joined < 20


def test_without_a_region_of_suitable_size_there_is_no_target(anatomies: SyntheticAnatomies) -> None:
    """One cell that fills the view, and background alone: no pixel is a target."""
    alike = torch.zeros(2, 96, 96, dtype=torch.int64)
    alike[1] = FIRST_CELL
    assert not bool(anatomies.target(alike).any())


def test_most_organs_can_be_seen(anatomies: SyntheticAnatomies) -> None:
    """Without noise a target's mean usually differs from that of its surroundings."""
    differs = []
    labels = anatomies.labels(24)
    image = anatomies.image(labels).mean(1)
    for region, picture in zip(anatomies.target(labels), image, strict=True):
        grown = torch.nn.functional.max_pool2d(region[None, None].float(), 9, 1, 4)[0, 0] > 0
        ring = grown & ~region
        differs.append(float((picture[region].mean() - picture[ring].mean()).abs()))
    assert sum(value > 4 for value in differs) > 14
