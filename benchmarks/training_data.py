"""Lay out shards of pictures and volumes as training and the memory's benchmark read them.

    python -m benchmarks.training_data pictures SHARDS OUT            # OUT/train/DOMAIN/images/SET/NAME.*
    python -m benchmarks.training_data regions OUT/train              # OUT/train/regions/ from med
    python -m benchmarks.training_data memory SHARDS VOLUMES OUT      # OUT/volumes/*.npz, OUT/pictures/*
    python -m benchmarks.training_data objects SHARDS VOLUMES OUT     # OUT/*.npz for plane_memory

SHARDS has `SPLIT-DOMAIN-NN.tar` of `images/SET/NAME.*` and `masks/SET/NAME.png`, and `train-volumes-*.tar` of
`volumes/SET/NAME_image.nii.gz` and `NAME_label.nii.gz`; VOLUMES has single files of both kinds. What the
memory must not see is listed in `HELD_OUT`, with the planes of the FIB-SEM volume in `MEDULLA`.
"""

from __future__ import annotations

import argparse
import io
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, maximum_filter, minimum_filter
from skimage.measure import label
from skimage.segmentation import felzenszwalb

from napari_lowlat_seg.io.files import default_axis, read_volume

HELD_OUT = ("hippocampus_001", "hippocampus_003", "hippocampus_004", "patient07", "t2", "ct", "mr")
"""Volumes that never train the memory, beside the last `LAST_HIPPOCAMPI` of their set."""

LAST_HIPPOCAMPI = 8

MEDULLA = (0, 179)
"""Planes of the FIB-SEM volume that may train the memory; 200 to 249 are the benchmark's."""

PICTURES = {"em": 1000, "med": 20}
"""Domains whose pictures are deformed into sequences, and at most how many of each set."""

NOT_DEFORMED = ("flyem_medulla", "flyem_medulla_xz_yz", "epfl_hippocampus", "msd_hippocampus", "totalseg_ct")
"""Sets whose volumes are there, or are held out."""

SIDE = 1024
"""Larger pictures are cut to their middle of this side."""


