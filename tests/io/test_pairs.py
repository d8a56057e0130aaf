"""Between every pair of formats a voxel stays where it is in the world, or the pair is refused.

Images are written by other libraries (nibabel, pynrrd, mrcfile, tifffile, zarr, h5py, or by hand) with any
order, direction and slant of axes, units, and axes of length 1; where the marked voxel lies is known from
what was drawn, not from a reader. More examples: ``PAIR_EXAMPLES=2000 pytest tests/io/test_pairs.py
--hypothesis-show-statistics``, which counts what was kept and what was refused.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.io.files import check_labels_path, label_output, read_aligned, read_volume

nibabel = pytest.importorskip("nibabel")
nrrd = pytest.importorskip("nrrd")
mrcfile = pytest.importorskip("mrcfile")
tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")
h5py = pytest.importorskip("h5py")
pytest.importorskip("SimpleITK")

METRES = {"m": 1.0, "mm": 1e-3, "µm": 1e-6, "nm": 1e-9, "Å": 1e-10}
OUTPUTS = (".nii", ".tif", ".ome.tif", ".ome.zarr", ".nrrd", ".seg.nrrd", ".mrc", ".mha", ".mgz")


@dataclass(frozen=True)
class Written:
    """An image in a file, and what is known of a marked voxel.

    Attributes
    ----------
    path
        Of the file.
    index
        Of the voxel in the array as it is read.
    world
        Its place by the names of the world's axes, in `unit`; empty if the file says no place.
    step
        The smallest distance of two voxels.
    """

    path: Path
    index: tuple[int, ...]
    world: dict[str, float]
    unit: str | None
    step: float


Draw = Callable[..., Any]
Writer = Callable[[Path, Draw], Written]

sides = st.lists(st.integers(1, 4), min_size=3, max_size=3)
steps = st.lists(st.sampled_from((0.25, 0.7, 1.0, 3.0)), min_size=3, max_size=3)
starts = st.lists(st.sampled_from((0.0, -12.5, 7.0, 250.0)), min_size=3, max_size=3)
signs = st.lists(st.sampled_from((-1, 1)), min_size=3, max_size=3)


def pixels(draw: Draw) -> tuple[np.ndarray, tuple[int, ...]]:
    """A small volume, and a voxel of it."""
    shape = draw(sides)
    index = tuple(draw(st.integers(0, n - 1)) for n in shape)
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape), index


def affine_of(draw: Draw, sheared: bool = True) -> np.ndarray:
    """(4, 4): any order and direction of axes, straight or oblique."""
    matrix = np.eye(3)[:, draw(st.permutations(range(3)))] * draw(signs)
    kind = draw(st.sampled_from(("straight", "turned", *(["sheared"] if sheared else []))))
    if kind != "straight":
        random = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(3, 3))
        matrix = np.linalg.qr(random)[0] @ matrix if kind == "turned" else (np.eye(3) + 0.1 * random) @ matrix
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = matrix * draw(steps), draw(starts)
    return affine


def placed(path: Path, index: tuple[int, ...], affine: np.ndarray, unit: str | None) -> Written:
    """A voxel whose (i, j, k) an affine takes to x, y, z."""
    world = dict(zip("xyz", (affine @ [*index, 1])[:3].tolist(), strict=True))
    return Written(path, index, world, unit, float(np.linalg.norm(affine[:3, :3], axis=0).min()))


def nifti(folder: Path, draw: Draw) -> Written:
    """With or without units; perhaps with axes of length 1 after the third."""
    data, index = pixels(draw)
    affine = affine_of(draw)
    unit = draw(st.sampled_from((None, "mm", "µm", "m")))
    image = nibabel.Nifti1Image(data[(..., *[None] * draw(st.integers(0, 2)))], affine)
    image.header.set_xyzt_units({None: "unknown", "mm": "mm", "µm": "micron", "m": "meter"}[unit])
    nibabel.save(image, folder / "a.nii")
    return placed(folder / "a.nii", index, image.affine, unit)


def mgz(folder: Path, draw: Draw) -> Written:
    """FreeSurfer's, in mm."""
    data, index = pixels(draw)
    affine = affine_of(draw)
    nibabel.save(nibabel.MGHImage(data, affine), folder / "a.mgz")
    return placed(folder / "a.mgz", index, affine, "mm")


def nrrd_file(folder: Path, draw: Draw) -> Written:
    """In a patient's space; the file's axes are those of the array, reversed."""
    data, index = pixels(draw)
    affine = affine_of(draw)
    name, sides_of = draw(st.sampled_from((("LPS", (-1, -1, 1)), ("RAS", (1, 1, 1)), ("LAS", (-1, 1, 1)))))
    unit = draw(st.sampled_from((None, "mm", "µm", "nm")))
    header: dict[str, Any] = {
        "space": name,
        "space directions": (affine[:3, :3] * np.array(sides_of)[:, None]).T[::-1],
        "space origin": affine[:3, 3] * sides_of,
    }
    if unit is not None:
        header["space units"] = [{"µm": "um"}.get(unit, unit)] * 3
    nrrd.write(str(folder / "a.nrrd"), data, header, index_order="C")
    return placed(folder / "a.nrrd", index, affine, unit or "mm")


