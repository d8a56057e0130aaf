"""Low-latency interactive segmentation: prompts in, masks out.

The public names are listed in ``__init__.pyi`` and looked up when first used (PEP 562), so that
``import napari_lowlat_seg`` imports neither torch nor numpy: napari imports every plugin at start.

Importing it also sets, in the environment, how threads of OpenMP wait for each other (`processors`): that is
read when torch is loaded. What the user has set stays. If torch was imported before, nothing changes in this
process except what is asked for by `torch.set_num_threads`; its child processes wait as they should.
"""

import lazy_loader

from napari_lowlat_seg.inference.processors import configure as _configure

_lazy_attribute, _, _names = lazy_loader.attach_stub(__name__, __file__)

__all__ = sorted([*_names, "__version__"])

_configure()  # before anything of ours can import torch


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("napari-lowlat-seg")
    if name not in __all__:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}"
        )
    return _lazy_attribute(name)


def __dir__() -> list[str]:
    return __all__
