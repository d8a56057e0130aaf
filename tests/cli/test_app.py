"""`lowlat-seg` as a person calls it: results in files, mistakes in one sentence, nothing half-written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import typer
from PIL import Image
from scipy import ndimage

from fakes import FakePrediction
from napari_lowlat_seg import __version__
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import read_volume, write_labels
from napari_lowlat_seg.io.prompt_files import ObjectPrompts, save_prompts
from napari_lowlat_seg.io.samples import SAMPLES, sample_path
from napari_lowlat_seg.models.checkpoints import model_path
from terminal import Call, Done


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A TIFF of 5 planes with a bright cylinder, anisotropic."""
    data = np.full((5, 40, 50), 20, np.uint8)
    data[:, 10:30, 15:35] = 200
    path = tmp_path / "stack.tif"
    tifffile.imwrite(
        path, data, imagej=True, resolution=(4, 4), metadata={"axes": "ZYX", "spacing": 2, "unit": "um"}
    )
    return path


@pytest.fixture
def segment(call: Call, stack: Path, tiny: Path) -> Call:
    """`segment stack.tif -o out.tif --model tiny` and more."""
    return lambda *more: call("segment", stack, "-o", "out.tif", "--model", tiny, "--device", "cpu", *more)


def test_help_is_quick_because_it_imports_nothing_heavy() -> None:
    """Neither torch nor numpy nor rich: typer alone."""
    code = (
        "import sys; from napari_lowlat_seg.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: print(left.code, {'torch', 'numpy', 'rich.table'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 set()"
    assert all(name in done.stdout for name in ("demo", "segment", "benchmark", "models", "train"))


def test_the_version_is_shown(call: Call) -> None:
    """That of the package."""
    assert call("--version") == Done(0, f"{__version__}\n", "")


def test_samples_are_copied_and_other_files_are_kept(call: Call, tmp_path: Path) -> None:
    """Into a new folder; a second call changes nothing; a file that is no sample stops it before any copy."""
    assert call("samples", "data").out.splitlines() == [str(Path("data") / name) for name in SAMPLES]
    assert (tmp_path / "data" / SAMPLES[0]).read_bytes() == sample_path(SAMPLES[0]).read_bytes()
    assert call("samples", "data").status == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SAMPLES[1]).write_bytes(b"mine")
    refused = call("samples", "mine")
    assert (refused.status, refused.out) == (2, "")
    assert "exists and is not the sample of this name; give another folder" in refused.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [SAMPLES[1]]


def commands() -> list[list[str]]:
    """Every command and group of commands that a user types."""
    tops: Any = typer.main.get_command(app.app)
    found: list[list[str]] = [[]]
    for name, command in tops.commands.items():
        if command.hidden:  # what other programs call
            continue
        found.append([name])
        found += [[name, inner] for inner in getattr(command, "commands", ())]
    return found


GROUPS = ([], ["models"], ["benchmark"], ["sessions"])
ARE_WHOLE = (
    ["demo"], ["info"], ["models", "list"],
    ["benchmark", "latency"], ["sessions", "list"], ["sessions", "prune"],
)  # fmt: skip
"""Commands that need no argument."""


@pytest.mark.slow
def test_the_table_has_all_commands() -> None:
    """So that the tests below are of something."""
    assert len(commands()) > 15
    assert all(command in commands() for command in (*GROUPS, *ARE_WHOLE))


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_that_ends_with_examples(command: list[str], call: Call) -> None:
    """It says how it is called; each example is on a line of its own, so that it can be copied."""
    done = call(*command, "--help")
    assert (done.status, done.err) == (0, "")
    assert "Usage: lowlat-seg" in done.out
    if command not in GROUPS:
        lines = [line.strip() for line in done.out.splitlines() if line.strip()]
        shown = lines[lines.index("Examples:") + 1 :]
        assert shown
        assert all(line.startswith(f"lowlat-seg {' '.join(command)}") for line in shown)


@pytest.mark.parametrize("command", [one for one in commands() if one not in ARE_WHOLE], ids=" ".join)
def test_a_bare_call_shows_the_whole_help(command: list[str], call: Call) -> None:
    """Line by line, with the status of a wrong call."""
    done = call(*command)
    assert (done.status, done.out) == (2, "")
    assert done.err == call(*command, "--help").out


@pytest.mark.parametrize("option", ["--threshold=0", "--threshold=1.5", "--smooth=-1", "--closer-look=on"])
def test_post_processing_out_of_range_is_one_sentence(option: str, segment: Call, tmp_path: Path) -> None:
    """Before any work."""
    done = segment("--click", "2,20,25", option)
    assert (done.status, done.out) == (2, "")
    assert "must" in done.err
    assert done.err.count("\n") == 1
    assert not (tmp_path / "out.tif").exists()


