"""Synthetic anatomies: random label maps with random intensities, for targets that no data set has.

Domain randomisation as in SynthSeg (Billot et al., 2023), SynthMorph (Hoffmann et al., 2022) and
ScribblePrompt (Wong et al., 2024): shapes, contrasts and artefacts vary far more than in real images, so that
the network must find outlines instead of known gray values. All views of a batch are drawn at once on the
device, without a host synchronisation.

One anatomy is a power diagram of up to `CELLS` cells in smoothly warped coordinates (tissue), inside a body
with or without a wall, or filling the view, with up to `ORGANS` ellipses over it. Many organs have a wall, so
that rings and what they enclose are regions too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 28
ORGANS = 7
# Labels: 0 outside, 1 the body's wall, then the cells, then for each organ its wall and its inside.
FIRST_CELL = 2
FIRST_ORGAN = FIRST_CELL + CELLS
LABELS = FIRST_ORGAN + 2 * ORGANS
GRIDS = (3, 5, 9, 17, 33)  # nodes along a side of the noise that smooth fields are made of
LEAST_SHARE, LARGEST_SHARE = 4e-4, 0.6  # of the view's area, for a region to be a target


class SyntheticAnatomies:
    """An endless source of synthetic views.

    Parameters
    ----------
    size
        Side of the views in pixels.
    seed
        Two sources with one seed give the same views on the same device.
    device
        Where the views are made.
    """

    def __init__(self, size: int, seed: int, device: str = "cpu") -> None:
        self.size, self.device = size, torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        steps = (torch.arange(size, device=self.device) + 0.5) / size
        self.at = torch.stack(torch.meshgrid(steps, steps, indexing="ij"))  # (2, S, S) in [0, 1]

    def draw(self, count: int) -> Tensor:
        """Return views (count, 5, S, S) float32 in the form of `PictureStore.sample`.

        The channels are RGB in 0..255, coverage by the target, and validity, which is 1 everywhere. A view
        without a region of suitable size has an empty target.
        """
        labels = self.labels(count)
        image = self.image(labels)
        cover = self.target(labels).float()
        return torch.cat([image, cover[:, None], torch.ones_like(cover[:, None])], 1)

    def labels(self, count: int) -> Tensor:
        """Return random label maps (count, S, S) int64 in 0..LABELS - 1."""
        strength = self._uniform(count, 2, 1, 1, low=0.02, high=0.16)
        at = self.at + strength * self._smooth(count, 2)  # (B, 2, S, S), warped
        y, x = at[:, 0], at[:, 1]
        # 1. tissue: power diagram, whose cells are convex before the warp and so stay in one piece
        seeds = self._uniform(count, CELLS, 2, low=-0.1, high=1.1)
        spread = self._uniform(count, 1, low=0.0, high=0.06)
        used = torch.arange(CELLS, device=self.device) < self._uniform(count, 1, low=3, high=CELLS + 1)
        bonus = spread * self._uniform(count, CELLS) - seeds.square().sum(2)
        bonus = torch.where(used, bonus, -1e3)
        nearness = torch.baddbmm(bonus[:, None], at.flatten(2).transpose(1, 2), 2 * seeds.transpose(1, 2))
        labels = FIRST_CELL + nearness.argmax(2).view(count, self.size, self.size)
        # 2. body: in three of four views, with a wall or without
        level = self._ellipse(y, x, self._uniform(count, 2, low=0.4, high=0.6), (0.3, 0.6))
        whole = self._chance(count, 0.25)[:, None, None]
        wall = torch.where(self._chance(count, 0.6), self._uniform(count, low=0.02, high=0.15), 0.0)
        labels = torch.where((level > 1 - wall[:, None, None]) & ~whole, 1, labels)
        labels = torch.where((level > 1) & ~whole, 0, labels)
        # 3. organs: later ones lie over earlier ones
        inside = (level < 1) | whole
        for number in range(ORGANS):
            shown = inside & self._chance(count, 0.7)[:, None, None]
            level = self._ellipse(y, x, self._uniform(count, 2, low=0.1, high=0.9), (0.02, 0.22))
            thick = torch.where(self._chance(count, 0.5), self._uniform(count, low=0.15, high=0.6), 0.0)
            thick = thick[:, None, None]
            first = FIRST_ORGAN + 2 * number
            labels = torch.where(shown & (level < 1), first, labels)
            labels = torch.where(shown & (level < 1 - thick), first + 1, labels)
        return labels

    def image(self, labels: Tensor) -> Tensor:
        """Return pictures (B, 3, S, S) float32 in 0..255 of label maps (B, S, S) int64."""
        count, size = len(labels), self.size
        # 1. a mean for each label; many are nearly that of the label before, as neighbouring soft tissues are
        mean = self._uniform(count, LABELS, low=0.05, high=1.0)
        near = self._chance(count, 0.35, LABELS)
        step = self._uniform(count, LABELS, low=0.03, high=0.15) * self._sign(count, LABELS)
        mean = torch.where(near, mean.roll(1, 1) + step, mean)
        dark = self._chance(count, 0.7)
        mean[:, 0] = torch.where(dark, self._uniform(count, high=0.06), mean[:, 0])
        contrast = self._uniform(count, 1, low=0.25, high=1.0)
        mean = mean * contrast + (1 - contrast) * self._uniform(count, 1) * (1 - dark[:, None].float() * 0.7)
        tint = self._uniform(count, 3, LABELS, low=-0.25, high=0.25)
        tint = tint * self._chance(count, 0.2)[:, None, None]
        colours = (mean[:, None] + tint).clamp(0, 1)  # (B, 3, L)
        flat = labels.flatten(1)[:, None]
        image = colours.gather(2, flat.expand(-1, 3, -1)).view(count, 3, size, size)
        # 2. membranes along the outlines of some views
        edge = F.max_pool2d((self._outline(labels))[:, None].float(), 3, 1, 1)
        drawn = self._chance(count, 0.3) * self._uniform(count, low=0.1, high=0.5) * self._sign(count)
        image = image + edge * drawn[:, None, None, None]
        # 3. texture: noise of three grains, each label with strengths of its own
        grains = torch.cat([self._noise(count, size // step, size) for step in (1, 4, 12)], 1)  # (B, 3, S, S)
        strength = self._uniform(count, 3, LABELS) ** 2 * self._uniform(count, 1, 1, high=0.22)
        strength = strength.gather(2, flat.expand(-1, 3, -1)).view_as(grains)
        texture = (grains * strength).sum(1, keepdim=True)
        speckle = self._chance(count, 0.2)[:, None, None, None]  # ultrasound: what is bright is rough
        image = image + texture * torch.where(speckle, 3 * image, 1.0)
        # 4. partial volume, then what scanners add: bias field, ghosts, stripes, noise
        image = self._blurred(image)
        field = (self._uniform(count, 1, 1, 1, high=0.45) * self._smooth(count, 1, coarse=True)).exp()
        image = image * field
        image = image + self._ghost(image) + self._stripes(count)
        noise = self._noise(count, size, size) * self._uniform(count, 1, 1, 1, high=0.1)
        return (image + noise).clamp(0, 1) * 255

    def target(self, labels: Tensor) -> Tensor:
        """Return one region (B, S, S) bool of each label map: a cell, a wall, an organ with or without wall.

        Large regions are drawn a little more often, by area to the power 0.3 as among real objects.
        """
        count, device = len(labels), self.device
        flat = labels.flatten(1)
        one = torch.ones(1, 1, device=device).expand(flat.shape)
        share = torch.zeros(count, LABELS, device=device).scatter_add_(1, flat, one) / flat.shape[1]
        suits = (share > LEAST_SHARE) & (share < LARGEST_SHARE)
        suits[:, 0] = False
        # organs are the rarer and more important targets
        favour = torch.where(torch.arange(LABELS, device=device) >= FIRST_ORGAN, 2.5, 1.0)
        luck = -(-self._uniform(count, LABELS, low=1e-6).log()).log()  # Gumbel: argmax draws by the weights
        score = (share.clamp(min=1e-9) ** 0.3 * favour).log() + luck
        score = torch.where(suits, score, -torch.inf)
        chosen = score.argmax(1)[:, None, None]
        picked = labels == chosen
        # an organ's inside together with its wall
        inner = (chosen >= FIRST_ORGAN) & ((chosen - FIRST_ORGAN) % 2 == 1)
        joined = inner & self._chance(count, 0.4)[:, None, None]
        picked = picked | ((labels == chosen - 1) & joined)
        return picked & suits.any(1)[:, None, None]

    def _uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.empty(shape, device=self.device).uniform_(low, high, generator=self.generator)

    def _chance(self, count: int, share: float, *more: int) -> Tensor:
        """Bool (count, *more), true with probability `share`."""
        return self._uniform(count, *more) < share

    def _sign(self, *shape: int) -> Tensor:
        return torch.where(self._uniform(*shape) < 0.5, -1.0, 1.0)

    def _noise(self, count: int, grid: int, size: int) -> Tensor:
        """Normal noise (B, 1, size, size) of a `grid` of nodes along a side, about unit variance."""
        noise = torch.randn(count, 1, grid, grid, device=self.device, generator=self.generator)
        return noise if grid == size else F.interpolate(noise, (size, size), mode="bilinear") * 1.4

    def _smooth(self, count: int, channels: int, coarse: bool = False) -> Tensor:
        """Smooth random fields (B, channels, S, S), a different mixture of scales in each view."""
        field = torch.zeros(count, channels, self.size, self.size, device=self.device)
        for grid in GRIDS[:2] if coarse else GRIDS:
            noise = torch.randn(count, channels, grid, grid, device=self.device, generator=self.generator)
            weight = self._uniform(count, 1, 1, 1) * 3 / grid
            field = field + weight * F.interpolate(noise, (self.size, self.size), mode="bicubic")
        return field

    def _ellipse(self, y: Tensor, x: Tensor, middle: Tensor, radii: tuple[float, float]) -> Tensor:
        """Level (B, S, S) of one random ellipse each in warped coordinates: 1 on its outline, less inside.

        `middle` (B, 2), and radii drawn evenly on a logarithmic scale, in parts of the view's side.
        """
        low, high = (math.log(one) for one in radii)
        radius = self._uniform(len(y), 2, low=low, high=high).exp()
        radius = torch.maximum(radius, radius.flip(1) * 0.35)  # no needles
        angle = self._uniform(len(y), high=torch.pi)[:, None, None]
        dy, dx = y - middle[:, 0, None, None], x - middle[:, 1, None, None]
        along = (dy * angle.cos() + dx * angle.sin()) / radius[:, 0, None, None]
        across = (dx * angle.cos() - dy * angle.sin()) / radius[:, 1, None, None]
        return (along.square() + across.square()).sqrt()

    def _outline(self, labels: Tensor) -> Tensor:
        """Where a pixel's label differs from that below or to the right, (B, S, S) bool."""
        found = torch.zeros_like(labels, dtype=torch.bool)
        found[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        found[:, :, :-1] |= labels[:, :, 1:] != labels[:, :, :-1]
        return found

    def _blurred(self, image: Tensor) -> Tensor:
        """Between sharp and a Gaussian of two pixels, with coarse samples along one axis in some views."""
        ramp = torch.arange(-5, 6, device=self.device, dtype=image.dtype)
        kernel = torch.exp(-ramp.square() / 8)
        kernel = (kernel / kernel.sum()).expand(3, 1, 11)
        soft = F.conv2d(image, kernel[:, :, None], padding=(0, 5), groups=3)
        soft = F.conv2d(soft, kernel[..., None], padding=(5, 0), groups=3)
        image = torch.lerp(image, soft, self._uniform(len(image), 1, 1, 1))
        thick = F.interpolate(F.avg_pool2d(image, (4, 1)), image.shape[-2:], mode="bilinear")
        return torch.where(self._chance(len(image), 0.12)[:, None, None, None], thick, image)

    def _ghost(self, image: Tensor) -> Tensor:
        """A faint copy of the picture, shifted along the rows, in some views."""
        part = self._chance(len(image), 0.15) * self._uniform(len(image), low=0.05, high=0.25)
        return image.roll(self.size // 3, 2) * part[:, None, None, None]

    def _stripes(self, count: int) -> Tensor:
        """Faint waves across the picture (B, 1, S, S), in some views."""
        part = self._chance(count, 0.12) * self._uniform(count, low=0.02, high=0.1)
        turn = self._uniform(count, high=torch.pi)
        waves = self._uniform(count, low=20, high=400)
        direction = torch.stack([turn.cos(), turn.sin()], 1) * waves[:, None]
        phase = torch.einsum("bk,kyx->byx", direction, self.at)
        return (phase.sin() * part[:, None, None])[:, None]
