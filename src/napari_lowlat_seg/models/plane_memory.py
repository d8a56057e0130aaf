"""A memory of other planes for the compact network: how the object looked there says where it is here.

The network's encoder is frozen and shared, so predictions on single planes stay what they are. The memory
reads the embeddings of a few planes whose mask is known, and has low-rank changes of the fusion blocks and a
decoder of its own. All planes are seen through one `Frame`, so their tokens lie on the same grid. Names of
submodules are those of the weights in its files. Why so: docs/decisions/memory.md.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from napari_lowlat_seg.models.compact import Compact, RefineBlock
from napari_lowlat_seg.models.tinyvit import ChannelNorm

SLOTS = 4
"""MemoryEntry planes: the nearest anchor, another anchor, the plane before, and the one before that."""

ANCHOR, OTHER, BEFORE, EARLIER = range(SLOTS)
"""Places of these planes among the slots, in that order."""

SLOT_FEATURES = 6
"""Numbers known of a remembered plane; see `slot_features`."""

SHARPNESS = (0.5, 0.125, 0.03125, 0.0)
"""How fast the attention of each head falls with the squared distance in tokens. Powers of two: bf16 has them
exactly, and the products with token coordinates too."""

POSITION = 8
"""Dimensions that carry a token's position in queries and keys: four, and zeros, as fast kernels want it."""


FROM_NETWORK = ("maps4", "maps8", "maps16", "norm", "up8", "refine8", "up4", "refine4", "draw")
"""Parts that begin as the network's own."""


@dataclass(frozen=True)
class MemoryConfig:
    """What the shape of a `PlaneMemory` depends on, beside its network; all are whole numbers.

    Attributes
    ----------
    token
        Channels of a memory token, which stands for 2 x 2 tokens of the embedding.
    head
        Channels of each attention head; there is one head per entry of `SHARPNESS`.
    layers
        Rounds of attention.
    rank
        Rank of the changes of the fusion blocks.
    match
        Channels in which the plane before is matched at 1/8 of the side.
    reach
        Tokens of 1/8 of the side that a match reaches in each direction.

    Raises
    ------
    ValueError
        For a number out of range.
    """

    token: int = 192
    head: int = 32
    layers: int = 2
    rank: int = 32
    match: int = 32
    reach: int = 3

    def __post_init__(self) -> None:
        bounds = {
            "token": (8, 1024),
            "head": (4, 128),
            "layers": (0, 8),
            "rank": (1, 256),
            "match": (4, 256),
            "reach": (0, 8),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"the memory's {name} must lie in {low}..{high}, got {getattr(self, name)}")


class MemoryEntry(NamedTuple):
    """What is kept of planes whose mask is known, for B objects each; all are float tensors.

    Attributes
    ----------
    tokens
        (B, N, token), without where the plane lies.
    thin8, thin4
        The embedding's skips, (B, c8, S/8, S/8) and (B, c4, S/4, S/4).
    mask
        Probability on the square, (B, 1, S, S).
    """

    tokens: Tensor
    thin8: Tensor
    thin4: Tensor
    mask: Tensor


class MemoryOutput(NamedTuple):
    """What the memory predicts of a plane, float32.

    Attributes
    ----------
    logits
        (B, 1, S/2, S/2) over the whole frame.
    presence
        Logit (B,) that the object is on this plane.
    quality
        Predicted IoU (B,) in [0, 1] if it is.
    """

    logits: Tensor
    presence: Tensor
    quality: Tensor


def slot_features(steps: Tensor, depth: Tensor, anchor: Tensor, spare: Tensor) -> Tensor:
    """Return what is known of remembered planes, (..., SLOT_FEATURES) float32; arguments have one shape.

    Parameters
    ----------
    steps
        Float: planes from the remembered one to the predicted one, negative if the sweep has yet to reach it.
    depth
        Float: the same distance in network pixels of the frame.
    anchor
        Bool: whether a person has prompted it.
    spare
        Bool: whether it stands in for a plane that there is not.
    """
    ahead = (steps < 0).float()
    far, deep = torch.log1p(steps.abs()) / 3, torch.log1p(depth.abs()) / 5
    return torch.stack([far, deep, ahead, anchor.float(), spare.float(), far * ahead], -1)


class LowRank(nn.Module):
    """Weights of a linear layer plus a product of two thin matrices, zero at first."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, of the shape of `weight`."""
        return weight + self.up @ self.down


