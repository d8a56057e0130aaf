"""Simulated prompts for a whole batch on the device: first prompts of every kind, then corrections.

The rules are those of `evaluation.annotator` with a person's imprecision: a click is not always at the
deepest pixel, a lasso is not the outline, a box is off by a few per cent. Everything works on maps of half
the network's side and without a host synchronisation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.core.masks import THRESHOLD

FAR = 1e6
MIN_LEVEL = 0.03  # of the smoothed region; without it the noise alone would draw islands far from any object


@dataclass(frozen=True)
class PromptMix:
    """Which prompts the simulated annotators use, as shares in [0, 1].

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
        Of the corrections: wrong clicks, with the wrong sign on pixels that were right. The mask after one
        has no loss (see `BatchAnnotator.wrong_clicks`); the next prompt repairs it.
    as_prior
        Of the samples: their positive regions enter as the previous mask, those of the others at half
        strength in the positive channel. A network that saw both can be asked which works better.
    lines
        Of the samples: those whose first previous mask is the object on a run of lines only (`on_lines`).
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
    lines: float = 0.0


def depth(region: Tensor) -> Tensor:
    """Return the squared distance (B, H, W) of every pixel of a bool region to the nearest pixel outside it.

    The border counts as outside, as in the evaluation. Exact: along columns by running indices,
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
    """The same in one kernel: for 64 samples of 256 x 256 the (B, R, R, C) array would take 4 GiB."""
    return (along[:, None] + gap[None, :, :, None]).amin(2)


def argmax_pixel(score: Tensor) -> Tensor:
    """Return row and column (B, 2) of the largest value of maps (B, H, W); the first in reading order."""
    flat = score.flatten(1).argmax(1)
    return torch.stack([flat // score.shape[-1], flat % score.shape[-1]], 1)


def click_pixel(depths: Tensor, deepest: float, generator: torch.Generator) -> Tensor:
    """Draw one pixel (B, 2) of each region, given its squared depth (B, H, W); (0, 0) for an empty region.

    The share `deepest` is the deepest pixel; three quarters of the others are at least half as deep, the rest
    any pixel.
    """
    batch, device = depths.shape[0], depths.device
    peak = depths.amax((1, 2), keepdim=True)
    kind = torch.rand(batch, 1, 1, device=device, generator=generator)
    near = deepest + 0.76 * (1 - deepest)
    floor = torch.where(kind < deepest, 1.0, torch.where(kind < near, 0.25, 0.0)) * peak
    noise = torch.rand(depths.shape, device=device, generator=generator)
    return argmax_pixel(torch.where((depths >= floor) & (depths > 0), noise + 1, 0.0))


def stroke(
    depths: Tensor, start: Tensor, generator: torch.Generator, points: int = 96
) -> tuple[Tensor, Tensor]:
    """Return pixels (B, P, 2) of a curved stroke through `start` (B, 2), and which lie in it (B, P).

    Parameters
    ----------
    depths
        Squared depth of each pixel in its region, (B, R, C); 0 outside of it.
    points
        How many pixels P.
    """
    batch, rows, cols = depths.shape
    device = depths.device
    y = torch.arange(rows, device=device)[None, :, None] - start[:, 0, None, None]
    x = torch.arange(cols, device=device)[None, None, :] - start[:, 1, None, None]
    peak = depths.amax((1, 2), keepdim=True)
    reach = peak.sqrt() * (2 + 6 * torch.rand(batch, 1, 1, device=device, generator=generator))
    near = (depths > 0.16 * peak) & (y.square() + x.square() <= reach.square())
    ends = []
    for _ in range(2):
        noise = torch.rand(depths.shape, device=device, generator=generator)
        ends.append(argmax_pixel(torch.where(near, noise + 1, 0.0)))
    t = torch.linspace(0, 1, points, device=device)[None, :, None]
    first, middle, last = ends[0][:, None], start[:, None], ends[1][:, None]
    curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * (2 * middle - (first + last) / 2) + t**2 * last
    at = curve.round().long()
    inside = (at >= 0).all(-1) & (at[..., 0] < rows) & (at[..., 1] < cols)
    at = torch.stack([at[..., 0].clamp(0, rows - 1), at[..., 1].clamp(0, cols - 1)], -1)
    sample = torch.arange(batch, device=device)[:, None]
    return at, inside & (depths[sample, at[..., 0], at[..., 1]] > 0)


def stamp(maps: Tensor, at: Tensor, shown: Tensor, channel: Tensor, radius: int) -> None:
    """Write disks of 1 into `maps` (B, 3, S, S) in place: the same pixels as in `core.prompts.dense_maps`.

    Their centres are network pixels `at` (B, P, 2) where `shown` (B, P), in each sample's `channel` (B,).
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
    """Return a bool region (B, H, W) as quickly outlined by hand: smooth, a little off, mostly larger."""
    batch, rows, cols = region.shape
    soft = F.adaptive_avg_pool2d(region[:, None].float(), 64)
    area = soft.mean((1, 2, 3), keepdim=True)
    for step in (1, 2, 4):  # wider for larger objects
        wider = F.avg_pool2d(soft, 2 * step + 1, 1, step)
        soft = torch.where(area.sqrt() * 64 > 4 * step, wider, soft)
    soft = F.interpolate(soft, (rows, cols), mode="bilinear")[:, 0]
    soft = soft / soft.amax((1, 2), keepdim=True).clamp(min=1e-6)
    noise = torch.randn(batch, 1, 9, 9, device=region.device, generator=generator)
    noise_map = F.interpolate(noise, (rows, cols), mode="bicubic")[:, 0] * 0.07
    level = torch.empty(batch, 1, 1, device=region.device).uniform_(0.12, 0.5, generator=generator)
    return soft > (level + noise_map).clamp(min=MIN_LEVEL)