@pytest.mark.slow
def test_post_processing_changes_the_labels_as_it_says(
    segment: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threshold, holes and parts, each alone; propagated planes without prompts keep their parts."""
    ring = np.zeros((40, 50), np.float32)
    ring[10:30, 15:35], ring[15:20, 20:25], ring[2:5, 2:5] = 0.9, 0.1, 0.6

    class Ring:
        runtime = SimpleNamespace(device="cpu")

        def embed(self, *_: object) -> None:
            """Nothing."""

        def predict(self, *_: object) -> FakePrediction:
            return FakePrediction(ring)

    monkeypatch.setattr("napari_lowlat_seg.inference.predictor.load_predictor", lambda *_, **__: Ring())

    def labelled(*options: str) -> np.ndarray:
        assert segment("--click", "2,12,25", "--replace", *options).status == 0
        found: np.ndarray = np.asarray(read_volume(tmp_path / "out.tif").data)[2] > 0
        return found

    plain = ring > 0.49
    assert np.array_equal(labelled(), plain)
    assert np.array_equal(labelled("--threshold", "0.05"), ring > 0.05)
    assert np.array_equal(labelled("--fill-holes"), ndimage.binary_fill_holes(plain))
    assert np.array_equal(labelled("--largest"), ring == np.float32(0.9))
    assert np.array_equal(labelled("--prompted"), ring == np.float32(0.9))
    assert not np.array_equal(labelled("--smooth", "2"), plain)


def test_a_click_makes_labels_with_the_geometry_of_the_image(
    segment: Call, stack: Path, tmp_path: Path
) -> None:
    """On its plane only; the JSON records what was done."""
    done = segment("--click", "2,20,25", "--label", 300, "--json")
    assert (done.status, done.err) == (0, "")
    report = json.loads(done.out)
    labels = read_volume(tmp_path / "out.tif")
    assert labels.spacing == pytest.approx(read_volume(stack).spacing)
    assert labels.data.dtype == np.uint16 or report["voxels"] == 0
    found = np.asarray(labels.data)
    assert set(np.unique(found)) <= {0, 300}
    assert np.count_nonzero(found) == np.count_nonzero(found[2]) == report["voxels"]
    assert (report["prompts"], report["label"], report["device"]) == (1, 300, "cpu")


def test_every_kind_of_prompt_is_accepted(segment: Call, tmp_path: Path) -> None:
    """Positive and negative, on several planes, from the call and from files."""
    (tmp_path / "s.csv").write_text("z,r,c\n1,20,20\n1,20,30\n\n1,5,5,-\n1,5,9,-\n")
    (tmp_path / "s.json").write_text('[{"points": [[2, 5, 5], [2, 5, 30]], "positive": false}]')
    (tmp_path / "p.json").write_text("[[3, 10, 15], [3, 30, 15], [3, 30, 35]]")
    mask = np.zeros((5, 40, 50), bool)
    mask[3:, 10:30, 15:35] = True
    write_labels(tmp_path / "m.tif", mask)
    done = segment(
        *("--click", "2,20,25", "--click", "2,3,3-", "--box", "1,10,15,30,35", "--box", "2,0,0,5,5-"),
        *("--scribble", "s.csv", "--scribble", "s.json", "--polygon", "p.json", "--mask", "m.tif", "--json"),
    )
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["prompts"] == 4 + 3 + 1 + 2


@pytest.mark.slow
def test_prompts_are_kept_beside_the_labels_and_give_them_again(segment: Call, tmp_path: Path) -> None:
    """All kinds, of several objects, with the planes that they reach."""
    (tmp_path / "s.csv").write_text("2,20,20\n2,20,30\n")
    one = ("--click", "2,20,25", "--click", "3,3,3-", "--scribble", "s.csv", "--save-prompts", "p.json")
    assert segment(*one, "--label", 4).status == 0
    assert segment("--box", "1,2,2,9,9", "--save-prompts", "p.json").status == 0
    first = np.asarray(read_volume(tmp_path / "out.tif").data).copy()
    content = json.loads((tmp_path / "p.json").read_text())
    assert [(o["label"], len(o["prompts"])) for o in content["objects"]] == [(4, 3), (5, 1)]
    done = segment("--prompts", "p.json", "--replace", "--json")
    assert (done.status, done.err) == (0, "")
    assert (json.loads(done.out)["objects"], json.loads(done.out)["prompts"]) == (2, 4)
    assert np.array_equal(np.asarray(read_volume(tmp_path / "out.tif").data), first)
    assert segment("--prompts", "p.json", "--replace", "--propagate", ":").status == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prompts", "p.json"), "label 4 is in out.tif already; leave out --label for the next free one"),
        (("--prompts", "p.json", "--click", "2,3,4"), "--prompts takes the place of --click, --box"),
        (("--prompts", "p.json", "--label", 9, "--replace"), "--label is for one object; p.json has 2"),
        (("--prompts", "gone.json"), "no file of prompts at gone.json"),
        (("--prompts", "stack.tif"), "stack.tif is no file of prompts"),
        (("--prompts", "none.json"), "nothing to segment: none.json holds no prompt"),
        (("--prompts", "two.json"), "has prompts on planes of several directions"),
        (("--prompts", "p.json", "--save-prompts", "p.json"), "p.json is the file of prompts itself"),
        (("--click", "2,3,4", "--save-prompts", "p.txt"), "prompts are written as .json; got 'p.txt'"),
        (("--click", "2,3,4", "--save-prompts", "s.json"), "s.json is no file of prompts"),
        (("--click", "2,3,4", "--label", 5, "--save-prompts", "p.json"), "p.json has prompts of label 5"),
        (("--click", "2,3,4", "--save-prompts", "no/p.json"), "no folder at no; make it first"),
    ],
)
def test_prompts_that_cannot_be_read_or_kept_are_refused_before_the_work(
    arguments: tuple[object, ...], message: str, segment: Call, stack: Path, tmp_path: Path
) -> None:
    """The labels stay as they are."""
    volume = read_volume(stack)
    planes = volume.planes()
    click = Click((2, 3))
    save_prompts(
        tmp_path / "p.json",
        volume,
        [ObjectPrompts(4, {planes[2]: (click,)}), ObjectPrompts(5, {planes[1]: (click,)})],
    )
    save_prompts(tmp_path / "none.json", volume, [ObjectPrompts(1)])
    sideways = {planes[2]: (click,), volume.planes(1)[0]: (click,)}
    save_prompts(tmp_path / "two.json", volume, [ObjectPrompts(1, sideways)])
    (tmp_path / "s.json").write_text("[]")
    write_labels(tmp_path / "out.tif", np.full(volume.shape, 4, np.uint8), volume)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = segment(*arguments)
    assert (done.status, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_propagation_stays_in_its_range(segment: Call, tmp_path: Path) -> None:
    """Both ends belong to it."""
    done = segment("--click", "2,20,25", "--propagate", "1:3")
    assert done.status == 0
    found = np.asarray(read_volume(tmp_path / "out.tif").data)
    assert found[[0, 4]].max() == 0
    assert segment("--click", "2,20,25", "--propagate", ":").status == 0


@pytest.mark.slow
def test_nifti_planes_are_axial_by_default(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Z counts along the third axis; the labels have the affine of the image."""
    affine = np.diag([-2.0, 1, 3, 1])
    data = np.random.default_rng(0).integers(0, 900, (30, 20, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "a.nii.gz")
    arguments = ("segment", "a.nii.gz", "-o", "b.nii.gz", "--model", tiny, "--mask", "m.nii.gz")
    mask = np.zeros(data.shape, np.uint8)
    mask[5:25, 5:15, 4] = 1
    nibabel.save(nibabel.Nifti1Image(mask, affine), tmp_path / "m.nii.gz")
    assert call(*arguments, "--click", "4,29,19").status == 0
    written = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(written.affine, affine)
    assert np.asarray(written.dataobj)[..., [0, 1, 2, 3, 5]].max() == 0
    assert call(*arguments, "--click", "19,29,5", "--axis", "1").status == 0


def test_clicks_in_2d_images_have_two_numbers(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Row and column."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "a.png")
    assert call("segment", "a.png", "-o", "b.png", "--model", tiny, "--click", "29,39").status == 0
    assert read_volume(tmp_path / "b.png").shape == (30, 40)


def test_the_place_of_a_single_slice_need_not_be_said(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Two numbers or three; a second object joins the first though TIFF has no axis of length 1."""
    data = np.random.default_rng(0).integers(0, 900, (40, 30, 1)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 1, 3, 1])), tmp_path / "a.nii.gz")
    arguments = ("segment", "a.nii.gz", "-o", "b.ome.tif", "--model", tiny, "--json")
    assert json.loads(call(*arguments, "--click", "20,15").out)["label"] == 1
    done = call(*arguments, "--box", "0,10,10,30,20", "--box", "12,12,20,20-")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out)["label"] in (1, 2)
    done = call(*arguments, "--click", "20")
    assert "a click must be Z,R,C, with an optional + or - at the end; got '20'" in done.err


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_constant_image_is_an_image(value: int, call: Call, tiny: Path, tmp_path: Path) -> None:
    """Dull, but valid: there is a mask or there is none."""
    tifffile.imwrite(tmp_path / "a.tif", np.full((20, 30), value, np.uint16))
    assert call("segment", "a.tif", "-o", "b.tif", "--model", tiny, "--click", "3,4").status == 0


@pytest.mark.slow
def test_a_picture_of_one_pixel_is_an_image(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Also as a volume of thin planes."""
    Image.fromarray(np.full((1, 1), 9, np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 1, 7), np.float32), photometric="minisblack")
    assert call("segment", "a.png", "-o", "b.png", "--model", tiny, "--click", "0,0").status == 0
    assert call("segment", "a.tif", "-o", "b.tif", "--model", tiny, "--click", "0,0,6").status == 0
    done = call("segment", "a.tif", "-o", "b.tif", "--model", tiny, "--click", "1,0,3", "--propagate", "0:2")
    assert done.status == 0


WRONG_PROMPTS = [
    ([], "nothing to segment without a prompt; give --click"),
    (["--click", "2,20"], r"a click must be Z,R,C, with an optional + or - at the end; got '2,20'"),
    (["--click", "2,20,x"], "a click must be Z,R,C"),
    (["--click", "5,20,25"], "position 5 is outside axis 0, which goes from 0 to 4"),
    (["--click", "-1,20,25"], "position -1 is outside axis 0"),
    (["--click", "1.5,20,25"], "must lie on one plane, at whole numbers; got positions [1.5]"),
    (["--click", "2,40,25"], "Click at (row, col) = (40, 25) is outside the plane of shape (40, 50)"),
    (["--click", "2,nan,25"], "a click needs 1 or more finite points"),
    (["--box", "2,1,1,9"], "a box must be Z,R0,C0,R1,C1"),
    (["--box", "2,0,0,20,50"], "Box at (row, col) = (20, 50) is outside the plane"),
    (["--scribble", "no.csv"], "no point file at no.csv; check the path"),
    (["--scribble", "words.csv"], "words.csv is no list of points Z,R,C (ValueError:"),
    (["--scribble", "empty.csv"], "empty.csv holds no point; it needs at least one Z,R,C"),
    (["--scribble", "flat.csv"], "flat.csv must hold points Z,R,C of 3 numbers; got [1.0, 2.0]"),
    (["--scribble", "broken.json"], "broken.json is no list of points"),
    (["--scribble", "number.json"], "number.json is no list of points"),
    (["--scribble", "stack.tif"], "a point file is .csv or .json; got 'stack.tif'"),
    (["--polygon", "two.csv"], "a polygon needs 3 or more finite points"),
    (["--polygon", "slanted.json"], "slanted.json must lie on one plane"),
    (["--mask", "small.tif"], "the mask small.tif must have the image's shape (5, 40, 50); got (4, 4)"),
    (["--mask", "zero.tif"], "the mask zero.tif needs at least one pixel that is not 0"),
    (["--click", "2,20,25", "--propagate", "3:4"], "--propagate 3:4 must hold all planes with prompts"),
    (["--click", "2,20,25", "--propagate", "2"], "--propagate must be A:B with 0 <= A <= B <= 4; got '2'"),
    (["--click", "2,20,25", "--propagate", "0:9"], "--propagate must be A:B"),
    (["--click", "2,20,25", "--propagate", "a:b"], "--propagate must be A:B"),
    (["--click", "2,20,25", "--axis", "3"], "axis must be from 0 to 2"),
    (
        ["--click", "2,20,25", "--channel", "1"],
        "has no channels, its shape is (5, 40, 50); leave out channel 1",
    ),
    (["--click", "2,20,25", "--label", "0"], "see lowlat-seg segment --help"),
    (["--click", "2,20,25", "--colour", "red"], "see lowlat-seg segment --help"),
    (["--click", "2,20,25", "--model", "no-such"], "unknown model 'no-such'; choose one of default"),
    (["--click", "2,20,25", "--model", "no.safetensors"], "there is no model file no.safetensors"),
    (["--click", "2,20,25", "--device", "abacus"], "abacus"),
    (["--click", "2,20,25", "-o", "out.jpg"], "labels can be .ome.tif, .ome.tiff, .tif, .tiff, .nii"),
    (["--click", "2,20,25", "-o", "nowhere/out.tif"], "no folder at nowhere; make it first"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "sentence"), WRONG_PROMPTS)
def test_a_wrong_call_gives_one_sentence_and_writes_nothing(
    more: list[str], sentence: str, segment: Call, tmp_path: Path
) -> None:
    """Exit status 2, no traceback, no file."""
    (tmp_path / "words.csv").write_text("z,r,c\nhere,and,there\n")
    (tmp_path / "empty.csv").write_text("z,r,c\n")
    (tmp_path / "flat.csv").write_text("1,2\n")
    (tmp_path / "two.csv").write_text("1,2,3\n1,4,5\n")
    (tmp_path / "broken.json").write_text("[[1, 2,")
    (tmp_path / "number.json").write_text("7")
    (tmp_path / "slanted.json").write_text("[[1, 2, 3], [2, 4, 5], [3, 9, 9]]")
    write_labels(tmp_path / "small.tif", np.ones((4, 4), int))
    write_labels(tmp_path / "zero.tif", np.zeros((5, 40, 50), int))
    before = sorted(tmp_path.iterdir())
    done = segment(*more)
    assert done.status == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    assert sorted(tmp_path.iterdir()) == before


def _bad_images(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    (folder / "text.tif").write_text("no image")
    (folder / "empty.nii.gz").write_bytes(b"")
    tifffile.imwrite(folder / "whole.tif", noise, compression="zlib")
    (folder / "cut.tif").write_bytes((folder / "whole.tif").read_bytes()[:700])
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), folder / "whole.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "whole.nii.gz").read_bytes()[:700])
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), folder / "whole.nii")
    (folder / "cut.nii").write_bytes((folder / "whole.nii").read_bytes()[:700])
    tifffile.imwrite(folder / "nan.tif", np.full((40, 50), np.nan, np.float32))
    tifffile.imwrite(folder / "line.tif", np.zeros(5, np.uint8))
    tifffile.imwrite(folder / "complex.tif", np.zeros((40, 50), np.complex64))
    tifffile.imwrite(
        folder / "pair.tif", np.zeros((2, 40, 50), np.uint8), imagej=True, metadata={"axes": "CYX"}
    )
    (folder / "data.zarr").mkdir()
    (folder / "folder.tif").mkdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("no.tif", "no image file at no.tif; check the path"),
        ("folder.tif", "no image file at folder.tif"),
        ("text.tif", "text.tif cannot be read: it is damaged or of another kind"),
        ("cut.tif", "cut.tif cannot be read"),
        ("empty.nii.gz", "empty.nii.gz cannot be read"),
        ("cut.nii.gz", "cut.nii.gz cannot be read"),
        ("cut.nii", "cut.nii cannot be read"),
        ("data.zarr", "data.zarr cannot be read: it is damaged or of another kind"),
        ("data.czi", "images can be .ome.tif, .ome.tiff, .tif, .tiff, .svs"),
        ("nan.tif", "at least one finite pixel; all 2000 are NaN or infinite"),
        ("line.tif", "needs at least 2 spatial axes; got shape (5,)"),
        ("complex.tif", "needs real numbers; got type complex64"),
        ("pair.tif", "an image of 2 channels needs a channel from 0 to 1; got none"),
    ],
)
def test_an_unusable_image_gives_one_sentence(
    image: str, sentence: str, call: Call, tiny: Path, tmp_path: Path
) -> None:
    """Before the model is even looked at, and without a file."""
    _bad_images(tmp_path)
    before = sorted(tmp_path.iterdir())
    done = call("segment", image, "-o", "out.tif", "--model", tiny, "--click", "3,4")
    assert done.status == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_plane_of_nan_is_refused_where_a_prompt_is(call: Call, tiny: Path, tmp_path: Path) -> None:
    """The other planes may be segmented; propagation into it says so."""
    data = np.random.default_rng(0).random((3, 20, 20)).astype(np.float32)
    data[1] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack")
    arguments = ("segment", "a.tif", "-o", "b.tif", "--model", tiny)
    done = call(*arguments, "--click", "1,3,4")
    assert done.status == 2
    assert "plane (1, None, None) of a.tif has no finite pixel; choose another plane" in done.err
    assert not (tmp_path / "b.tif").exists()
    assert call(*arguments, "--click", "0,3,4").status == 0
    mask = np.zeros((3, 20, 20), np.uint8)
    mask[0] = 1
    write_labels(tmp_path / "m.tif", mask)
    assert call(*arguments, "--mask", "m.tif", "--propagate", ":").status == 0


