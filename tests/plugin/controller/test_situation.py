"""The sentence of every situation: all combinations of what can be going on."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest

from napari_lowlat_seg.annotation.accepting import Accepted
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.controller.situation import (
    CHOOSE,
    NO_IMAGE,
    NO_PLANE,
    OUTSIDE,
    RESTARTING,
    ImageSituation,
    News,
    Progress,
    Situation,
    WaysOut,
    accepted_sentence,
    cancelled_sentence,
    sentence_of,
)

CUT = "outline: cut of the masks on other axes, known on"
RUN = Progress("propagating", 12, 40, 75.0)
IMAGES = [
    ImageSituation(*values)
    for values in product(
        (True, False),
        (False, True),
        ("", "reading the image"),
        (False, True),
        (False, True),
        ((), (3,), (3, 4)),
        (0, 2),
        (None, RUN),
        ((), ((7, "the plane has no finite pixel"),)),
        (None, 5),
    )
]
SITUATIONS = [
    Situation(*values)
    for values in product(
        (None, *IMAGES),
        (2,),
        ("", "embedding plane 12"),
        (None, (12_000_000, 87_000_000)),
        (False, True),
        (News(), News("object 2 accepted"), News("201 ms, refining…", of_mask=True, refining=True)),
    )
]


def test_the_cut_of_other_axes_is_named_with_what_is_known():
    """It is never all until it is all, and never nothing."""
    for known, percent in ((1, 1), (50, 25), (199, 99), (200, 100)):
        image = ImageSituation(cut=(known, 200))
        assert sentence_of(Situation(image)) == f"{CUT} {percent} % of this plane"
    said = sentence_of(Situation(ImageSituation(cut=(50, 200)), news=News("Undo: click")))
    assert said == f"Undo: click; {CUT} 25 % of this plane"


def test_every_situation_has_one_sentence_and_nothing_is_hidden():
    """What takes time, and what the user must know, is said whatever was done last."""
    assert len(SITUATIONS) > 18_000
    for now in SITUATIONS:
        said, image = sentence_of(now), now.image
        assert said
        assert "\n" not in said
        if image is None:
            continue
        if not image.flat:
            assert said == NO_PLANE
        elif image.outside:
            assert said == OUTSIDE
        elif image.run is not None:
            assert said.startswith("propagating: 12 of 40 planes, 75 s left")
            assert ("Escape stops here" in said) == bool(image.waiting)
        elif image.postponed and image.awaited:
            assert said == "Predictions are postponed; your prompts are kept."
        elif now.ended:
            assert said == RESTARTING
        elif now.download or image.reading or now.working:
            assert said.startswith(("downloading the model, 12 of 87 MB", "reading the image", "embedding"))
        elif image.unanswered:
            assert said.startswith("Plane 7 could not be answered: the plane has no finite pixel.")
            assert "Ctrl+Z" in said


def test_ready_is_said_only_when_nothing_is_to_come():
    """No image that is read, no mask that is awaited, no object that is not written."""
    for now in SITUATIONS:
        if sentence_of(now) == "ready":
            assert now == replace(
                now, image=ImageSituation(), working="", download=None, ended=False, news=News()
            )


def test_what_was_done_last_is_told_when_nothing_is_under_way():
    """And no longer than that."""
    for image in (ImageSituation(), ImageSituation(editing=5), ImageSituation(accepting=(3,))):
        assert sentence_of(Situation(image, news=News("Undo: click"))) == "Undo: click"
    working = Situation(ImageSituation(), working="embedding plane 3", news=News("Undo: click"))
    assert sentence_of(working) == "embedding plane 3"


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (Situation(), NO_IMAGE),
        (Situation(images=1), CHOOSE),
        (Situation(news=News("cells.tif cannot be read")), "cells.tif cannot be read"),
        (Situation(download=(3_000_000, None)), "downloading the model, 3 MB"),
        (Situation(ImageSituation()), "ready"),
        (Situation(ImageSituation(level=(2, 3, "first mask"))), "level 2 of 3: first mask"),
        (
            Situation(ImageSituation(level=(1, 3, "smaller mask")), news=News("90 ms", True)),
            "90 ms; level 1 of 3: smaller mask",
        ),
        (Situation(ImageSituation(level=(1, 3, "smaller mask")), news=News("propagated")), "propagated"),
        (Situation(ImageSituation(editing=2)), "Editing object 2. Enter accepts, Escape keeps it as it was."),
        (Situation(ImageSituation(postponed=True)), "predictions are postponed"),
        (Situation(ImageSituation(awaited=True)), "predicting…"),
        (Situation(ImageSituation(awaited=True), news=News("90 ms…", refining=True)), "90 ms…"),
        (Situation(ImageSituation(awaited=True), news=News("importing a…")), "predicting…"),
        (
            Situation(ImageSituation(accepting=(3,)), working="embedding plane 4"),
            "embedding plane 4; object 3 is accepted when the mask is there",
        ),
        (
            Situation(ImageSituation(accepting=(3, 4))),
            "objects 3, 4 are not written yet: Enter asks for the mask, Ctrl+Z takes it back.",
        ),
        (Situation(ImageSituation(waiting=1)), "What you did waits for a mask: Escape drops it."),
        (
            Situation(ImageSituation(run=Progress("propagating", 1, 300, 600))),
            "propagating: 1 of 300 planes, 10 min left",
        ),
        (Situation(ImageSituation(run=Progress("interpolating", 0, 9))), "interpolating: 0 of 9 planes"),
    ],
)
def test_sentences(now, expected):
    """Word by word."""
    assert sentence_of(now) == expected


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (1, "object 4 accepted"),
        (0.5, "object 4 accepted"),
        (0.2, "object 4 accepted, but only 20 % of it: the rest is covered by other labels "),
        (1e-4, "object 4 accepted, but only 1 % of it: the rest is covered by other labels "),
    ],
)
def test_an_object_that_other_labels_cover_is_said_to_be_accepted_in_part(share, said):
    """With what to change, and the way back."""
    sentence = accepted_sentence(Accepted(4, (Plane((1, None, None)),), share=share), WaysOut())
    ending = "(Existing labels: keep). Ctrl+Z brings it back" if "only" in said else ""
    assert sentence == said + ending


def test_escape_says_what_it_has_stopped():
    """And nothing where nothing was under way."""
    said = partial(cancelled_sentence, ways=WaysOut())
    assert said(0, accepting=False, running=False) == ""
    assert said(0, accepting=False, running=True) == "cancelled"
    assert said(0, accepting=True, running=True) == ""
    assert said(2, accepting=False, running=False) == "cancelled, with what waited (2 actions)"


def test_sentences_name_the_keys_that_the_user_has_chosen():
    """In every situation; where an action has no key, its button."""
    accept, cancel, undo = ways = "F4", "F5", "F6"
    chosen, none = WaysOut(*ways), WaysOut.of(dict.fromkeys(("accept", "cancel", "undo"), ""))
    seen = set()
    for now in SITUATIONS:
        usual, ours = sentence_of(now), sentence_of(replace(now, ways=chosen))
        for key, other in zip(("Enter", "Escape", "Ctrl+Z"), ways, strict=True):
            seen |= {other} & {*ours.replace(",", "").split()}
            usual = usual.replace(key, other)
        assert ours == usual
    assert seen == {accept, cancel, undo}
    nothing = Accepted(4, ())
    assert "F6 brings it back" in accepted_sentence(nothing, chosen)
    assert "the Undo button brings it back" in accepted_sentence(nothing, none)
    assert cancelled_sentence(1, True, False, chosen).endswith("; F4 asks again for what is accepted")
    editing = sentence_of(Situation(ImageSituation(editing=2), ways=none))
    assert editing == "Editing object 2. The Accept button accepts, the Cancel button keeps it as it was."
