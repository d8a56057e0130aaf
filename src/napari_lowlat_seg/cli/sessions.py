"""`lowlat-seg sessions`, `replay` and `export-script`: annotations kept, repeated, turned into code."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lowlat_seg.cli.options import examples, extras, plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari_lowlat_seg.annotation.journal import FoundSession
    from napari_lowlat_seg.core.volume import Volume

app = typer.Typer(help="Journals of annotations: list them, delete old ones.", no_args_is_help=True)

Folder = Annotated[
    Path | None, typer.Option(help="The folder of the journals. Default: the user's own, as napari uses it.")
]
SessionFile = Annotated[
    Path, typer.Argument(metavar="SESSION", help="A session that was saved, or a journal.")
]
Image = Annotated[
    Path | None,
    typer.Argument(metavar="IMAGE", help="The image. Default: beside SESSION, or where it lay."),
]


def _output(metavar: str, help: str) -> Any:
    return typer.Option("-o", "--output", metavar=metavar, help=help)


@app.command("list", epilog=examples("lowlat-seg sessions list", "lowlat-seg sessions list --json"))
def list_sessions(
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The journals that are kept, the newest first."""
    from napari_lowlat_seg.annotation.journal import journal_folder, list_journals

    found = list_journals(folder or journal_folder())
    if as_json:
        rows = [{**vars(info), "path": str(info.path)} for info in found]
        print(json.dumps(rows))
        return
    for info in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.changed))
        where = info.image or info.name or "an image without a name"
        used = ", in use" if info.in_use else ""
        print(f"{day}  {_megabytes(info.nbytes)}  {where}{used}\n    {info.path}")
    print(f"{plural(len(found), 'journal')}, {_megabytes(sum(info.nbytes for info in found))}")


@app.command(epilog=examples("lowlat-seg sessions prune", "lowlat-seg sessions prune --keep-days 30"))
def prune(
    folder: Folder = None,
    keep_mb: Annotated[
        int | None, typer.Option(min=0, help="Delete the oldest until all take at most so many MB.")
    ] = None,
    keep_count: Annotated[
        int | None, typer.Option(min=0, help="Delete the oldest until so many are left.")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="Delete those that were not changed for so many days.")
    ] = None,
) -> None:
    """Delete old journals; those in use stay. Without options, the same bounds as in napari."""
    from napari_lowlat_seg.annotation.journal import journal_folder, prune_journals

    bounds: dict[str, Any] = {"keep_count": keep_count, "keep_days": keep_days}
    bounds["keep_bytes"] = None if keep_mb is None else keep_mb * 10**6
    given = {name: value for name, value in bounds.items() if value is not None}
    if keep_days is not None:
        given["spared"] = 0  # who names an age means it
    deleted = prune_journals(folder or journal_folder(), **given)
    for path in deleted:
        print(path)
    print(f"{plural(len(deleted), 'journal')} deleted")


def replay(
    session: SessionFile,
    image: Image = None,
    output: Annotated[Path | None, _output("LABELS", "Write the labels there.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than that of the session.")] = None,
    device: Annotated[str | None, typer.Option(help="Another device than that of the session.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Describe the result as JSON on stdout.")] = False,
) -> None:
    """Repeat a session with the model and count the voxels whose label differs.

    On the build and the device that the session was made with, none does.
    """
    from napari_lowlat_seg.annotation.journal.replay import replay as do_again
    from napari_lowlat_seg.io.files import check_labels_path, write_labels

    with extras():
        found, volume = _read(session, image)
        if output is not None:
            check_labels_path(output, [("session", session)], volume)
        services = _Services(model, device)
        began = time.perf_counter()
        try:
            done = do_again(found, volume, services.make)
        finally:
            services.close()
        seconds = time.perf_counter() - began
        if output is not None and done.labels is not None:
            write_labels(output, done.labels, volume)
    result = {
        "differing": done.differing,
        "voxels": done.voxels,
        "predictions": done.predictions,
        "objects": 0 if done.labels is None else int(done.labels.max()),
        "seconds": round(seconds, 3),
        "other": services.differences,
    }
    if as_json:
        print(json.dumps(result))
        return
    for words in services.differences:
        print(words)
    masks = plural(done.predictions, "mask")
    print(f"{done.differing} of {done.voxels} voxels differ; {masks} predicted in {seconds:.1f} s")


def export_script(
    session: SessionFile,
    image: Image = None,
    output: Annotated[Path | None, _output("FILE", "Default: standard output.")] = None,
) -> None:
    """Write a Python script that repeats a session through the public API."""
    from napari_lowlat_seg.annotation.journal.script import exported_script
    from napari_lowlat_seg.core.atomic_file import atomic_file

    with extras():
        code = exported_script(_read(session, image)[0])
    if output is None:
        print(code, end="")
        return
    with atomic_file(output) as part:
        part.write_text(code, encoding="utf-8")
    print(output)


def _read(session: Path, image: Path | None) -> tuple[FoundSession, Volume]:
    from napari_lowlat_seg.annotation.journal import journal_info, read_session
    from napari_lowlat_seg.annotation.journal.replay import image_of

    volume = image_of(journal_info(session), image)
    found = read_session(session, volume)
    if found.warning:
        typer.echo(found.warning, err=True)
    return found, volume


class _Services:
    """Makes the services of a replay, in child processes as napari does, and notes what is another one."""

    def __init__(self, model: str | None, device: str | None) -> None:
        self._model, self._device = model, device
        self._service: Any = None
        self.differences: list[str] = []

    def make(self, facts: Mapping[str, Any]) -> Any:
        """The service that these facts describe."""
        from napari_lowlat_seg.annotation.journal import JournalError
        from napari_lowlat_seg.serving.process import PredictionProcess
        from napari_lowlat_seg.serving.remote import is_remote

        self.close()
        name, threads = self._model or facts.get("model", "default"), facts.get("threads")
        # "cuda of gpu1, 5 ms away" was said of another machine.
        device = self._device or facts.get("device", "auto").partition(" of ")[0]
        if self._device is None and is_remote(device):
            raise JournalError(
                f"the session names a device of another machine, {device:.80}; "
                "say with --device where it is to be repeated, as its image would be sent there"
            )
        precision = facts.get("precision") if self._device is None else None  # others round otherwise
        self._service = PredictionProcess(
            name,
            device or "auto",
            facts.get("closer_look", "auto"),
            threads=threads or None,
            precision=precision,
        )
        here = self._service.describe()
        for key in ("weights", "device", "precision", "versions", "threads"):
            if key in facts and facts[key] != here.get(key):
                words = f"{key}: {facts[key]} in the session, {here.get(key)} here"
                if words not in self.differences:
                    self.differences.append(words)
        return self._service

    def close(self) -> None:
        """End the one that runs."""
        if self._service is not None:
            self._service.close()


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


COMMANDS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (replay, ("lowlat-seg replay mine.lowlat", "lowlat-seg replay mine.lowlat stack.tif -o again.tif")),
    (export_script, ("lowlat-seg export-script mine.lowlat -o mine.py",)),
)
