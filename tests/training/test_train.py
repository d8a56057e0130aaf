"""Training: the losses against recordings, the schedule, and two steps on a tiny tree of pictures."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from napari_lowlat_seg.models.checkpoints import load_model, save_model
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.tinyvit import UPSTREAM_WINDOWS, TinyViT
from napari_lowlat_seg.training.losses import (
    LossMix,
    boundary_loss,
    dice_loss,
    normalized_focal_loss,
    round_loss,
)
from napari_lowlat_seg.training.train import (
    Run,
    TrainConfig,
    learning_rate,
    read_config,
    train,
    train_from_config,
)

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "nfl.npz"
MODEL: dict[str, Any] = {"size": 256, "width": 32, "heads": 2, "skip8": 16, "skip4": 8, "blocks": 1}
FOCAL = {"a50_g2": (0.5, 2.0), "a25_g2": (0.25, 2.0), "a50_g1": (0.5, 1.0)}


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def tiny(tmp_path: Path) -> TrainConfig:
    """Two steps of two views on the processor, from a folder of three pictures with one object each."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data/em" / kind / "disks").mkdir(parents=True)
    rows, cols = np.ogrid[:80, :90]
    for number in range(3):
        mask = ((rows - 40) ** 2 + (cols - 30 - 10 * number) ** 2 <= 15**2).astype(np.uint8)
        gray = (60 + 120 * mask + rng.integers(0, 20, mask.shape)).astype(np.uint8)
        Image.fromarray(gray).save(tmp_path / f"data/em/images/disks/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"data/em/masks/disks/{number}.png")
    return TrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "run"),
        device="cpu",
        steps=2,
        warmup=1,
        batch=2,
        compile=False,
        rounds=(2,),
        domains={"em": 1.0},
        model=MODEL,
    )


