"""The hand is faster than the model, in a real window."""

import numpy as np
import pytest

from bright_service import balls
from widget_page import WidgetPage

IMAGE, TRUTH = balls()
FIRST, SECOND = (20, 25), (9, 9)
"""Where the two balls are, on planes 5 and 6 both."""


@pytest.fixture
def it(bright_window):
    """The two balls, seen on plane 6."""
    it = bright_window(lambda viewer: viewer.add_image(IMAGE, name="balls"))
    it.look((6, None, None))
    it.settle()
    return it


def labels_of(it):
    """The labels written so far."""
    layer = it.controller().labels.layer
    return np.zeros(IMAGE.shape, int) if layer is None else np.asarray(layer.data)


def ball(number, plane):
    """The mask of a ball on a plane."""
    return TRUTH[plane] == number


@pytest.mark.parametrize("planes", [(6, 6), (6, 5)], ids=["one-plane", "two-planes"])
def test_two_objects_clicked_before_the_first_answer_are_two_objects(it, planes):
    """Click A, Enter, click B, Enter: two labels, whatever is answered when."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(FIRST)
    hand.key("Enter")
    it.look((planes[1], None, None))
    hand.click(SECOND)
    hand.key("Enter")
    assert it.controller().session.accepting == (1, 2)
    assert not labels_of(it).any()
    it.service.gate.set()
    it.settle()
    labels = labels_of(it)
    assert np.array_equal(labels[planes[0]] == 1, ball(1, planes[0]))
    assert np.array_equal(labels[planes[1]] == 2, ball(2, planes[1]))
    assert set(np.unique(labels)) == {0, 1, 2}
    hand.key("Ctrl+Z")
    hand.key("Ctrl+Z")
    hand.key("Ctrl+Z")
    assert not labels_of(it).any() or set(np.unique(labels_of(it))) == {0, 1}


def test_undo_takes_back_an_accept_that_waits(it):
    """The clicks are there again, and can be corrected."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(FIRST)
    hand.key("Enter")
    assert it.controller().session.prompted() == {}
    hand.key("Ctrl+Z")
    assert it.controller().session.label == 1
    assert len(it.controller().prompts.points.data) == 1
    it.service.gate.set()
    it.settle()
    assert not labels_of(it).any()
    hand.key("Enter")
    assert np.array_equal(labels_of(it)[6] == 1, ball(1, 6))


def test_opening_an_object_waits_for_the_masks_and_later_clicks_belong_to_it(it):
    """W, and a click, before the accepted object has its mask."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(FIRST)
    hand.key("Enter")
    it.viewer.cursor.position = it.controller().layer.data_to_world((6, *FIRST))
    hand.key("W")
    hand.click(SECOND)
    it.service.gate.set()
    it.settle()
    session = it.controller().session
    assert session.label == 1
    assert [len(prompts) for prompts in session.prompted().values()] == [2]
    assert np.array_equal(session.mask(it.controller().plane), TRUTH[6] > 0)


@pytest.mark.parametrize(("key", "clicks"), [("Tab", 1), ("W", 0)], ids=["other-level", "open-object"])
def test_escape_merges_nothing_that_waited(it, key, clicks):
    """What does not depend on the key that waited is done; what does is taken back, points too."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(FIRST)
    if key == "W":
        hand.key("Enter")
        it.viewer.cursor.position = it.controller().layer.data_to_world((6, *FIRST))
        hand.key("W")
    else:
        hand.key("Tab")
        hand.key("Enter")
    hand.click(SECOND)
    assert len(it.controller().actions)
    hand.key("Escape")
    session = it.controller().session
    assert not len(it.controller().actions)
    assert session.accepting == (1,)
    assert sum(map(len, session.prompted().values())) == clicks
    assert len(it.controller().prompts.points.data) == clicks
    assert f"what waited ({1 if key == 'Tab' else 2} action" in it.widget.sentence
    assert "Enter asks again" in it.widget.sentence
    it.service.gate.set()
    hand.key("Enter")
    it.settle()
    labels = labels_of(it)
    assert np.array_equal(labels == 1, (TRUTH == 1) & (np.arange(len(TRUTH)) == 6)[:, None, None])
    assert np.array_equal(labels[6] == 2, ball(2, 6) & bool(clicks))


def test_what_waits_is_kept_while_another_image_is_chosen(it):
    """Tab, Enter and a click wait for the first mask; the image is left and chosen again."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(FIRST)
    hand.key("Tab")
    hand.key("Shift+Tab")
    hand.key("Enter")
    hand.click(SECOND)
    first = it.controller()
    it.viewer.add_image(IMAGE, name="other")
    page = WidgetPage(it.widget)
    it.qtbot.waitUntil(lambda: "other" in page.options("Image"))
    page.choose("Image", "other")
    assert it.controller() is not first
    it.service.gate.set()
    page.choose("Image", "balls")
    it.settle()
    hand.key("Enter")
    it.settle()
    assert np.array_equal(labels_of(it)[6], TRUTH[6])


def test_escape_then_enter_asks_for_the_mask_again(it):
    """Escape stops the prediction; the prompts stay, and Enter wants their object, accepted before or not."""
    hand = it.hand()
    for number, (place, keys) in enumerate([(FIRST, ["Escape"]), (SECOND, ["Enter", "Escape"])], 1):
        it.service.gate.clear()
        hand.click(place)
        for key in keys:
            hand.key(key)
        it.service.gate.set()
        it.qtbot.waitUntil(lambda: not it.worker.busy)
        assert ("object 2 is not written yet: Enter asks" in it.widget.sentence) is (number == 2)
        hand.key("Enter")
        it.settle()
        assert np.array_equal(labels_of(it)[6] == number, ball(number, 6))


def test_a_click_during_a_propagation_that_was_accepted_belongs_to_a_new_object(it):
    """Enter during a run waits for it; Escape accepts what is there."""
    hand = it.hand()
    hand.click(FIRST)
    it.settle()
    it.service.gate.clear()
    hand.key("Shift+J")
    assert it.controller().propagation.running
    hand.key("Enter")
    assert "; accepted at the end, Escape stops here" in it.widget.sentence
    hand.click(SECOND)
    it.service.gate.set()
    it.qtbot.waitUntil(lambda: not it.controller().propagation.running)
    it.settle()
    assert np.array_equal(labels_of(it) == 1, TRUTH == 1)
    assert it.controller().session.label == 2
    hand.key("Enter")
    it.settle()
    assert np.array_equal(labels_of(it)[6] == 2, ball(2, 6))
