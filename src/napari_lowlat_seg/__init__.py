"""Low-latency interactive segmentation: prompts in, masks out.

The public names, and nothing else. They are looked up when first used (PEP 562), so that
``import napari_lowlat_seg`` costs nothing and imports neither torch nor numpy: napari reads the
manifest of every plugin at start.

Importing it also sets, in the environment, how threads of OpenMP wait for each other (`processors`): that is
read when torch is loaded. What the user has set stays. If torch was imported before, nothing changes in this
process except what is asked for by `torch.set_num_threads`; its child processes wait as they should.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from napari_lowlat_seg.core.processors import configure as _configure

if TYPE_CHECKING:
    from napari_lowlat_seg.core.frame import Frame as Frame
    from napari_lowlat_seg.core.prompts import Box as Box
    from napari_lowlat_seg.core.prompts import Click as Click
    from napari_lowlat_seg.core.prompts import Mask as Mask
    from napari_lowlat_seg.core.prompts import Polygon as Polygon
    from napari_lowlat_seg.core.prompts import Prompt as Prompt
    from napari_lowlat_seg.core.prompts import Scribble as Scribble
    from napari_lowlat_seg.core.volume import Plane as Plane
    from napari_lowlat_seg.core.volume import Volume as Volume
    from napari_lowlat_seg.inference.predictor import Embedding as Embedding
    from napari_lowlat_seg.inference.predictor import Prediction as Prediction
    from napari_lowlat_seg.inference.predictor import Predictor as Predictor
    from napari_lowlat_seg.inference.predictor import load_predictor as load_predictor
    from napari_lowlat_seg.io.samples import sample_path as sample_path

    __version__: str

_ROOMS = {
    "Box": "core.prompts",
    "Click": "core.prompts",
    "Embedding": "inference.predictor",
    "Frame": "core.frame",
    "Mask": "core.prompts",
    "Plane": "core.volume",
    "Polygon": "core.prompts",
    "Prediction": "inference.predictor",
    "Predictor": "inference.predictor",
    "Prompt": "core.prompts",
    "Scribble": "core.prompts",
    "Volume": "core.volume",
    "load_predictor": "inference.predictor",
    "sample_path": "io.samples",
}

__all__ = [
    "Box",
    "Click",
    "Embedding",
    "Frame",
    "Mask",
    "Plane",
    "Polygon",
    "Prediction",
    "Predictor",
    "Prompt",
    "Scribble",
    "Volume",
    "__version__",
    "load_predictor",
    "sample_path",
]

_configure()  # before anything of ours can import torch


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("napari-lowlat-seg")
    elif name in _ROOMS:
        value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    else:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}"
        )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
