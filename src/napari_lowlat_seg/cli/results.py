"""`lowlat-seg measure` and `export`: what is in labels, and labels for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from napari_lowlat_seg.cli.options import Channel, extras, on_interrupt, plural

Labels = Annotated[Path, typer.Argument(metavar="LABELS", help="Labels in any format that is read.")]


def measure(
    labels: Labels,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="IMAGE", help="The image, for intensities.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="TABLE", help="A .csv file. Default: to the terminal."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="PAGE", help="Write a summary here: sizes, largest and smallest."),
    ] = None,
    channel: Channel = None,
) -> None:
    """Measure every object in LABELS: size and surface in world units, place, and intensity in IMAGE.

    One line for each object, and for each time if LABELS have an axis of time. axis-0, axis-1, ... is the
    centroid in voxels, in the order in which napari shows the axes, which opens the table as points;
    centroid-z, ... is the same in the world; first-... and last-... are the ends of the bounding box.
    """
    from napari_lowlat_seg.batch.measure import run_measure

    if html is not None:
        from napari_lowlat_seg.core.atomic_file import check_not_input, check_writable

        inputs = [("file of labels", labels), *([("image", image)] if image is not None else [])]
        check_not_input(html, inputs)
        check_writable(html)
    with extras(), on_interrupt("nothing was written"):
        done = run_measure(labels, image, output, channel=channel)
    if html is not None:
        from napari_lowlat_seg.evaluation.html_report import measurements_page

        measurements_page(html, done["measurements"], done["unit"], labels.name)
    unit = f", in {done['unit']}" if done["unit"] else ""
    line = f"{plural(done['objects'], 'object')} measured{unit} in {done['seconds']:.1f} s"
    print(line if output is None else f"{line}: {output}", file=sys.stderr if output is None else None)


def export(
    labels: Labels,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help=".stl .ply .geojson .json .dcm, or any format of labels; the suffix decides.",
        ),
    ],
    image: Annotated[
        Path | None, typer.Option("--image", metavar="SERIES", help="The DICOM series, for .dcm.")
    ] = None,
    label: Annotated[
        list[int] | None, typer.Option(min=1, help="Only this object. Repeatable. Default: all.")
    ] = None,
) -> None:
    """Write LABELS in another format, where they lie in the world.

    .stl and .ply are surfaces in world units (x, y, z; .ply keeps the label of every triangle), .geojson has
    outlines and .json COCO's run lengths of every plane, .dcm is a DICOM segmentation on its series. With any
    other suffix LABELS are converted. What a format cannot say is refused before anything is written.
    """
    from napari_lowlat_seg.batch.progress import reported
    from napari_lowlat_seg.io.exports.export import run_export

    with extras(), on_interrupt("nothing was written"), reported("plane") as report:
        done = run_export(labels, output, image=image, only=label or (), progress=report)
    print(f"{plural(done['objects'], 'object')} exported: {output}")


COMMANDS = (
    (
        measure,
        (
            "lowlat-seg measure labels.tif -o table.csv --html summary.html",
            "lowlat-seg measure labels.seg.nrrd --image scan.nii.gz -o table.csv",
        ),
    ),
    (
        export,
        (
            "lowlat-seg export labels.tif -o neurons.ply --label 3 --label 7",
            "lowlat-seg export labels.nii.gz -o labels.seg.nrrd",
            "lowlat-seg export labels.nii.gz -o tumour.dcm --image series-folder",
        ),
    ),
)
"""Each command with examples for its help."""