class MemoryAttention(nn.Module):
    """Attention of the plane's tokens to memory tokens, and a feed-forward layer; both add nothing at first.

    Each head prefers tokens near the same place, with its own `SHARPNESS`: further dimensions of queries
    and keys make the product fall with the squared distance, at no cost of a mask.
    """

    def __init__(self, width: int, config: MemoryConfig) -> None:
        super().__init__()
        self.heads, self.head = len(SHARPNESS), config.head
        inner = self.heads * self.head
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, inner)
        self.kv = nn.Linear(config.token, 2 * inner)
        self.proj = nn.Linear(inner, width)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        for last in (self.proj, self.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, tokens: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """`x` (B, Q, width), `tokens` (B, K, token); positions (heads, Q, POSITION) and (K, POSITION)."""
        batch, count = x.shape[:2]
        q = self.q(self.norm1(x)).reshape(batch, count, self.heads, self.head).transpose(1, 2)
        kv = self.kv(tokens).reshape(batch, -1, 2 * self.heads, self.head).transpose(1, 2)
        k, v = kv.chunk(2, dim=1)
        q = q * (self.head**-0.5)
        q = torch.cat([q, here.to(q.dtype).expand(batch, -1, -1, -1)], dim=-1)
        k = torch.cat([k, there.to(k.dtype).expand(batch, self.heads, -1, -1)], dim=-1)
        v = F.pad(v, (0, POSITION))  # the fast kernels want one width for all three
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : self.head]
        x = x + self.proj(out.transpose(1, 2).reshape(batch, count, -1))
        feed: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return feed


class LocalMatch(nn.Module):
    """Where the plane before looks like this one nearby, and its mask there, at 1/8 of the side."""

    def __init__(self, skip: int, config: MemoryConfig) -> None:
        super().__init__()
        self.width, self.reach = config.match, config.reach
        self.q = nn.Conv2d(skip, config.match, 1)
        self.k = nn.Conv2d(skip, config.match, 1)
        self.v = nn.Conv2d(skip, config.match, 1)
        self.near = nn.Parameter(torch.zeros((2 * config.reach + 1) ** 2))

    def forward(self, here: Tensor, before: Tensor, mask: Tensor) -> Tensor:
        """(B, match, h, w), from skips of both planes and features of the mask before, (B, skip, h, w)."""
        batch, _, rows, cols = here.shape
        side = 2 * self.reach + 1
        q = self.q(here) * self.width**-0.5
        k = F.unfold(self.k(before), side, padding=self.reach).reshape(
            batch, self.width, side**2, rows * cols
        )
        v = F.unfold(self.v(mask), side, padding=self.reach).reshape(batch, self.width, side**2, rows * cols)
        alike = (q.flatten(2)[:, :, None] * k).sum(1) + self.near[:, None].to(q.dtype)  # (B, side², h w)
        share = alike.float().softmax(1).to(v.dtype)
        matched: Tensor = (share[:, None] * v).sum(2).reshape(batch, self.width, rows, cols)
        return matched


