"""Prompts in files: what is written comes back where it was, and what is damaged is one sentence."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_lowlat_seg.core.geometry import Axis, Geometry
from napari_lowlat_seg.core.prompts import Box, Click, Mask, Polygon, Prompt, Scribble
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, load_prompts, save_prompts

SHAPE = (4, 9, 7)


def scan(shape: Sequence[int] = SHAPE, matrix: Any = None) -> Volume:
    """An image in a world of µm, oblique."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag((3, 0.5, 0.7)) + 0.1 if matrix is None else matrix
    affine[:3, 3] = (10, -20, 30)
    geometry = Geometry(tuple(Axis(name, unit="µm") for name in "zyx"), affine)
    return Volume(np.zeros(shape, np.uint8), geometry.spacing, name="scan", geometry=geometry)


def random_prompt(rng: np.random.Generator, sides: tuple[int, int]) -> Prompt:
    """Of any kind, inside a plane of these sides."""

    def points(count: int) -> list[tuple[float, float]]:
        most = np.array(sides) - 1.0
        found = rng.random((count, 2)) * most
        return [(float(row), float(col)) for row, col in (np.rint(found) if rng.random() < 0.5 else found)]

    positive = bool(rng.random() < 0.5)
    kind = rng.integers(5)
    if kind == 0:
        return Click(points(1)[0], positive)
    if kind == 1:
        return Scribble(tuple(points(int(rng.integers(1, 6)))), positive)
    if kind == 2:
        return Box(*points(2), positive)
    if kind == 3:
        return Polygon(tuple(points(int(rng.integers(3, 7)))), positive)
    mask = rng.random(sides) < 0.4
    mask[tuple(rng.integers(0, sides))] = True
    return Mask(mask, positive)


def random_objects(rng: np.random.Generator, volume: Volume) -> list[ObjectPrompts]:
    """Objects with prompts on planes of all directions."""
    labels = rng.choice([1, 2, 7, 300, 2**32 - 1], int(rng.integers(1, 4)), replace=False)
    found = []
    for label in labels.tolist():
        prompts: dict[Plane, tuple[Prompt, ...]] = {}
        for _ in range(int(rng.integers(1, 4))):
            axis = int(rng.integers(3))
            plane = volume.plane_at([int(rng.integers(volume.shape[axis]))], axis)
            made = [random_prompt(rng, volume.sides(plane)) for _ in range(int(rng.integers(1, 4)))]
            prompts[plane] = (*prompts.get(plane, ()), *made)
        found.append(ObjectPrompts(label, prompts, str(rng.choice(["", "nucleus", "Zellkörper “3”"]))))
    return found


def world_of(prompt: Prompt, plane: Plane, volume: Volume) -> np.ndarray:
    """World coordinates of a prompt's points, of a mask those of its pixels, sorted."""
    assert volume.geometry is not None
    points = np.argwhere(prompt.pixels) if isinstance(prompt, Mask) else np.array(prompt.points)
    whole = np.array([[0.0 if at is None else at for at in plane.index]] * len(points))
    whole[:, list(plane.axes)] = points
    world = volume.geometry.to_world(whole)
    return world[np.lexsort(np.round(world, 6).T)] if isinstance(prompt, Mask) else world