def jittered_boxes(region: Tensor, generator: torch.Generator) -> Tensor:
    """Return the filled bounding box (B, H, W) of a bool region, each side off by about 4 % of its length."""
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


def on_lines(region: Tensor, generator: torch.Generator) -> Tensor:
    """Return a bool region (B, H, W) on a run of its lines only: rows or columns, at most three quarters.

    So much is known of an object on a plane across the planes on which it is annotated so far.
    """
    device, batch = region.device, len(region)
    dice = torch.rand(3, batch, 1, 1, device=device, generator=generator)
    columns = dice[0] < 0.5
    runs = []
    for axis in (2, 1):
        along = region.any(axis)  # (B, L)
        at = torch.arange(along.shape[1], device=device, dtype=torch.float32)
        low = torch.where(along, at, FAR).amin(1, keepdim=True)
        high = torch.where(along, at, -FAR).amax(1, keepdim=True)
        length = (high - low + 1).clamp(0)
        run = (0.75 * dice[1, :, :, 0] * length).ceil()
        first = low + (dice[2, :, :, 0] * (length - run + 1)).floor()
        runs.append((at >= first) & (at < first + run))
    return region & torch.where(columns, runs[1][:, None, :], runs[0][:, :, None])


class BatchAnnotator:
    """One simulated annotator per sample of a batch.

    Parameters
    ----------
    truth, valid
        (B, 1, S/2, S/2) float: 1 on the object, and 1 on the picture (0 on padding).
    radius
        Of a click's disk in network pixels.
    mix
        Shares of the prompts they use.
    generator
        On the device of `truth`; the same seed gives the same prompts.

    Attributes
    ----------
    maps
        (B, 3, S, S) float: the prompts so far as the network takes them: previous mask or region prior,
        positive, negative.
    wrong_clicks
        (B,) bool: samples whose newest prompt is a wrong click, after which no mask is right.
    stamped
        Every click and stroke so far: network pixels (B, P, 2), which of them were stamped (B, P) bool, and
        the channel (B,) of each sample.
    """

    def __init__(
        self, truth: Tensor, valid: Tensor, radius: int, mix: PromptMix, generator: torch.Generator
    ) -> None:
        self.truth, self.valid = truth[:, 0] > 0.5, valid[:, 0] > 0.5
        self.radius, self.mix, self.generator = radius, mix, generator
        batch, rows, cols = self.truth.shape
        self.maps = torch.zeros(batch, 3, 2 * rows, 2 * cols, device=truth.device)
        self.prior = torch.rand(batch, device=truth.device, generator=generator) < mix.as_prior
        self.wrong_clicks = torch.zeros(batch, dtype=torch.bool, device=truth.device)
        self.stamped: list[tuple[Tensor, Tensor, Tensor]] = []

    def _fill_region(self, region: Tensor, chosen: Tensor, positive: Tensor) -> None:
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

    def _stamp_points(self, depths: Tensor, positive: Tensor, clicks: Tensor, scribbles: Tensor) -> None:
        """Stamp one click or one scribble per sample; an empty region gets nothing."""
        batch = len(depths)
        present = depths.flatten(1).amax(1) > 0
        at = click_pixel(depths, self.mix.deepest, self.generator)
        channel = torch.where(positive, 1, 2)
        # a pixel of the half-size maps is two network pixels wide: the click falls on either
        offset = torch.randint(0, 2, (batch, 1, 2), device=depths.device, generator=self.generator)
        line, inside = stroke(depths, at, self.generator)
        for points, shown in (
            (2 * at[:, None] + offset, (present & clicks)[:, None]),
            (2 * line, inside & (present & scribbles)[:, None]),
        ):
            stamp(self.maps, points, shown, channel, self.radius)
            self.stamped.append((points, shown, channel))

    def begin(self) -> None:
        """Give every sample its first prompt."""
        mix, truth = self.mix, self.truth
        shares = torch.tensor([mix.click, mix.scribble, mix.box, mix.polygon, mix.mask], device=truth.device)
        kind = torch.multinomial(shares, len(truth), replacement=True, generator=self.generator)
        positive = torch.ones_like(kind, dtype=torch.bool)
        self._stamp_points(depth(truth), positive, kind == 0, kind == 1)
        self._fill_region(jittered_boxes(truth, self.generator) & self.valid, kind == 2, positive)
        self._fill_region(
            loose_lasso(truth, self.generator) & self.valid, (kind == 3) | (kind == 4), positive
        )
        if mix.lines:
            chance = torch.rand(len(truth), 1, 1, device=truth.device, generator=self.generator)
            known = on_lines(truth, self.generator) & (chance < mix.lines)
            known = known.repeat_interleave(2, 1).repeat_interleave(2, 2)
            self.maps[:, 0] = torch.maximum(self.maps[:, 0], known)

    def correct(self, probability: Tensor) -> None:
        """Add a correction to each sample, given the probability (B, 1, S/2, S/2), which becomes channel 0.

        It lies at the deepest error and has the sign that repairs it; a sample without an error gets none.
        """
        mask = probability[:, 0] > THRESHOLD
        missed = depth(self.truth & ~mask & self.valid)
        wrong = depth(mask & ~self.truth & self.valid)
        # a tie is negative, as in the evaluation
        positive = missed.flatten(1).amax(1) > wrong.flatten(1).amax(1)
        depths = torch.where(positive[:, None, None], missed, wrong)
        chance = torch.rand(len(depths), device=depths.device, generator=self.generator)
        scribbles = chance < self.mix.scribble_later
        circles = (chance > 1 - self.mix.polygon_later) & ~(self.prior & positive)
        if self.mix.slip:
            depths, positive = self._wrong_click(mask, depths, positive)
            scribbles, circles = scribbles & ~self.wrong_clicks, circles & ~self.wrong_clicks
        self.maps = self.maps.clone()
        self.maps[:, 0] = self._previous_mask(probability)[:, 0]
        self._stamp_points(depths, positive, ~scribbles & ~circles, scribbles)
        self._fill_region(loose_lasso(depths > 0, self.generator) & self.valid, circles, positive)

    def _wrong_click(self, mask: Tensor, depths: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
        """Regions and signs of the next prompts, wrong clicks among them; sets `wrong_clicks`."""
        dice = torch.rand(2, len(depths), device=depths.device, generator=self.generator)
        inside = dice[0] < 0.5  # a negative click in the object, otherwise a positive one beside it
        right = torch.where(inside[:, None, None], self.truth & mask, ~self.truth & ~mask) & self.valid
        self.wrong_clicks = (dice[1] < self.mix.slip) & right.any(2).any(1)
        depths = torch.where(self.wrong_clicks[:, None, None], right.float(), depths)
        return depths, torch.where(self.wrong_clicks, ~inside, positive)

    def _previous_mask(self, probability: Tensor) -> Tensor:
        """The previous mask (B, 1, S, S) as the next round sees it: 85 % as it is, 10 % coarse, 5 % empty.

        The closer look starts from a coarse mask, predicted with the whole plane in view.
        """
        size = self.maps.shape[-2:]
        whole = F.interpolate(probability, size, mode="bilinear")
        # drawn on the host: a value of the device would have to be waited for
        factor = 8 if torch.rand(()) < 0.5 else 4
        coarse = F.interpolate(F.avg_pool2d(probability, factor), size, mode="bilinear")
        chance = torch.rand(len(whole), 1, 1, 1, device=whole.device, generator=self.generator)
        return torch.where(chance < 0.1, coarse, torch.where(chance < 0.15, 0.0, whole))
