"""`lowlat-seg benchmark`: how good and how fast models are, side by side."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lowlat_seg.cli.options import DEVICE, MODEL, Device, examples, extras, with_options

app = typer.Typer(help="Measure quality and latency.", no_args_is_help=True, rich_markup_mode=None)

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        help="A name or file, NAME@off without closer look, NAME@fp32, or onnx-sam:ENCODER,DECODER[,LABEL]. "
        "Repeatable.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all results here.")]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with tables, plots and worst objects here."),
]
CloserLook = Annotated[str, typer.Option(help="auto or off.")]
Dataset = Annotated[
    str,
    typer.Option(help="davis, hqseg44k, coco-lvis, coco-mval, sstem, brats, grabcut, berkeley or folder."),
]
Root = Annotated[Path, typer.Option(help="The folder of the data set.")]
Limit = Annotated[int | None, typer.Option(help="Maximum number of objects per set.")]
Workers = Annotated[int, typer.Option(help="Processes; 0 for one per two cores.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(help="Mask value that is not counted, VALUE or SET=VALUE (folder). Repeatable."),
]
MinArea = Annotated[
    list[str] | None,
    typer.Option(help="Leave out objects of fewer pixels, AREA or SET=AREA (folder). Repeatable."),
]
Components = Annotated[bool, typer.Option(help="Every connected part is an object (folder).")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Only this set (folder). Repeatable.")]


def _settings(
    dataset: Dataset,
    root: Root,
    model: Models = [MODEL],  # noqa: B006 - typer copies it
    limit: Limit = None,
    closer_look: CloserLook = "auto",
    device: Device = DEVICE,
    workers: Workers = 1,
    ignore: Ignore = None,
    min_area: MinArea = None,
    components: Components = False,
    sets: Sets = None,
) -> Any:
    """The `EvaluationSettings`: which models are measured, on what, and where."""
    from napari_lowlat_seg.evaluation.inputs.datasets import FolderOptions, per_set
    from napari_lowlat_seg.evaluation.runner import EvaluationSettings

    options = FolderOptions(
        ignore=per_set(ignore or ()),
        min_area=per_set(min_area or ()),
        components=components,
        sets=tuple(sets or ()),
    )
    return EvaluationSettings(tuple(model), dataset, root, limit, options, device, closer_look, workers)


def _write_page(report: Any, html: Path | None, gallery: Path | None = None) -> None:
    """Write the report as a page, if one is asked for."""
    if html is not None:
        from napari_lowlat_seg.evaluation.html_report import write_html

        write_html(report, html, gallery=gallery)


def _check_page(html: Path | None) -> None:
    from napari_lowlat_seg.evaluation.report import check_folders

    check_folders(html)


def _check_outputs(root: Path, *outputs: Path | None) -> None:
    """Refuse to write over a file of the data set, or into a folder that is not there."""
    _check_page(outputs[-1])
    for path in outputs:
        if path is not None and path.exists() and path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{path} is a file of the data set; give the output another name")


@app.command(
    no_args_is_help=True,
    epilog=examples(
        "lowlat-seg benchmark quality --dataset davis --root DAVIS --json quality.json --html quality.html",
        "lowlat-seg benchmark quality --dataset folder --root pictures -m default -m base --limit 50",
    ),
)
@with_options(_settings)
def quality(
    settings: Any,
    max_clicks: Annotated[int, typer.Option(help="Maximum number of clicks on an object.")] = 20,
    first: Annotated[str, typer.Option(help="First prompt: click, box, scribble or polygon.")] = "click",
    json: Json = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw mIoU against clicks here, calibration beside it."),
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw the worst objects of each domain here.")
    ] = None,
    worst: Annotated[int, typer.Option(help="How many of each model and domain.")] = 24,
    html: Html = None,
) -> None:
    """NoC, NoF and k-mIoU of a simulated annotator, and how accurate the predicted IoU is."""
    from napari_lowlat_seg.evaluation.quality import run_quality

    _check_outputs(settings.root, json, plot, html)
    report = run_quality(
        settings, max_clicks=max_clicks, first=first, json=json, plot=plot, gallery=gallery, worst=worst
    )
    _write_page(report, html, gallery)


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg benchmark candidates --dataset folder --root pictures --json out.json"),
)
@with_options(_settings)
def candidates(settings: Any, json: Json = None, html: Html = None) -> None:
    """IoU after one click: of the first mask, of the best candidate, and how far away that is."""
    from napari_lowlat_seg.evaluation.candidates import run_candidates

    _check_outputs(settings.root, json, html)
    _write_page(run_candidates(settings, json=json), html)


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg benchmark robustness --dataset folder --root pictures --json out.json"),
)
@with_options(_settings)
def robustness(settings: Any, json: Json = None, html: Html = None) -> None:
    """Quality lost by degraded images and imprecise clicks, and what corrections change elsewhere."""
    from napari_lowlat_seg.evaluation.analysis.robustness import run_robustness

    _check_outputs(settings.root, json, html)
    _write_page(run_robustness(settings, json=json), html)


@app.command(
    epilog=examples(
        "lowlat-seg benchmark latency",
        "lowlat-seg benchmark latency -m default -m default@off --size 480x640 --busy 2",
    )
)
def latency(
    model: Models = [MODEL],  # noqa: B006 - typer copies it
    size: Annotated[str, typer.Option(metavar="HxW", help="Rows and columns of the image.")] = "1024x1024",
    clicks: Annotated[int, typer.Option(help="How many clicks to time.")] = 40,
    sat_seconds: Annotated[float, typer.Option(help="Longest time for the 16 x 16 grid of clicks.")] = 60.0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process of its own.")] = True,
    closer_look: CloserLook = "auto",
    device: Device = DEVICE,
    curves: Annotated[
        bool, typer.Option(help="Also measure cost against prompts, image side, planes and objects.")
    ] = False,
    busy: Annotated[
        int, typer.Option(min=0, metavar="N", help="Run N busy loops beside it: N processes, one core each.")
    ] = 0,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw stages, lower bounds and curves.")
    ] = None,
    html: Html = None,
) -> None:
    """Time to embed, to click, to propagate to a plane, segment-anything grid, stages, floor, memory."""
    found = re.fullmatch(r"(\d+)\s*[xX×]\s*(\d+)", size.strip())
    if found is None:
        raise ValueError(f"a size is rows x columns, such as 1024x768; got {size!r}")
    from napari_lowlat_seg.evaluation.latency import run_latency

    _check_page(html)
    with extras():
        report = run_latency(
            model,
            (int(found[1]), int(found[2])),
            device=device,
            closer_look=closer_look,
            clicks=clicks,
            sat_seconds=sat_seconds,
            memory=memory,
            curves=curves,
            busy=busy,
            json=json,
            plot=plot,
        )
    _write_page(report, html)


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg benchmark volume scan.nii.gz reference.nii.gz --object 1+2 --planes 80:100"),
)
def volume(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A 3-D image.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="The reference, of the same shape.")],
    objects: Annotated[
        list[str] | None,
        typer.Option("--object", help="A label, or several joined by + as one object. Repeatable."),
    ] = None,
    axis: Annotated[
        int | None,
        typer.Option(help="The axis along which the planes lie. Default: across z."),
    ] = None,
    planes: Annotated[str, typer.Option(metavar="A:B", help="Only this part of the volume.")] = ":",
    corrections: Annotated[int, typer.Option(min=0, help="Maximum number of planes corrected.")] = 12,
    model: Annotated[str, typer.Option("--model", "-m", help="A name or file.")] = MODEL,
    device: Device = DEVICE,
    json: Json = None,
    html: Html = None,
) -> None:
    """3-D Dice and actions of a simulated annotator: propagation beside copying and interpolation."""
    from napari_lowlat_seg.core.atomic_file import check_not_input
    from napari_lowlat_seg.evaluation.volume import run_volume

    for output in (json, html):
        if output is not None:
            check_not_input(output, [("image", image), ("file of labels", labels)])
    _check_page(html)
    report = run_volume(
        model,
        image,
        labels,
        objects=objects or (),
        axis=axis,
        planes=planes,
        corrections=corrections,
        device=device,
        json=json,
    )
    _write_page(report, html)


@app.command(
    no_args_is_help=True,
    epilog=examples("lowlat-seg benchmark labels found.tif reference.tif --json scores.json"),
)
def labels(
    found: Annotated[Path, typer.Argument(metavar="LABELS", help="The labels to evaluate.")],
    reference: Annotated[Path, typer.Argument(metavar="REFERENCE", help="Of the same shape.")],
    parts: Annotated[
        bool, typer.Option("--parts", help="Parts of a label that do not touch are separate objects.")
    ] = False,
    least: Annotated[int, typer.Option(min=1, help="Objects of fewer voxels need not be found.")] = 1,
    json: Json = None,
) -> None:
    """Recall, panoptic quality and Rand error of labels from any source."""
    import numpy as np
    from skimage.measure import label

    from napari_lowlat_seg.core.atomic_file import check_not_input
    from napari_lowlat_seg.evaluation.metrics import label_scores
    from napari_lowlat_seg.evaluation.report import save_json
    from napari_lowlat_seg.io.files import read_volume

    if json is not None:
        check_not_input(json, [("file of labels", found), ("reference", reference)])
    ours, truth = (np.asarray(read_volume(path).data).astype(np.int64) for path in (found, reference))
    if parts:
        truth = label(truth, connectivity=1, background=0)
    scores = label_scores(ours, truth, least)
    if json is not None:
        save_json(scores, json)
    for name, value in scores.items():
        print(f"{name:>12}  {value:.3f}" if isinstance(value, float) else f"{name:>12}  {value}")
