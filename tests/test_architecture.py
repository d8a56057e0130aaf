"""The rules of the house: what imports what, what is public, what is in the package."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

import napari_lowlat_seg
from napari_lowlat_seg.io.samples import SAMPLES, sample_path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "napari_lowlat_seg"
WHEEL_LIMIT = 45 * 2**20  # bytes: default weights of at most 40 MB, samples of 5 MB

ENGINE = sorted(
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in SOURCE.rglob("*.py")
    if "plugin" not in path.parts and path.name != "__main__.py"
)
ROOMS = (["annotation"], ["core"], ["io"], ["propagation"])
WEIGHTS = sorted(SOURCE.glob("models/weights/*.*"))
VOCABULARY = [name for name in ENGINE if name.split(".")[1:2] in ROOMS]
PUBLIC = [
    "ArrayLabels",
    "Box",
    "Click",
    "Embedding",
    "Frame",
    "Mask",
    "Measurement",
    "ObjectPrompts",
    "Plane",
    "Polygon",
    "Prediction",
    "PredictionService",
    "Predictor",
    "Prompt",
    "PropagationRun",
    "Scribble",
    "Session",
    "SoftMask",
    "Volume",
    "__version__",
    "load_predictor",
    "load_prompts",
    "measure",
    "propagate",
    "sample_path",
    "save_prompts",
    "write_export",
]

# A finder that is asked first and refuses: the same as not installed. (None in sys.modules is not: array
# libraries look there to learn whether torch is in use.)
BLOCK = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.slow
def test_every_engine_module_imports_without_napari_and_qt(run_python):
    """The engine runs on a cluster, where neither is installed."""
    block = BLOCK.format(names=["napari", "qtpy", "magicgui", "superqt", "PySide6", "PyQt6"])
    imports = "\n".join(f"import {name}" for name in ENGINE)
    assert run_python(f"{block}{imports}\nprint('all')") == "all"


@pytest.mark.slow
def test_the_vocabulary_imports_without_torch(run_python):
    """Volumes, prompts, files and the simulated annotator are numpy only."""
    imports = "\n".join(f"import {name}" for name in VOCABULARY)
    assert run_python(f"{BLOCK.format(names=['torch'])}{imports}\nprint('all')") == "all"


def test_importing_the_package_imports_nothing_heavy(run_python):
    """napari asks every plugin at start; none may cost it a second."""
    heavy = run_python(
        "import sys, napari_lowlat_seg\n"
        "print(sorted({'torch', 'numpy', 'skimage', 'napari', 'qtpy'} & set(sys.modules)))"
    )
    assert heavy == "[]"


@pytest.mark.slow
def test_importing_the_contributions_imports_no_torch(run_python):
    """Opening sample data does not wait for the network's library."""
    imported = run_python(
        "import sys, napari_lowlat_seg.plugin.contributions\n"
        "print('torch' in sys.modules, 'qtpy' in sys.modules)"
    )
    assert imported == "False False"