def checkpoint(config: TrainConfig) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(Path(config.out) / "checkpoint.pt", weights_only=True)
    return state


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", FOCAL)
def test_the_focal_loss_and_its_gradient_are_the_originals(
    recorded: dict[str, np.ndarray], variant: str
) -> None:
    """Ignored pixels, all background, all object, and logits up to 60: the official numbers."""
    alpha, gamma = FOCAL[variant]
    logits = torch.from_numpy(recorded["logits"]).requires_grad_()
    loss = normalized_focal_loss(logits, torch.from_numpy(recorded["labels"]), alpha, gamma)
    loss.mean().backward()
    np.testing.assert_allclose(loss.detach(), recorded[f"loss_{variant}"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(logits.grad, recorded[f"grad_{variant}"], rtol=1e-4, atol=1e-8)


def test_the_defaults_of_the_focal_loss_are_the_originals(recorded: dict[str, np.ndarray]) -> None:
    """Alpha 0.5, gamma 2."""
    loss = normalized_focal_loss(torch.from_numpy(recorded["logits"]), torch.from_numpy(recorded["labels"]))
    np.testing.assert_allclose(loss, recorded["loss_a50_g2"], rtol=1e-5, atol=1e-7)


def test_ignored_and_perfect_samples_have_no_loss(recorded: dict[str, np.ndarray]) -> None:
    """All pixels ignored, and a certain, right answer: loss and gradient are 0."""
    logits = torch.full((2, 1, 8, 8), 60.0, requires_grad=True)
    labels = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    loss = normalized_focal_loss(logits, labels)
    loss.sum().backward()
    expected = [*recorded["loss_all_ignored"].tolist(), *recorded["loss_perfect"].tolist()]
    assert loss.tolist() == pytest.approx(expected, abs=1e-7)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-7


def test_dice_is_the_share_of_overlap() -> None:
    """Hard masks of 32 and 16 pixels that share 16: 1 - (2 x 16 + 1) / (32 + 16 + 1)."""
    truth = torch.zeros(3, 1, 8, 8)
    truth[0, 0, :2] = 1
    logits = torch.full_like(truth, -100.0)
    logits[0, 0, :4] = 100
    logits[1] = -100  # right about an empty truth
    logits[2] = 100  # wrong about an empty truth everywhere, but on padding only
    valid = torch.ones_like(truth)
    valid[2] = 0
    assert dice_loss(logits, truth, valid).tolist() == pytest.approx([1 - 33 / 49, 0, 0])


def test_the_boundary_counts_what_lies_within_two_pixels_of_the_other() -> None:
    """The same outline or one 2 pixels aside: 0; one 4 pixels aside: none of 16 near, 1 / 17."""
    truth = torch.zeros(3, 1, 16, 32)
    truth[..., 8:] = 1
    logits = torch.full_like(truth, -100.0)
    for sample, edge in enumerate((8, 10, 12)):
        logits[sample, :, :, edge:] = 100
    loss = boundary_loss(logits, truth, torch.ones_like(truth))
    assert loss.tolist() == pytest.approx([0, 0, 1 - 1 / 17])


def test_the_loss_of_a_round_sees_no_padding() -> None:
    """What the network says there changes neither loss nor IoU."""
    torch.manual_seed(0)
    valid = torch.ones(2, 1, 16, 16)
    valid[..., 10:] = 0
    truth = (torch.rand(2, 1, 16, 16) > 0.5).float() * valid
    logits, quality = torch.randn(2, 1, 16, 16), torch.tensor([0.3, 0.9])
    loss, iou = round_loss(logits, quality, truth, valid, LossMix(boundary=1))
    other = torch.where(valid > 0, logits, 50 * torch.randn_like(logits))
    assert torch.equal(round_loss(other, quality, truth, valid, LossMix(boundary=1))[1], iou)
    torch.testing.assert_close(round_loss(other, quality, truth, valid, LossMix(boundary=1))[0], loss)


def test_the_loss_of_a_round_is_the_sum_of_its_terms() -> None:
    """Focal, 2 Dice, 3 boundary, the squared error of the predicted IoU; true is the mask above 0.49."""
    truth = torch.zeros(1, 1, 4, 4)
    truth[..., :2] = 1  # 8 pixels
    logits = torch.full_like(truth, -4.0)
    logits[..., 1:] = 4.0  # 12 pixels, 4 of them right: IoU 4 / 16
    everywhere = torch.ones_like(truth)
    loss, iou = round_loss(logits, torch.tensor([0.75]), truth, everywhere, LossMix(2, 3))
    terms = normalized_focal_loss(logits, truth) + 2 * dice_loss(logits, truth, everywhere)
    terms = terms + 3 * boundary_loss(logits, truth, everywhere)
    assert iou.tolist() == [0.25]
    torch.testing.assert_close(loss, terms + 0.5**2)


def test_the_rate_warms_up_in_a_line_and_falls_in_a_cosine() -> None:
    """1 at the end of the warm-up, halfway between 1 and 1 % in the middle, 1 % at the end and ever after."""
    config = TrainConfig(steps=1100, warmup=100)
    assert [learning_rate(step, config) for step in (0, 49, 99, 100)] == [0.01, 0.5, 1.0, 1.0]
    assert [learning_rate(step, config) for step in (600, 1100, 5000)] == pytest.approx([0.505, 0.01, 0.01])
    falling = [learning_rate(step, config) for step in range(100, 1100)]
    assert falling == sorted(falling, reverse=True)


def test_warm_up_may_be_zero() -> None:
    """The first step is at the full rate."""
    assert learning_rate(0, TrainConfig(warmup=0)) == 1.0


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    """Everything else is the default; lists become tuples."""
    path = tmp_path / "a.toml"
    path.write_text("steps = 7\nrounds = [1, 2]\n[model]\nwindows = [8, 8, 8]\n[prompts]\nclick = 0.5\n")
    read = read_config(path)
    assert read == replace(
        TrainConfig(), steps=7, rounds=(1, 2), model={"windows": [8, 8, 8]}, prompts={"click": 0.5}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", r"expected a TOML file of training settings, got .*a\.toml: .*; see docs/training\.md"),
        (
            "step = 7",
            r"expected settings out of \[.*'steps'.*\], got \['step'\] in .*a\.toml; remove or rename",
        ),
        ("[model]\nsice = 5", r"expected settings out of \['blocks'.*'size'.*\], got \['sice'\]"),
        (
            "[model]\nquality_slope = 2.0",
            r"predicted IoU is not corrected yet, got \['quality_slope'\] .* `lowlat-seg models calibrate`",
        ),
        ("[looks]\ngrey = 1", r"expected settings out of \['agent'.*'tint'\], got \['grey'\]"),
        ("[loss]\nbce = 1", r"expected settings out of \['boundary', 'dice'\], got \['bce'\]"),
        ("[prompts]\nclicks = 5", r"expected settings out of \['as_prior'.*'click'.*\], got \['clicks'\]"),
    ],
)
def test_unknown_settings_are_refused_with_the_known_ones(tmp_path: Path, text: str, message: str) -> None:
    """Broken TOML, unknown names at the top and in every table, an early correction."""
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("default", 4850),
        ("default-2", 5576),
        ("default-3", 5432),
        ("default-4", 6573),
        ("default-6", 3886),
    ],
)
def test_a_recipe_is_one_that_runs(name: str, steps: int) -> None:
    """Its settings exist, its shares of domains sum to 1, and the default's model is the shipped one."""
    config = read_config(ROOT / "docs" / "recipes" / f"{name}.toml")
    assert math.isclose(sum(config.domains.values()), 1)
    assert CompactConfig(**config.model) == CompactConfig()
    assert config.steps == steps


