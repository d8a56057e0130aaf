"""What is published: metadata, the README elsewhere, and files that repeat what pyproject.toml says."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PYPROJECT["tool"]["napari-lowlat-seg"]["repository"]
absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]


def test_links_of_the_readme_work_elsewhere() -> None:
    """No link or picture of the published README is relative; all lead to the one address."""
    readme = absolute((ROOT / "README.md").read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert all(re.match("https://", link) for link in links), links
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert all(picture.startswith(f"{REPOSITORY}/raw/main/docs/images/") for picture in pictures)
    made = absolute("[a](docs/x.md#b) [c](#d)", "https://e.org/f")
    assert made == "[a](https://e.org/f/blob/main/docs/x.md#b) [c](#d)"


def test_the_address_of_the_repository_is_written_once() -> None:
    """Everything else is made from it."""
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CITATION.cff", "setup.py")]
    pages += [*ROOT.glob("recipe/*"), *ROOT.glob(".github/**/*.yml"), *ROOT.glob("docs/**/*.md")]
    assert [path for path in pages if REPOSITORY in path.read_text(encoding="utf-8")] == []


def test_the_metadata_have_what_the_index_and_the_hub_show() -> None:
    """A short description, and the classifiers of every Python that is meant."""
    classifiers = PYPROJECT["project"]["classifiers"]
    assert "Framework :: napari" in classifiers
    assert [name for name in classifiers if re.search(r":: 3\.\d+$", name)] == [
        f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)
    ]
    assert len(PYPROJECT["project"]["description"]) < 200


def recipe() -> dict[str, object]:
    """The recipe without the template's words, as far as YAML reads it."""
    text = (ROOT / "recipe" / "meta.yaml").read_text(encoding="utf-8")
    version = re.search('set version = "([^"]+)"', text)
    assert version is not None
    plain = re.sub(r"{%.*?%}", "", text).replace("{{ version }}", version[1])
    loaded: dict[str, object] = yaml.safe_load(re.sub(r"{{ (\w+) }}", r"\1", plain))
    return loaded


def test_the_recipe_asks_for_what_the_package_asks_for() -> None:
    """Version and requirements, by conda's names."""
    made = recipe()
    assert made["package"] == {"name": "name", "version": PYPROJECT["project"]["version"]}
    theirs = {"torch": "pytorch", "msgpack": "msgpack-python"}
    expected = set()
    for line in PYPROJECT["project"]["dependencies"]:
        name, least = line.split(">=")
        expected.add(f"{theirs.get(name, name)} >={least}")
    run = made["requirements"]["run"]  # type: ignore[index]
    assert {line for line in run if not line.startswith("python ")} == expected
    about = made["about"]
    assert about["license"] == PYPROJECT["project"]["license"]  # type: ignore[index]
    shipped = {path for pattern in PYPROJECT["project"]["license-files"] for path in ROOT.glob(pattern)}
    assert {ROOT / name for name in about["license_file"]} == shipped  # type: ignore[index]


FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one(path: Path) -> None:
    """Each has a name and fields; that for errors asks for `lowlat-seg info`."""
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        return
    assert {"name", "description", "body"} <= form.keys()
    assert all(field["attributes"]["label"] for field in form["body"])
    if path.stem == "bug":
        assert "lowlat-seg info" in path.read_text(encoding="utf-8")


def test_the_citation_names_the_software_and_the_paper() -> None:
    """What citing tools need."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["license"] == PYPROJECT["project"]["license"].split(" AND ")[0]  # a citation is of the code
    assert cited["references"][0]["authors"][0]["family-names"] == "Liu"