rngs = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@pytest.mark.slow
@given(rng=rngs)
def test_what_is_written_comes_back(
    rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the last digit, order and names included, with and without a geometry."""
    path = tmp_path_factory.mktemp("p") / "p.json"
    for volume in (scan(), Volume(np.zeros(SHAPE, np.uint8))):
        objects = random_objects(rng, volume)
        save_prompts(path, volume, objects)
        assert load_prompts(path, volume) == objects


@pytest.mark.slow
@given(rng=rngs, order=st.permutations(range(3)), flips=st.sets(st.integers(0, 2)))
def test_prompts_lie_on_another_file_of_the_same_image(
    rng: np.random.Generator,
    order: list[int],
    flips: set[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever the order and direction of its axes: each prompt stays where it is in the world."""
    volume = scan()
    assert volume.geometry is not None
    shape = tuple(SHAPE[axis] for axis in order)
    geometry = volume.geometry.transpose(order)
    for axis in flips:
        geometry = geometry.flip(axis, shape[axis])
    other = Volume(np.zeros(shape, np.uint8), geometry.spacing, geometry=geometry)
    path = tmp_path_factory.mktemp("p") / "p.json"
    objects = random_objects(rng, volume)
    save_prompts(path, volume, objects)
    for one, there in zip(objects, load_prompts(path, other), strict=True):
        assert (one.label, one.name) == (there.label, there.name)
        pairs = zip(one.prompts.items(), there.prompts.items(), strict=True)
        for (plane, prompts), (turned, moved) in pairs:
            for prompt, again in zip(prompts, moved, strict=True):
                assert (type(prompt), prompt.positive) == (type(again), again.positive)
                ours, theirs = world_of(prompt, plane, volume), world_of(again, turned, other)
                np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_the_file_says_where_every_point_lies(tmp_path: Path) -> None:
    """In voxels and in the world, for other programs."""
    volume = scan()
    plane = volume.planes()[2]
    save_prompts(tmp_path / "p.json", volume, [ObjectPrompts(5, {plane: (Box((1, 2), (3.5, 4)),)})])
    content = json.loads((tmp_path / "p.json").read_text())
    assert (content["format"], content["version"]) == ("napari-lowlat-seg prompts", 1)
    (prompt,) = content["objects"][0]["prompts"]
    assert (prompt["kind"], prompt["positive"], prompt["plane"]) == ("box", True, [2, None, None])
    assert prompt["points"] == [[2, 1, 2], [2, 3.5, 4]]
    assert volume.geometry is not None
    np.testing.assert_allclose(prompt["world"], volume.geometry.to_world(prompt["points"]))


def test_prompts_of_another_image_are_refused(tmp_path: Path) -> None:
    """By place, by shape and by number of axes."""
    save_prompts(tmp_path / "p.json", scan(), [ObjectPrompts(1, {scan().planes()[0]: (Click((1, 1)),)})])
    shifted = Volume(np.zeros(SHAPE, np.uint8), geometry=scan().geometry.crop((1, 0, 0)))  # type: ignore[union-attr]
    for other in (shifted, scan((4, 9, 8)), Volume(np.zeros((5, 9, 7))), Volume(np.zeros((9, 7)))):
        with pytest.raises(ValueError, match=r"lies elsewhere than .*; give the image that they belong to"):
            load_prompts(tmp_path / "p.json", other)


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Soft masks, labels that are none or twice there, and other suffixes; nothing is left."""
    plane = scan().planes()[0]
    soft = Mask(np.full((9, 7), 0.5))
    for objects, message in (
        ([ObjectPrompts(1, {plane: (soft,)})], "a soft mask is no prompt that can be written"),
        ([ObjectPrompts(1), ObjectPrompts(1)], "each object needs a label of its own; got 1, 1"),
        ([ObjectPrompts(0)], "a label is a whole number from 1 to 4294967295; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            save_prompts(tmp_path / "p.json", scan(), objects)
    with pytest.raises(ValueError, match=r"written as \.json; got 'p.txt'"):
        save_prompts(tmp_path / "p.txt", scan(), [])
    assert not list(tmp_path.iterdir())


CLICK = {"kind": "click", "positive": True, "plane": [1, None, None], "points": [[1, 2, 3]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "circle"}, "a prompt is click, scribble, box, lasso or mask, not 'circle'"),
        ({"kind": ["click"]}, "a prompt is click, scribble, box, lasso or mask"),
        ({"positive": "false"}, "positive is true or false, not 'false'"),
        ({"positive": 1}, "positive is true or false, not 1"),
        ({"plane": [1, None]}, "two None"),
        ({"plane": [9, None, None]}, r"plane \[9, None, None\] of an image of shape"),
        ({"plane": [-1, None, None]}, "a whole number of 0 or more was expected, not -1"),
        ({"plane": [1.5, None, None]}, "a whole number of 0 or more was expected, not 1.5"),
        ({"plane": [True, None, None]}, "a whole number of 0 or more was expected, not True"),
        ({"points": [[2, 2, 3]]}, r"point \[2.0, 2.0, 3.0\] on plane"),
        ({"points": [[1, 2]]}, r"point \[1.0, 2.0\] on plane"),
        ({"points": [[1, 2, float("nan")]]}, "a finite number was expected, not nan"),
        ({"points": [[1, 2, 10**400]]}, "too large"),
        ({"points": [[1, 2, "3"]]}, "a finite number was expected, not '3'"),
        ({"points": [[1, 2, 99]]}, "outside"),
        ({"points": []}, "a click has one point, not 0"),
        ({"points": None}, "a list was expected, not None"),
        ({"kind": "box"}, "a box has two corners, not 1"),
        ({"kind": "lasso"}, "3"),
        ({"kind": "mask"}, "no 'size'"),
        ({"kind": "mask", "size": [9, 8], "counts": [72]}, "a mask of .9, 8. pixels on a plane"),
        ({"kind": "mask", "size": [9, 7], "counts": [1, 10**30]}, "must add up to the 9 x 7 pixels"),
        ({"kind": "mask", "size": [9, 7], "counts": [63]}, "at least one pixel that is set"),
    ],
)
def test_a_prompt_that_is_none_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Which names the file and what was expected."""
    written(tmp_path, lambda content: content["objects"][0]["prompts"].append({**CLICK, **change}))
    with pytest.raises(ValueError, match=message) as refused:
        load_prompts(tmp_path / "p.json", scan())
    assert str(tmp_path / "p.json") in str(refused.value)
    assert "\n" not in str(refused.value)


def written(folder: Path, change: Any) -> Path:
    """A file of prompts, changed."""
    objects = [ObjectPrompts(1, {scan().planes()[1]: (Click((2, 3)),)}), ObjectPrompts(2)]
    path = save_prompts(folder / "p.json", scan(), objects)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "its format is not"),
        (lambda c: c.update(version=2), "has version 2, this program reads 1; update it"),
        (lambda c: c.pop("image"), "no 'image'"),
        (lambda c: c.pop("objects"), "no 'objects'"),
        (lambda c: c.update(objects={}), "a list was expected"),
        (lambda c: c["objects"].append(3), "an object in braces was expected, not 3"),
        (lambda c: c["objects"][1].update(label=1), "each object needs a label of its own"),
        (lambda c: c["objects"][1].update(label="2"), "a label is a whole number"),
        (lambda c: c["objects"][1].update(label=2**32), "a label is a whole number"),
        (lambda c: c["objects"][1].update(label=True), "a label"),
        (lambda c: c["image"].update(shape=[4, 9, -7]), "a whole number of 0 or more"),
        (lambda c: c["image"].update(shape=[4, 9]), "3 axes for an image of shape"),
        (lambda c: c["image"].update(affine=[[1]]), "an affine of 3 axes needs"),
        (lambda c: c["image"].update(affine=[[0] * 4] * 4), "a length and a direction"),
        (lambda c: c["image"]["world"][0].update(name="x"), "unique"),
        (lambda c: c["image"]["world"][0].update(unit=3), "a unit is a text or null"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(change: Any, message: str, tmp_path: Path) -> None:
    """Whatever is missing or of another kind."""
    with pytest.raises(ValueError, match=message):
        load_prompts(written(tmp_path, change), scan())


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe\x00", b"null", b'{"format": 1}']
)
def test_what_is_no_json_is_one_sentence(text: bytes, tmp_path: Path) -> None:
    """Also when it is nested without end."""
    (tmp_path / "p.json").write_bytes(text)
    with pytest.raises(ValueError, match="is no file of prompts"):
        load_prompts(tmp_path / "p.json", scan())


def test_files_that_are_missing_or_huge_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are read."""
    with pytest.raises(FileNotFoundError, match="no file of prompts at"):
        load_prompts(tmp_path / "p.json", scan())
    with (tmp_path / "p.json").open("wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(ValueError, match="it has more than 256 MiB"):
        load_prompts(tmp_path / "p.json", scan())


@pytest.mark.slow
@given(rng=rngs)
def test_a_file_with_damaged_bytes_is_read_or_refused(
    rng: np.random.Generator, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By ValueError, never by another error."""
    path = tmp_path_factory.mktemp("p") / "p.json"
    save_prompts(path, scan(), random_objects(rng, scan()))
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] = int(rng.choice(list(b'0123456789.-eE"[]{},:ntfN \x00\xff')))
    path.write_bytes(
        bytes(data[: int(rng.integers(len(data) // 2, len(data) + 1))] if rng.random() < 0.3 else data)
    )
    with contextlib.suppress(ValueError):
        load_prompts(path, scan())