@pytest.mark.slow
def test_two_steps_leave_a_checkpoint_weights_and_a_log(tiny: TrainConfig, tmp_path: Path) -> None:
    """The averaged weights load as a model of the config; the log has both steps in one line."""
    path = train(tiny)
    assert path == Path(tiny.out) / "average.safetensors"
    loaded = load_model(path)
    assert isinstance(loaded, Compact)
    assert loaded.config == CompactConfig(**MODEL)
    state = checkpoint(tiny)
    assert state["step"] == 2
    assert same({name: value.half().float() for name, value in state["average"].items()}, loaded.state_dict())
    (row,) = [json.loads(line) for line in (tmp_path / "run/log-0.jsonl").read_text().splitlines()]
    assert row["step"] == 2
    assert math.isfinite(row["loss"])
    assert 0 <= row["iou_first"] <= 1
    assert not (tmp_path / "run/checkpoint.part").exists()


@pytest.mark.slow
def test_a_config_file_trains(tiny: TrainConfig, tmp_path: Path) -> None:
    """The door of the command line; every parameter has moved from its start."""
    path = tmp_path / "a.toml"
    model = "\n".join(f"{name} = {value}" for name, value in MODEL.items())
    path.write_text(
        f'data = "{tiny.data}"\nout = "{tiny.out}"\ndevice = "cpu"\nsteps = 1\nwarmup = 1\nbatch = 1\n'
        f"compile = false\nrounds = [1]\n[domains]\nem = 1.0\n[model]\n{model}\n"
    )
    assert train_from_config(path) == Path(tiny.out) / "average.safetensors"
    start = Run(read_config(path), "cpu").network.state_dict()
    trained = checkpoint(tiny)["network"]
    assert [name for name in start if torch.equal(start[name], trained[name])] == []


@pytest.mark.slow
def test_a_resumed_run_continues_from_the_checkpoint(tiny: TrainConfig) -> None:
    """Nothing is left to do after the last step; with more steps it continues, in the same way every time.

    Weights, optimiser, average and step are the checkpoint's. Views and prompts are new ones that follow from
    seed and step, so a resumed run differs from an uninterrupted one, but not from another resumed one.
    """
    short = replace(tiny, steps=1)
    train(short)
    before = checkpoint(tiny)
    train(short, resume=True)
    idle = checkpoint(tiny)
    assert idle["step"] == 1
    assert same(idle["network"], before["network"])
    ends = []
    for _ in range(2):
        torch.save(before, Path(tiny.out) / "checkpoint.pt")
        train(tiny, resume=True)
        ends.append(checkpoint(tiny))
    assert [end["step"] for end in ends] == [2, 2]
    assert same(ends[0]["network"], ends[1]["network"])
    assert same(ends[0]["average"], ends[1]["average"])
    moments = [end["optimizer"]["state"][0]["exp_avg"] for end in ends]
    assert torch.equal(*moments)
    assert not same(ends[0]["network"], before["network"])


@pytest.mark.slow
def test_a_checkpoint_restores_everything(tiny: TrainConfig) -> None:
    """Network, optimiser, average and step, bit for bit."""
    train(replace(tiny, steps=1))
    run = Run(replace(tiny, seed=5), "cpu")
    run.load(Path(tiny.out) / "checkpoint.pt", "cpu")
    state = checkpoint(tiny)
    assert run.step == state["step"]
    assert same(dict(run.network.state_dict()), state["network"])
    assert same(run.average, state["average"])
    for index, moments in run.optimizer.state_dict()["state"].items():
        assert same(moments, state["optimizer"]["state"][index])


@pytest.mark.slow
def test_a_resumed_run_takes_its_rates_from_its_own_config(tiny: TrainConfig) -> None:
    """A rate lowered before resuming takes effect."""
    train(replace(tiny, steps=1))
    run = Run(replace(tiny, rate=1e-5, encoder_rate=1e-6, decay=0.01), "cpu")
    run.load(Path(tiny.out) / "checkpoint.pt", "cpu")
    groups = [(group["top"], group["weight_decay"]) for group in run.optimizer.param_groups]
    assert groups == [(1e-6, 0.01), (1e-6, 0.0), (1e-5, 0.01), (1e-5, 0.0)]


