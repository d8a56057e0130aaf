"""Reading the original's .pth files, which are not trusted.

Such a file is a pickle that names a Python class to import. `archives` looks at it first, it is read with
`weights_only=True`, and nothing is imported by name. The geometry is taken from the shapes of the tensors;
what shapes do not tell (attention heads, which blocks have global attention) is read from the file's config
and must be within bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_lowlat_seg.models.archives import NOT_A_MODEL, check_values, read_torch_file
from napari_lowlat_seg.models.network import MEAN, STD
from napari_lowlat_seg.models.segnext import SegNextConfig

CLASS = "PlainVitModel"
PARAMETERS = (
    "backbone_params",
    "neck_params",
    "head_params",
    "fusion_params",
    "norm_radius",
    "use_disks",
    "cpu_dist_maps",
    "norm_mean_std",
)


def read_official(path: Path) -> tuple[SegNextConfig, dict[str, Tensor]]:
    """Geometry and float32 parameters of an official checkpoint.

    Raises
    ------
    ValueError
        If the file is something else, or does not fit SegNext; the message says which.
    """
    content = read_torch_file(path)
    check_values(path, content)
    if isinstance(content, list | tuple) and content:
        content = content[0]  # the first of several is the model
    state, config = _parts(path, content)
    params = _parameters(path, config)
    try:
        return segnext_config(state, params), {key: value.float() for key, value in state.items()}
    except ValueError as error:
        raise ValueError(f"{path.name} does not fit SegNext: {error}") from None


def segnext_config(state: Mapping[str, Tensor], params: Mapping[str, Any]) -> SegNextConfig:
    """The geometry that the shapes in `state` and the constructor arguments in `params` agree on.

    Raises
    ------
    ValueError
        Where they disagree, where a value is out of bounds, or for a variant that was never released.
    """
    backbone, fusion = _section(params, "backbone_params"), _section(params, "fusion_params")
    neck, head = _section(params, "neck_params"), _section(params, "head_params")
    patch = _shape(state, "backbone.patch_embed.proj.weight", 4)[-1]
    tokens, dim = _shape(state, "backbone.pos_embed", 3)[1:]
    levels = ("down_4.5", "down_8.2", "down_16.0", "down_32.2")
    found: dict[str, Any] = {
        "size": isqrt(tokens - 1) * patch,
        "patch": patch,
        "dim": dim,
        "depth": _count(state, "backbone.blocks."),
        "fusion_blocks": _count(state, "fusion_blocks."),
        "neck_dims": tuple(_shape(state, f"neck.{level}.weight", 4)[0] for level in levels),
        "head_dim": _shape(state, "head.fusion_conv.conv.weight", 4)[0],
    }
    kind = fusion.get("type", "self_attention")
    if kind not in ("self_attention", "naive"):
        raise ValueError(f"its fusion is {kind!r:.40}; only 'self_attention' and 'naive' are known")
    configured = {
        "size": _first(backbone.get("img_size")),
        "patch": _first(backbone.get("patch_size")),
        "dim": backbone.get("embed_dim"),
        "depth": backbone.get("depth"),
        "fusion_blocks": 0 if kind == "naive" else fusion.get("depth"),
        "neck_dims": tuple(neck["out_dims"]) if isinstance(neck.get("out_dims"), list | tuple) else None,
        "head_dim": head.get("out_channels"),
    }
    for name, value in configured.items():
        if value is not None and value != found[name]:
            raise ValueError(f"its config says {name} {value!r:.40}, its tensors say {found[name]}")
    _only(head, "in_select_index", [0, 1, 2, 3])
    _only(head, "num_classes", 1)
    _only(params, "norm_mean_std", [[value / 255 for value in values] for values in (MEAN, STD)])
    heads = _whole(backbone, "num_heads", 1, 64, None)
    inner = _section(fusion, "params") if found["fusion_blocks"] else {}
    return SegNextConfig(
        **found,
        heads=heads,
        mlp_ratio=_shape(state, "backbone.blocks.0.mlp.fc1.weight", 2)[0] / dim,
        global_every=_whole(backbone, "global_atten_freq", 1, 64, 3),
        fusion_heads=_whole(inner, "num_heads", 1, 64, heads),
        fusion_mlp_ratio=_shape(state, "fusion_blocks.0.mlp.fc1.weight", 2)[0] / dim if inner else 4.0,
        radius=_whole(params, "norm_radius", 1, 64, 5),
        use_disks=bool(params.get("use_disks", True)),
    )


def _parts(path: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and the config. Raises ValueError that says what the file is instead."""
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}; {NOT_A_MODEL}")
    state, config = content.get("state_dict"), content.get("config")
    if not isinstance(state, dict) or not isinstance(config, dict):
        inner = content.get("model", state if isinstance(state, dict) else content)
        names = [str(name) for name in inner] if isinstance(inner, dict) else []
        if any(name.startswith(("image_encoder.", "sam_")) for name in names):
            raise ValueError(f"{path.name} is a SAM checkpoint; {NOT_A_MODEL}")
        if "cls_token" in names:
            raise ValueError(
                f"{path.name} is a pre-trained encoder (MAE) without decoder, from which training can start; "
                f"{NOT_A_MODEL}"
            )
        if isinstance(state, dict):
            raise ValueError(f"{path.name} has no 'config' beside its 'state_dict'; {NOT_A_MODEL}")
        raise ValueError(f"{path.name} has the keys {_some(content)}; {NOT_A_MODEL}")
    for name, value in state.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise ValueError(f"{path.name}: {str(name)[:60]!r} is not a plain dense tensor of real numbers")
    return dict(state), config


