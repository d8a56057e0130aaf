"""`lowlat-seg`: the library from a terminal.

Exit status 0 when done; 2 for a wrong call or unusable input, with one sentence on stderr. An error of the
program itself keeps its traceback. What is heavy is imported by the command that needs it: help is quick.
"""

from __future__ import annotations

import atexit
import errno
import gc
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lowlat_seg.cli import batch, benchmark, models, results, sessions
from napari_lowlat_seg.cli.options import (
    DEVICE,
    MODEL,
    Channel,
    Device,
    Level,
    Model,
    Series,
    Time,
    examples,
    extras,
    finishing,
    on_interrupt,
    plural,
    with_options,
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
app.add_typer(sessions.app, name="sessions")

# Typer brings its own click in later versions; its base class is found through the one that typer exports.
_WrongCall: Any = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; ends with SystemExit, or with the traceback of an unexpected error."""
    for stream in (sys.stdout, sys.stderr):
        _take_any_letter(stream)
    # These libraries log what they then raise: it would be shown twice.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    logging.getLogger("nibabel").setLevel(logging.CRITICAL)
    logging.getLogger("roifile").setLevel(logging.CRITICAL)
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    atexit.register(gc.freeze)  # else Python's last collections walk through all of torch, 0.4 s for nothing
    try:
        status = app(arguments, prog_name="lowlat-seg", standalone_mode=False)
    except typer.Abort as error:
        _exit(str(error) or "interrupted", 130)
    except _WrongCall as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "lowlat-seg"
        _exit(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except OSError as error:
        _exit(_sentence(error), 2)
    except ValueError as error:
        _exit(str(error) or type(error).__name__, 2)
    except RuntimeError as error:
        sentence = _foreseen(error)
        if not sentence:
            raise
        _exit(sentence, 2)
    except MemoryError as error:
        more = f" ({error})" if str(error) else ""
        _exit(f"not enough memory{more}; give a smaller part, or convert the image to OME-Zarr", 2)
    sys.exit(status if isinstance(status, int) else 0)


def _take_any_letter(stream: Any) -> None:
    """The terminal may lack a letter of a file's name; what is no UTF-8 in a name is given back by it."""
    errors, unicode = getattr(stream, "errors", None), getattr(stream, "encoding", "") == "utf-8"
    if errors == "strict" or (errors == "surrogateescape" and not unicode):
        stream.reconfigure(errors="backslashreplace")


def _foreseen(error: RuntimeError) -> str:
    """The message for an error that needs no traceback; "" for all others."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if "WorkerProcessEnded" in kinds:
        return str(error)
    if "OutOfMemoryError" in kinds or "can't allocate memory" in str(error):  # torch's, by device
        return "not enough memory on the device; close other programs, or choose --device cpu"
    return ""


def _sentence(error: OSError) -> str:
    """What the system refuses, in one sentence with the name of the file."""
    if error.strerror is None:  # one of ours
        return str(error) or type(error).__name__
    place = f"{error.filename}: " if error.filename else ""
    advice = "; make room there and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{place}{error.strerror[0].lower()}{error.strerror[1:]}{advice}"


def _show_warning(message: Warning | str, *_: object) -> None:
    """A warning as one line, without the place in the code that gave it."""
    print(" ".join(f"warning: {message}".split()), file=sys.stderr)


def _exit(sentence: str, status: int) -> None:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(status)


def _show_version(chosen: bool) -> None:
    if chosen:
        from napari_lowlat_seg import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Interactive segmentation: prompts in, masks out."""


@app.command(epilog=examples("lowlat-seg demo", "lowlat-seg demo -o results"))
def demo(
    out: Annotated[
        Path, typer.Option("-o", "--output", "--out", help="Folder for labels and images.")
    ] = Path("lowlat-seg-demo"),
    model: Model = MODEL,
    device: Device = DEVICE,
) -> None:
    """Segment the shipped EM stack and MRI volume; write labels and images; report quality and speed."""
    from napari_lowlat_seg.cli.demo import run_demo

    run_demo(out, model=model, device=device)


@app.command(no_args_is_help=True, epilog=examples("lowlat-seg samples .", "lowlat-seg samples data"))
def samples(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made if it does not exist.")],
) -> None:
    """Copy the shipped images, reference labels and session into FOLDER, for trying the tutorials."""
    from napari_lowlat_seg.io.samples import copy_samples

    for copy in copy_samples(folder):
        print(copy)


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "lowlat-seg segment stack.tif -o labels.tif --click 12,88,120",
        "lowlat-seg segment stack.tif -o labels.tif --click 12,88,120 --click 12,20,30- --propagate :",
        "lowlat-seg segment scan.nii.gz -o tumour.nii.gz --box 90,50,60,80,95 --propagate 80:100",
        "lowlat-seg segment stack.tif -o labels.tif --click 12,88,120 --save-prompts prompts.json",
        "lowlat-seg segment stack.tif -o again.tif --prompts prompts.json --propagate :",
        "lowlat-seg segment cells.png -o cells-labels.png --click 80,120 --fill-holes --prompted",
    ),
)
@with_options(finishing)
def segment(
    finish: Any,
    image: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="An image file, or a folder of one."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="LABELS", help="TIFF, NIfTI, OME-Zarr, NRRD, MRC, PNG, ..."),
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
            metavar="FILE", help="An image of the input's shape; non-zero pixels are the object. Repeatable."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts as --save-prompts writes them, of one object or several."),
    ] = None,
    save_prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the prompts here, as .json beside the labels; added to those there."
        ),
    ] = None,
    axis: Annotated[
        int | None,
        typer.Option(help="The axis of Z; R and C are the others in order. Default: across z."),
    ] = None,
    propagate: Annotated[
        str | None,
        typer.Option(
            "--propagate", metavar="A:B", help="Propagate the object from plane A to plane B; ':' for all."
        ),
    ] = None,
    channel: Channel = None,
    series: Series = None,
    time: Time = None,
    level: Level = None,
    closer_look: Annotated[
        str, typer.Option(metavar="auto|off", help="Whether small objects are refined in a magnified crop.")
    ] = "auto",
    label: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**32 - 1,
            help="The label of the object. Default: the next free one in LABELS.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Write LABELS anew; else the object is added to those there.")
    ] = False,
    model: Model = MODEL,
    device: Device = DEVICE,
    as_json: Annotated[bool, typer.Option("--json", help="Describe the result as JSON on stdout.")] = False,
) -> None:
    """Segment an object of INPUT by prompts and add it to LABELS, with the spacing and affine of INPUT.

    Coordinates are array indices, pixel centres on integers; Z is the place along --axis. Several planes may
    have prompts; on each, masks and outlines come first, clicks last. A point file holds one line "Z,R,C" per
    point, a blank line between strokes, and an optional column of "+" or "-" (.csv), or a list of
    {"points": [[Z, R, C], ...], "positive": true} (.json).
    """
    from napari_lowlat_seg.cli.segment import SegmentRequest, run_segment
    from napari_lowlat_seg.io.choice import Choice
    from napari_lowlat_seg.io.files import is_ome_zarr

    request = SegmentRequest(
        clicks=tuple(click or ()),
        boxes=tuple(box or ()),
        scribbles=tuple(scribble or ()),
        polygons=tuple(polygon or ()),
        masks=tuple(mask or ()),
        axis=axis,
        propagate=propagate,
        choice=Choice(channel, series or "", time, level),
        label=label,
        replace=replace,
        finish=finish,
        closer_look=closer_look,
        prompts=prompts,
        save_prompts=save_prompts,
    )
    adding = is_ome_zarr(output) and output.exists()
    kept = "what is in LABELS so far is kept" if adding else "nothing was written"
    with extras(), on_interrupt(kept):
        done = run_segment(image, output, request, model=model, device=device)
    if as_json:
        print(json.dumps(done))
    else:
        found = f"{plural(done['voxels'], 'voxel')} on {plural(done['planes'], 'plane')}"
        print("\n".join([f"{found} in {done['seconds']:.1f} s: {output}", *done["notes"]]))


