"""What pyproject.toml cannot hold: the project's addresses, and a README whose links work elsewhere.

The package index and napari's hub show the README without the files beside it. The address of the repository
is written in one place, `[tool.napari-lowlat-seg]` of pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["napari-lowlat-seg"]
REPOSITORY = SETTINGS["repository"].rstrip("/")


def absolute(markdown: str, repository: str = REPOSITORY) -> str:
    """Return Markdown whose links and pictures lead to the main branch of `repository`.

    >>> absolute("![a](docs/a.png) [b](docs/) [c](#c) [d](https://d.org)", "https://x.org/y")
    '![a](https://x.org/y/raw/main/docs/a.png) [b](https://x.org/y/blob/main/docs/) [c](#c) [d](https://d.org)'
    """

    def address(found: re.Match[str]) -> str:
        kind = "raw" if found["picture"] else "blob"
        return f"{found['picture']}[{found['text']}]({repository}/{kind}/main/{found['path']})"

    link = r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)\s]+)\)"
    return re.sub(link, address, markdown)


if __name__ == "__main__":
    setup(
        long_description=absolute((ROOT / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
        project_urls={
            "Source Code": REPOSITORY,
            "Bug Tracker": f"{REPOSITORY}/issues",
            "Documentation": f"{REPOSITORY}/tree/main/docs",
            "User Support": f"{REPOSITORY}/issues",
            "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        },
    )
