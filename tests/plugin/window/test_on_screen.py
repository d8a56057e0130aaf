"""The program that times the finished widget; it asserts no time itself."""

import numpy as np

from napari_lowlat_seg.plugin.window import on_screen


def test_the_stack_is_the_sample_mirrored() -> None:
    """Real pixels everywhere, as large as the figures say."""
    stack = on_screen.stack()
    assert stack.shape == (50, 1024, 1024)
    assert np.array_equal(stack[:, 250:500, :250], stack[:, 249::-1, :250])


def test_accepting_is_told_beside_naparis_own_way(capsys) -> None:
    """Both write the same pixels."""
    on_screen.accepting(1200)
    said = capsys.readouterr().out
    assert "pixels of (50, 1200, 1200)" in said
    assert "accept " in said
    assert "data_setitem " in said


def test_a_click_is_seen_and_gaps_are_counted(make_napari_viewer, qtbot) -> None:
    """On a small picture, with the embedded model, as the program does it on a large one."""
    desk = on_screen.Desk(np.tile(np.arange(96, dtype=np.uint8), (3, 96, 1)))
    try:
        desk.use("default")
        desk.look_at(1)
        landed = []
        desk.talk.questions.landed.connect(lambda plane, final: landed.append(final))
        desk.click(40, 40)
        assert desk.turn(lambda: True in landed)
        desk.see()
        assert desk.painted > 0
        assert desk.talk.plane.position == 1
        assert len(on_screen.gaps(desk, 0.2)) > 1
    finally:
        desk.viewer.close()
