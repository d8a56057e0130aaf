"""Short sequences of planes for training a memory of other planes, and what is known of each plane.

They come from labelled volumes, and from single pictures that are deformed from plane to plane. Everything is
decided in numpy and sampled where the network is, so no plane waits for the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_lowlat_seg.models.network import MEAN
from napari_lowlat_seg.training.data.volumes import LabelledPicture, LabelledVolume

STEPS = 6
"""Consecutive planes of a sequence, after the two planes that may be anchors."""

PLANES = 2 + STEPS
"""Planes in all."""

GIVEN = 2
"""Planes whose mask is given with errors, where a sequence begins far from its anchor."""

GAPS = 0.35
"""Share of the sequences between two anchors that both show the object."""

MAX_GAP = 20
"""Planes between these anchors, at most."""

MIN_PIXELS = 60
"""Pixels of the 512 x 512 square below which it does not count whether an object is there."""


@dataclass(eq=False)
class SequenceBatch:
    """A batch of B sequences of P = `PLANES` planes of S x S pixels.

    Plane 0 is the anchor, plane 1 the second anchor, then follow the `STEPS` planes of the sequence.

    Attributes
    ----------
    image
        (B, P, S, S) float32, gray in 0..255.
    inside
        (B, P, S, S) bool: what is picture and not padding.
    truth
        (B, P, S, S) bool: the object.
    steps
        (B, P) float32: position of each plane along the sequence, in planes; the anchor's is below 0.
    thickness
        (B,) float32: distance of neighbouring planes in pixels of the square.
    other
        (B,) bool: whether plane 1 is an anchor; it is plane 0 again otherwise.
    given
        (B,) bool: whether the masks of the first `GIVEN` planes of the sequence are given.
    shown
        (B, P) bool: whether the plane exists and shows its object undamaged.
    exists
        (B, P) bool: whether the plane lies in the volume.
    groups
        Name of the group of each sequence.
    """

    image: Tensor
    inside: Tensor
    truth: Tensor
    steps: Tensor
    thickness: Tensor
    other: Tensor
    given: Tensor
    shown: Tensor
    exists: Tensor
    groups: list[str]


@dataclass
class _SequencePlan:
    """Which planes a sequence shows, in the order of `SequenceBatch`; its fields are explained there."""

    planes: np.ndarray
    steps: np.ndarray
    exists: np.ndarray
    other: bool
    given: bool


@dataclass
class _Sequence:
    """One sequence: image, inside and truth (P, S, S) as in `SequenceBatch`, and what is known of it."""

    image: Tensor
    inside: Tensor
    truth: Tensor
    plan: _SequencePlan
    thickness: float


class SequenceSampler:
    """Draws batches of sequences.

    Parameters
    ----------
    groups
        Name -> (share, members). Members are `LabelledVolume` or `LabelledPicture`; the lists may grow
        meanwhile.
    size
        Side S of the square.
    device
        Where everything is drawn.
    seed
        Of all choices.
    """

    def __init__(self, groups: dict[str, tuple[float, list[Any]]], size: int, device: str, seed: int) -> None:
        self.groups, self.size, self.device = groups, size, device
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def batch(self, count: int) -> SequenceBatch:
        """Return `count` sequences, with their appearance changed at random."""
        drawn = [self._draw() for _ in range(count)]
        sequences = [sequence for _, sequence in drawn]
        plans = [sequence.plan for sequence in sequences]
        image, damaged = self._augmented(torch.stack([sequence.image for sequence in sequences]))
        exists = self._tensor(np.stack([plan.exists for plan in plans]))
        return SequenceBatch(
            image,
            torch.stack([sequence.inside for sequence in sequences]),
            torch.stack([sequence.truth for sequence in sequences]),
            self._tensor(np.stack([plan.steps for plan in plans])),
            self._tensor(np.array([sequence.thickness for sequence in sequences])),
            self._tensor(np.array([plan.other for plan in plans])),
            self._tensor(np.array([plan.given for plan in plans])),
            exists & ~damaged,
            exists,
            [group for group, _ in drawn],
        )

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.float() if tensor.is_floating_point() else tensor).to(self.device)

    def _draw(self) -> tuple[str, _Sequence]:
        """The name of a group, and a sequence of one of its members."""
        filled = {name: share for name, (share, members) in self.groups.items() if members}
        shares = np.array(list(filled.values()))
        while True:
            name = str(self.rng.choice(list(filled), p=shares / shares.sum()))
            members = self.groups[name][1]
            member = members[int(self.rng.integers(len(members)))]
            of_picture = isinstance(member, LabelledPicture)
            sequence = self._through_picture(member) if of_picture else self._through_volume(member)
            if sequence is not None:
                return name, sequence

    def _through_volume(self, volume: LabelledVolume) -> _Sequence | None:
        rng = self.rng
        axis = int(rng.choice(volume.axes))
        areas = volume.areas[axis]
        if len(areas) < 2:
            return None
        label = int(rng.integers(1, len(areas)))
        row, col = (a for a in range(3) if a != axis)
        # planes left out make thick planes of thin ones
        room = max(1.0, 10 * volume.spacing[row] / volume.spacing[axis])
        stride = int(min(rng.choice([1, 1, 1, 1, 2, 2, 3, 4, 6]), room))
        pixels = areas[label]
        plan = plan_sequence(rng, pixels, stride)
        if plan is None:
            return None
        boxes = volume.boxes[axis][label]
        near = plan.planes[[2, 0]]  # where the sequence begins, else the anchor
        start = next(int(p) for p in (near[0], near[1]) if pixels[p])
        box = boxes[start].astype(float)
        if plan.other and pixels[plan.planes[1]] and rng.random() < 0.7:  # as in use, both anchors are seen
            second = boxes[int(plan.planes[1])]
            box = np.concatenate([np.minimum(box[:2], second[:2]), np.maximum(box[2:], second[2:])])
        spacing = (volume.spacing[row], volume.spacing[col])
        shape = tuple(int(volume.image.shape[a]) for a in (row, col))
        corner, side = self._choose_crop(box, shape, spacing)
        planes = torch.from_numpy(plan.planes).to(self.device)
        image = volume.image.index_select(axis, planes).movedim(axis, 0)[:, None].float()
        mask = (volume.labels.index_select(axis, planes).movedim(axis, 0)[:, None] == label).float()
        jitter = np.zeros((PLANES, 2))
        if rng.random() < 0.25:  # registration errors, as in serial sections
            jitter = rng.normal(0, rng.uniform(0, 0.02), (PLANES, 2)) * (rng.random((PLANES, 1)) < 0.5)
        grid = self._grid(corner, side, shape, spacing, jitter)
        drawn = F.grid_sample(torch.cat([image, mask], 1), grid, "bilinear", "border", False)
        inside = (grid.abs() <= 1).all(-1)
        thickness = volume.spacing[axis] * stride / side * self.size
        exists = torch.from_numpy(plan.exists).to(self.device)[:, None, None]
        truth = (drawn[:, 1] > 0.5) & inside & exists
        return _Sequence(drawn[:, 0], inside, truth, plan, thickness)

    def _choose_crop(
        self, box: np.ndarray, shape: tuple[int, ...], spacing: tuple[float, float]
    ) -> tuple[np.ndarray, float]:
        """Middle (row, col) in pixels and side in world units of what the network sees."""
        rng = self.rng
        whole = max(n * s for n, s in zip(shape, spacing))
        longest = max((box[2] - box[0]) * spacing[0], (box[3] - box[1]) * spacing[1])
        side = max(longest * math.exp(rng.uniform(math.log(1.5), math.log(4.0))), 24 * min(spacing))
        if rng.random() < 0.25 or side > 0.7 * whole:
            side = whole * rng.uniform(1.0, 1.15)
        middle = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
        slack = max(0.0, 0.5 - 0.6 * longest / side) * 0.7
        middle += rng.uniform(-slack, slack, 2) * side / np.array(spacing)
        # as in use, a crop does not reach beyond the plane while there is room in it
        for k in range(2):
            half = side / spacing[k] / 2
            if 2 * half <= shape[k]:
                middle[k] = np.clip(middle[k], half, shape[k] - half)
            else:
                middle[k] = shape[k] / 2 + rng.uniform(-1, 1) * (half - shape[k] / 2)
        return middle, float(side)

    def _grid(
        self,
        middle: np.ndarray,
        side: float,
        shape: Sequence[int],
        spacing: tuple[float, float],
        jitter: np.ndarray,
    ) -> Tensor:
        """Sampling grid (len(jitter), S, S, 2) over a plane, turned, flipped and slightly sheared."""
        rng = self.rng
        angle = rng.uniform(-math.pi, math.pi) if rng.random() < 0.3 else rng.integers(4) * math.pi / 2
        flip = 1 if rng.random() < 0.5 else -1
        stretch = math.exp(rng.normal(0, 0.06))
        cos, sin = math.cos(angle), math.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]]) @ np.array([[stretch, 0], [0, flip / stretch]])
        theta = np.zeros((len(jitter), 2, 3), np.float32)
        # theta maps (x, y) of the square to (x, y) of the plane, both from -1 to 1
        reach = np.array([side / spacing[1] / shape[1], side / spacing[0] / shape[0]])
        theta[:, :, :2] = turn * reach[:, None]
        centre = 2 * (middle + 0.0) / np.array(shape) - 1
        theta[:, 0, 2] = centre[1] + jitter[:, 1] * reach[0]
        theta[:, 1, 2] = centre[0] + jitter[:, 0] * reach[1]
        tensor = torch.from_numpy(theta).to(self.device)
        return F.affine_grid(tensor, [len(jitter), 1, self.size, self.size], align_corners=False)

    def _through_picture(self, picture: LabelledPicture) -> _Sequence | None:
        rng = self.rng
        label, _, found = picture.objects[int(rng.integers(len(picture.objects)))]
        box, shape = np.array(found, float), tuple(picture.image.shape)
        middle, side = self._choose_crop(box, shape, (1.0, 1.0))
        grid = self._grid(middle, side, shape, (1.0, 1.0), np.zeros((1, 2)))
        both = torch.stack([picture.image.float(), (picture.labels == label).float()])[None]
        drawn = F.grid_sample(both, grid, "bilinear", "border", False)
        inside = (grid.abs() <= 1).all(-1)
        base, mask = drawn[:, :1], (drawn[:, 1:] > 0.5).float() * inside[:, None]
        long = 40
        begin, end, size = self._sizes(long)
        areas = np.zeros(long)
        areas[begin:end] = 1000
        plan = plan_sequence(rng, areas, 1)
        if plan is None:
            return None
        radius = max((box[2] - box[0]), (box[3] - box[1])) / side  # half extents on the square from -1 to 1
        z = torch.from_numpy(plan.planes - plan.planes[0]).float().to(self.device)
        bend = self._deformations(z, radius)
        centre = self._centre(mask)
        scale = torch.from_numpy(size[plan.planes]).float().to(self.device)
        flat = F.affine_grid(
            torch.eye(2, 3, device=self.device)[None], [1, 1, self.size, self.size], align_corners=False
        )
        moved = flat + bend
        apart = moved - centre
        near = torch.exp(-(apart**2).sum(-1, keepdim=True) / (1.7 * radius + 0.02) ** 2)
        moved = centre + apart * (1 + (1 / scale.clamp(0.35, 2)[:, None, None, None] - 1) * near)
        gone = scale < 0.35
        source = torch.cat([base, self._inpainted(base, mask), mask, inside[:, None].float()], 1)
        seen = F.grid_sample(source.expand(PLANES, -1, -1, -1), moved, "bilinear", "border", False)
        image = torch.where(gone[:, None, None], seen[:, 1], seen[:, 0])
        truth = (seen[:, 2] > 0.5) & ~gone[:, None, None]
        exists = torch.from_numpy(plan.exists).to(self.device)[:, None, None]
        thickness = self.size * radius * rng.uniform(0.02, 0.3)
        return _Sequence(image, seen[:, 3] > 0.5, truth & exists, plan, thickness)

    def _sizes(self, long: int) -> tuple[int, int, np.ndarray]:
        """First plane, end, and size (long,) of the object along the sequence; 0 where it is not."""
        rng = self.rng
        length = int(rng.integers(4, long + 20))
        begin = int(rng.integers(-10, long - 3))
        at = np.arange(long)
        share = (at - begin) / length
        size: np.ndarray
        if rng.random() < 0.6:  # round ends
            size = np.sqrt(np.clip(4 * share * (1 - share), 0, 1))
        else:  # blunt ends
            size = ((share >= 0) & (share < 1)) * np.exp(0.3 * np.sin(at / rng.uniform(3, 12)))
        seen = np.flatnonzero(size >= 0.35)
        if not len(seen):
            return 0, long, np.ones(long)
        return int(seen[0]), int(seen[-1]) + 1, size

    def _deformations(self, z: Tensor, radius: float) -> Tensor:
        """Displacements (P, S, S, 2) that grow with the distance from the anchor."""
        rng = self.rng
        coarse = torch.randn(2, 2, 4, 4, device=self.device, generator=self.generator)
        fields = F.interpolate(coarse, (self.size, self.size), mode="bicubic").permute(0, 2, 3, 1)
        far = 10 * torch.tanh(z / 10)[:, None, None, None]
        drift = torch.from_numpy(rng.normal(0, 0.06, 2)).float().to(self.device) * radius
        wave = torch.sin(z * rng.uniform(0.2, 1.2))[:, None, None, None]
        return (
            far * radius * rng.uniform(0, 0.03) * fields[0]
            + wave * radius * rng.uniform(0, 0.08) * fields[1]
            + far * drift
        )

    def _centre(self, mask: Tensor) -> Tensor:
        at = (torch.arange(self.size, device=self.device) + 0.5) / self.size * 2 - 1
        total = mask.sum() + 1e-6
        return torch.stack([(mask[0, 0].sum(0) * at).sum(), (mask[0, 0].sum(1) * at).sum()]) / total

    def _inpainted(self, image: Tensor, mask: Tensor) -> Tensor:
        """The picture with the object replaced by what is around it, grain included."""
        wide = F.max_pool2d(mask, 13, 1, 6)
        small, hidden = F.avg_pool2d(image * (1 - wide), 8), F.avg_pool2d(1 - wide, 8)
        fill = small / hidden.clamp(min=1e-3) * (hidden > 0.05)
        weight = (hidden > 0.05).float()
        for _ in range(24):  # grow inwards, 5 cells at a time
            mean = F.avg_pool2d(fill * weight, 5, 1, 2) / F.avg_pool2d(weight, 5, 1, 2).clamp(min=1e-6)
            known = (F.avg_pool2d(weight, 5, 1, 2) > 1e-6).float()
            fill, weight = torch.where(weight > 0, fill, mean * known), torch.maximum(weight, known)
        smooth = F.interpolate(fill, image.shape[-2:], mode="bilinear")
        grain = image - F.avg_pool2d(image, 17, 1, 8, count_include_pad=False)
        grain = torch.roll(grain * (1 - wide), int(self.rng.integers(60, 200)), -1)
        soft = F.avg_pool2d(wide, 15, 1, 7)
        return image * (1 - soft) + (smooth + grain) * soft

    def _augmented(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Contrast, gamma, inversion, blur and noise of whole sequences; uneven and damaged planes."""
        count, rng = len(image), self.rng
        column = (count, 1, 1, 1)

        def drawn(values: Any, shape: Sequence[int] = column) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.float32)).to(self.device).view(*shape)

        x = image / 255
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        stretch = drawn(rng.random(count) < 0.3)  # another window
        x = torch.lerp(x, (x - low) / (high - low).clamp(min=0.1), stretch)
        x = x.clamp(0, 1) ** drawn(np.exp(rng.normal(0, 0.3, count)))
        flip = drawn(rng.random(count) < 0.25)
        x = torch.lerp(x, 1 - x, flip)
        x = 0.5 + (x - 0.5) * drawn(rng.uniform(0.55, 1.15, count)) + drawn(rng.normal(0, 0.06, count))
        uneven = drawn(rng.random(count) < 0.3)
        gain = drawn(rng.normal(0, 0.05, (count, PLANES)), (count, PLANES, 1, 1))
        x = x * (1 + uneven * gain) + uneven * gain.roll(1, 1) * 0.5
        blurred = F.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        x = torch.lerp(x, blurred, drawn((rng.random(count) < 0.2) * rng.uniform(0.3, 1, count)))
        grain = torch.randn(x.shape, device=x.device, generator=self.generator)
        coarse = torch.randn(
            (*x.shape[:2], self.size // 4, self.size // 4), device=x.device, generator=self.generator
        )
        x = x + grain * drawn((rng.random(count) < 0.35) * rng.exponential(0.05, count))
        speck = F.interpolate(coarse, x.shape[-2:], mode="bilinear")
        x = x + speck * drawn((rng.random(count) < 0.35) * rng.exponential(0.04, count))
        damaged = np.zeros((count, PLANES), bool)
        damaged[:, 2:] = (rng.random((count, STEPS)) < 0.12) & (rng.random((count, 1)) < 0.2)
        harm = drawn(damaged, (count, PLANES, 1, 1))
        noisy = drawn(rng.random((count, PLANES)) < 0.5, (count, PLANES, 1, 1)) > 0
        ruin = torch.where(noisy, grain * 0.2 + 0.5, torch.zeros_like(x))
        x = torch.lerp(x, ruin, harm)
        return x.clamp(0, 1) * 255, torch.from_numpy(damaged).to(self.device)


def plan_sequence(rng: np.random.Generator, areas: np.ndarray, stride: int) -> _SequencePlan | None:
    """Return the planes of a random sequence along an object; None if the draw found none.

    `GAPS` of the sequences run between two anchors that both show the object. Half of the others begin beside
    the anchor, half far from it with the masks of two planes given, and about half reach an end of the object
    if it has one inside the volume.

    Parameters
    ----------
    areas
        Pixels of the object on each plane, (D,).
    stride
        Every so many planes are taken.
    """
    shown = np.flatnonzero(areas)
    if not len(shown):
        return None
    good = np.flatnonzero(areas >= (0.15 if rng.random() < 0.8 else 0.03) * areas.max())
    step = stride * (1 if rng.random() < 0.5 else -1)
    if rng.random() < GAPS:
        return _plan_gap(rng, areas, good, step)
    given = bool(rng.random() < 0.5)
    end = shown[-1] if step > 0 else shown[0]
    if rng.random() < 0.45:  # begin so that the sequence passes the end
        begin = int(end - step * rng.integers(0, STEPS))
    elif given:
        begin = int(rng.choice(shown))
    else:
        begin = int(rng.choice(good)) + step
    anchor: int | None = begin - step
    if given:
        anchor = _distant_anchor(rng, areas, good, begin, step)
    if anchor is None or not _shows(areas, anchor):
        return None
    sequence = [begin + k * step for k in range(STEPS)]
    other, second = _second_anchor(rng, areas, anchor, sequence, step)
    places = [anchor, second, *sequence]
    steps = np.array([(place - begin) / step for place in places])
    exists = np.array([0 <= place < len(areas) for place in places])
    return _SequencePlan(np.clip(places, 0, len(areas) - 1), steps, exists, other, given)


def _plan_gap(
    rng: np.random.Generator, areas: np.ndarray, good: np.ndarray, step: int
) -> _SequencePlan | None:
    """A sequence between two anchors 2 to `MAX_GAP` planes apart, from its beginning or from inside it.

    None if the object is not on both anchors, or not on the planes given. What would lie at or behind the
    second anchor does not exist for the sequence.
    """
    anchor, apart = int(rng.choice(good)), int(rng.integers(2, MAX_GAP + 1))
    second = anchor + apart * step
    if not _shows(areas, second):
        return None
    given = apart > 2 + GIVEN and bool(rng.random() < 0.4)
    ahead = int(rng.integers(2, apart - GIVEN)) if given else 1
    begin = anchor + ahead * step
    if given and not (_shows(areas, begin) and _shows(areas, begin + step)):
        return None
    places = [anchor, second, *(begin + k * step for k in range(STEPS))]
    steps = np.array([(place - begin) / step for place in places])
    exists = np.array([0 <= place < len(areas) for place in places])
    exists[2:] &= steps[2:] < steps[1]
    return _SequencePlan(np.clip(places, 0, len(areas) - 1), steps, exists, True, given)


def _shows(areas: np.ndarray, place: int) -> bool:
    return 0 <= place < len(areas) and bool(areas[place])


def _distant_anchor(
    rng: np.random.Generator, areas: np.ndarray, good: np.ndarray, begin: int, step: int
) -> int | None:
    """An anchor at most 40 planes behind the begin; None if a given plane shows no object."""
    if not (_shows(areas, begin) and _shows(areas, begin + step)):
        return None
    stride, way = abs(step), int(np.sign(step))
    behind = [int(place) for place in good if (begin - place) * way >= stride]
    behind = [
        place for place in behind if (begin - place) % stride == 0 and abs(begin - place) <= 40 * stride
    ]
    return int(rng.choice(behind)) if behind else begin - step


def _second_anchor(
    rng: np.random.Generator, areas: np.ndarray, anchor: int, sequence: list[int], step: int
) -> tuple[bool, int]:
    """Whether there is a second anchor, and its plane; the first one's if not."""
    chance = rng.random()
    if chance < 0.45:  # beyond the sequence, with or without the object
        place = sequence[-1] + step * int(rng.integers(1, 13))
        return (True, place) if 0 <= place < len(areas) else (False, anchor)
    if chance < 0.6:  # behind the anchor
        place = anchor - step * int(rng.integers(1, 13))
        if _shows(areas, place):
            return True, place
    return False, anchor


def rgb(image: Tensor, inside: Tensor) -> Tensor:
    """Return gray pictures (N, S, S) as the network takes them, (N, 3, S, S), padded with its mean."""
    pad = torch.tensor(MEAN, device=image.device)[None, :, None, None]
    return torch.where(inside[:, None], image[:, None], pad)
