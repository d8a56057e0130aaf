"""N5 and precomputed volumes: placed, read block by block, levels and images chosen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.files import read_volume

tensorstore = pytest.importorskip("tensorstore")

NOISE = np.random.default_rng(0).integers(0, 200, (4, 6, 10)).astype(np.uint16)
COARSE = NOISE[::2, ::2, ::2]


def write_n5(path: Path, data: np.ndarray, **about: Any) -> None:
    """An N5 data set, with attributes beside those of the format."""
    metadata = {"dataType": data.dtype.name, "dimensions": list(data.shape[::-1]),
                "blockSize": [4] * data.ndim,
                "compression": {"type": "gzip"}, **about}  # fmt: skip
    where = {"driver": "file", "path": str(path)}
    store = tensorstore.open(
        {"driver": "n5", "kvstore": where, "metadata": metadata, "create": True}
    ).result()
    store.write(data.T).result()


def write_precomputed(path: Path, data: np.ndarray, resolution: list[float], offset: list[int]) -> None:
    """A scale of a precomputed volume; data of (channels, z, y, x)."""
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(path)},
        "multiscale_metadata": {"data_type": data.dtype.name, "num_channels": len(data), "type": "image"},
        "scale_metadata": {"size": list(data.shape[:0:-1]), "resolution": resolution, "voxel_offset": offset,
                           "chunk_size": [4, 4, 2], "encoding": "raw"},
        "create": True,
    }  # fmt: skip
    tensorstore.open(spec).result().write(data.T).result()


def test_an_n5_data_set_is_opened_and_placed(tmp_path: Path) -> None:
    """The only one, or that at a path; sizes of n5-viewer and of COSEM, axes slowest first."""
    write_n5(tmp_path / "a.n5/raw", NOISE, pixelResolution={"unit": "um", "dimensions": [0.5, 0.6, 3.0]})
    volume = read_volume(tmp_path / "a.n5")
    assert not isinstance(volume.data, np.ndarray)
    assert (volume.shape, volume.spacing, volume.data.dtype) == ((4, 6, 10), (3.0, 0.6, 0.5), np.uint16)
    assert volume.geometry is not None
    assert (volume.geometry.names, volume.geometry.unit) == (("z", "y", "x"), "µm")
    np.testing.assert_array_equal(volume.plane(Plane((2, None, None))), NOISE[2])
    np.testing.assert_array_equal(volume.plane(Plane((None, None, 7))), NOISE[:, :, 7])
    place = {"scale": [8, 4, 4], "translate": [16, 0, 2], "units": ["nm"] * 3, "axes": ["z", "y", "x"]}
    write_n5(tmp_path / "a.n5/em", NOISE + 1, transform=place)
    with pytest.raises(ValueError, match="there are 2 images in it; choose one with series: em, raw"):
        read_volume(tmp_path / "a.n5")
    for volume in (read_volume(tmp_path / "a.n5", series="em"), read_volume(tmp_path / "a.n5" / "em")):
        assert volume.geometry is not None
        assert (volume.spacing, volume.geometry.unit) == ((8, 4, 4), "nm")
        assert volume.geometry.translation.tolist() == [16, 0, 2]
        np.testing.assert_array_equal(np.asarray(volume.data), NOISE + 1)
    with pytest.raises(ValueError, match="there is no image 'seg' in it; there are em, raw"):
        read_volume(tmp_path / "a.n5" / "seg")


@pytest.mark.parametrize("said", [True, False])
def test_levels_of_n5_are_one_image(said: bool, tmp_path: Path) -> None:
    """s0, s1: the finest without a choice; factors are said, or follow from the shapes."""
    size = {"pixelResolution": {"unit": "nm", "dimensions": [4, 4, 40]}}
    write_n5(tmp_path / "a.n5/setup/s0", NOISE, **size)
    write_n5(
        tmp_path / "a.n5/setup/s1", COARSE, **(size | {"downsamplingFactors": [2, 2, 2]} if said else {})
    )
    assert read_volume(tmp_path / "a.n5").shape == NOISE.shape
    for volume in (read_volume(tmp_path / "a.n5", level=1), read_volume(tmp_path / "a.n5/setup/s1")):
        assert volume.geometry is not None
        assert (volume.shape, volume.spacing) == ((2, 3, 5), (80, 8, 8))
        assert volume.geometry.translation.tolist() == [20, 2, 2]
    with pytest.raises(
        ValueError, match=r"there is no level 2 in it; there are 0 \(4, 6, 10\), 1 \(2, 3, 5\)"
    ):
        read_volume(tmp_path / "a.n5", level=2)
    with pytest.raises(ValueError, match="its path leads to level 1; leave out level 0"):
        read_volume(tmp_path / "a.n5/setup/s1", level=0)


def test_a_precomputed_volume_lies_at_its_offset(tmp_path: Path) -> None:
    """A folder with an info; voxels of a coarser scale lie in the middle of those that they cover."""
    folder = tmp_path / "em"
    write_precomputed(folder, NOISE[None], [4, 4, 40], [10, 0, 2])
    write_precomputed(folder, COARSE[None], [8, 8, 80], [5, 0, 1])
    volume = read_volume(folder)
    assert volume.geometry is not None
    assert (volume.shape, volume.spacing, volume.geometry.unit) == (NOISE.shape, (40, 4, 4), "nm")
    assert volume.geometry.translation.tolist() == [80, 0, 40]
    np.testing.assert_array_equal(volume.plane(Plane((1, None, None))), NOISE[1])
    coarse = read_volume(folder, level=1)
    assert coarse.geometry is not None
    assert (coarse.spacing, coarse.geometry.translation.tolist()) == ((80, 8, 8), [100, 2, 42])
    write_precomputed(tmp_path / "rgb.precomputed", np.stack([NOISE, NOISE + 1]), [4, 4, 40], [0, 0, 0])
    second = read_volume(tmp_path / "rgb.precomputed", channel=1)
    np.testing.assert_array_equal(second.plane(Plane((1, None, None))), NOISE[1] + 1)


def test_pipes_links_and_objects_are_refused(tmp_path: Path) -> None:
    """Before anything is waited for."""
    write_n5(tmp_path / "a.n5/raw", NOISE)
    os.mkfifo(tmp_path / "a.n5/raw/pipe")
    with pytest.raises(ValueError, match="pipe is no regular file"):
        read_volume(tmp_path / "a.n5")
    write_precomputed(tmp_path / "em", NOISE[None], [4, 4, 40], [0, 0, 0])
    (tmp_path / "secret").write_text("x")
    (tmp_path / "em" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="link is a link that leads out of the folder"):
        read_volume(tmp_path / "em")
    (tmp_path / "em" / "link").unlink()
    info = json.loads((tmp_path / "em/info").read_text())
    for key in ("../a.n5", "/etc", ""):
        info["scales"][0]["key"] = key
        (tmp_path / "em/info").write_text(json.dumps(info))
        with pytest.raises(ValueError, match="is not inside it"):
            read_volume(tmp_path / "em")
    info["scales"][0]["key"], info["scales"][0]["resolution"] = "4_4_40", [4, float("inf"), 1]
    (tmp_path / "em/info").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="em cannot be read"):
        read_volume(tmp_path / "em")
    (tmp_path / "b.n5").mkdir()
    with pytest.raises(ValueError, match="there is no image '' in it"):
        read_volume(tmp_path / "b.n5")
    (tmp_path / "b.n5" / "attributes.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no attributes"):
        read_volume(tmp_path / "b.n5")
