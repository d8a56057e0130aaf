"""Large files: how long opening one takes, and how much memory a conversion.

    python -m benchmarks.large_files open [.mrc .h5 ...]
    python -m benchmarks.large_files convert [.tif .nii .dcm ...]

`open` makes a sparse file of 5,000 x 2,048 x 2,048 bytes (21 GB, none of which takes room on the disk),
chooses a window and reads a plane in the middle. `convert` exports labels of 200 x 2,048 x 2,048 voxels with
30 objects (1.6 GiB as 16 bits) that lie on a DICOM series made for it. Each in a process of its own,
whose peak of memory is the figure.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from napari_lowlat_seg.evaluation.latency import peak_ram

SHAPE = (5000, 2048, 2048)
LABELS = (200, 2048, 2048)


def mrc(path: Path) -> None:
    """A header for signed bytes of 10 Å; mrcfile would write the pixels."""
    import mrcfile

    with mrcfile.new(path, np.zeros((1, 1, 1), np.int8)) as file:
        file.voxel_size = 10.0
        header = file.header.copy()
    header.nz, header.ny, header.nx = header.mz, header.my, header.mx = SHAPE
    header.cella.z, header.cella.y, header.cella.x = (10.0 * n for n in SHAPE)
    path.write_bytes(header.tobytes())
    os.truncate(path, 1024 + int(np.prod(SHAPE)))


def hdf5(path: Path) -> None:
    """A data set in chunks, none of which is stored."""
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("raw", SHAPE, np.uint8, chunks=(16, 256, 256))


def nrrd(path: Path) -> None:
    """Raw pixels behind a header."""
    sizes = " ".join(map(str, SHAPE[::-1]))
    text = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: {sizes}\nencoding: raw\n\n"
    path.write_bytes(text.encode())
    os.truncate(path, len(text) + int(np.prod(SHAPE)))


def npy(path: Path) -> None:
    """numpy's own form."""
    np.lib.format.open_memmap(path, "w+", np.uint8, SHAPE)


MAKERS: dict[str, Callable[[Path], None]] = {".mrc": mrc, ".h5": hdf5, ".nrrd": nrrd, ".npy": npy}


def opened(path: Path, results: Any) -> None:
    """Open, choose a window and read a plane."""
    from napari_lowlat_seg.io.files import read_volume

    began = time.perf_counter()
    volume = read_volume(path).with_window()
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    volume.plane(volume.planes(0)[SHAPE[0] // 2])
    results.put({"open": seconds, "plane": time.perf_counter() - began, "peak": peak_ram() or 0.0})


def series(folder: Path) -> None:
    """A DICOM series of black slices, 2 mm apart."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    numbers = {f"{name}InstanceUID": generate_uid() for name in ("Series", "Study")}
    numbers["FrameOfReferenceUID"] = generate_uid()
    for at in range(LABELS[0]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        about = {
            **numbers, "SOPClassUID": CTImageStorage, "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
            "Modality": "CT", "SeriesNumber": 1, "InstanceNumber": at + 1, "PatientID": "a",
            "PatientName": "a",
            "PatientBirthDate": "", "PatientSex": "", "StudyDate": "", "StudyTime": "", "StudyID": "a",
            "AccessionNumber": "", "ReferringPhysicianName": "", "ImagePositionPatient": [0, 0, 2 * at],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [1, 1], "SliceThickness": 2,
            "Rows": LABELS[1], "Columns": LABELS[2], "SamplesPerPixel": 1, "BitsAllocated": 8,
            "BitsStored": 8, "PhotometricInterpretation": "MONOCHROME2", "HighBit": 7,
            "PixelRepresentation": 0,
            "PixelData": bytes(LABELS[1] * LABELS[2]),
        }  # fmt: skip
        for name, value in about.items():
            setattr(one, name, value)
        one.save_as(folder / f"{at:04}.dcm", enforce_file_format=True)


def objects(path: Path, image: Path) -> None:
    """Thirty balls in a file of labels of an image."""
    from napari_lowlat_seg.core.volume import Plane
    from napari_lowlat_seg.io.files import label_output, read_volume

    rng, radius = np.random.default_rng(0), (20, 200, 200)
    squares = np.ogrid[tuple(slice(-r, r) for r in radius)]
    ball = np.asarray(sum((x / r) ** 2 for x, r in zip(squares, radius, strict=True)) < 1)
    with label_output(path, read_volume(image)) as labels:
        for number in range(300, 330):
            corner = [int(rng.integers(0, n - 2 * r)) for n, r in zip(LABELS, radius, strict=True)]
            for at, mask in enumerate(ball, corner[0]):
                labels.write_mask(Plane((at, None, None)), mask, number, (corner[1], corner[2]))


def converted(labels: Path, output: Path, image: Path | None, results: Any) -> None:
    """Export labels."""
    from napari_lowlat_seg.io.exports.export import run_export

    began = time.perf_counter()
    run_export(labels, output, image=image)
    size = output.stat().st_size / 2**20
    results.put({"seconds": time.perf_counter() - began, "peak": peak_ram() or 0.0, "file": size})


def apart(work: Callable[..., None], *arguments: Any) -> dict[str, float]:
    """What a function puts into the queue, which is its last argument, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(*arguments, results))
    process.start()
    found: dict[str, float] = results.get()
    process.join()
    return found


def main() -> None:
    """Measure, and print a line for each suffix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("open", "convert"))
    parser.add_argument("suffixes", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "convert":
            (folder / "series").mkdir()
            series(folder / "series")
            objects(folder / "labels.nii", folder / "series")
        usual = list(MAKERS) if given.what == "open" else [".nii", ".mrc", ".dcm"]
        for suffix in given.suffixes or usual:
            path = folder / f"a{suffix}"
            if given.what == "open":
                MAKERS[suffix](path)
                found = apart(opened, path)
            else:
                image = folder / "series" if suffix == ".dcm" else None
                found = apart(converted, folder / "labels.nii", path, image)
            path.unlink()
            said = ", ".join(f"{key} {value:.1f}" for key, value in found.items())
            print(f"{suffix}: {said}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
