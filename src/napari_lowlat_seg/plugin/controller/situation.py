"""What is going on, as frozen values, and the one sentence that says it: a function of nothing else.

Nothing writes the state line but `sentence_of`, so it cannot say what is no longer so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from napari_lowlat_seg.annotation.accepting import Accepted

NO_IMAGE = "Open an image, or try File ▸ Open Sample ▸ Low-latency segmentation"
CHOOSE = "Choose an image"
NO_PLANE = "Prompts need a 2-D view: press the 2D/3D button."
OUTSIDE = "The sliders are beside the image: move them back onto it."
MOSTLY = 0.5
"""Of an object's pixels, the share that is written without a word."""

RESTARTING = "The model's process has ended and is started again; your prompts are kept."


@dataclass(frozen=True)
class WaysOut:
    """What the user presses to accept, cancel and undo: a key, or the button of an action without one."""

    accept: str = "Enter"
    cancel: str = "Escape"
    undo: str = "Ctrl+Z"

    @classmethod
    def of(cls, keys: Mapping[str, str]) -> WaysOut:
        """Those of a table with the key of each action.

        >>> WaysOut.of({"accept": "F4", "cancel": "", "undo": "Ctrl+Z"})
        WaysOut(accept='F4', cancel='the Cancel button', undo='Ctrl+Z')
        """
        buttons = {"accept": "Accept", "cancel": "Cancel", "undo": "Undo"}
        return cls(**{name: keys[name] or f"the {button} button" for name, button in buttons.items()})


@dataclass(frozen=True)
class Progress:
    """How far a propagation is.

    Attributes
    ----------
    what
        "propagating", "interpolating".
    done, total
        Planes with a new mask, and how many may get one.
    seconds
        Estimated time left; None while that is not known.
    """

    what: str
    done: int
    total: int
    seconds: float | None = None

    def __str__(self) -> str:
        left = "" if self.seconds is None else f", {_time(self.seconds)} left"
        return f"{self.what}: {self.done} of {self.total} planes{left}"


@dataclass(frozen=True)
class News:
    """What the last action has done, or why it could not be.

    Attributes
    ----------
    text
        "" for nothing to tell.
    of_mask
        Whether it is about prompts and the mask that they have given: which level of it is shown may follow.
    refining
        Whether a better mask is under way.
    """

    text: str = ""
    of_mask: bool = False
    refining: bool = False


@dataclass(frozen=True)
class ImageSituation:
    """What is going on with the image that is annotated.

    Attributes
    ----------
    flat
        Whether the view is 2-D.
    outside
        Whether the view is 2-D and shows no plane of the image.
    reading
        What is read before anything can be predicted or written: "reading the image"; "" for nothing.
    postponed
        Whether predictions wait for a key or a check box.
    awaited
        Whether a mask is being predicted, or would be if predictions were not postponed.
    accepting
        Labels of objects that are written when their masks are there.
    waiting
        How many actions of the user wait for masks.
    run
        The propagation under way.
    unanswered
        Positions of planes whose prompts could not be answered, and why.
    editing
        The label of the object that was accepted before and is edited; None for a new object.
    level
        Which level of the first click's mask is shown: its place from the smallest, 1, how many there are,
        and its name; None where there is nothing to choose.
    cut
        Of the outline that other axes give on the plane: how many of its pixels are known, and all of them;
        None where it has a mask of its own or nothing is known.
    """

    flat: bool = True
    outside: bool = False
    reading: str = ""
    postponed: bool = False
    awaited: bool = False
    accepting: tuple[int, ...] = ()
    waiting: int = 0
    run: Progress | None = None
    unanswered: tuple[tuple[int, str], ...] = ()
    editing: int | None = None
    level: tuple[int, int, str] | None = None
    cut: tuple[int, int] | None = None


@dataclass(frozen=True)
class Situation:
    """What is going on in the window.

    Attributes
    ----------
    image
        That of the image in front; None without one.
    images
        How many images there are.
    working
        What the model's process does now: "loading the model", "embedding plane 3"; "" for nothing.
    download
        Bytes of the model that have come, and how many there are or None; None when none is downloaded.
    ended
        Whether the model's process has ended by itself and is being started again.
    news
        What was done last.
    ways
        What the user presses, as the sentence names it.
    """

    image: ImageSituation | None = None
    images: int = 0
    working: str = ""
    download: tuple[int, int | None] | None = None
    ended: bool = False
    news: News = News()
    ways: WaysOut = WaysOut()


def sentence_of(now: Situation) -> str:
    """What the state line says: first what takes time, then what needs the user, then what was done."""
    image = now.image
    if image is None:
        return now.news.text or _download(now) or (CHOOSE if now.images else NO_IMAGE)
    if not image.flat:
        return NO_PLANE
    if image.outside:
        return OUTSIDE
    return _under_way(now, image) or _needs_user(now, image) or _done(now, image)


