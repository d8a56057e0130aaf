"""A click belongs to the plane and the object that the user saw when pressing, however slow the model is."""

import threading

import numpy as np
import pytest

from bright_service import balls
from widget_page import WidgetPage

IMAGE, TRUTH = balls()
PLACES = {"a": (20, 25), "b": (9, 9), "c": (22, 27), "d": (30, 40), "e": (11, 8)}
"""In the first ball, in the second, in each of them once more, and beside both."""


class Permits:
    """A gate that lets a prediction through for each `one`, and all of them after `set`."""

    def __init__(self):
        self._left, self.open = threading.Semaphore(0), False

    def wait(self, seconds):
        return self.open or self._left.acquire(timeout=seconds)

    def one(self):
        self._left.release()

    def set(self):
        self.open = True


@pytest.fixture
def it(bright_window):
    """The two balls, seen on plane 6."""
    it = bright_window(lambda viewer: viewer.add_image(IMAGE, name="balls"))
    it.look((6, None, None))
    it.settle()
    return it


def kept(it):
    """The label, the prompts by plane, the undo stack and the labels; the layers show the prompts."""
    controller = it.controller()
    session, layer = controller.session, controller.labels.layer
    prompts = {
        plane.position: [(*(round(x) for x in one.at), one.positive) for one in some]
        for plane, some in session.prompted().items()
    }
    drawn = sorted(tuple(np.rint(point).astype(int)) for point in controller.prompts.points.data)
    assert drawn == sorted((plane, *at) for plane, some in prompts.items() for *at, _ in some)
    titles = [step.title for step in session.undo_stack.done]
    labels = np.zeros(IMAGE.shape, int) if layer is None else np.array(layer.data, int)
    return session.label, prompts, titles, labels.tolist()


def act(it, hand, do):
    """One key, or a click with Control for a capital letter."""
    if do.lower() in PLACES:
        hand.click(PLACES[do.lower()], "Ctrl" if do.isupper() else "")
    else:
        if do == "W":
            it.viewer.cursor.position = (it.controller().plane.position, *PLACES["a"])
        hand.key(do)


def slowly(it, script):
    """Do it faster than the model, which answers once at each "…"; where the user looked each time."""
    it.service.gate, hand, seen = Permits(), it.hand(), []
    for do in script:
        plane = it.controller().plane
        if do == "…":
            it.service.gate.one()
            it.qtbot.wait(80)
            assert it.controller().plane == plane  # it moves only under the hand
        else:
            seen.append(plane)
            act(it, hand, do)
    plane = it.controller().plane
    it.service.gate.set()
    it.settle()
    assert it.controller().plane == plane
    return seen


def with_answers_at_once(it, script, seen):
    """Do the same on the same planes with a model that is faster than the hand, on another image."""
    it.viewer.add_image(IMAGE, name="other")
    page = WidgetPage(it.widget)
    it.qtbot.waitUntil(lambda: "other" in page.options("Image"))
    page.choose("Image", "other")
    it.settle()
    hand = it.hand()
    for do, plane in zip([do for do in script if do != "…"], seen, strict=True):
        it.look(plane.index)
        act(it, hand, do)
        it.settle()


KEYS = [
    "Tab",
    "Shift+Tab",
    "Ctrl+Z",
    "Ctrl+Z",
    "Ctrl+Shift+Z",
    "Enter",
    "Enter",
    "U",
    "W",
    "J",
    "K",
    "J",
    "K",
]
RNG = np.random.default_rng(0)
SCRIPTS = {
    "undo-then-another-plane": "a Tab Shift+Tab c Ctrl+Z U Ctrl+Z Enter K … b E e Ctrl+Z",
    "undo-then-another-object": "a Tab c Ctrl+Z Enter K b … E",
    "redo-then-another-plane": "a Tab c Ctrl+Z Ctrl+Shift+Z Ctrl+Z Ctrl+Shift+Z K … e",
    "accept-then-clicks": "a Tab Enter b … e E d",
    "two-waits": "a Tab Enter K b Tab Enter J J a … e … c",
    "open-then-clicks": "a Enter W K b … … c Ctrl+Z E",
    "clear-then-another-plane": "a Tab K U Ctrl+Z J … c",
}
RANDOM = [
    pytest.param(
        "a Tab " + " ".join(RNG.choice([*PLACES, "B", "D", *KEYS, "…", "…"], 16)),
        id=f"random-{n}",
        marks=pytest.mark.slow,
    )
    for n in range(5)
]


