"""Simulated prompts for a whole batch on the device: first prompts of every kind, then corrections.

The rules are those of `evaluation.annotator`, loosened the way people are loose: a click is not always
at the deepest point, a lasso is not the outline, a box is off by a few per cent. Everything works on maps of
half the network's side and without a host synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.masks import THRESHOLD

FAR = 1e6
LOOSEST = 0.03  # of the smoothed region: without it, the wobble alone would draw islands far from any object


@dataclass(frozen=True)
class PromptMix:
    """What the simulated people use, as shares in [0, 1].

    Attributes
    ----------
    click, scribble, box, polygon, mask
        Of the first prompts; they need not sum to 1.
    scribble_later, polygon_later
        Of the corrections; the others are clicks.
    deepest
        Of the clicks: those at the deepest pixel. Of the others three quarters hit a pixel at least half as
        deep, the rest any pixel.
    slip
        Of the corrections: clicks with the wrong sign, anywhere in what the answer had right. The answer to a
        slip is nobody's to judge (see `Annotator.slipped`); what counts is that the next prompt repairs it.
    as_prior
        Of the samples: their positive regions enter as the previous mask, those of the others at half
        strength in the positive channel. A network that saw both can be asked which works better.
    """

    click: float = 0.62
    scribble: float = 0.13
    box: float = 0.12
    polygon: float = 0.07
    mask: float = 0.06
    scribble_later: float = 0.15
    polygon_later: float = 0.04
    deepest: float = 0.5
    slip: float = 0.0
    as_prior: float = 0.5


def depth(region: Tensor) -> Tensor:
    """Squared Euclidean distance (B, H, W) of every pixel of a bool region to the nearest pixel outside it.

    The border counts as outside, as in the evaluation's clicker. Exact: along columns by running indices,
    then along rows the minimum of `d(r') ** 2 + (r - r') ** 2` over all r' (Felzenszwalb & Huttenlocher,
    "Distance Transforms of Sampled Functions", 2012).
    """
    rows, cols = region.shape[-2:]
    at = torch.arange(cols, device=region.device, dtype=torch.float32).expand(region.shape)
    before = torch.where(region, -1.0, at).cummax(-1).values
    after = torch.where(region, float(cols), at).flip(-1).cummin(-1).values.flip(-1)
    along = torch.minimum(at - before, after - at).square()
    step = torch.arange(rows, device=region.device, dtype=torch.float32)
    gap = (step[:, None] - step[None, :]).square()
    edge = torch.minimum(step + 1, rows - step).square()  # distance to the border row above or below
    return torch.minimum(_lower_envelope(along, gap), edge[:, None])


def _lower_envelope(along: Tensor, gap: Tensor) -> Tensor:
    """Minimum over r' of along[b, r', c] + gap[r, r'], (B, R, C)."""
    if along.is_cuda:
        return _fused_envelope(along, gap)
    return torch.stack([(one[None] + gap[:, :, None]).amin(1) for one in along])


@torch.compile(dynamic=False)
def _fused_envelope(along: Tensor, gap: Tensor) -> Tensor:
    """The same in one kernel: the (B, R, R, C) array of 64 samples of 256 x 256 would take 4 GiB."""
    return (along[:, None] + gap[None, :, :, None]).amin(2)


def pick(score: Tensor) -> Tensor:
    """Row and column (B, 2) of the largest value of maps (B, H, W); the first in reading order if several."""
    flat = score.flatten(1).argmax(1)
    return torch.stack([flat // score.shape[-1], flat % score.shape[-1]], 1)


def spot(deep: Tensor, deepest: float, generator: torch.Generator) -> Tensor:
    """One pixel (B, 2) per region, given its squared depth (B, H, W): a share of the people hit the deepest.

    Three quarters of the others hit a pixel at least half as deep, the rest any pixel. A sample without a
    region gets (0, 0).
    """
    batch, device = deep.shape[0], deep.device
    peak = deep.amax((1, 2), keepdim=True)
    kind = torch.rand(batch, 1, 1, device=device, generator=generator)
    near = deepest + 0.76 * (1 - deepest)
    floor = torch.where(kind < deepest, 1.0, torch.where(kind < near, 0.25, 0.0)) * peak
    noise = torch.rand(deep.shape, device=device, generator=generator)
    return pick(torch.where((deep >= floor) & (deep > 0), noise + 1, 0.0))


def stroke(
    deep: Tensor, start: Tensor, generator: torch.Generator, points: int = 96
) -> tuple[Tensor, Tensor]:
    """Pixels (B, P, 2) of a curved stroke through `start` (B, 2), and which lie in the region (B, P)."""
    batch, rows, cols = deep.shape
    device = deep.device
    y = torch.arange(rows, device=device)[None, :, None] - start[:, 0, None, None]
    x = torch.arange(cols, device=device)[None, None, :] - start[:, 1, None, None]
    peak = deep.amax((1, 2), keepdim=True)
    reach = peak.sqrt() * (2 + 6 * torch.rand(batch, 1, 1, device=device, generator=generator))
    near = (deep > 0.16 * peak) & (y.square() + x.square() <= reach.square())
    ends = []
    for _ in range(2):
        noise = torch.rand(deep.shape, device=device, generator=generator)
        ends.append(pick(torch.where(near, noise + 1, 0.0)))
    t = torch.linspace(0, 1, points, device=device)[None, :, None]
    first, middle, last = ends[0][:, None], start[:, None], ends[1][:, None]
    curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * (2 * middle - (first + last) / 2) + t**2 * last
    at = curve.round().long()
    inside = (at >= 0).all(-1) & (at[..., 0] < rows) & (at[..., 1] < cols)
    at = torch.stack([at[..., 0].clamp(0, rows - 1), at[..., 1].clamp(0, cols - 1)], -1)
    sample = torch.arange(batch, device=device)[:, None]
    return at, inside & (deep[sample, at[..., 0], at[..., 1]] > 0)


def stamp(maps: Tensor, at: Tensor, shown: Tensor, channel: Tensor, radius: int) -> None:
    """Write disks of 1 into `maps` (B, 3, S, S) in place: the same pixels as `prompts.dense_maps` has.

    They lie around network pixels `at` (B, P, 2) where `shown` (B, P), in the `channel` (B,) of each sample.
    """
    size = maps.shape[-1]
    reach = torch.arange(-radius, radius + 1, device=maps.device)
    dy, dx = torch.meshgrid(reach, reach, indexing="ij")
    disk = (dy.square() + dx.square() <= radius * radius).flatten()  # (K,)
    y = at[..., 0, None] + dy.flatten()
    x = at[..., 1, None] + dx.flatten()  # (B, P, K)
    inside = shown[..., None] & disk & (y >= 0) & (y < size) & (x >= 0) & (x < size)
    sample = torch.arange(len(maps), device=maps.device)[:, None, None].expand_as(y)
    flat = ((sample * 3 + channel[:, None, None]) * size + y.clamp(0, size - 1)) * size + x.clamp(0, size - 1)
    maps.view(-1).scatter_reduce_(0, flat.flatten(), inside.flatten().to(maps.dtype), "amax")


def loose_lasso(region: Tensor, generator: torch.Generator) -> Tensor:
    """A bool region (B, H, W) as a hasty hand would circle it: smooth, a little off, mostly larger."""
    batch, rows, cols = region.shape
    soft = F.adaptive_avg_pool2d(region[:, None].float(), 64)
    area = soft.mean((1, 2, 3), keepdim=True)
    for step in (1, 2, 4):  # wider for larger objects
        wider = F.avg_pool2d(soft, 2 * step + 1, 1, step)
        soft = torch.where(area.sqrt() * 64 > 4 * step, wider, soft)
    soft = F.interpolate(soft, (rows, cols), mode="bilinear")[:, 0]
    soft = soft / soft.amax((1, 2), keepdim=True).clamp(min=1e-6)
    noise = torch.randn(batch, 1, 9, 9, device=region.device, generator=generator)
    wobble = F.interpolate(noise, (rows, cols), mode="bicubic")[:, 0] * 0.07
    level = torch.empty(batch, 1, 1, device=region.device).uniform_(0.12, 0.5, generator=generator)
    return soft > (level + wobble).clamp(min=LOOSEST)


def boxes(region: Tensor, generator: torch.Generator) -> Tensor:
    """The filled bounding box (B, H, W) of a bool region, every side off by about 4 % of its length."""
    sides = []
    for axis in (2, 1):
        along = region.any(axis).float()  # (B, L)
        length = along.shape[1]
        at = torch.arange(length, device=region.device, dtype=torch.float32)
        low = torch.where(along > 0, at, FAR).amin(1)
        high = torch.where(along > 0, at, -FAR).amax(1)
        slack = (high - low + 1).clamp(0, length) * 0.04
        jitter = torch.randn(2, len(low), device=region.device, generator=generator) * slack
        low, high = low + jitter[0].round(), high + jitter[1].round()
        sides.append((at >= low[:, None]) & (at <= high[:, None]))
    return sides[0][:, :, None] & sides[1][:, None, :]


class Annotator:
    """One simulated person per sample of a batch.

    Parameters
    ----------
    truth, valid
        (B, 1, S/2, S/2), 1 in the object and where there is picture.
    radius
        Of a click's disk in network pixels.
    mix
        Which prompts they use.
    generator
        On the device of `truth`; with one seed, the same people.

    Attributes
    ----------
    maps
        (B, 3, S, S), what they have said so far, in the network's order: previous mask or region prior,
        positive, negative.
    slipped
        (B,) bool, whose newest prompt was a slip: told something wrong, no answer is right.
    """

    def __init__(
        self, truth: Tensor, valid: Tensor, radius: int, mix: PromptMix, generator: torch.Generator
    ) -> None:
        self.truth, self.valid = truth[:, 0] > 0.5, valid[:, 0] > 0.5
        self.radius, self.mix, self.generator = radius, mix, generator
        batch, rows, cols = self.truth.shape
        self.maps = torch.zeros(batch, 3, 2 * rows, 2 * cols, device=truth.device)
        self.prior = torch.rand(batch, device=truth.device, generator=generator) < mix.as_prior
        self.slipped = torch.zeros(batch, dtype=torch.bool, device=truth.device)

    def _mark(self, region: Tensor, chosen: Tensor, positive: Tensor) -> None:
        """Fill a region (B, H, W) of the `chosen` (B,): 1 as the prior, or 0.5 in the channel of its sign."""
        region = (region & chosen[:, None, None]).repeat_interleave(2, 1).repeat_interleave(2, 2)
        as_prior = (self.prior & positive)[:, None, None]
        prior, plus, minus = self.maps.unbind(1)
        self.maps = torch.stack(
            [
                torch.where(region & as_prior, 1.0, prior),
                torch.where(region & ~as_prior & positive[:, None, None], plus.clamp(min=0.5), plus),
                torch.where(region & ~positive[:, None, None], minus.clamp(min=0.5), minus),
            ],
            1,
        )

    def _draw(self, deep: Tensor, positive: Tensor, clicks: Tensor, scribbles: Tensor) -> None:
        """Stamp one click or one scribble per sample; an empty region gets nothing."""
        batch = len(deep)
        there = deep.flatten(1).amax(1) > 0
        at = spot(deep, self.mix.deepest, self.generator)
        channel = torch.where(positive, 1, 2)
        # a pixel of the half-size maps is two network pixels wide: the click falls on either
        wiggle = torch.randint(0, 2, (batch, 1, 2), device=deep.device, generator=self.generator)
        stamp(self.maps, 2 * at[:, None] + wiggle, (there & clicks)[:, None], channel, self.radius)
        line, inside = stroke(deep, at, self.generator)
        stamp(self.maps, 2 * line, inside & (there & scribbles)[:, None], channel, self.radius)

    def begin(self) -> None:
        """Give every sample its first prompt."""
        mix, truth = self.mix, self.truth
        shares = torch.tensor([mix.click, mix.scribble, mix.box, mix.polygon, mix.mask], device=truth.device)
        kind = torch.multinomial(shares, len(truth), replacement=True, generator=self.generator)
        positive = torch.ones_like(kind, dtype=torch.bool)
        self._draw(depth(truth), positive, kind == 0, kind == 1)
        self._mark(boxes(truth, self.generator) & self.valid, kind == 2, positive)
        self._mark(loose_lasso(truth, self.generator) & self.valid, (kind == 3) | (kind == 4), positive)

    def correct(self, probability: Tensor) -> None:
        """Add a correction to each sample, given the answer (B, 1, S/2, S/2), which becomes channel 0.

        It lies where the answer is wrong deepest and has the sign that repairs it; who sees nothing wrong,
        says nothing.
        """
        mask = probability[:, 0] > THRESHOLD
        missed = depth(self.truth & ~mask & self.valid)
        wrong = depth(mask & ~self.truth & self.valid)
        # a tie is negative, as in the evaluation
        positive = missed.flatten(1).amax(1) > wrong.flatten(1).amax(1)
        deep = torch.where(positive[:, None, None], missed, wrong)
        chance = torch.rand(len(deep), device=deep.device, generator=self.generator)
        scribbles = chance < self.mix.scribble_later
        circles = (chance > 1 - self.mix.polygon_later) & ~(self.prior & positive)
        if self.mix.slip:
            deep, positive = self._slip(mask, deep, positive)
            scribbles, circles = scribbles & ~self.slipped, circles & ~self.slipped
        self.maps = self.maps.clone()
        self.maps[:, 0] = self._remember(probability)[:, 0]
        self._draw(deep, positive, ~scribbles & ~circles, scribbles)
        self._mark(loose_lasso(deep > 0, self.generator) & self.valid, circles, positive)

    def _slip(self, mask: Tensor, deep: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Where and with which sign the next prompts fall, those of the slips among them; notes who slips."""
        dice = torch.rand(2, len(deep), device=deep.device, generator=self.generator)
        here = dice[0] < 0.5  # a negative click in the object, otherwise a positive one beside it
        right = torch.where(here[:, None, None], self.truth & mask, ~self.truth & ~mask) & self.valid
        self.slipped = (dice[1] < self.mix.slip) & right.any(2).any(1)
        deep = torch.where(self.slipped[:, None, None], right.float(), deep)
        return deep, torch.where(self.slipped, ~here, positive)

    def _remember(self, probability: Tensor) -> Tensor:
        """The previous mask (B, 1, S, S) as the next round sees it: mostly as it is, at times coarse or gone.

        Coarse is what the closer look starts from: a mask drawn when the whole plane was in view.
        """
        size = self.maps.shape[-2:]
        whole = F.interpolate(probability, size, mode="bilinear")
        # the host's own dice: the device's would have to be waited for
        factor = 8 if torch.rand(()) < 0.5 else 4
        coarse = F.interpolate(F.avg_pool2d(probability, factor), size, mode="bilinear")
        chance = torch.rand(len(whole), 1, 1, 1, device=whole.device, generator=self.generator)
        return torch.where(chance < 0.1, coarse, torch.where(chance < 0.15, 0.0, whole))