def mha(folder: Path, draw: Draw) -> Written:
    """Written by hand: spacing, the directions of axes as rows, origin; to the left and the back."""
    data, index = pixels(draw)
    affine = affine_of(draw, sheared=False)
    itk = (np.diag([-1, -1, 1, 1]) @ affine)[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(itk[:3, :3], axis=0)

    def text(values: Any) -> str:
        return " ".join(repr(float(value)) for value in np.ravel(values))

    lines = [
        "ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False",
        f"TransformMatrix = {text((itk[:3, :3] / spacing).T)}", f"Offset = {text(itk[:3, 3])}",
        f"ElementSpacing = {text(spacing)}", "DimSize = " + " ".join(map(str, data.shape[::-1])),
        "ElementType = MET_UCHAR", "ElementDataFile = LOCAL\n",
    ]  # fmt: skip
    (folder / "a.mha").write_bytes("\n".join(lines).encode() + data.tobytes())
    return placed(folder / "a.mha", index, affine, "mm")


def along(path: Path, index: tuple[int, ...], names: str, step: Any, start: Any, unit: str | None) -> Written:
    """A voxel of an array whose axes are the world's."""
    world = {name: s + i * d for name, i, d, s in zip(names, index, step, start, strict=True)}
    return Written(path, index, world, unit, min(step))


def ome_zarr(folder: Path, draw: Draw) -> Written:
    """Axes in any order and in several units, a translation, time and channels of length 1."""
    data, index = pixels(draw)
    names = "".join(draw(st.permutations("zyx")))
    step, start = draw(steps), draw(starts)
    units = draw(
        st.one_of(st.just([None] * 3), st.lists(st.sampled_from(("µm", "nm")), min_size=3, max_size=3))
    )
    full = {"µm": "micrometer", "nm": "nanometer"}
    more = draw(st.sampled_from(("", "t", "c", "tc")))
    axes = [{"name": one, "type": {"t": "time", "c": "channel"}[one]} for one in more]
    axes += [
        {"name": name, "type": "space"} | ({} if unit is None else {"unit": full[unit]})
        for name, unit in zip(names, units, strict=True)
    ]
    data = data[(None,) * len(more)]
    root = zarr.open_group(folder / "a.ome.zarr", mode="w", zarr_format=2)
    root.create_array("0", shape=data.shape, dtype="u1", chunks=data.shape)[...] = data
    ones, zeros = [1.0] * len(more), [0.0] * len(more)
    changes = [
        {"type": "scale", "scale": [*ones, *step]},
        {"type": "translation", "translation": [*zeros, *start]},
    ]
    level = {"path": "0", "coordinateTransformations": changes}
    root.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [level]}]
    if units[0] is None:
        return along(folder / "a.ome.zarr", index, names, step, start, None)
    factors = [METRES[unit] / METRES["nm"] for unit in units]
    step = [d * factor for d, factor in zip(step, factors, strict=True)]
    start = [s * factor for s, factor in zip(start, factors, strict=True)]
    return along(folder / "a.ome.zarr", index, names, step, start, "nm")


def imagej(folder: Path, draw: Draw) -> Written:
    """A size of voxels, and the voxel that lies at 0."""
    data, index = pixels(draw)
    assume(data.shape[-1] > 1)  # tifffile cannot write ImageJ's form otherwise
    (z, y, x), origin = draw(steps), draw(starts)
    unit = draw(st.sampled_from(("µm", "nm", "mm")))
    about = {"axes": "ZYX", "spacing": z, "unit": {"µm": "um"}.get(unit, unit)}
    about |= {f"{name}origin": at for name, at in zip("zyx", origin, strict=True) if at}
    tifffile.imwrite(folder / "a.tif", data, imagej=True, resolution=(1 / x, 1 / y), metadata=about)
    start = [-at * step for at, step in zip(origin, (z, y, x), strict=True)]
    return _shorter(folder / "a.tif", data, index, (z, y, x), start, unit)


def ome_tiff(folder: Path, draw: Draw) -> Written:
    """Sizes in any unit; the place of the first plane, or none."""
    data, index = pixels(draw)
    step, start = draw(steps), draw(st.one_of(st.just([0.0] * 3), starts))
    unit = draw(st.sampled_from(("µm", "nm", "mm", "Å")))
    about: dict[str, Any] = {"axes": "ZYX"}
    for letter, d in zip("ZYX", step, strict=True):
        about |= {f"PhysicalSize{letter}": d, f"PhysicalSize{letter}Unit": unit}
    planes: dict[str, Any] = {}
    for letter, s in zip("ZYX", start, strict=True):
        if s:
            planes |= {f"Position{letter}": [s] * len(data), f"Position{letter}Unit": [unit] * len(data)}
    about |= {"Plane": planes} if planes else {}
    tifffile.imwrite(folder / "a.ome.tif", data, ome=True, metadata=about, photometric="minisblack")
    return _shorter(folder / "a.ome.tif", data, index, step, start, unit)