@app.command(epilog=examples("lowlat-seg info", "lowlat-seg info --device ssh://gpu1"))
def info(
    model: Model = MODEL,
    device: Device = DEVICE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, processor, devices and models here, then load a model and show what runs it.

    An error report needs this text. On another machine (ssh://HOST) it also says how far away that is.
    """
    from napari_lowlat_seg.evaluation.report import installation
    from napari_lowlat_seg.serving.process import open_prediction_service

    facts: dict[str, Any] = installation()
    if not as_json:
        _print_facts(facts)  # before the model is loaded: they are needed most when that fails
    service = open_prediction_service(model, device)
    try:
        described = service.describe()
    finally:
        service.close()
    if as_json:
        print(json.dumps({**facts, **described}, default=str))
    else:
        _print_facts(described)


def _print_facts(facts: dict[str, Any]) -> None:
    for name, value in facts.items():
        if value != "":
            print(f"{name}: {value}")


@app.command(hidden=True)
def serve(
    stdio: Annotated[bool, typer.Option("--stdio", help="Messages on standard input and output.")] = False,
) -> None:
    """Serve predictions to the program that started this; what `--device ssh://HOST` runs on HOST."""
    if not stdio:
        raise ValueError("serve is started by other programs, with --stdio; use --device ssh://HOST there")
    from napari_lowlat_seg.serving.process import serve as serve_predictions

    serve_predictions(functions=False)


for _command, _examples in (*batch.COMMANDS, *results.COMMANDS, *sessions.COMMANDS):
    app.command(no_args_is_help=True, epilog=examples(*_examples))(_command)


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg train config.toml", "lowlat-seg train config.toml --resume"),
)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A training configuration, as TOML.")],
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over another run in its folder.")] = False,
) -> None:
    """Train a model; several GPUs: torchrun -m napari_lowlat_seg train CONFIG."""
    if not config.is_file():
        raise FileNotFoundError(f"no configuration file at {config}; check the path")
    from napari_lowlat_seg.training.train import train_from_config

    print(train_from_config(config, resume=resume, force=force))
