"""Low-latency interactive segmentation: prompts in, masks out.

The public names, and nothing else. They are looked up when first used (PEP 562), so that
``import napari_lowlat_seg`` costs nothing and imports neither torch nor numpy: napari reads the
manifest of every plugin at start.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_lowlat_seg.frame import Frame as Frame
    from napari_lowlat_seg.predictor import Embedding as Embedding
    from napari_lowlat_seg.predictor import Prediction as Prediction
    from napari_lowlat_seg.predictor import Predictor as Predictor
    from napari_lowlat_seg.predictor import load_predictor as load_predictor
    from napari_lowlat_seg.prompts import Box as Box
    from napari_lowlat_seg.prompts import Click as Click
    from napari_lowlat_seg.prompts import Mask as Mask
    from napari_lowlat_seg.prompts import Polygon as Polygon
    from napari_lowlat_seg.prompts import Prompt as Prompt
    from napari_lowlat_seg.prompts import Scribble as Scribble
    from napari_lowlat_seg.samples import sample_path as sample_path
    from napari_lowlat_seg.volume import Plane as Plane
    from napari_lowlat_seg.volume import Volume as Volume

    __version__: str

_ROOMS = {
    "Box": "prompts",
    "Click": "prompts",
    "Embedding": "predictor",
    "Frame": "frame",
    "Mask": "prompts",
    "Plane": "volume",
    "Polygon": "prompts",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "Prompt": "prompts",
    "Scribble": "prompts",
    "Volume": "volume",
    "load_predictor": "predictor",
    "sample_path": "samples",
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