def _is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of real numbers whose storage is as large as its shape requires."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _parameters(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The constructor arguments of the official config, {name: value}."""
    named = str(config.get("class"))
    if named.rpartition(".")[2] != CLASS:
        raise ValueError(f"{path.name} names the class {named[:80]!r}; expected one that ends in {CLASS}")
    params = config.get("params")
    rows = params.items() if isinstance(params, dict) else ()
    plain = {}
    for name, row in rows:
        if not isinstance(row, dict) or row.get("type") != "builtin":
            raise ValueError(f"{path.name}: the config's {str(name)[:40]!r} is not a plain value")
        if name in PARAMETERS:
            plain[name] = row.get("value")
        elif row.get("specified"):
            raise ValueError(f"{path.name}: the config sets {str(name)[:40]!r}, which no released model does")
    return plain


def _section(params: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = params.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"its config has no {name}")
    return value


def _shape(state: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in state or state[key].ndim != ndim:
        got = tuple(state[key].shape) if key in state else "nothing"
        raise ValueError(f"expected {key} with {ndim} axes, got {got}")
    return tuple(state[key].shape)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)})


def _whole(section: Mapping[str, Any], name: str, low: int, high: int, default: int | None) -> int:
    value = section.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"its config's {name} must be a whole number in {low}..{high}, got {value!r:.40}")
    return value


def _only(section: Mapping[str, Any], name: str, known: Any) -> None:
    value = section.get(name, known)
    if not _same(value, known):
        raise ValueError(f"its config's {name} must be {known}, got {value!r:.60}")


def _same(value: Any, known: Any) -> bool:
    """Whether a number, or nested lists of numbers, are the known ones up to rounding."""
    if isinstance(known, list):
        return isinstance(value, list | tuple) and len(value) == len(known) and all(map(_same, value, known))
    return isinstance(value, int | float) and isclose(value, known, rel_tol=1e-6)


def _first(value: Any) -> Any:
    """A side, which a config gives as 1024 or (1024, 1024)."""
    return value[0] if isinstance(value, list | tuple) and len(set(map(repr, value))) == 1 else value


def _some(names: Mapping[Any, Any]) -> str:
    shown = ", ".join(repr(str(name)[:40]) for name in list(names)[:3])
    return f"{shown}, ..." if len(names) > 3 else shown or "none"