@pytest.mark.parametrize("script", [*(pytest.param(SCRIPTS[one], id=one) for one in SCRIPTS), *RANDOM])
def test_what_is_kept_is_what_was_meant(it, script):
    """The view stays where the user has put it, and clicks where they were seen, as with a fast model."""
    script = script.split()
    seen = slowly(it, script)
    found = kept(it)
    with_answers_at_once(it, script, seen)
    assert found == kept(it)


def test_the_state_line_says_where_a_step_was_undone_that_waited(it):
    """The user is elsewhere by then, and stays there; the next undo shows its plane, as ever."""
    it.service.gate.clear()
    hand = it.hand()
    for do in ("a", "Tab", "c", "Ctrl+Z", "K"):
        act(it, hand, do)
    assert it.controller().plane.position != 6
    it.service.gate.set()
    it.settle()
    assert "Undo: click, on plane 6" in it.widget.sentence
    assert it.controller().plane.position != 6
    hand.key("Ctrl+Z")
    assert it.controller().plane.position == 6
    assert "on plane" not in it.widget.sentence


def test_a_point_deleted_while_an_action_waits_is_deleted(it):
    """And one that is moved is moved, when it is their turn."""
    hand = it.hand()
    for do in ("a", "d"):
        act(it, hand, do)
    it.settle()
    it.service.gate.clear()
    hand.key("Enter")
    for do in ("b", "Tab", "c", "e"):
        act(it, hand, do)
    assert len(it.controller().actions)
    points = it.controller().prompts.points
    points.selected_data = {1}
    points.remove_selected()
    it.service.gate.set()
    it.settle()
    assert kept(it)[1] == {6: [(*PLACES["b"], True), (*PLACES["e"], True)]}


def test_a_click_is_on_the_plane_where_the_button_went_down(it):
    """Also when the plane has changed before it came up; Control is that of the press."""
    hand = it.hand()
    for place, key in (("b", ""), ("d", "Ctrl")):
        it.look((6, None, None))
        hand.press(PLACES[place], key)
        it.look((5, None, None))
        hand.release(PLACES[place])
    it.settle()
    it.look((5, None, None))
    assert kept(it)[1] == {6: [(*PLACES["b"], True), (*PLACES["d"], False)]}


def test_an_area_that_is_drawn_while_an_action_waits_is_no_prompt(it):
    """The key waits behind the box."""
    it.service.gate.clear()
    hand = it.hand()
    hand.click(PLACES["a"])
    hand.key("Tab")
    hand.drag((5, 5), (30, 35), key="Shift")
    hand.key("Shift+A")
    it.service.gate.set()
    it.settle()
    assert len(it.controller().session.limits.area) == 1
    assert kept(it)[1] == {6: [(*PLACES["a"], True)]}


def test_an_object_that_is_opened_from_the_table_is_shown_at_once(it):
    """Not when its turn has come: the user may look elsewhere by then."""
    hand, controller = it.hand(), it.controller()
    for do in ("a", "Enter"):
        act(it, hand, do)
    it.settle()
    it.service.gate.clear()
    it.look((2, None, None))
    hand.click(PLACES["d"])
    controller.all_objects.edit_again([1])
    assert controller.plane.position == 6
    it.look((9, None, None))
    it.service.gate.set()
    it.settle()
    assert controller.plane.position == 9
    assert kept(it)[:2] == (1, {6: [(*PLACES["a"], True)]})