def test_the_public_names_are_these_in_this_order():
    """A name comes or goes only on purpose."""
    assert napari_lowlat_seg.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert dir(napari_lowlat_seg) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_leads_somewhere_and_is_documented(name):
    """The lazy look-up finds each of them."""
    value = getattr(napari_lowlat_seg, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_answered_with_the_public_names():
    """A typing error is answered with what there is."""
    with pytest.raises(
        AttributeError, match=r"has no attribute 'Klick'; its public names are ArrayLabels, Box"
    ):
        napari_lowlat_seg.Klick  # noqa: B018


def test_the_version_is_that_of_the_metadata():
    """There is one place for it, pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert napari_lowlat_seg.__version__ == project["version"]


@pytest.mark.slow
def test_the_import_rules_hold():
    """The contracts of pyproject.toml: layers, the plugin wall, a vocabulary without torch."""
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", lint, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_napari_finds_the_manifest_and_every_command_in_it():
    """The entry point leads to a valid manifest; each python_name leads somewhere where napari is."""
    from npe2 import PluginManifest

    manifest = PluginManifest.from_distribution("napari-lowlat-seg")
    if importlib.util.find_spec("napari") is not None:
        manifest.validate_imports()
    assert manifest.name == "napari-lowlat-seg"
    assert [sample.key for sample in manifest.contributions.sample_data] == ["em", "mri"]
    assert (ROOT / "napari.yaml").read_text() == (SOURCE / "napari.yaml").read_text()


def test_the_command_line_is_an_entry_point():
    """`lowlat-seg` and `python -m napari_lowlat_seg` are one function."""
    (script,) = distribution("napari-lowlat-seg").entry_points.select(group="console_scripts")
    assert script.name == "lowlat-seg"
    assert script.load() is importlib.import_module("napari_lowlat_seg.__main__").main


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_there_and_its_origin_is_told(name):
    """No file is shipped without a line on where it comes from."""
    path = sample_path(name)
    assert path.stat().st_size > 0
    assert f"`{name}`" in (path.parent / "README.md").read_text()


def test_an_unknown_sample_is_answered_with_the_samples():
    """The error lists what there is."""
    with pytest.raises(ValueError, match=r"got 'ct\.tif'; choose one of em_fly_medulla\.tif, "):
        sample_path("ct.tif")


def test_a_lost_sample_is_answered_with_where_it_should_be(monkeypatch, tmp_path):
    """A broken installation raises another error than a wrong name."""
    monkeypatch.setattr("napari_lowlat_seg.io.samples._FOLDERS", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(FileNotFoundError, match=r"expected the sample em_fly_medulla\.tif in .* reinstall"):
        sample_path("em_fly_medulla.tif")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel as setuptools builds it from this tree, its scratch folders kept out of the tree."""
    out = tmp_path_factory.mktemp("wheel")
    scratch = f"[build]\nbuild_base={out / 'build'}\n[egg_info]\negg_base={out}\n"
    (out / "setup.cfg").write_text(scratch)
    done = subprocess.run(
        [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, "DIST_EXTRA_CONFIG": str(out / "setup.cfg")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_carries_samples_manifest_weights_and_licences(wheel):
    """What works from a checkout works from the wheel too."""
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"napari_lowlat_seg/sample_data/{name}" for name in (*SAMPLES, "README.md")}
    expected |= {"napari_lowlat_seg/napari.yaml", "napari_lowlat_seg/py.typed"}
    expected |= {f"napari_lowlat_seg/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*.py")}
    expected |= {f"napari_lowlat_seg/models/weights/{path.name}" for path in WEIGHTS}
    assert expected - names == set()
    assert {Path(name).name for name in names if "/licenses/" in name} == {
        "LICENSE",
        "NOTICE",
        "Apache-2.0.txt",
    }
    assert wheel.stat().st_size < WHEEL_LIMIT
    (described,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    metadata = zipfile.ZipFile(wheel).read(described).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    assert re.search(r"^Project-URL: User Support, https://", metadata, re.MULTILINE)
    assert "](docs/" not in metadata


def test_the_default_weights_are_shipped_with_a_model_card():
    """The main job needs no download."""
    weights = SOURCE / "models" / "weights"
    assert (weights / "default.safetensors").stat().st_size <= 40e6
    assert any(weights.glob("*.md"))


@pytest.mark.slow
def test_no_heavy_or_unused_dependency_is_in_the_base():
    """A cluster gets no Qt and no napari, and nothing is asked for that no module imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    assert not {name for name in asked if re.search("qt|pyside|napari", name)}
    modules = {"scikit-image": "skimage", "pillow": "PIL", "pynrrd": "nrrd"}
    code = "\n".join(path.read_text() for path in SOURCE.rglob("*.py"))
    unused = {name for name in asked if not re.search(rf"\b(import|from) {modules.get(name, name)}\b", code)}
    assert unused == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "printed"),
    [
        ("Ten lines of Python", r"\d+ pixels, corrected to \d+ probability up to 0\.\d+"),
        ("Annotate without a window", "10 planes; accepted: True and undone: accept.*"),
    ],
)
def test_a_script_in_the_readme_runs(tmp_path, monkeypatch, capsys, section, printed):
    """The ten lines a newcomer copies work as they stand."""
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "README.md").read_text()
    (script,) = re.findall(rf"## {section}\n[^#]*?```python\n(.*?)```", readme, flags=re.DOTALL)
    exec(compile(script, "README.md", "exec"), {"__name__": "readme"})
    assert re.fullmatch(printed, capsys.readouterr().out.strip())
    assert len(script.strip().splitlines()) <= 12


def test_every_script_in_the_readme_is_run():
    """There are two."""
    assert (ROOT / "README.md").read_text().count("```python") == 2


def test_what_the_readme_links_to_is_there():
    """A link or picture in a page of the front leads to a file of the repository."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", (ROOT / page).read_text())
        lost = [link for link in links if "://" not in link and not (ROOT / link).exists()]
        assert lost == [], page
