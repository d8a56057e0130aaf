"""``python -m napari_lowlat_seg`` is ``lowlat-seg``; ``torchrun -m napari_lowlat_seg train`` needs it."""

from napari_lowlat_seg.cli.app import main

if __name__ == "__main__":
    main()
