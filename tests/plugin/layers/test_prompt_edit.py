"""An edit of the prompts that waits is done to whatever prompts there are by then."""

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.plugin.layers.prompt_edit import PromptEdit

HERE, THERE = Plane((1, None, None)), Plane((2, None, None))
A, B, C, D = (Click((row, 3)) for row in range(4))


def test_what_is_added_and_removed_is_kept_and_nothing_else():
    """Prompts that are there meanwhile stay, and what is gone already is no longer missed."""
    heard = []
    edit = PromptEdit({HERE: (A, A, B)}, {HERE: (A, C), THERE: ()}, heard.append)
    assert edit.on({HERE: (A, A, B), THERE: (D,)}) == {HERE: (A, C), THERE: (D,)}
    assert edit.on({HERE: [D, A, A, B]}) == {HERE: (D, A, C)}
    assert edit.on({HERE: (B,)}) == {HERE: (C,)}
    assert edit.on({}) == {HERE: (C,)}
    edit()
    assert heard == [edit]


def test_a_plane_that_loses_its_last_prompt_is_empty():
    """It is not missing: the session is told."""
    edit = PromptEdit({HERE: (A,), THERE: (B,)}, {THERE: (B,)}, print)
    assert edit.on({HERE: (A,), THERE: (B,)}) == {HERE: (), THERE: (B,)}
    assert edit.on({HERE: (A, C)}) == {HERE: (C,)}
