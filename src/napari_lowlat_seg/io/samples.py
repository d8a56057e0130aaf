"""Sample images: an EM stack and an MRI volume that are shipped, and one that is drawn.

Origin and licence of each file are in ``sample_data/README.md``.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from napari_lowlat_seg.core.atomic_file import atomic_file

SAMPLES = (
    "em_fly_medulla.tif",
    "em_fly_medulla_labels.tif",
    "mri_glioma_flair.nii.gz",
    "mri_glioma_reference.nii.gz",
    "tutorial.lowlat",
)

# A wheel carries the folder inside the package; in a source checkout it stands at the root.
_FOLDERS = (Path(__file__).parents[1] / "sample_data", Path(__file__).parents[3] / "sample_data")


def sample_path(name: str) -> Path:
    """The path of one shipped sample file.

    Parameters
    ----------
    name
        One of `SAMPLES`.

    Raises
    ------
    ValueError
        If there is no sample of that name.
    FileNotFoundError
        If the installation has lost the file.

    Examples
    --------
    >>> sample_path("em_fly_medulla.tif").name
    'em_fly_medulla.tif'
    """
    if name not in SAMPLES:
        raise ValueError(f"expected the name of a sample, got {name!r}; choose one of {', '.join(SAMPLES)}")
    for folder in _FOLDERS:
        if (folder / name).is_file():
            return folder / name
    places = " and ".join(str(folder) for folder in _FOLDERS)
    raise FileNotFoundError(
        f"expected the sample {name} in {places}, found it in neither; reinstall napari-lowlat-seg"
    )


def copy_samples(folder: Path) -> list[Path]:
    """Copy all sample files into a folder and return the copies.

    Parameters
    ----------
    folder
        Made if it does not exist. Equal copies that are there stay.

    Raises
    ------
    FileExistsError
        If another file has the name of a sample; nothing is copied then.
    """
    copies = [folder / name for name in SAMPLES]
    for copy in copies:
        if copy.exists() and copy.read_bytes() != sample_path(copy.name).read_bytes():
            raise FileExistsError(f"{copy} exists and is not the sample of this name; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for copy in copies:
        if not copy.exists():
            with atomic_file(copy) as part:
                shutil.copyfile(sample_path(copy.name), part)
    return copies


def blobs(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A (rows, cols) uint8 picture of soft blobs and grain, always the same for one seed."""
    rng = np.random.default_rng(seed)
    rows, cols = (np.linspace(0, 1, n, dtype=np.float32) for n in size)
    picture = rng.normal(0, 0.08, size).astype(np.float32)
    for _ in range(24):
        height, row, col, spread = rng.uniform([0.2, 0, 0, 0.02], [0.6, 1, 1, 0.1])
        picture += height * np.exp(-((rows[:, None] - row) ** 2 + (cols - col) ** 2) / spread**2).astype(
            np.float32
        )
    return (255 * np.clip(picture, 0, 1)).astype(np.uint8)