def accepted_sentence(accepted: Accepted, ways: WaysOut) -> str:
    """What became of an object that was accepted, at once or later."""
    name = f"object {accepted.label}"
    if accepted.error:
        return f"{name} could not be written, the next accept tries again: {accepted.error}"
    if accepted.unanswered:
        missing = "; ".join(f"plane {plane.position}: {why}" for plane, why in accepted.unanswered.items())
        return f"{name} accepted, but its newest prompts could not be answered on {missing}"
    if not accepted.planes:
        return (
            f"{name} is empty, or other labels cover it (Existing labels: keep): nothing was written, "
            f"{ways.undo} brings it back"
        )
    if accepted.share < MOSTLY:
        written = max(1, int(100 * accepted.share))
        return (
            f"{name} accepted, but only {written} % of it: the rest is covered by other labels "
            f"(Existing labels: keep). {_begin(ways.undo)} brings it back"
        )
    return f"{name} accepted"


def _under_way(now: Situation, image: ImageSituation) -> str:
    if image.run is not None:
        then = f"; accepted at the end, {now.ways.cancel} stops here" if image.waiting else ""
        return f"{image.run}{then}"
    if image.postponed and image.awaited:
        return "Predictions are postponed; your prompts are kept."
    if now.ended:
        return RESTARTING
    what = _download(now) or image.reading or now.working
    if not what and image.awaited and not image.unanswered:
        what = now.news.text if now.news.refining else "predicting…"
    if not what:
        return ""
    return what + _then(image)


def _then(image: ImageSituation) -> str:
    """What comes when that is done."""
    if image.waiting:
        return "; what you did since follows"
    if image.accepting:
        return f"; {_objects(image.accepting)} accepted when the mask is there"
    return ""


def _needs_user(now: Situation, image: ImageSituation) -> str:
    ways = now.ways
    if image.unanswered:
        places = ", ".join(str(position) for position, _ in image.unanswered)
        planes = "Plane" if len(image.unanswered) == 1 else "Planes"
        way_out = f"{_begin(ways.accept)} accepts without it, {ways.undo} takes the prompt back."
        return f"{planes} {places} could not be answered: {image.unanswered[-1][1]}. {way_out}"
    if image.waiting:
        return f"What you did waits for a mask: {ways.cancel} drops it."
    if image.accepting and not now.news.text:
        way_out = f"{ways.accept} asks for the mask, {ways.undo} takes it back."
        return f"{_objects(image.accepting)} not written yet: {way_out}"
    return ""


def _done(now: Situation, image: ImageSituation) -> str:
    """What was done last, or what one can do, and which level or whose cut is shown."""
    said = now.news.text or _standing(now, image)
    if image.level is not None and (now.news.of_mask or not now.news.text):
        shown = "level {} of {}: {}".format(*image.level)
    elif image.cut is not None:
        known = int(100 * image.cut[0] / image.cut[1])  # not 100 before it is all
        shown = f"outline: cut of the masks on other axes, known on {max(1, known)} % of this plane"
    else:
        return said
    return shown if said == "ready" else f"{said.removesuffix('.')}; {shown}"


def _standing(now: Situation, image: ImageSituation) -> str:
    if image.postponed:
        return "predictions are postponed"
    if image.editing is not None:
        way_out = f"{_begin(now.ways.accept)} accepts, {now.ways.cancel} keeps it as it was."
        return f"Editing object {image.editing}. {way_out}"
    return "ready"


def _begin(way: str) -> str:
    """As the first words of a sentence."""
    return way[:1].upper() + way[1:]


def _objects(labels: tuple[int, ...]) -> str:
    names = ", ".join(map(str, labels))
    return f"object {names} is" if len(labels) == 1 else f"objects {names} are"


def _download(now: Situation) -> str:
    if now.download is None:
        return ""
    done, total = now.download
    of = "" if total is None else f" of {total / 1e6:.0f}"
    return f"downloading the model, {done / 1e6:.0f}{of} MB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def cancelled_sentence(dropped: int, accepting: bool, running: bool, ways: WaysOut) -> str:
    """What was cancelled: how many waiting actions, and whether accepted objects are still unwritten.

    `running` is whether anything was under way.

    Objects that are not written are said by the state line, with the way out.
    """
    if dropped:
        then = f"; {ways.accept} asks again for what is accepted" if accepting else ""
        return f"cancelled, with what waited ({dropped} action{'s' if dropped > 1 else ''}){then}"
    if accepting:
        return ""
    return "cancelled" if running else ""
