"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A name of `lowlat-seg models list`, or a .safetensors or .pth file."),
]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:1 or mps.")]

MODEL = "default"
DEVICE = "auto"