def _shorter(
    path: Path, data: np.ndarray, index: tuple[int, ...], step: Any, start: Any, unit: str
) -> Written:
    """As `along`, of a file from which axes of length 1 may be read or not."""
    volume = read_volume(path)
    assert volume.geometry is not None
    names = [axis.name for axis in volume.geometry.axes]
    kept = ["zyx".index(name) for name in names]
    assert all(data.shape[axis] == 1 for axis in range(3) if axis not in kept)
    return along(
        path, tuple(index[axis] for axis in kept), "".join(names), [step[axis] for axis in kept],
        [start[axis] for axis in kept], unit,
    )  # fmt: skip


def mrc(folder: Path, draw: Draw) -> Written:
    """Sections, rows and columns along any axes; in Å."""
    data, index = pixels(draw)
    order = draw(st.permutations("zyx"))
    size, origin = (dict(zip("xyz", draw(one), strict=True)) for one in (steps, starts))
    with mrcfile.new(folder / "a.mrc") as file:
        file.set_data(data.astype(np.int16))
        file.set_volume()
        file.header.maps, file.header.mapr, file.header.mapc = ("xyz".index(name) + 1 for name in order)
        for name in "xyz":
            file.header[f"m{name}"] = data.shape[order.index(name)]
            file.header.cella[name] = size[name] * data.shape[order.index(name)]
            file.header.origin[name] = origin[name]
    step, start = ([one[name] for name in order] for one in (size, origin))
    return along(folder / "a.mrc", index, "".join(order), step, start, "Å")


def hdf5(folder: Path, draw: Draw) -> Written:
    """As CREMI writes it, in nm; or nothing but the array."""
    data, index = pixels(draw)
    said = draw(st.booleans())
    step, start = draw(steps), draw(starts)
    with h5py.File(folder / "a.h5", "w") as file:
        raw = file.create_dataset("raw", data=data)
        if said:
            raw.attrs["resolution"], raw.attrs["offset"] = step, start
    if said:
        return along(folder / "a.h5", index, "zyx", step, start, "nm")
    return Written(folder / "a.h5", index, {}, None, 1.0)


def npy(folder: Path, draw: Draw) -> Written:
    """Nothing but the array."""
    data, index = pixels(draw)
    np.save(folder / "a.npy", data.astype(np.uint16))
    return Written(folder / "a.npy", index, {}, None, 1.0)


IMAGES: tuple[Writer, ...] = (nifti, mgz, nrrd_file, mha, ome_zarr, imagej, ome_tiff, mrc, hdf5, npy)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("PAIR_EXAMPLES", 60)), deadline=None)
@given(st.data())
def test_a_voxel_stays_where_it_is_between_any_two_formats(data: st.DataObject) -> None:
    """Or the pair is refused, before anything is written."""
    with tempfile.TemporaryDirectory() as folder:
        write = data.draw(st.sampled_from(IMAGES))
        image = write(Path(folder), data.draw)
        suffix = data.draw(st.sampled_from(OUTPUTS))
        _compare(image, Path(folder) / f"labels{suffix}", f"{write.__name__} to {suffix}")


def _compare(image: Written, output: Path, pair: str) -> None:
    """Write labels of the marked voxel and look for it; count what happened."""
    volume = read_volume(image.path)
    assert len(image.index) == volume.ndim, "an axis of length 1 was taken for the volume's"
    try:
        check_labels_path(output, like=volume)
    except ValueError:
        assert not output.exists()
        event("refused")
        event(f"refused, {pair}")
        return
    with label_output(output, volume) as labels:
        labels.data[image.index] = 7
    back = read_volume(output)
    ((*found,),) = np.argwhere(np.asarray(back.data) == 7)
    aligned = np.argwhere(np.asarray(read_aligned(output, volume, "labels").data) == 7)
    assert aligned.tolist() == [list(image.index)]
    # TIFF leaves out axes of length 1, along which there is one place only.
    if not image.world:
        assert [n for n in found if n] == [n for n in image.index if n]
        event("kept, of no place")
        return
    assert back.geometry is not None
    names = [axis.name for axis in back.geometry.world]
    world = dict(zip(names, back.geometry.to_world(found).tolist(), strict=True))
    assert (back.geometry.unit is None) == (image.unit is None)
    factor = METRES[back.geometry.unit] / METRES[image.unit] if image.unit else 1.0
    assert volume.geometry is not None
    single = {axis.name for axis, n in zip(volume.geometry.axes, volume.shape, strict=True) if n == 1}
    assert set(image.world) - set(world) <= (single if "tif" in output.suffix else set())
    for name, at in world.items():
        assert at * factor == pytest.approx(image.world[name], abs=2e-3 * image.step, rel=1e-6)
    event("kept")
    event(f"kept, {pair}")
