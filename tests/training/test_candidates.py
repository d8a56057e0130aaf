"""Training of the candidates' head: nested targets, their weights, and that nothing else learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lowlat_seg.models.checkpoints import load_model, save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.training.candidates import (
    COVERED,
    OTHERS,
    NestedViews,
    candidate_loss,
    mask_ious,
    start_candidates,
    target_weights,
)
from napari_lowlat_seg.training.data.pictures import read_sets
from napari_lowlat_seg.training.train import TrainConfig, train

TINY = CompactConfig(size=256, width=32, heads=2, blocks=1, skip8=16, skip4=8)


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Two steps of four views: object 1 is two squares, object 2 touches the larger of them."""
    torch.manual_seed(0)
    save_model(Compact(TINY), tmp_path / "start.safetensors")
    for kind in ("images", "masks"):
        (tmp_path / "data/em" / kind / "squares").mkdir(parents=True)
    ids = np.zeros((120, 120), np.uint8)
    ids[20:60, 20:60], ids[80:100, 80:100], ids[60:80, 20:60] = 1, 1, 2
    Image.fromarray(ids).save(tmp_path / "data/em/masks/squares/0.png")
    Image.fromarray(80 * ids).save(tmp_path / "data/em/images/squares/0.png")
    return TrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        start=str(tmp_path / "start.safetensors"),
        device="cpu",
        steps=2,
        warmup=1,
        batch=4,
        synthetic=0.25,
        domains={"em": 1.0},
        model={"candidates": 2},
    )


@pytest.mark.slow
def test_only_the_head_learns(config) -> None:
    """The network's own mask is the same to the last bit, and the file grows by the head alone."""
    path = train(config)
    start, trained = load_model(config.start), load_model(path)
    before, after = start.half().state_dict(), trained.half().state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"candidate_head"}
    fresh = start_candidates(config.start, 2, config.seed).half().state_dict()
    assert not torch.equal(fresh["candidate_head.draw.weight"], after["candidate_head.draw.weight"])


@pytest.mark.slow
def test_a_trained_head_goes_on(config) -> None:
    """A second run starts from the first one's head; another number of masks is refused."""
    path = train(config)
    again = start_candidates(str(path), 2, seed=5).state_dict()
    trained = load_model(path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in trained.items())
    with pytest.raises(ValueError, match="expected a compact model with no candidates or 3 to start from"):
        start_candidates(str(path), 3, seed=5)


@pytest.mark.slow
def test_a_view_has_the_clicked_part_the_object_and_the_whole(config) -> None:
    """Part is within the object, the object within the whole; each is as large as it was drawn."""
    network = start_candidates(config.start, 2, 0)
    sets = read_sets(Path(config.data), config.domains, {}, None)
    views = NestedViews(sets, config, network, "cpu")
    found = set()
    for _ in range(6):
        image, targets, valid = views.nested()
        assert image.shape == (4, 3, 256, 256)
        assert targets.shape == (4, 3, 128, 128)
        assert valid.shape == (4, 1, 128, 128)
        own, part, whole = (targets[:3].sum((2, 3))[:, k] for k in range(3))  # the fourth is synthetic
        assert (part <= own + 1).all()
        assert (own <= whole + part + 400).all()
        for one in targets[:3]:
            ratio = float(one[1].sum() / one[0].sum().clamp(min=1))
            found.add(round(ratio, 1))
    assert {0.8, 1.0} & found


def test_targets_count_where_they_are_clicked_and_differ() -> None:
    """A part that was not clicked, one like the object, and a whole that fills the view have no weight."""
    targets = torch.zeros(1, 3, 32, 32)
    targets[:, 0, 4:20, 4:20] = 1
    targets[:, 1, 4:12, 4:20] = 1
    targets[:, 2, 4:28, 4:20] = 1
    clicks = torch.zeros(1, 1, 32, 32)
    clicks[..., 6, 6] = 1
    valid, ious = torch.ones(1, 1, 32, 32), torch.tensor([[1.0, 0.5, 0.0]])

    def weights(targets: torch.Tensor, clicks: torch.Tensor = clicks) -> list[float]:
        return [round(value, 4) for value in target_weights(targets, valid, clicks, ious)[0].tolist()]

    assert weights(targets) == [
        pytest.approx(COVERED),
        pytest.approx(OTHERS * (COVERED + 0.5)),
        pytest.approx(OTHERS * (COVERED + 1)),
    ]
    moved = clicks.roll(10, 2)
    assert weights(targets, moved)[1] == 0
    alike = targets.clone()
    alike[:, 1] = alike[:, 0]
    alike[:, 2] = 1
    assert weights(alike)[1:] == [0, 0]


def test_ious_of_masks_and_targets() -> None:
    """Every mask with every truth, as counted one by one."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 8, 8, generator=generator) > 0.5
    targets = (torch.rand(2, 2, 8, 8, generator=generator) > 0.5).float()
    found = mask_ious(masks, targets)
    for b, k, t in np.ndindex(2, 3, 2):
        truth = targets[b, t] > 0
        expected = (masks[b, k] & truth).sum() / (masks[b, k] | truth).sum()
        assert found[b, k, t] == pytest.approx(float(expected))


def test_two_targets_are_best_drawn_by_two_masks() -> None:
    """One mask each costs less than the same target twice, in either order."""
    targets = torch.zeros(1, 2, 16, 16)
    targets[:, 0, :8], targets[:, 1, :, :8] = 1, 1
    valid, weights = torch.ones(1, 1, 16, 16), torch.ones(1, 2)
    drawn = 20 * targets - 10

    def loss(logits: torch.Tensor) -> float:
        return float(candidate_loss(logits, torch.zeros(1, 2), targets, valid, weights))

    twice = drawn[:, [0, 0]]
    quality_error = 0.3  # that of the predicted IoUs, 0 here, is larger where both masks are right
    assert loss(drawn) < loss(twice) - 1 + quality_error
    assert loss(drawn) == pytest.approx(loss(drawn.flip(1)))