def test_only_weights_decay(tiny: TrainConfig) -> None:
    """Biases, norms and other vectors do not; every parameter is in one group."""
    run = Run(tiny, "cpu")
    decaying = [p for group in run.optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    others = [p for group in run.optimizer.param_groups if not group["weight_decay"] for p in group["params"]]
    assert all(p.ndim > 1 for p in decaying)
    assert all(p.ndim <= 1 for p in others)
    assert len(decaying) + len(others) == len(list(run.network.parameters())) == len(run.parameters)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(tiny: TrainConfig) -> None:
    """With an absurd rate the second step is lost; the error says where and what to do."""
    with pytest.raises(
        ValueError, match=r"expected a finite loss, got .* at step 2; lower `rate` and resume"
    ):
        train(replace(tiny, rate=1e30, encoder_rate=1e30))
    assert not (Path(tiny.out) / "checkpoint.pt").exists()


def test_a_run_starts_from_encoder_weights_of_any_windows(tiny: TrainConfig, tmp_path: Path) -> None:
    """A file in half precision with MobileSAM's names and windows; the rest is random by the seed."""
    from safetensors.torch import save_file

    torch.manual_seed(4)
    upstream = {name: value.half() for name, value in TinyViT(UPSTREAM_WINDOWS).state_dict().items()}
    save_file(upstream, tmp_path / "encoder.safetensors")
    network = Run(replace(tiny, start=str(tmp_path / "encoder.safetensors")), "cpu").network
    name = "layers.0.blocks.0.conv1.weight"
    assert torch.equal(network.encoder.state_dict()[name], upstream[name].float())
    assert torch.equal(network.deep.weight, Run(tiny, "cpu").network.deep.weight)


def test_a_run_starts_from_a_whole_model(tiny: TrainConfig, tmp_path: Path) -> None:
    """What another run has left: all of its weights."""
    torch.manual_seed(4)
    trained = Compact(CompactConfig(**MODEL))
    save_model(trained, tmp_path / "whole.safetensors")
    network = Run(replace(tiny, start=str(tmp_path / "whole.safetensors")), "cpu").network
    assert same(dict(network.state_dict()), dict(trained.state_dict()))


@pytest.mark.slow
def test_a_run_starts_from_a_smaller_model_and_predicts_as_it_does(tiny: TrainConfig, tmp_path: Path) -> None:
    """A further block is new; what it adds is nothing until it learns."""
    torch.manual_seed(4)
    trained = Compact(CompactConfig(**MODEL)).eval()
    save_model(trained, tmp_path / "whole.safetensors")
    larger = {**MODEL, "blocks": 2}
    config = replace(tiny, model=larger, start=str(tmp_path / "whole.safetensors"))
    network = Run(config, "cpu").network.eval()
    image, maps = torch.rand(1, 3, 256, 256) * 255, (torch.rand(1, 3, 256, 256) > 0.99).float()
    with torch.inference_mode():
        torch.testing.assert_close(network(image, maps), trained(image, maps), rtol=0, atol=1e-5)
    assert len(network.blocks) == 2


def test_a_run_starts_from_a_model_of_another_input_side(tiny: TrainConfig, tmp_path: Path) -> None:
    """No weight knows the side of the input."""
    torch.manual_seed(4)
    trained = Compact(CompactConfig(**MODEL))
    save_model(trained, tmp_path / "whole.safetensors")
    config = replace(tiny, model={**MODEL, "size": 512}, start=str(tmp_path / "whole.safetensors"))
    assert same(dict(Run(config, "cpu").network.state_dict()), dict(trained.state_dict()))


def test_weights_of_another_width_are_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    """What is no further block must be there."""
    trained = Compact(CompactConfig(**MODEL))
    state = {name: value for name, value in trained.state_dict().items() if name != "norm.weight"}
    from safetensors.torch import save_file

    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"the weights of the config's model, got .* \['norm.weight'\]"):
        Run(replace(tiny, start=str(tmp_path / "part.safetensors")), "cpu")


@pytest.mark.slow
def test_another_run_is_not_written_over(tiny: TrainConfig) -> None:
    """Unless it is resumed or the caller insists."""
    out = Path(tiny.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "checkpoint.pt").write_bytes(b"hours of work")
    with pytest.raises(
        ValueError, match=r"holds checkpoint\.pt of another run; continue it with --resume, .*--force"
    ):
        train(tiny)
    assert (out / "checkpoint.pt").read_bytes() == b"hours of work"
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged or not a torch file"):
        train(tiny, resume=True)
    train(replace(tiny, steps=1), force=True)
    assert checkpoint(tiny)["step"] == 1