class PlaneMemory(nn.Module):
    """The trained part beside a frozen `Compact`; it never changes the network and keeps no plane.

    Parameters
    ----------
    network
        Whose embeddings are read. It is not registered: `state_dict` holds the memory alone.
    config
        Shapes.
    """

    network: Compact
    folded: nn.ModuleList | None
    here: Tensor
    there: Tensor
    norm: ChannelNorm
    up8: nn.ConvTranspose2d
    refine8: nn.Sequential
    up4: nn.ConvTranspose2d
    refine4: nn.Sequential
    draw: nn.Conv2d

    def __init__(self, network: Compact, config: MemoryConfig | None = None) -> None:
        super().__init__()
        self.config = config = MemoryConfig() if config is None else config
        object.__setattr__(self, "network", network)  # not a child
        object.__setattr__(self, "folded", None)
        facts = network.config
        c, c8, c4 = facts.width, facts.skip8, facts.skip4
        self.size, self.grid = facts.size, facts.size // 16
        # 1. a remembered plane becomes tokens
        self.shape8 = nn.Conv2d(1, 16, 8, 8)
        self.shape16 = nn.Conv2d(16, 32, 2, 2)
        self.seen = ChannelNorm(c)
        self.merge = nn.Conv2d(c + 32, config.token, 2, 2)
        self.facts = nn.Sequential(nn.Linear(SLOT_FEATURES, 64), nn.GELU(), nn.Linear(64, config.token))
        self.token_norm = nn.LayerNorm(config.token)
        # 2. the masks enter as maps do: the network's own layer, with three more channels that are zero
        self.maps4 = nn.Conv2d(2 + SLOTS, c4, 4, 4)
        nn.init.zeros_(self.maps4.weight)
        with torch.no_grad():
            self.maps4.weight[:, :3] = network.maps4.weight
            self.maps4.bias.copy_(network.maps4.bias)  # type: ignore[union-attr, arg-type]
        self.maps8 = copy.deepcopy(network.maps8)
        self.maps16 = copy.deepcopy(network.maps16)
        self.recalls = nn.ModuleList(MemoryAttention(c, config) for _ in range(config.layers))
        # 3. the plane before, at the sides of the boundaries
        self.match = LocalMatch(c8, config)
        self.side8 = nn.Sequential(
            nn.Conv2d(3 * c8 + config.match, c8, 1), RefineBlock(c8), nn.Conv2d(c8, c8, 1)
        )
        self.side4 = nn.Sequential(nn.Conv2d(3 * c4, c4, 1), RefineBlock(c4), nn.Conv2d(c4, c4, 1))
        for last in (self.side8[-1], self.side4[-1]):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        # 4. fusion as the network does it, slightly changed, and a decoder that starts as the network's
        self.changes = nn.ModuleDict(
            {
                name.replace(".", "/"): LowRank(layer, config.rank)
                for name, layer in network.blocks.named_modules()
                if isinstance(layer, nn.Linear)
            }
        )
        for part in ("norm", "up8", "refine8", "up4", "refine4", "draw"):
            setattr(self, part, copy.deepcopy(getattr(network, part)))
        self.verdict = nn.Sequential(nn.Linear(3 * c + 4, 64), nn.GELU(), nn.Linear(64, 2))
        for parameter in self.parameters():
            parameter.requires_grad_(True)
        self._register_positions()

    def _register_positions(self) -> None:
        """Positions of query and memory tokens, whose product is -sharpness * distance² per head."""
        grid = self.grid
        at = torch.arange(grid) - (grid - 1) / 2
        row, col = torch.meshgrid(at, at, indexing="ij")
        here = torch.stack([row.flatten(), col.flatten()], 1)
        pooled = F.avg_pool2d(torch.stack([row, col])[None], 2)[0].flatten(1).T
        squared = (pooled**2).sum(1)
        coarse = 4 * torch.floor(squared / 4)  # both parts are exact in bf16
        there = torch.cat([pooled, coarse[:, None], (squared - coarse)[:, None]], 1)
        there = F.pad(there, (0, POSITION - 4))
        sharp = torch.tensor(SHARPNESS)[:, None, None]
        ones = torch.ones(grid * grid, 2)
        here = F.pad(torch.cat([2 * here, -ones], 1), (0, POSITION - 4))
        self.register_buffer("here", sharp * here[None], persistent=False)
        self.register_buffer("there", there.repeat(SLOTS, 1), persistent=False)

    def remember(self, features: Sequence[Tensor], mask: Tensor) -> MemoryEntry:
        """Return what to keep of a plane.

        Parameters
        ----------
        features
            Of `Compact.encode`, for B planes.
        mask
            Their masks, (B, 1, S, S) float in [0, 1].
        """
        deep, thin8, thin4 = features
        dtype = self.merge.weight.dtype
        mask = mask.to(dtype)
        shape = self.shape16(F.gelu(self.shape8(mask)))
        tokens = self.merge(torch.cat([self.seen(deep.to(dtype)), shape], 1))
        return MemoryEntry(tokens.flatten(2).transpose(1, 2), thin8.to(dtype), thin4.to(dtype), mask)

    def forward(
        self,
        features: Sequence[Tensor],
        memory: Sequence[MemoryEntry],
        facts: Tensor,
        clicks: Tensor | None = None,
    ) -> MemoryOutput:
        """Predict the object on a plane.

        Parameters
        ----------
        features
            Of `Compact.encode`, for the planes to predict.
        memory
            `SLOTS` entries in the order of `ANCHOR` .. `EARLIER`; with fewer planes one is given twice.
        facts
            (B, SLOTS, SLOT_FEATURES) of `slot_features`.
        clicks
            (B, 2, S, S) maps of positive and negative prompts on this plane, or None.
        """
        deep, thin8, thin4 = (feature.to(self.merge.weight.dtype) for feature in features)
        batch = facts.shape[0]
        masks = [memory[slot].mask for slot in (BEFORE, EARLIER, ANCHOR, OTHER)]
        if clicks is None:
            clicks = masks[0].new_zeros(batch, 2, self.size, self.size)
        prompts4 = F.gelu(self.maps4(torch.cat([masks[0], clicks, *masks[1:]], 1)))
        prompts8 = F.gelu(self.maps8(prompts4))
        x = deep + self.maps16(prompts8)
        # tokens of other planes
        attributes = self.facts(facts.to(x.dtype))  # (B, SLOTS, token)
        tokens = torch.cat([one.tokens + attributes[:, slot, None] for slot, one in enumerate(memory)], 1)
        tokens = self.token_norm(tokens)
        flat = x.flatten(2).transpose(1, 2)
        for recall in self.recalls:
            flat = recall(flat, tokens, self.here, self.there)
        x = flat.transpose(1, 2).reshape(x.shape)
        x = self._fuse_blocks(x)
        # boundaries
        before = memory[BEFORE]
        matched = self.match(thin8, before.thin8, prompts8)
        side8 = thin8 + prompts8 + self.side8(torch.cat([thin8, before.thin8, prompts8, matched], 1))
        side4 = thin4 + prompts4 + self.side4(torch.cat([thin4, before.thin4, prompts4], 1))
        y = self.refine8(self.up8(x) + side8)
        y = self.refine4(self.up4(y) + side4)
        logits = F.pixel_shuffle(self.draw(y), 2)
        # presence and quality are predicted from the tokens where the mask is, where it was, and overall
        inside = F.adaptive_avg_pool2d(logits.detach().sigmoid(), (self.grid, self.grid)).to(x.dtype)
        was = F.adaptive_avg_pool2d(masks[0], (self.grid, self.grid)).to(x.dtype)
        cover = [
            (one.flatten(1).mean(1, keepdim=True) + 1e-4).log() / 4 for one in (inside, was)
        ]  # small masks are distinguished too
        kept = (inside * was).flatten(1).sum(1, keepdim=True) / (was.flatten(1).sum(1, keepdim=True) + 1e-2)
        peak = logits.detach().flatten(1).amax(1, keepdim=True).clamp(-8, 8) / 4
        pooled = [(x * one).sum((2, 3)) / (one.sum((2, 3)) + 1e-3) for one in (inside, was)]
        seen = torch.cat([*pooled, x.mean((2, 3)), *cover, kept, peak.to(x.dtype)], 1)
        presence, quality = self.verdict(seen.to(x.dtype)).float().unbind(1)
        return MemoryOutput(logits.float(), presence, quality.sigmoid())

    def fold(self) -> None:
        """Add the changes to copies of the network's fusion blocks once and for all, where the memory is now.

        For predictions only: what is trained, loaded or moved afterwards does not reach these copies.
        """
        blocks = copy.deepcopy(self.network.blocks).to(self.merge.weight.device)
        with torch.no_grad():
            for name, change in self.changes.items():
                weight = blocks.get_parameter(f"{name.replace('/', '.')}.weight")
                weight.copy_(change(weight))
        object.__setattr__(self, "folded", blocks.eval())

    def follow(self, before: Compact) -> None:
        """Add to the parts that began as the network's what it has changed by since it was `before`."""
        now, then = self.network.state_dict(), before.state_dict()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.partition(".")[0] in FROM_NETWORK:
                    own = parameter[:, :3] if name == "maps4.weight" else parameter  # more channels here
                    own += now[name] - then[name]

    def _fuse_blocks(self, x: Tensor) -> Tensor:
        """The network's fusion blocks with this memory's changes, and its norm."""
        if self.folded is not None:
            for block in self.folded:
                x = block(x)
            fused: Tensor = self.norm(x)
            return fused
        blocks = self.network.blocks
        weights: dict[str, Tensor] = dict(blocks.named_parameters())
        for name, change in self.changes.items():
            key = f"{name.replace('/', '.')}.weight"
            weights[key] = change(weights[key])
        for number, block in enumerate(blocks):
            start = f"{number}."
            own = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
            x = functional_call(block, own, (x,))
        normed: Tensor = self.norm(x)
        return normed

    def save(self, path: Path, **notes: str) -> Path:
        """Write the weights as float16 safetensors with config and `notes`; return the path."""
        state = {name: value.detach().cpu().half().contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, {**notes, "family": "memory", "config": json.dumps(asdict(self.config))})
        return path

    @classmethod
    def load(cls, path: Path, network: Compact) -> PlaneMemory:
        """Read a memory for this network from its file, in evaluation mode, float32, on the CPU.

        Raises
        ------
        ValueError
            For a file that is damaged, no memory, or one for another network.
        """
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} is damaged or no safetensors file: {error}") from None
        if facts.get("family") != "memory" or "config" not in facts:
            raise ValueError(f"{path.name} is no memory of other planes: its metadata names no such family")
        try:
            memory = cls(network, MemoryConfig(**json.loads(facts["config"])))
            memory.load_state_dict(state)
        except (TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path.name} does not fit this network: {error}") from None
        return memory.eval()