def test_an_existing_result_survives_a_wrong_call(segment: Call, tmp_path: Path) -> None:
    """The old labels stay as they were."""
    assert segment("--click", "2,20,25").status == 0
    before = (tmp_path / "out.tif").read_bytes()
    assert segment("--click", "2,99,25").status == 2
    assert (tmp_path / "out.tif").read_bytes() == before


@pytest.mark.slow
def test_a_second_object_is_added_to_the_first(segment: Call, tmp_path: Path) -> None:
    """With the next free label; pixels of other objects stay, and the report counts those written."""
    mask = np.zeros((5, 40, 50), np.uint16)
    mask[2, :20], mask[4, 0, 0] = 7, 3
    write_labels(tmp_path / "out.tif", mask)
    report = json.loads(segment("--box", "2,0,0,39,49", "--json").out)
    whole = segment("--box", "2,0,0,39,49", "--json", "-o", "alone.tif").out
    (note,) = report["notes"]
    left = json.loads(whole)["voxels"] - report["voxels"]
    assert note == f"other objects in out.tif keep the {left} voxels that this one covers as well"
    found = np.asarray(read_volume(tmp_path / "out.tif").data)
    assert report["label"] == 8
    assert np.array_equal(found[mask > 0], mask[mask > 0])
    assert np.count_nonzero(found == 8) == report["voxels"]
    assert json.loads(segment("--click", "2,30,25", "--json", "--replace").out)["label"] == 1
    assert not np.isin(read_volume(tmp_path / "out.tif").data, (3, 7, 8)).any()


