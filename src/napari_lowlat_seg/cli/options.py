"""Options and messages that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any

import typer

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="A name of `lowlat-seg models list`, or a .safetensors or .pth file."),
]
Device = Annotated[
    str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:1, mps; in segment and info ssh://HOST.")
]
Axis = Annotated[
    int | None,
    typer.Option(help="The axis along which the planes lie. Default: across z."),
]
Channel = Annotated[int | None, typer.Option(help="Channel to segment, counted from 0.")]
Series = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name or number of an image, where a file holds several."),
]
Time = Annotated[int | None, typer.Option(help="A point in time, counted from 0. Default: all.")]
Level = Annotated[int | None, typer.Option(help="Level of a pyramid. Default: 0, the finest.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes on this machine; 0 for this one alone.")]
Scheduler = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A running Dask scheduler, tls://HOST:PORT.")
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-scheduler", help="Allow a scheduler without TLS: anybody who reaches it can run code."
    ),
]

MODEL = "default"
DEVICE = "auto"


@contextmanager
def extras() -> Iterator[None]:
    """In this block a missing library is a wrong call: its sentence says which extra to install."""
    try:
        yield
    except ImportError as error:
        raise ValueError(str(error)) from error


def finishing(
    threshold: Annotated[
        float | None, typer.Option(help="Pixels above this probability are the object. Default: 0.49.")
    ] = None,
    smooth: Annotated[
        float, typer.Option(metavar="PX", help="Standard deviation by which outlines are smoothed.")
    ] = 0.0,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Background that the object encloses belongs to it.")
    ] = False,
    grow: Annotated[
        float, typer.Option(metavar="PX", help="Moves outlines outwards; below 0 inwards.")
    ] = 0.0,
    drop_small: Annotated[
        int, typer.Option(metavar="PIXELS", help="Drops parts of fewer pixels, on each plane.")
    ] = 0,
    largest: Annotated[
        bool, typer.Option("--largest", help="Keep only the largest part, on each plane.")
    ] = False,
    prompted: Annotated[
        bool, typer.Option("--prompted", help="Keep only parts with a prompt, on planes that have one.")
    ] = False,
) -> Any:
    """The options of how probabilities become masks, as `PostProcessing`."""
    from napari_lowlat_seg.core.masks import THRESHOLD, PostProcessing

    return PostProcessing(
        threshold=THRESHOLD if threshold is None else threshold,
        smooth=smooth,
        fill_holes=fill_holes,
        largest=largest,
        prompted=prompted,
        grow=grow,
        smallest=drop_small,
    )


def with_options(*shared: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the parameters of each of `shared` besides its own.

    The command's first parameters are what `shared` return for them, in order.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        of_shared = [list(inspect.signature(one, eval_str=True).parameters.values()) for one in shared]
        of_command = list(inspect.signature(command, eval_str=True).parameters.values())[len(shared) :]
        parameters = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (*of_command, *chain(*of_shared))
        ]

        @functools.wraps(command)
        def combined(**given: Any) -> None:
            with extras():
                first = [
                    one(**{parameter.name: given.pop(parameter.name) for parameter in of_one})
                    for one, of_one in zip(shared, of_shared, strict=True)
                ]
                command(*first, **given)

        # Typer reads both.
        combined.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        combined.__annotations__ = {one.name: one.annotation for one in parameters}
        return combined

    return decorate


class Interrupted(typer.Abort):
    """Ctrl+C, with a sentence that says what is kept."""


@contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """In this block Ctrl+C ends the program with the sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {sentence}") from None


def examples(*lines: str) -> str:
    """The end of a command's help: calls as one would type them, each on a line of its own."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    >>> plural(1, "plane"), plural(2, "plane")
    ('1 plane', '2 planes')
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
