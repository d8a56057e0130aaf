"""Data sets: public benchmarks in their published layouts, and any folder of pictures and masks.

A loader only lists the objects: one `Target` each, a few bytes, which is sent to a worker process and read
there. `read_samples` turns targets into images and reference masks.

    targets = find_targets("folder", "/data/val", limit=50)
    for sample in read_samples(targets):
        sample.image, sample.truth, sample.name
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from napari_lowlat_seg.evaluation.inputs import coco_lvis
from napari_lowlat_seg.evaluation.inputs.ground_truth import RULES, read_picture

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PerSet = int | None | Mapping[str, int | None]  # one value for all sets, or by set name ("*": all the others)


@dataclass(frozen=True)
class Target:
    """One object of one picture, as files that are not read yet.

    Attributes
    ----------
    group
        The set it is counted under.
    name
        Unique within the data set.
    image, mask
        Files.
    rule
        How the truth is read from the mask file; a key of `ground_truth.RULES`.
    label
        The object's id, for rules that have ids; the id of a component counts from 1.
    ignore
        An id that means "do not count this pixel", or None.
    """

    group: str
    name: str
    image: Path
    mask: Path
    rule: str
    label: int = 1
    ignore: int | None = None


@dataclass(frozen=True, eq=False)
class Sample:
    """One object to segment.

    Attributes
    ----------
    image
        (H, W) or (H, W, 3) RGB, of the file's type. Samples of one picture share one array.
    truth
        (H, W) int8: 1 object, 0 background, -1 ignored.
    name, group
        As in its target.
    """

    image: np.ndarray
    truth: np.ndarray
    name: str
    group: str


@dataclass(frozen=True)
class FolderOptions:
    """How a `folder` of instance masks is read; mappings hold values by the name of the set.

    Attributes
    ----------
    ignore
        A mask value that means "do not count this pixel" (255 in VOC-like sets).
    min_area
        Objects of fewer pixels are left out.
    components
        Count every 8-connected part of an id as an object of its own.
    sets
        Only sets whose name ends like one of these; all if empty.
    """

    ignore: PerSet = None
    min_area: PerSet = None
    components: bool = False
    sets: tuple[str, ...] = ()


def find_targets(
    dataset: str, root: str | Path, limit: int | None = None, options: FolderOptions | None = None
) -> list[Target]:
    """Return the objects of a data set, in the order of its files.

    Parameters
    ----------
    dataset
        A name in `DATASETS`.
    root
        Its folder.
    limit
        Most objects of each set, at even distances in the set: always the same ones.
    options
        For `folder` only.

    Raises
    ------
    ValueError
        For an unknown name, a folder of another layout, or options that leave no object.
    """
    if dataset not in DATASETS:
        raise ValueError(f"unknown data set {dataset!r}; choose one of {', '.join(DATASETS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 object, got {limit}")
    if not Path(root).is_dir():
        raise ValueError(f"the root of {dataset} must be an existing folder, got {root}")
    targets = DATASETS[dataset](Path(root), options or FolderOptions())
    if not targets:
        raise ValueError(
            f"{dataset} found no object under {root}; check that the masks hold ids and none is filtered out"
        )
    by_group: dict[str, list[Target]] = {}
    for target in targets:
        by_group.setdefault(target.group, []).append(target)
    return [target for group in by_group.values() for target in _spread(group, limit)]


def by_picture(targets: Iterable[Target]) -> list[list[Target]]:
    """Return the targets grouped by picture, in their order."""
    return [list(same) for _, same in groupby(targets, key=lambda target: target.image)]


def read_samples(targets: Iterable[Target]) -> Iterator[Sample]:
    """Yield the samples of targets; consecutive targets of one picture and mask share what is read.

    Raises ValueError for a mask of another size than its picture, and for files that cannot be read.
    """
    for (image, mask), same in groupby(targets, key=lambda target: (target.image, target.mask)):
        pixels, ids = read_picture(image), None
        for target in same:
            rule = RULES[target.rule]
            ids = rule.read(mask, target.ignore) if ids is None else ids
            truth = rule.truth(ids, target.label)
            if truth.shape != pixels.shape[:2]:
                raise ValueError(
                    f"expected a mask of {pixels.shape[:2]} pixels for {image}, got {truth.shape} in {mask}"
                )
            yield Sample(pixels, truth, target.name, target.group)


def _pairs(root: Path, images: str, masks: str, hint: str) -> list[tuple[Path, Path]]:
    """Pictures and their masks of the same stem, by name."""
    for folder in (root / images, root / masks):
        if not folder.is_dir():
            raise ValueError(f"expected the folder {folder} ({hint}); {root} {_contents(root)}")
    by_stem = {_stem(path, root / masks): path for path in _files(root / masks)}
    pictures = _files(root / images)
    lacking = [path for path in pictures if _stem(path, root / images) not in by_stem]
    if lacking:
        raise ValueError(
            f"expected a mask of the same name in {root / masks} for every picture in {root / images}; "
            f"{len(lacking)} of {len(pictures)} have none, the first is {lacking[0].name}"
        )
    return [(path, by_stem[_stem(path, root / images)]) for path in pictures]


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "does not exist"
    return "holds " + (", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _one_object(
    group: str, images: str, masks: str, rule: str
) -> Callable[[Path, FolderOptions], list[Target]]:
    """A loader of a data set with one object a picture."""

    def load(root: Path, options: FolderOptions) -> list[Target]:
        pairs = _pairs(root, images, masks, f"{group} is read from {images}/ and {masks}/")
        return [Target(group, image.stem, image, mask, rule) for image, mask in pairs]

    return load


HQSEG = {
    "DIS5K-VD": ("DIS5K/DIS-VD", "im", "gt"),
    "ThinObject5K-TE": ("thin_object_detection/ThinObject5K", "images_test", "masks_test"),
    "COIFT": ("thin_object_detection/COIFT", "images", "masks"),
    "HRSOD": ("thin_object_detection/HRSOD", "images", "masks_max255"),
}


def _hqseg(root: Path, options: FolderOptions) -> list[Target]:
    """The four validation parts of HQSeg-44K, in the folders of its public release."""
    hint = "HQSeg-44K is read from " + ", ".join(folder for folder, _, _ in HQSEG.values())
    return [
        Target(part, f"{part}/{image.stem}", image, mask, "nonzero")
        for part, (folder, images, masks) in HQSEG.items()
        for image, mask in _pairs(root / folder, images, masks, hint)
    ]


def _sstem(root: Path, options: FolderOptions) -> list[Target]:
    targets = []
    for image, mask in _pairs(
        root, "raw", "mitochondria", "ssTEM is read from raw/*.tif and mitochondria/*.png"
    ):
        count = int(RULES["mitochondrion"].read(mask, None).max())
        targets += [
            Target("ssTEM", f"{image.stem}#{i}", image, mask, "mitochondrion", i) for i in range(1, count + 1)
        ]
    return targets


def _coco_lvis(root: Path, options: FolderOptions) -> list[Target]:
    """The merged COCO + LVIS annotation: val/hannotation.pickle, val/images/*.jpg, val/masks/*.pickle."""
    split = root / "val" if (root / "val").is_dir() else root
    index = split / "hannotation.pickle"
    if not index.is_file():
        raise ValueError(
            f"expected {index} (COCO+LVIS is read from val/hannotation.pickle, val/images/ and val/masks/)"
        )
    targets = []
    for name, count in coco_lvis.read_index(index):
        mask = split / "masks" / f"{name}.pickle"
        targets += [
            Target("COCO+LVIS", f"{name}#{i}", split / "images" / f"{name}.jpg", mask, "packed", code)
            for i, code in enumerate(coco_lvis.read_codes(mask)[:count])
        ]
    return targets


def _folder(root: Path, options: FolderOptions) -> list[Target]:
    """Any images/ + masks/ pair under the root or one level below; folders inside images/ are sets."""
    folders = (root, *sorted(entry for entry in root.iterdir() if entry.is_dir()))
    homes = [folder for folder in folders if (folder / "images").is_dir()]
    if not homes:
        raise ValueError(f"expected images/ and masks/ in {root} or one level below; it {_contents(root)}")
    targets = []
    for home in homes:
        for image, mask in _pairs(home, "images", "masks", "masks are named like their pictures"):
            inner = image.parent.relative_to(home / "images").as_posix()
            parts = [part for part in (home.name if home != root else "", inner) if part not in ("", ".")]
            group = "/".join(parts) or root.name
            if not options.sets or any(_is_set(group, name) for name in options.sets):
                targets += _objects(image, mask, group, options)
    return targets


def _is_set(group: str, name: str) -> bool:
    return group == name or group.endswith("/" + name)


def _objects(image: Path, mask: Path, group: str, options: FolderOptions) -> list[Target]:
    """The ids of one mask that are big enough."""
    ignore, least = _for_set(options.ignore, group), _for_set(options.min_area, group) or 1
    rule = "part" if options.components else "id"
    values, areas = np.unique(RULES[rule].read(mask, ignore), return_counts=True)
    keep = [int(value) for value, area in zip(values, areas) if value > 0 and area >= least]
    return [Target(group, f"{group}/{image.stem}#{v}", image, mask, rule, v, ignore) for v in keep]


def per_set(texts: Sequence[str]) -> PerSet:
    """Return values by set from texts: "255" (all sets) or "vgg_iseg=255" (this one); None if there are none.

    Raises
    ------
    ValueError
        For a text of another form.
    """
    values: dict[str, int | None] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal() or bool(name) != bool(equals):
            raise ValueError(f"expected a whole number or SET=NUMBER, got {text!r}")
        values[name or "*"] = int(number)
    return values or None


def _for_set(value: PerSet, group: str) -> int | None:
    if not isinstance(value, Mapping):
        return value
    for name, chosen in value.items():
        if _is_set(group, name):
            return chosen
    return value.get("*")


def _spread(targets: Sequence[Target], limit: int | None) -> list[Target]:
    """`limit` targets at even distances, or all."""
    if limit is None or limit >= len(targets):
        return list(targets)
    return [targets[(2 * i + 1) * len(targets) // (2 * limit)] for i in range(limit)]


DATASETS: dict[str, Callable[[Path, FolderOptions], list[Target]]] = {
    "davis": _one_object("DAVIS", "img", "gt", "nonzero"),
    "hqseg44k": _hqseg,
    "coco-lvis": _coco_lvis,
    "coco-mval": _one_object("COCO_MVal", "img", "gt", "nonzero"),
    "sstem": _sstem,
    "brats": _one_object("BraTS", "image", "annotation", "first channel"),
    "grabcut": _one_object("GrabCut", "data_GT", "boundary_GT", "trimap"),
    "berkeley": _one_object("Berkeley", "images", "masks", "trimap"),
    "folder": _folder,
}
"""Loaders by the name that `lowlat-seg benchmark quality --dataset` takes."""
