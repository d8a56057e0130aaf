"""What is said of mouse and keys: functions of the state, without a window."""

from functools import partial
from itertools import product

import pytest

from napari_lowlat_seg.plugin.canvas.hints import Hand, first_hint, hint_of
from napari_lowlat_seg.plugin.keys import DEFAULTS


@pytest.mark.parametrize(
    ("hand", "said"),
    [
        (
            Hand("click"),
            "click or scribble: + object; Control: the opposite; Shift-drag: box; Enter: accept",
        ),
        (Hand("click", "lasso", positive=False, control=True), "click or lasso: + object"),
        (Hand("click", shift=True, levels=True), "drag: box, + object; wheel: larger or smaller mask"),
        (Hand("brush"), "drag: paint on the mask; Shift+Q: back to prompts"),
        (Hand("eraser"), "drag: erase from the mask; Shift+Q: back to prompts"),
        (
            Hand("click", cursor=True),
            "arrow keys: move the cursor; F: + object; Shift+F: − background; D: begin a scribble; "
            "Shift+C: end",
        ),
        (
            Hand("click", "box", cursor=True, drawing=True),
            "arrow keys: move the cursor, which draws; D: finish the box; Escape: give it up",
        ),
        (Hand(""), ""),
    ],
)
def test_what_the_status_bar_says(hand, said):
    """Word by word, with the keys as they are."""
    assert hint_of(hand, DEFAULTS) == said


def test_a_key_that_is_not_set_is_not_told():
    """For every hand."""
    for mode, shift, control, levels, cursor in product(("click", "brush"), *[(False, True)] * 4):
        said = hint_of(Hand(mode, "box", True, shift, control, levels, cursor), {})
        assert said
        assert "  " not in said
        assert ": ;" not in said


def test_what_to_do_first():
    """Click, correct and accept, go on."""
    keys, said = DEFAULTS, partial(first_hint, volume=True)
    assert said(keys, begun=False, accepted=False).startswith("Click on an object in the image")
    assert "Enter accepts. Shift+J follows" in said(keys, begun=True, accepted=False)
    assert "Shift+J" not in first_hint(keys, begun=True, accepted=True, volume=False)
    assert said(keys, begun=False, accepted=True).startswith("The next click begins another")
    assert "Ctrl+E accepts" in said({**keys, "accept": "Ctrl+E", "carry": ""}, begun=True, accepted=True)
    assert "follows" not in said({**keys, "carry": ""}, begun=True, accepted=True)
