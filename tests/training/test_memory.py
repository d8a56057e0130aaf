"""A memory of other planes learns: its volumes, pictures and sequences, its steps, its checkpoints."""

from __future__ import annotations

import copy
import functools
import json
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lowlat_seg.models.compact import Compact
from napari_lowlat_seg.models.plane_memory import FROM_NETWORK, PlaneMemory
from napari_lowlat_seg.training.data.groups import SyntheticVolumes
from napari_lowlat_seg.training.data.prefetch import Prefetcher
from napari_lowlat_seg.training.data.sequences import PLANES, SequenceSampler, plan_sequence
from napari_lowlat_seg.training.data.volumes import (
    LabelledPicture,
    LabelledVolume,
    extents,
    read_labelled_picture,
    read_labelled_volume,
    synthetic_volume,
)
from napari_lowlat_seg.training.memory import Trainer, _network, train_memory
from small_memory import SMALL, small_network

made = functools.cache(synthetic_volume)
"""Volumes that nobody writes to: making one takes a second."""


@pytest.fixture(scope="module")
def network() -> Compact:
    return small_network()


@pytest.fixture
def quick_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic volumes of one ball: making real ones takes seconds each."""
    z, y, x = np.ogrid[-12:12, -24:24, -24:24]
    labels = (z**2 + y**2 + x**2 < 90).astype(np.uint8)
    ball = (60 + 100 * labels, labels, extents(labels, (0, 1, 2)))
    monkeypatch.setattr("napari_lowlat_seg.training.data.groups.measured_synthetic_volume", lambda _: ball)


@pytest.mark.slow
def test_synthetic_volumes_have_objects_and_are_the_same_for_a_seed():
    for seed in (4, 6):
        image, labels = made(seed)
        assert image.dtype == labels.dtype == np.uint8
        assert image.shape == labels.shape
        assert labels.max() >= 1
        assert image.std() > 0
        assert np.array_equal(synthetic_volume(seed)[0], image)


def test_a_sequence_begins_at_an_anchor_with_the_object_and_keeps_its_order():
    rng = np.random.default_rng(0)
    areas = np.zeros(40, int)
    areas[10:30] = 200
    plans = [plan for plan in (plan_sequence(rng, areas, 1) for _ in range(300)) if plan is not None]
    ended = 0
    for plan in plans:
        assert areas[plan.planes[0]]
        assert plan.steps[0] < 0
        assert list(plan.steps[2:]) == [0, 1, 2, 3, 4, 5]
        assert plan.other or plan.planes[1] == plan.planes[0]
        ended += not areas[plan.planes[-1]]
    assert 0.2 < ended / len(plans) < 0.9
    assert plan_sequence(rng, np.zeros(5, int), 1) is None


@functools.cache
def _groups() -> dict[str, tuple[float, list[object]]]:
    image, labels = made(4)
    volume = LabelledVolume.of(image[:40], labels[:40], (2.0, 1.0, 1.0), (0, 1), "cpu")
    flat = LabelledPicture.of(image[20].copy(), labels[20].astype(np.int32), "cpu")
    assert flat is not None
    return {"synthetic": (0.5, [volume]), "deformed": (0.5, [flat])}


@pytest.mark.slow
def test_sampler_gives_sequences_whose_truth_lies_inside_the_picture():
    sequences = SequenceSampler(_groups(), 256, "cpu", 1).batch(6)
    assert sequences.image.shape == sequences.truth.shape == (6, PLANES, 256, 256)
    assert sequences.image.min() >= 0
    assert sequences.image.max() <= 255
    assert sequences.truth[:, 0].flatten(1).any(1).all()  # an anchor shows the object
    assert not (sequences.truth & ~sequences.inside).any()
    assert (sequences.thickness > 0).all()
    assert set(sequences.groups) <= {"synthetic", "deformed"}


@pytest.mark.slow
def test_volumes_and_pictures_are_read_from_files(tmp_path):
    image, labels = made(4)
    np.savez(tmp_path / "a.npz", image=image, labels=labels, spacing=np.ones(3), axes=np.array([0]))
    assert read_labelled_volume(tmp_path / "a.npz", "cpu").axes == (0,)
    files = []
    for place, plane in enumerate(image[:3]):
        Image.fromarray(plane).save(tmp_path / f"{place}.png")
        files.append((tmp_path / f"{place}.png").read_bytes())
    encoded = np.frombuffer(b"".join(files), np.uint8)
    sizes = np.array([len(one) for one in files])
    facts = {"labels": labels[:3] + 1, "spacing": np.ones(3), "axes": np.array([0])}
    np.savez(tmp_path / "b.npz", encoded=encoded, sizes=sizes, **facts)
    assert np.array_equal(read_labelled_volume(tmp_path / "b.npz", "cpu").image.numpy(), image[:3])
    np.savez(tmp_path / "c.npz", image=image, labels=labels[:2], spacing=np.ones(3), axes=np.array([0]))
    with pytest.raises(ValueError, match="labels of its shape"):
        read_labelled_volume(tmp_path / "c.npz", "cpu")
    Image.fromarray(image[5]).save(tmp_path / "x_image.png")
    Image.fromarray(labels[5][:9]).save(tmp_path / "x_label.png")
    with pytest.raises(ValueError, match="of one shape"):
        read_labelled_picture(tmp_path / "x_image.png", "cpu")
    Image.fromarray(np.ones_like(labels[5])).save(tmp_path / "x_label.png")
    assert read_labelled_picture(tmp_path / "x_image.png", "cpu") is not None
    assert LabelledPicture.of(image[5], np.zeros_like(labels[5]), "cpu") is None


@pytest.mark.slow
def test_training_moves_every_part_and_leaves_the_network_alone(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = Trainer(network, "cpu", SMALL, 1e-2, 1e-2, half=False)
    start = {name: value.clone() for name, value in trainer.memory.state_dict().items()}
    sampler = SequenceSampler(_groups(), 256, "cpu", 2)
    for _ in range(3):  # what is zero at first lets gradients through from the second step on
        measured = trainer.train_step(sampler.batch(1), 0.0)
    assert torch.isfinite(measured["loss"])
    moved = trainer.memory.state_dict()
    still = [name for name, value in moved.items() if torch.equal(value, start[name])]
    assert still == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_training_goes_on_from_its_checkpoint(tmp_path, network, quick_volumes):
    data = tmp_path / "data"
    (data / "volumes").mkdir(parents=True)
    image, labels = made(4)
    facts = {"spacing": np.ones(3), "axes": np.array([0])}
    np.savez(data / "volumes" / "other_a.npz", image=image, labels=labels, **facts)
    given = {"batch": 1, "workers": 0, "config": SMALL, "network": network, "checkpoint_every": 0.0}
    train_memory(data, tmp_path / "run", minutes=0.01, **given)
    first = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    path = train_memory(data, tmp_path / "run", minutes=first["seconds"] / 60 + 0.01, **given)
    second = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert second["step"] > first["step"] >= 1
    assert second["seconds"] > first["seconds"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert any("resumed" in line for line in log)
    assert "done" in log[-1]
    train_memory(data, tmp_path / "next", minutes=0.01, start=path, **given)
    assert (tmp_path / "next" / "done").exists()


def test_a_memory_follows_its_network_to_new_weights(tmp_path, network):
    before = copy.deepcopy(network)
    untrained = PlaneMemory(before, SMALL)
    with torch.no_grad():
        untrained.match.near += 1  # what is not the network's stays
    path = untrained.save(tmp_path / "memory.safetensors")
    after = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.25
    trainer = Trainer(after, "cpu", SMALL, 1e-2, 1e-2, half=False)
    trainer.start_from(path, before)
    new = PlaneMemory(after, SMALL)
    for name, value in trainer.memory.state_dict().items():
        if name.split(".")[0] in FROM_NETWORK:
            assert torch.allclose(value, new.state_dict()[name], atol=1e-3), name
    assert trainer.memory.match.near.eq(1).all()


def test_a_memory_is_trained_beside_a_compact_network_only(monkeypatch):
    monkeypatch.setattr("napari_lowlat_seg.training.memory.load_model", lambda _: torch.nn.Identity())
    with pytest.raises(ValueError, match="compact network; other is none"):
        _network("other")


def test_a_synthetic_volume_that_fails_is_logged_and_left_out(quick_volumes):
    volumes = SyntheticVolumes([], "cpu", 0, 2, 5)
    assert len(volumes.into) == 3
    broken: Future[object] = Future()
    broken.set_exception(ValueError("no memory"))
    volumes.pending.append(broken)
    volumes.collect()
    assert volumes.pending == []
    assert "no memory" in volumes.problems[0]
    assert len(volumes.into) == 2  # and the oldest leaves


def test_an_error_while_a_batch_is_drawn_reaches_the_caller():
    prefetcher = Prefetcher(list, "cpu", synchronous=-1)
    prefetcher.stream, problem = object(), ValueError("no member")
    prefetcher.queue.put((problem, None))
    with pytest.raises(RuntimeError, match="drawing a batch failed") as raised:
        prefetcher.next()
    assert raised.value.__cause__ is problem
