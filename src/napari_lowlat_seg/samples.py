"""Where the shipped sample data lies: a real EM stack and a real MRI volume, each with an outline.

Origin and licence of each file are in ``sample_data/README.md``.
"""

from pathlib import Path

SAMPLES = (
    "em_fly_medulla.tif",
    "em_fly_medulla_labels.tif",
    "mri_glioma_flair.nii.gz",
    "mri_glioma_reference.nii.gz",
)

# A wheel carries the folder inside the package; in a source checkout it stands at the root.
_FOLDERS = (Path(__file__).parent / "sample_data", Path(__file__).parents[2] / "sample_data")


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