@dataclass(frozen=True)
class Labelled:
    """A named volume: image (D, H, W), labels of its shape, voxel size along the three axes."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, ...]


def extract_pictures(shards: Path, out: Path, limit: int | None = None) -> int:
    """Write the pictures of all shards as OUT/SPLIT/DOMAIN/(images|masks)/SET/NAME; return how many."""
    count = 0
    for path in sorted(shards.glob("*.tar")):
        split, domain, _ = path.stem.split("-")
        if domain == "volumes":
            continue
        of_set: dict[str, int] = {}
        with tarfile.open(path) as tar:
            for name, image, mask in _pairs(tar):
                group = name.split("/")[1]
                of_set[group] = of_set.get(group, 0) + 1
                if limit is not None and of_set[group] > limit:
                    continue
                for member in (image, mask):
                    to = out / split / domain / member
                    to.parent.mkdir(parents=True, exist_ok=True)
                    to.write_bytes(_bytes(tar, member))
                count += 1
    return count


# fmt: off
REGION_SETS = (
    "aorta_ct", "bhsd_hemorrhage", "breast_lesions_usg", "brisc_brain_tumor", "busuc_breast_us", "carotid_us",
    "chd_heart_ct", "chest_xray_lungs", "hocm_heart_ct", "kidney_t2w_mri", "liver_us", "ms_lesions",
    "ms_mendeley_flair", "msd_hepatic_vessel", "msd_lung_tumor", "msd_spleen", "pd25_subcortical",
    "serebrum_7t_brain", "totalseg_ct", "totalseg_mr",
)
# fmt: on
"""Sets of domain med whose pictures, not their labels, give region targets: little in them is labelled."""

LEAST_REGION = (0.001, 0.03)
"""Share of a picture that its smallest region covers, drawn evenly by logarithm."""

LARGEST_REGION = 0.3
"""Larger regions are none, as are those in a corner of the picture, which are background."""

ROUND = 0.12
"""Share of a region that its largest inscribed circle covers at least: others are seams, and are none."""


def region_targets(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return regions (H, W) uint16 of a picture (H, W, 3) uint8 by its colours alone, 0 for none.

    Superpixels of Felzenszwalb & Huttenlocher ("Efficient Graph-Based Image Segmentation", 2004) of the
    smoothed picture; small ones are merged into their most similar neighbours.
    """
    area = pixels.shape[0] * pixels.shape[1]
    low, high = LEAST_REGION
    size = max(1, round(low * (high / low) ** rng.random() * area))
    scale, sigma = 30 * 10 ** rng.random(), rng.uniform(1, 2.5)
    ids = felzenszwalb(pixels, scale=scale, sigma=sigma, min_size=size, channel_axis=-1) + 1
    areas = np.bincount(ids.ravel())
    depth = np.zeros(len(areas))
    inner = distance_transform_edt(minimum_filter(ids, 3) == maximum_filter(ids, 3))  # a pixel too little
    np.maximum.at(depth, ids.ravel(), inner.ravel() + 1)
    none = (areas > LARGEST_REGION * area) | (np.pi * depth**2 < ROUND * areas)
    none[ids[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
    ids[none[ids]] = 0
    narrow: np.ndarray = ids.astype(np.uint16)
    return narrow


def write_regions(train: Path, limit: int | None = None) -> int:
    """Write TRAIN/regions from the pictures of `REGION_SETS` in TRAIN; return how many have a region.

    A set is named like the one it is made from, with `_regions`; its pictures are links.
    """
    count = 0
    for group in REGION_SETS:
        folder = train / "med" / "images" / group
        images, masks = (train / "regions" / kind / f"{group}_regions" for kind in ("images", "masks"))
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(folder.iterdir())[:limit]):
            rng = np.random.default_rng(number)
            ids = region_targets(np.asarray(Image.open(path).convert("RGB")), rng)
            if ids.any():
                link = images / path.name
                link.unlink(missing_ok=True)
                link.symlink_to(Path("../../..", "med", "images", group, path.name))
                Image.fromarray(ids).save(masks / f"{path.stem}.png")
                count += 1
    return count


def memory_data(shards: Path, volumes: Path, out: Path, limit: int | None = None) -> dict[str, int]:
    """Write what `training.memory` learns from; return the number of volumes and pictures.

    Axis 0 of a written volume is the one across which its slices lie.
    """
    (out / "volumes").mkdir(parents=True, exist_ok=True)
    (out / "pictures").mkdir(exist_ok=True)
    counts = {"volumes": 0, "pictures": 0}
    for one in [*_medulla(volumes), *_scans(shards, limit), *_runs(shards)]:
        axes = (0, 1, 2) if one.name.startswith("medulla") else (0,)
        np.savez_compressed(
            out / "volumes" / f"{one.name}.npz",
            image=one.image,
            labels=one.labels,
            spacing=np.array(one.spacing),
            axes=np.array(axes),
        )
        counts["volumes"] += 1
    for path in sorted(shards.glob("train-*.tar")):
        domain = path.stem.split("-")[1]
        if domain not in PICTURES:
            continue
        most, of_set = min(PICTURES[domain], limit or 10**9), dict[str, int]()
        with tarfile.open(path) as tar:
            for name, image, mask in _pairs(tar):
                group, stem = name.split("/")[1:]
                of_set[group] = of_set.get(group, 0) + 1
                if group in NOT_DEFORMED or of_set[group] > most:
                    continue
                target = out / "pictures" / f"{group}-{Path(stem).stem}"
                _middle(Image.open(io.BytesIO(_bytes(tar, image))).convert("L")).save(f"{target}_image.png")
                _middle(Image.open(io.BytesIO(_bytes(tar, mask)))).save(f"{target}_label.png")
                counts["pictures"] += 1
    return counts


def benchmark_objects(shards: Path, volumes: Path, out: Path) -> list[str]:
    """Write the objects of the memory's benchmark, none of which trains it; return their files' names.

    Roles are "report" for the 31 of the volume benchmark, "other" for further ones that are reported too, and
    "develop" for those that may choose settings. Names of the latter with "thick" are planes that lie further
    apart than they did.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []

    def write(one: Labelled, roles: Mapping[str, str]) -> None:
        np.savez_compressed(
            out / f"{one.name}.npz",
            image=one.image,
            labels=one.labels.astype(np.int32),
            spacing=np.array(one.spacing),
            axis=0,
            planes=np.array((0, len(one.image) - 1)),
            objects=np.array(list(roles)),
            roles=np.array(list(roles.values())),
        )
        written.append(f"{one.name}.npz")

    image, labels = (
        np.asarray(read_volume(volumes / f"medulla_{kind}.tif").data) for kind in ("image", "label")
    )
    largest = _largest(labels[200:250], 18)
    of_end = [text for text in _largest(labels[180:200], 24) if text not in largest][:6]
    size = (10.0, 10.0, 10.0)
    roles = dict.fromkeys(largest[:12], "report") | dict.fromkeys(largest[12:], "other")
    write(Labelled("medulla", image[200:250], labels[200:250], size), roles)
    write(Labelled("medulla-180", image[180:200], labels[180:200], size), dict.fromkeys(of_end, "develop"))
    for name, mask, objects in (
        ("HG0015_image_FLAIR", "HG0015_label", ["1+2"]),
        ("HG0015_image_T1C", "HG0015_label", ["2"]),
        ("patient100_frame01_image", "patient100_frame01_label", ["1", "2", "3"]),
        ("hippocampus_003_image", "hippocampus_003_label", ["1", "2"]),
        ("hippocampus_004_image", "hippocampus_004_label", ["1", "2"]),
        ("ct_image", "ct_label", ["1", "2", "3", "5", "6", "14", "20", "30", "31", "86"]),
    ):
        one = _read(name.replace("_image", ""), volumes / f"{name}.nii.gz", volumes / f"{mask}.nii.gz")
        roles = dict.fromkeys(objects, "report")
        if name == "ct_image":
            rest = [text for text in _largest(one.labels, 41) if text not in objects][:12]
            roles |= dict(zip(rest, 6 * ("develop", "other"), strict=True))
        write(one, roles)
    lesions = _read("patient07", volumes / "patient07_image_FLAIR.nii.gz", volumes / "patient07_label.nii.gz")
    lesions = replace(lesions, image=lesions.image[30:150], labels=label(lesions.labels > 0)[30:150])
    write(lesions, dict(zip(_largest(lesions.labels, 4), ("other", "develop", "develop", "other"))))
    held_out = {one.name: one for one in _scans(shards, None, held_out=True)}
    for name, role, every, count in _roles_of_scans(list(held_out)):
        one = held_out[name]
        thick = Labelled(
            f"{name}-thick" if every > 1 else name,
            one.image[::every],
            one.labels[::every],
            (one.spacing[0] * every, *one.spacing[1:]),
        )
        write(thick, dict.fromkeys(_largest(one.labels, count), role))
    return written


def _roles_of_scans(names: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Names of scans held out, role, every how many planes, and how many of their largest objects."""
    found = [("other-mr", "develop", 1, 6), ("other-mr", "develop", 3, 4), ("other-t2", "develop", 1, 1)]
    of_benchmark = ("_001", "_003", "_004")
    hippocampi = [
        name for name in names if name.startswith("hippocampus-") and not name.endswith(of_benchmark)
    ]
    for place, name in enumerate(hippocampi):
        found.append((name, "other" if place % 2 else "develop", 1, 2))
        if place % 4 == 0:
            found.append((name, "develop", 4, 2))
    return [one for one in found if one[0] in names]


def _largest(labels: np.ndarray, count: int) -> list[str]:
    """The labels with most voxels."""
    found, sizes = np.unique(labels[labels > 0], return_counts=True)
    return [str(int(one)) for one in found[np.argsort(-sizes)][:count]]


def _pairs(tar: tarfile.TarFile) -> Iterator[tuple[str, str, str]]:
    """The name without its ending, the image and the mask of every picture in a shard."""
    names = sorted(name for name in tar.getnames() if re.fullmatch(r"(images|masks)/[^/]+/[^/]+\.\w+", name))
    masks = {name for name in names if name.startswith("masks/")}
    for image in names:
        stem = image.rpartition(".")[0]
        mask = f"{stem.replace('images/', 'masks/', 1)}.png"
        if image.startswith("images/") and mask in masks:
            yield stem, image, mask


def _bytes(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None, f"{name} is no file of its shard"
    return file.read()


def _middle(picture: Image.Image) -> Image.Image:
    """The middle of a picture, of at most `SIDE` pixels in each direction."""
    left, top = (max(0, (length - SIDE) // 2) for length in picture.size)
    return picture.crop((left, top, min(left + SIDE, picture.width), min(top + SIDE, picture.height)))


def _medulla(volumes: Path) -> Iterator[Labelled]:
    low, high = MEDULLA
    image, labels = (
        np.asarray(read_volume(volumes / f"medulla_{kind}.tif").data)[low : high + 1]
        for kind in ("image", "label")
    )
    yield Labelled("medulla", image, labels.astype(np.int16), (10.0, 10.0, 10.0))


def _scans(shards: Path, limit: int | None, held_out: bool = False) -> Iterator[Labelled]:
    """Labelled scans, or those of them that are held out; one set gives at most `limit`."""
    for path in sorted(shards.glob("train-volumes-*.tar")):
        with tarfile.open(path) as tar, tempfile.TemporaryDirectory() as folder:
            names = sorted(name for name in tar.getnames() if name.endswith("_image.nii.gz"))
            hippocampi = [name for name in names if "/msd_hippocampus/" in name][-LAST_HIPPOCAMPI:]
            of_set: dict[str, int] = {}
            for name in names:
                group, stem = name.split("/")[1], Path(name).name.removesuffix("_image.nii.gz")
                apart = stem in HELD_OUT or name in hippocampi
                of_set[group] = of_set.get(group, 0) + (apart == held_out)
                if apart != held_out or (limit is not None and of_set[group] > limit):
                    continue
                files = [Path(folder, Path(one).name) for one in (name, name.replace("_image", "_label"))]
                for file, member in zip(files, (name, name.replace("_image", "_label")), strict=True):
                    file.write_bytes(_bytes(tar, member))
                kind = "hippocampus" if group == "msd_hippocampus" else "other"
                yield _read(f"{kind}-{stem}", *files)


def _read(name: str, image: Path, labels: Path) -> Labelled:
    """A scan with the axis across its slices first, in 8 bits."""
    one, two = read_volume(image), read_volume(labels)
    axis, spacing = default_axis(one), list(one.spacing or (1.0, 1.0, 1.0))
    pixels, ids = (np.moveaxis(np.asarray(volume.data), axis, 0) for volume in (one, two))
    low, high = np.percentile(pixels, (0.1, 99.9))
    narrow = np.clip((pixels - low) * (255 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)
    return Labelled(name, narrow, ids.astype(np.int16), (spacing.pop(axis), *spacing))


def _runs(shards: Path) -> Iterator[Labelled]:
    """Neighbouring planes of the CA1 hippocampus, three or more in a row, with labels that run through."""
    planes: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for path in sorted(shards.glob("train-em-*.tar")):
        with tarfile.open(path) as tar:
            for stem, image, mask in _pairs(tar):
                found = re.fullmatch(r"images/epfl_hippocampus/train_z(\d+)", stem)
                if found is not None:
                    pixels = Image.open(io.BytesIO(_bytes(tar, image))).convert("L")
                    ids = Image.open(io.BytesIO(_bytes(tar, mask)))
                    planes[int(found[1])] = (np.asarray(pixels), np.asarray(ids))
    ordered = sorted(planes)
    starts = [at for at in ordered if at - 1 not in planes]
    for start in starts:
        run = [
            at for at in range(start, start + len(ordered)) if all(k in planes for k in range(start, at + 1))
        ]
        if len(run) < 3:
            continue
        stack, masks = (np.stack([planes[at][kind] for at in run]) for kind in (0, 1))
        yield Labelled(f"mito-{start:04d}", stack, label(masks > 0).astype(np.int16), (5.0, 5.0, 5.0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; see the module's text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("pictures", "regions", "memory", "objects"))
    parser.add_argument("folders", nargs="+", type=Path, help="SHARDS and VOLUMES as above, and OUT")
    parser.add_argument("--limit", type=int, help="at most so many pictures or volumes of a set, to try out")
    given = parser.parse_args(arguments)
    expected = {"regions": 1, "pictures": 2}.get(given.kind, 3)
    if len(given.folders) != expected:
        parser.error(f"{given.kind} needs {expected} folders; got {len(given.folders)}")
    if given.kind == "pictures":
        print(f"{extract_pictures(given.folders[0], given.folders[1], given.limit)} pictures")
    elif given.kind == "regions":
        print(f"{write_regions(given.folders[0], given.limit)} pictures with regions")
    elif given.kind == "memory":
        shards, volumes, out = given.folders
        print(memory_data(shards, volumes, out, given.limit))
    else:
        print(" ".join(benchmark_objects(*given.folders)))


if __name__ == "__main__":
    main()
