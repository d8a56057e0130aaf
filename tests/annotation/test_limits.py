"""Finished objects, intensities and a drawn area limit what an object is; a replay knows it."""

from dataclasses import replace

import numpy as np
import pytest

from napari_lowlat_seg.annotation.journal import Journal, read_session
from napari_lowlat_seg.annotation.journal.replay import replay
from napari_lowlat_seg.annotation.journal.script import exported_script
from napari_lowlat_seg.annotation.limits import Limits
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import Patch
from napari_lowlat_seg.core.labels import ArrayLabels, Policy
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume

PIXELS = np.broadcast_to(np.arange(20, dtype=np.uint8), (3, 16, 20)).copy()
FIRST, CORONAL = Plane((1, None, None)), Plane((None, 8, None))
SQUARE = np.zeros((16, 20), bool)
SQUARE[4:12, 4:12] = True


class Square:
    """Whatever is clicked, the same square is found."""

    def predict(self, request, source, cancelled=None):
        shape = source.read().shape
        yield SoftMask.of(np.where(SQUARE[: shape[0], : shape[1]], np.float32(0.9), np.float32(0))), True

    def close(self):
        """Nothing is kept."""


@pytest.fixture
def session():
    """A session with an accepted object in the square's left half."""
    labels = np.zeros(PIXELS.shape, np.uint16)
    labels[1, 4:12, 4:8] = 7
    return Session(Volume(PIXELS), ArrayLabels(labels))


def clicked(session, at=(6, 10), plane=FIRST):
    """The mask after a click."""
    session.add(plane, Click(at))
    request = session.request(plane)
    for mask, _ in Square().predict(request, session.source(plane)):
        session.apply(request, mask)
    return session.mask(plane)


RIGHT = SQUARE.copy()
RIGHT[:, :8] = False


def test_finished_objects_are_background(session):
    """As far as the policy keeps them; not under a positive click, and not where it is switched off."""
    assert np.array_equal(clicked(session), RIGHT)
    session.policy = Policy("overwrite")
    assert np.array_equal(session.mask(FIRST), SQUARE)
    session.policy = Policy("within", 7)
    assert np.array_equal(session.mask(FIRST), SQUARE & ~RIGHT)
    session.policy = Policy()
    session.limits = Limits(neighbours=False)
    assert np.array_equal(session.mask(FIRST), SQUARE)
    session.limits = Limits()
    assert np.array_equal(clicked(session, (6, 5)), SQUARE)
    assert session.accept()
    assert set(np.unique(session.labels.data)) == {0, 7, 8}
    session.edit_object(FIRST, (6, 10))
    assert np.array_equal(session.mask(FIRST), SQUARE)


def test_intensities_and_an_area_limit_what_is_shown_and_written(session):
    """Both ends of the range are allowed; an area counts on planes of its orientation only."""
    session.limits = Limits(intensities=(9, 10))
    expected = SQUARE.copy()
    expected[:, :9] = expected[:, 11:] = False
    assert np.array_equal(clicked(session), expected)
    session.limits = Limits(area=((((0, 0), (0, 19), (7.5, 19), (7.5, 0))),), axes=(1, 2))
    upper = RIGHT.copy()
    upper[8:] = False
    assert np.array_equal(session.mask(FIRST), upper)
    elsewhere = Patch((0, 0), np.ones((3, 20), bool))
    assert session.within(replace(session.limits, neighbours=False), elsewhere, CORONAL).pixels.all()
    session.accept()
    assert np.array_equal(session.labels.data[1] == 8, upper)
    session.undo()
    assert not (session.labels.data == 8).any()


class File:
    """An image that is not in memory, and counts how often it is read."""

    shape, dtype, reads = PIXELS.shape, PIXELS.dtype, 0

    def __getitem__(self, key):
        self.reads += 1
        return PIXELS[key]


def test_an_image_in_a_file_is_read_once_for_a_range_of_intensities():
    """However often the mask is drawn; another range needs no other pixels, another plane does."""
    session = Session(Volume(File()), ArrayLabels(np.zeros(PIXELS.shape, np.uint16)))
    session.limits = Limits(intensities=(5, 9))
    clicked(session)
    before = session.volume.data.reads
    for high in (9, 10, 10):
        session.limits = Limits(intensities=(5, high))
        expected = SQUARE & (PIXELS[1] >= 5) & (PIXELS[1] <= high)
        assert np.array_equal(session.mask(FIRST), expected)
    assert session.volume.data.reads == before
    session.volume = replace(session.volume, window=(0, 9))
    session.mask(FIRST)
    assert session.volume.data.reads == before + 1


def test_a_replay_and_a_script_know_the_limits(session, tmp_path):
    """They are settings of the session."""
    fresh = Session(Volume(PIXELS), ArrayLabels(np.zeros(PIXELS.shape, np.uint16)))
    journal = Journal(fresh, tmp_path)
    fresh.model = {"model": "square"}
    fresh.limits = Limits(False, (5.0, 9.0), (((0.0, 0.0), (0.0, 9.0), (9.0, 9.0)),), (1, 2))
    clicked(fresh)
    fresh.accept()
    journal.save(tmp_path / "mine.lowlat")
    journal.close()
    found = read_session(tmp_path / "mine.lowlat", Volume(PIXELS))
    done = replay(found, Volume(PIXELS), lambda facts: Square())
    assert (done.differing, done.session.limits) == (0, fresh.limits)
    assert done.labels.any()
    assert f"session.limits = {fresh.limits!r}" in exported_script(found)


def test_a_range_that_ends_before_it_begins_is_refused():
    """With both numbers; so is an outline of two corners."""
    with pytest.raises(ValueError, match="from low to high, got 3 to 2"):
        Limits(intensities=(3, 2))
    with pytest.raises(ValueError, match="a polygon"):
        Limits(area=(((0, 0), (1, 1)),))