def test_an_object_is_added_to_an_ome_zarr(call: Call, stack: Path, tiny: Path) -> None:
    """Likewise; the folder is not removed for --replace."""
    pytest.importorskip("ome_zarr")
    arguments = ("segment", stack, "-o", "l.zarr", "--model", tiny, "--box", "2,5,5,30,30", "--json")
    assert json.loads(call(*arguments, "--label", 4).out)["label"] == 4
    written = np.count_nonzero(read_volume("l.zarr").plane(Plane((2, None, None))))
    assert json.loads(call(*arguments).out)["label"] == (5 if written else 1)
    done = call(*arguments, "--replace")
    assert (done.status, done.out) == (2, "")
    assert "--replace is for files; remove the folder l.zarr, or give another name" in done.err


def test_an_object_is_not_added_to_something_else(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Labels of another image, a picture, an object of that number, a scan elsewhere: the file stays."""
    write_labels(tmp_path / "small.tif", np.ones((4, 4), int))
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "colours.png")
    write_labels(tmp_path / "seven.tif", np.full((20, 30), 7))
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30), np.uint8))
    scan = np.zeros((20, 30, 4), np.uint8)
    nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), tmp_path / "a.nii")
    nibabel.save(nibabel.Nifti1Image(scan, np.diag([-1, 1, 1, 1])), tmp_path / "turned.nii")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for image, output, more, sentence in (
        ("a.tif", "small.tif", (), "small.tif exists and holds no labels of shape (20, 30); give another"),
        ("a.tif", "colours.png", (), "colours.png exists and holds no labels"),
        ("a.tif", "seven.tif", ("--label", 7), "label 7 is in seven.tif already; leave out --label"),
        ("a.nii", "turned.nii", (), "turned.nii exists and lies elsewhere than the image"),
    ):
        click = "1,3,4" if image == "a.nii" else "3,4"
        done = call("segment", image, "-o", output, "--model", tiny, "--click", click, *more)
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert sentence in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_error_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not dressed up as the user's mistake."""
    monkeypatch.setattr(app, "app", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        app.main([])


@pytest.mark.slow
def test_models_are_listed_described_and_imported(
    call: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tables and as JSON; afterwards the imported one has a name."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path / "cache"))
    done = call("models", "import", tiny)
    assert (done.status, done.out.strip()) == (0, str(tmp_path / "cache" / "tiny.safetensors"))
    assert call("models", "import", tiny, "--out", tmp_path / "b.safetensors").status == 0
    assert call("models", "import", tiny, "-o", tmp_path / "c.safetensors").status == 0
    names = [facts["name"] for facts in json.loads(call("models", "list", "--json").out)]
    assert names[0] == "default"
    assert names[-1] == "tiny"
    assert "segnext-sax2-hq" in call("models", "list").out
    assert json.loads(call("models", "info", "tiny", "--json").out)["size"] == 64
    assert "family      segnext" in call("models", "info", tiny).out
    unknown = call("models", "info", "no-such")
    assert (unknown.status, unknown.err.count("\n")) == (2, 1)
    assert call("models", "download", "no-such").status == 2
    assert call("models", "import", tmp_path / "no.pth").status == 2


@pytest.mark.slow
def test_info_has_what_an_error_report_needs(
    run_python: Callable[[str], str], tiny: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions, threads, devices, models; also where napari and Qt are not there, or no model loads."""
    code = (
        "import sys; sys.modules.update(napari=None, qtpy=None, PySide6=None, PyQt6=None)\n"
        "from napari_lowlat_seg.cli.app import main\n"
        f"main(['info', '--json', '-m', {str(tiny)!r}, '-d', 'cpu'])"
    )
    facts = json.loads(run_python(code))
    assert facts["napari-lowlat-seg"] == __version__
    assert {"Python", "platform", "processor", "torch", "GPU", "libraries", "device"} <= set(facts)
    assert "threads" in facts["processor"]
    assert "default" in facts["models here"]
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(Path.home() / "models-of-mine"))
    failed = call("info", "-m", "no-such")
    assert failed.status == 2
    assert f"napari-lowlat-seg: {__version__}\n" in failed.out
    assert "folder ~/models-of-mine\n" in failed.out


@pytest.mark.slow
def test_quality_robustness_and_latency_are_measured(call: Call, tiny: Path, tmp_path: Path) -> None:
    """On a small folder of pictures; results go to the terminal and into files."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    image = np.full((40, 50), 30, np.uint8)
    image[10:30, 10:30] = 220
    Image.fromarray(image).save(tmp_path / "data" / "images" / "a.png")
    Image.fromarray((image > 100).astype(np.uint8)).save(tmp_path / "data" / "masks" / "a.png")
    done = call(
        *(
            "benchmark",
            "quality",
            "--model",
            tiny,
            "--dataset",
            "folder",
            "--root",
            "data",
            "--device",
            "cpu",
        ),
        *("--max-clicks", 2, "--json", "q.json", "--html", "q.html"),
    )
    assert (done.status, json.loads((tmp_path / "q.json").read_text())["complete"]) == (0, True)
    done = call(
        *("benchmark", "robustness", "--model", tiny, "--dataset", "folder", "--root", "data"),
        *("--device", "cpu", "--min-area", 9, "--json", "r.json", "--html", "r.html"),
    )
    assert (done.status, len(json.loads((tmp_path / "r.json").read_text())["objects"])) == (0, 1)
    assert "clean, IoU after 1 click" in done.out
    done = call(
        *("benchmark", "latency", "--model", tiny, "--size", "48x64", "--device", "cpu", "--clicks", 2),
        *("--sat-seconds", 0.1, "--no-memory", "--json", "l.json", "--html", "l.html"),
    )
    assert (done.status, json.loads((tmp_path / "l.json").read_text())["size"]) == (0, [48, 64])
    titles = {name: (tmp_path / f"{name}.html").read_text().partition("<h1>")[2] for name in "qrl"}
    assert titles["q"].startswith("Quality on folder")
    assert titles["r"].startswith("Robustness on folder")
    assert titles["l"].startswith("Latency for an image of 48 x 64")


@pytest.mark.slow
def test_a_model_is_calibrated(call: Call, tmp_path: Path) -> None:
    """From a report on the shipped one; a wrong report is one sentence."""
    digest = hashlib.sha256(model_path("default").read_bytes()).hexdigest()
    curve = {"model": "default", "form": "one", "group": "em/a", "area": 0.1}
    curves = [{**curve, "object": str(i), "ious": [0.6], "predicted": [0.8]} for i in range(50)]
    report = {"kind": "quality", "dataset": "folder", "sha256": {"default": digest}, "calibration": []}
    (tmp_path / "q.json").write_text(json.dumps({**report, "curves": curves}))
    done = call("models", "calibrate", "default", "--from", "q.json", "-o", "out.safetensors")
    assert (done.status, done.err) == (0, "")
    assert "0.600" not in done.out
    assert "0.200" in done.out
    assert call("models", "info", "out.safetensors").status == 0
    for more in ((), ("--model-name", "mine")):
        again = call("models", "calibrate", "default", "--from", "q.json", "-o", "out.safetensors", *more)
        assert (again.status, again.err.count("\n")) == (2, 1)


def test_wrong_benchmarks_and_trainings_give_one_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes, data sets, missing libraries and files."""
    for arguments, sentence in (
        (("benchmark", "latency", "--size", "big"), "a size is rows x columns, such as 1024x768; got 'big'"),
        (("benchmark", "quality", "--dataset", "moon", "--root", "."), "unknown data set 'moon'"),
        (("benchmark", "quality", "--root", "."), "see lowlat-seg benchmark quality --help"),
        (
            ("benchmark", "robustness", "--dataset", "folder", "--root", ".", "--ignore", "x"),
            "expected a whole number or SET=NUMBER, got 'x'",
        ),
        (("train", "no.toml"), "no configuration file at no.toml; check the path"),
        (("dance",), "No such command 'dance'"),
    ):
        done = call(*arguments)
        assert (done.status, done.err.count("\n")) == (2, 1), done
        assert sentence in done.err

    def missing(*_: object, **__: object) -> None:
        raise ImportError("this needs onnxruntime; install the extra rivals")

    monkeypatch.setattr("napari_lowlat_seg.evaluation.quality.run_quality", missing)
    monkeypatch.setattr("napari_lowlat_seg.evaluation.latency.run_latency", missing)
    monkeypatch.setattr("napari_lowlat_seg.evaluation.analysis.robustness.run_robustness", missing)
    folder = ("--dataset", "folder", "--root", ".")
    for arguments in (("quality", *folder), ("robustness", *folder), ("latency",)):
        assert call("benchmark", *arguments) == Done(
            2, "", "this needs onnxruntime; install the extra rivals\n"
        )


def test_training_gets_its_configuration(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And whether it resumes from a checkpoint, or may write over another run."""
    seen: list[tuple[Path, bool, bool]] = []

    def train_from_config(path: Path, resume: bool, force: bool) -> Path:
        seen.append((path, resume, force))
        return path

    monkeypatch.setattr("napari_lowlat_seg.training.train.train_from_config", train_from_config)
    (tmp_path / "a.toml").write_text("")
    assert call("train", "a.toml", "--resume").status == 0
    assert call("train", "a.toml", "--force").status == 0
    assert seen == [(Path("a.toml"), True, False), (Path("a.toml"), False, True)]


def test_complex_planes_are_refused_and_colour_masks_are_read(tmp_path: Path) -> None:
    """What is no number is refused; a mask may be a coloured picture."""
    from napari_lowlat_seg.cli.segment import SegmentRequest, check_plane, read_prompts

    volume = Volume(np.zeros((4, 5), complex), name="a")
    with pytest.raises(ValueError, match=r"a must hold real numbers; got type complex128"):
        check_plane(volume, volume.planes()[0])
    colours = np.zeros((4, 5, 3), np.uint8)
    colours[1, 2, 1] = 9
    Image.fromarray(colours).save(tmp_path / "m.png")
    ((mask,),) = read_prompts(
        SegmentRequest(masks=(tmp_path / "m.png",)), Volume(np.zeros((4, 5))), 0
    ).values()
    assert np.argwhere(mask.pixels).tolist() == [[1, 2]]  # type: ignore[union-attr]


def test_a_2d_image_cannot_be_propagated(call: Call, tiny: Path, tmp_path: Path) -> None:
    """--propagate needs planes."""
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    done = call("segment", "a.png", "-o", "b.png", "--model", tiny, "--click", "3,4", "--propagate", "0:0")
    assert done == Done(2, "", "a 2-D image has one plane only; leave out --propagate\n")


def test_an_interrupt_is_no_traceback(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C: status 130, as shells expect."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_lowlat_seg.cli.demo.run_demo", interrupted)
    done = call("demo")
    assert (done.status, "Traceback" in done.err) == (130, False)


@pytest.mark.parametrize(
    ("arguments", "function", "sentence"),
    [
        (("segment", "a.tif", "-o", "l.tif"), "cli.segment.run_segment", "nothing was written"),
        (("segment", "a.tif", "-o", "l.zarr"), "cli.segment.run_segment", "nothing was written"),
        (
            ("segment", "a.tif", "-o", "there.zarr"),
            "cli.segment.run_segment",
            "what is in LABELS so far is kept",
        ),
        (("seeds", "a.tif", "p.csv", "-o", "l.tif"), "batch.seeds.run_seeds", "nothing was written"),
        (("embed", "a.tif"), "batch.embed.run_embed", "the same command resumes"),
        (("everything", "a.tif", "-o", "l.tif"), "batch.automatic.run_automatic", "the same command resumes"),
    ],
)
def test_an_interrupt_says_what_is_kept(
    arguments: tuple[str, ...], function: str, sentence: str, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the one line that it prints."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    Path("there.zarr").mkdir()
    monkeypatch.setattr(f"napari_lowlat_seg.{function}", interrupted)
    done = call(*arguments)
    assert done.status == 130
    assert done.err.startswith("interrupted; ")
    assert sentence in done.err


@pytest.mark.parametrize("more", [(), ("--propagate", ":")])
def test_without_a_positive_prompt_the_object_is_empty(
    more: tuple[str, ...], segment: Call, tmp_path: Path
) -> None:
    """And a warning says so; a network would draw something all the same."""
    done = segment("--click", "2,20,25-", "--box", "2,1,1,9,9-", *more)
    assert (done.status, done.err) == (0, "warning: the object is empty, because no prompt is positive\n")
    assert not np.asarray(read_volume(tmp_path / "out.tif").data).any()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[{"points": []}]', "holds no point; it needs at least one Z,R,C"),
        ('[{"points": [[2, 3, 4]], "positive": "false"}]', "positive is true or false, not 'false'"),
        ("[[1, 2, 1" + "0" * 400 + "]]", "is no list of points Z,R,C (OverflowError"),
        ("[" * 5000 + "]" * 5000, "is no list of points Z,R,C (RecursionError"),
    ],
)
def test_a_malformed_point_file_gives_one_sentence(
    text: str, sentence: str, segment: Call, tmp_path: Path
) -> None:
    """And is never taken for another sign."""
    (tmp_path / "p.json").write_text(text)
    done = segment("--scribble", "p.json")
    assert done.status == 2
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_what_cannot_be_written_is_refused_before_the_work(call: Call, stack: Path) -> None:
    """The image itself is no place for labels, and a .png none for a stack; no model is needed to know."""
    before = stack.read_bytes()
    for output, sentence in (
        (stack, "stack.tif is the image itself; give the output another name"),
        ("out.png", "a .png holds one plane of labels up to 65535; got an image of shape (5, 40, 50)"),
    ):
        done = call("segment", stack, "-o", output, "--model", "no.safetensors", "--click", "2,20,25")
        assert done.status == 2
        assert sentence in done.err
    assert stack.read_bytes() == before


def test_no_input_of_a_command_is_written_over(call: Call, stack: Path, tmp_path: Path) -> None:
    """Neither by its own name nor by a link to it, by any command; nothing is loaded to know it."""
    write_labels(tmp_path / "m.tif", np.ones((5, 40, 50), int))
    (tmp_path / "p.csv").write_text("2,20,25\n")
    (tmp_path / "link.tif").symlink_to("stack.tif")
    (tmp_path / "l.tif.disputes.csv").write_text("2,20,25\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    click = ("--click", "2,20,25")
    for arguments, sentence in (
        (("segment", stack, "-o", "link.tif", *click), "link.tif is the image itself; give the output"),
        (("segment", stack, "-o", "m.tif", "--mask", "m.tif"), "m.tif is the mask itself"),
        (("seeds", stack, "p.csv", "-o", stack), "is the image itself; give the output another name"),
        (("everything", "link.tif", "-o", stack), "is the image itself; give the output another name"),
        (
            ("seeds", stack, "l.tif.disputes.csv", "-o", "l.tif", "--consensus"),
            "l.tif.disputes.csv is where the disputes are written; give the points another name",
        ),
    ):
        done = call(*arguments, "--model", "no.safetensors")
        assert (done.status, done.err.count("\n")) == (2, 1), done
        assert sentence in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_sentence_that_names_the_file(
    segment: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing half made is left."""

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    before = sorted(tmp_path.iterdir())
    done = segment("--click", "2,20,25")
    assert done == Done(2, "", "out.tif: no space left on device; make room there and try again\n")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "utf-16-le", "utf-8"])
@pytest.mark.parametrize("handler", ["strict", "surrogateescape"])
def test_a_terminal_without_the_letters_of_a_name_says_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, handler: str
) -> None:
    """Results, warnings and refusals of files of any name: one line, never a traceback."""
    names = ["naïve µm", "日本語 🧠", "a\u202eb", *(["lone\udcff"] if sys.platform == "linux" else [])]
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        path = write_labels(folder / f"{name}.tif", np.ones((3, 4), int))
        for arguments, status in (
            (["measure", path], 0),
            (["export", path, "-o", folder / f"{name}.json"], 0),
            (["measure", folder / f"{name} gone.tif"], 2),
            (["segment", path, "-o", path, "--click", "1,1"], 2),
        ):
            out, err = io.BytesIO(), io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, handler))
            monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding, handler))
            with pytest.raises(SystemExit) as left:
                app.main([str(one) for one in arguments])
            sys.stdout.flush()
            sys.stderr.flush()
            said = err.getvalue().decode(encoding, "replace")
            assert (left.value.code or 0) == status, said
            assert len(said.splitlines()) <= 1, said
            assert out.getvalue() or said


def test_a_warning_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the file and the line of code."""

    def warn(*_: object, **__: object) -> None:
        warnings.warn("the cache\ncannot be written", RuntimeWarning, stacklevel=1)

    monkeypatch.setattr("napari_lowlat_seg.cli.demo.run_demo", warn)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored afterwards
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert call("demo").err == "warning: the cache cannot be written\n"


def test_a_nifti_of_four_axes_needs_a_channel(call: Call, tiny: Path, tmp_path: Path) -> None:
    """Or its planes would have time for columns."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 4, 2), np.uint8)
    nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), tmp_path / "a.nii.gz")
    arguments = ("segment", "a.nii.gz", "-o", "b.nii.gz", "--model", tiny)
    done = call(*arguments, "--click", "3,10,20")
    assert done.status == 2
    assert "a.nii.gz has a fourth axis of 2; choose one with --channel or --time, counted from 0" in done.err
    assert call(*arguments, "--click", "3,10,20", "--channel", "1").status == 0
    assert read_volume(tmp_path / "b.nii.gz").shape == (20, 30, 4)


def test_nan_in_a_mask_is_background(tmp_path: Path) -> None:
    """Masks of statistics packages have NaN outside."""
    from napari_lowlat_seg.cli.segment import SegmentRequest, read_prompts

    mask = np.full((3, 6, 7), np.nan, np.float32)
    mask[1, 2:4, 3:5] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "m.nii")
    prompts = read_prompts(SegmentRequest(masks=(tmp_path / "m.nii",)), Volume(np.zeros((3, 6, 7))), 0)
    assert [plane.index for plane in prompts] == [(1, None, None)]
    assert int(prompts[Plane((1, None, None))][0].pixels.sum()) == 4
