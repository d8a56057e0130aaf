"""`lowlat-seg`: the library from a terminal.

Exit status 0 when done; 2 for a wrong call or unusable input, with one sentence on stderr. An error of the
program itself keeps its traceback. What is heavy is imported by the command that needs it: help is quick.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lowlat_seg.cli import benchmark, models
from napari_lowlat_seg.cli.options import (
    DEVICE,
    MODEL,
    Axis,
    Channel,
    Device,
    Model,
    Scheduler,
    Workers,
    extras,
)

app = typer.Typer(
    name="lowlat-seg",
    help="Interactive segmentation: prompts in, masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(models.app, name="models")
app.add_typer(benchmark.app, name="benchmark")

# Typer brings its own click in later versions; its base class is found through the one that typer exports.
_WrongCall: Any = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; always leaves with SystemExit, or the traceback of an unexpected error."""
    # Libraries that log what they then raise would say it twice.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    try:
        status = app(arguments, prog_name="lowlat-seg", standalone_mode=False)
    except typer.Abort:
        _leave("interrupted", 130)
    except _WrongCall as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lowlat-seg"
        _leave(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except (ValueError, OSError) as error:
        _leave(str(error) or type(error).__name__, 2)
    sys.exit(status if isinstance(status, int) else 0)


def _leave(sentence: str, status: int) -> None:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(status)


def _version(request: bool) -> None:
    if request:
        from napari_lowlat_seg import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and leave.")
    ] = False,
) -> None:
    """Interactive segmentation: prompts in, masks out."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for labels and pictures.")] = Path(
        "lowlat-seg-demo"
    ),
    model: Model = MODEL,
    device: Device = DEVICE,
) -> None:
    """Segment the shipped EM stack and MRI volume; write labels and pictures; say how good and how fast."""
    from napari_lowlat_seg.cli.demo import run_demo

    run_demo(out, model=model, device=device)


@app.command()
def segment(
    image: Annotated[
        Path, typer.Argument(metavar="INPUT", help="TIFF, OME-TIFF, NIfTI, OME-Zarr, PNG, JPEG or WebP.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="LABELS", help="TIFF, NIfTI, PNG or OME-Zarr.")
    ],
    click: Annotated[
        list[str] | None,
        typer.Option(
            metavar="Z,R,C[+|-]", help="A point, - at the end for background; R,C in 2-D. Repeatable."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="Z,R0,C0,R1,C1[+|-]", help="A rectangle, by two corners. Repeatable."),
    ] = None,
    scribble: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Lines, as .json or .csv of Z,R,C. Repeatable.")
    ] = None,
    polygon: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Outlines, as .json or .csv of Z,R,C. Repeatable."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="An image of the input's shape; what is not 0 is meant. Repeatable."
        ),
    ] = None,
    axis: Annotated[
        int | None,
        typer.Option(help="The axis Z moves along; R and C follow in order. Default: 0, or 2 for NIfTI."),
    ] = None,
    carry: Annotated[
        str | None,
        typer.Option(
            "--propagate", metavar="A:B", help="Carry the object from plane A to plane B; ':' for all."
        ),
    ] = None,
    channel: Annotated[int | None, typer.Option(help="Channel to segment, counted from 0.")] = None,
    label: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="What to write for the object.")] = 1,
    model: Model = MODEL,
    device: Device = DEVICE,
    as_json: Annotated[bool, typer.Option("--json", help="Describe the result as JSON on stdout.")] = False,
) -> None:
    """Segment one object of INPUT by prompts and write LABELS, with the spacing and affine of INPUT.

    Coordinates are array indices, pixel centres on integers; Z is the place along --axis. Several planes may
    have prompts; on each, masks and outlines come first, clicks last. A point file holds one line "Z,R,C" per
    point, a blank line between strokes, and "+" or "-" as another column if request (.csv), or a list of
    {"points": [[Z, R, C], ...], "positive": true} (.json).
    """
    from napari_lowlat_seg.cli.segment import SegmentRequest, run_segment

    request = SegmentRequest(
        clicks=tuple(click or ()),
        boxes=tuple(box or ()),
        scribbles=tuple(scribble or ()),
        polygons=tuple(polygon or ()),
        masks=tuple(mask or ()),
        axis=axis,
        propagate=carry,
        channel=channel,
        label=label,
    )
    with extras():
        done = run_segment(image, output, request, model=model, device=device)
    if as_json:
        print(json.dumps(done))
    else:
        planes = "plane" if done["planes"] == 1 else "planes"
        print(f"{done['voxels']} voxels on {done['planes']} {planes} in {done['seconds']:.1f} s: {output}")


@app.command()
def embed(
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="An image file or an OME-Zarr.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="CACHE", help="Folder; default: VOLUME.embeddings, where napari looks."
        ),
    ] = None,
    axis: Axis = None,
    channel: Channel = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    model: Model = MODEL,
    device: Device = DEVICE,
) -> None:
    """Embed all planes of VOLUME into CACHE, so that clicks there need not wait. Goes on where it stopped."""
    from napari_lowlat_seg.batch.embed import run_embed

    with extras():
        done = run_embed(
            image,
            output,
            model=model,
            device=device,
            axis=axis,
            channel=channel,
            workers=workers,
            scheduler=scheduler,
        )
    size = f"{done['bytes'] / 2**20:.0f} MiB"
    print(f"{done['planes']} planes, {done['made']} of them new, {size}: {done['folder']}")


@app.command()
def seeds(
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="A 3-D image file or OME-Zarr.")],
    points: Annotated[Path, typer.Argument(metavar="POINTS", help="A .csv of Z,R,C, or as napari saves.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="LABELS", help="TIFF, NIfTI, OME-Zarr.")],
    axis: Axis = None,
    channel: Channel = None,
    consensus: Annotated[
        bool,
        typer.Option("--consensus", help="Carry along all three axes; a table beside LABELS lists disputes."),
    ] = False,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    model: Model = MODEL,
    device: Device = DEVICE,
) -> None:
    """Every point of POINTS becomes an object, carried through VOLUME; all of them in one go."""
    from napari_lowlat_seg.batch.seeds import DISPUTES, run_seeds

    with extras():
        done = run_seeds(
            image,
            points,
            output,
            model=model,
            device=device,
            axis=axis,
            channel=channel,
            agreed=consensus,
            workers=workers,
            scheduler=scheduler,
        )
    print(f"{done['objects']} objects, {done['voxels']} voxels in {done['seconds']:.1f} s: {output}")
    if consensus:
        print(f"{done['disputes']} places where the axes disagree: {output}{DISPUTES}")


@app.command()
def everything(
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="A 2-D or 3-D image file or OME-Zarr.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="LABELS", help="TIFF, NIfTI, OME-Zarr.")],
    axis: Axis = None,
    channel: Channel = None,
    grid: Annotated[int, typer.Option(min=1, help="Clicks along the longer side of a plane or tile.")] = 16,
    stability: Annotated[float, typer.Option(min=0, max=1, help="More gives fewer and surer objects.")] = 0.2,
    min_area: Annotated[int, typer.Option(min=1, help="Least pixels of an object on a plane.")] = 50,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    model: Model = MODEL,
    device: Device = DEVICE,
) -> None:
    """Label everything in VOLUME, without prompts: a grid of clicks on each plane, linked plane to plane."""
    from napari_lowlat_seg.batch.automatic import run_automatic
    from napari_lowlat_seg.batch.mask_generator import MaskGeneratorSettings

    with extras():
        done = run_automatic(
            image,
            output,
            settings=MaskGeneratorSettings(grid=grid, stability=stability, least_area=min_area),
            model=model,
            device=device,
            axis=axis,
            channel=channel,
            workers=workers,
            scheduler=scheduler,
        )
    print(f"{done['objects']} objects on {done['planes']} planes in {done['seconds']:.1f} s: {output}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A training configuration, as TOML.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
) -> None:
    """Train a model; several GPUs: torchrun -m napari_lowlat_seg train CONFIG."""
    if not config.is_file():
        raise FileNotFoundError(f"no configuration file at {config}; check the path")
    from napari_lowlat_seg.training.train import train_from_config

    print(train_from_config(config, resume=resume))
