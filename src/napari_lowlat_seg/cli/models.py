"""`lowlat-seg models`: list, describe, download, import and calibrate models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lowlat_seg.cli.options import examples

app = typer.Typer(
    help="List, describe, download, import and calibrate models.", no_args_is_help=True, rich_markup_mode=None
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list", epilog=examples("lowlat-seg models list", "lowlat-seg models list --json"))
def list_(as_json: AsJson = False) -> None:
    """List all known and imported models, and whether they are on this machine."""
    from napari_lowlat_seg.models.checkpoints import list_models

    models = list_models()
    if as_json:
        print(json.dumps(models))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "family", "parameters", "input", "here", "what it is", box=None)
    for facts in models:
        table.add_row(
            facts["name"],
            facts["family"],
            f"{facts['parameters'] / 1e6:.1f} M" if facts["parameters"] else "?",
            str(facts["size"] or "?"),
            "yes" if facts["downloaded"] else "no",
            facts["note"],
        )
    Console().print(table)


@app.command(no_args_is_help=True, epilog=examples("lowlat-seg models info default"))
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name, or a .safetensors or .pth file.")],
    as_json: AsJson = False,
) -> None:
    """Show all facts on one model; downloads nothing."""
    from napari_lowlat_seg.models.checkpoints import model_info

    facts: dict[str, Any] = model_info(model)
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:<11} {'-' if value is None else value}")


@app.command(no_args_is_help=True, epilog=examples("lowlat-seg models download base"))
def download(model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `models list`.")]) -> None:
    """Download a model and check it."""
    from napari_lowlat_seg.models.checkpoints import download_model

    print(download_model(model))


@app.command(
    "import",
    no_args_is_help=True,
    epilog=examples(
        "lowlat-seg models import vitb_sax1.pth", "lowlat-seg models import my.safetensors -o models"
    ),
)
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An official .pth or one of our .safetensors files.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            "--out",
            help="A folder or a .safetensors file; default: where names are looked up.",
        ),
    ] = None,
) -> None:
    """Add a model file as safetensors; afterwards its name without the ending can be given as --model."""
    from napari_lowlat_seg.models.checkpoints import import_model

    print(import_model(file, out))


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg models calibrate default --from quality.json -o calibrated.safetensors"),
)
def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name or file; it is not changed.")],
    report: Annotated[
        Path, typer.Option("--from", metavar="FILE", help="The JSON of benchmark quality with this model.")
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--output", "--out", metavar="FILE", help="The new .safetensors file to write."),
    ],
    model_name: Annotated[
        str | None, typer.Option(help="What the report calls the model, if it has several.")
    ] = None,
) -> None:
    """Fit the predicted IoU to the true one; report the gain on sets it was not fitted to."""
    from napari_lowlat_seg.evaluation.analysis.calibration import calibrate_model

    calibrate_model(model, report, out, model_name=model_name)
