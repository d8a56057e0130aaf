"""`lowlat-seg embed`, `seeds` and `everything`: whole volumes, here or on a Dask cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lowlat_seg.cli.options import (
    DEVICE,
    MODEL,
    Axis,
    Channel,
    Device,
    Insecure,
    Level,
    Model,
    Scheduler,
    Series,
    Time,
    Workers,
    finishing,
    on_interrupt,
    plural,
    with_options,
)

Replace = Annotated[bool, typer.Option("--replace", help="Write LABELS anew where it exists.")]
Labels = Annotated[Path, typer.Option("-o", "--output", metavar="LABELS", help="TIFF, OME-Zarr, NIfTI, ...")]


def _options(
    axis: Axis = None,
    channel: Channel = None,
    series: Series = None,
    time: Time = None,
    level: Level = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    insecure_scheduler: Insecure = False,
    model: Model = MODEL,
    device: Device = DEVICE,
) -> Any:
    """The options of every batch command, as `BatchSettings`."""
    from napari_lowlat_seg.batch.jobs import BatchSettings
    from napari_lowlat_seg.io.choice import Choice

    return BatchSettings(
        model=model,
        device=device,
        axis=axis,
        choice=Choice(channel, series or "", time, level),
        workers=workers,
        scheduler=scheduler,
        insecure_scheduler=insecure_scheduler,
    )


@with_options(_options)
def embed(
    settings: Any,
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="An image file or an OME-Zarr.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="CACHE", help="Folder; default: VOLUME.embeddings, where napari looks."
        ),
    ] = None,
) -> None:
    """Embed all planes of VOLUME into CACHE, so that clicks there need not wait. Resumes where it stopped."""
    from napari_lowlat_seg.batch.embed import run_embed

    with on_interrupt("the planes embedded so far are kept: the same command resumes"):
        done = run_embed(image, output, settings)
    size = f"{done['bytes'] / 2**20:.0f} MiB"
    print(f"{plural(done['planes'], 'plane')} embedded ({done['made']} new), {size}: {done['folder']}")


@with_options(_options, finishing)
def seeds(
    settings: Any,
    finish: Any,
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="A 3-D image file or OME-Zarr.")],
    points: Annotated[Path, typer.Argument(metavar="POINTS", help=".csv, .swc, .nml, .roi or .zip of Fiji.")],
    output: Labels,
    consensus: Annotated[
        bool,
        typer.Option(
            "--consensus",
            help="Propagate along all three axes; a table beside LABELS lists where they disagree.",
        ),
    ] = False,
    replace: Replace = False,
    unit: Annotated[
        str | None, typer.Option(help="Of x, y, z in a skeleton: voxel, nm, µm, mm. A .swc needs it.")
    ] = None,
) -> None:
    """Segment an object at every point of POINTS and propagate all of them through VOLUME at once.

    POINTS is a .csv of Z,R,C, or as napari saves points; the points of a selection of Fiji; or a skeleton
    (.swc, .nml of webKnossos, .csv of CATMAID), each tree of which is one object.
    """
    from napari_lowlat_seg.batch.seeds import DISPUTES, run_seeds

    with on_interrupt("nothing was written"):
        settings = dataclasses.replace(settings, replace=replace)
        done = run_seeds(image, points, output, settings, agreed=consensus, unit=unit, finish=finish)
    print(
        f"{plural(done['objects'], 'object')}, {plural(done['voxels'], 'voxel')} in {done['seconds']:.1f} s: "
        f"{output}"
    )
    if consensus:
        print(f"{plural(done['disputes'], 'place')} where the axes disagree: {output}{DISPUTES}")


@with_options(_options, finishing)
def everything(
    settings: Any,
    finish: Any,
    image: Annotated[Path, typer.Argument(metavar="VOLUME", help="A 2-D or 3-D image file or OME-Zarr.")],
    output: Labels,
    grid: Annotated[int, typer.Option(min=1, help="Clicks along the longer side of a plane or tile.")] = 16,
    stability: Annotated[
        float, typer.Option(min=0, max=1, help="Higher values give fewer, more certain objects.")
    ] = 0.2,
    min_area: Annotated[int, typer.Option(min=1, help="Leave out objects of fewer pixels on a plane.")] = 50,
    replace: Replace = False,
) -> None:
    """Label every object in VOLUME without prompts: a grid of clicks on each plane, linked plane to plane."""
    from napari_lowlat_seg.batch.automatic import run_automatic
    from napari_lowlat_seg.inference.mask_generator import MaskGeneratorSettings

    masks = MaskGeneratorSettings(grid=grid, stability=stability, least_area=min_area, finish=finish)
    with on_interrupt("the planes segmented so far are kept: the same command resumes"):
        settings = dataclasses.replace(settings, replace=replace)
        done = run_automatic(image, output, settings, masks)
    print(
        f"{plural(done['objects'], 'object')} on {plural(done['planes'], 'plane')} in "
        f"{done['seconds']:.1f} s: {output}"
    )


COMMANDS = (
    (embed, ("lowlat-seg embed stack.tif", "lowlat-seg embed stack.ome.zarr --workers 4")),
    (
        seeds,
        (
            "lowlat-seg seeds stack.tif points.csv -o labels.tif",
            "lowlat-seg seeds stack.ome.zarr neurons.swc --unit nm -o labels.ome.zarr",
            "lowlat-seg seeds stack.ome.zarr points.csv -o labels.ome.zarr --consensus --workers 4",
        ),
    ),
    (
        everything,
        (
            "lowlat-seg everything stack.tif -o labels.tif",
            "lowlat-seg everything stack.tif -o labels.tif --stability 0.5 --min-area 200 --fill-holes",
        ),
    ),
)
"""Each batch command with examples for its help."""
