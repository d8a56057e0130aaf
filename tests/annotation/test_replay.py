"""Sessions done again, by the replay and by the exported script: the same labels and the same undo stack."""

import ast
import json
import runpy
import subprocess
import sys
from functools import wraps
from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import napari_lowlat_seg
from benchmarks.kill_journal import (
    KINDS,
    PIXELS,
    PLANES,
    everything_of,
    fresh_labels,
    play,
    predicted,
    script,
    volume,
)
from napari_lowlat_seg import ArrayLabels, Box, Click, PropagationRun, Scribble, Session, Volume, sample_path
from napari_lowlat_seg.annotation.journal import Journal, JournalError, journal_info, read_session, resume
from napari_lowlat_seg.annotation.journal.actions import plane_ranges
from napari_lowlat_seg.annotation.journal.replay import image_of, replay
from napari_lowlat_seg.annotation.journal.script import exported_script
from napari_lowlat_seg.annotation.objects.actions import delete, describe, merge, split
from napari_lowlat_seg.annotation.objects.counts import count_labels
from napari_lowlat_seg.annotation.objects.facts import ObjectClass
from napari_lowlat_seg.annotation.objects.proposals import (
    Proposal,
    accept_proposal,
    correct_proposal,
    propose,
    reject_proposals,
)
from napari_lowlat_seg.annotation.propagation_run import stack_of
from napari_lowlat_seg.cli.app import main
from napari_lowlat_seg.core.boxes import BoundingBox
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.propagation.sweep import PropagatedMask
from napari_lowlat_seg.serving.service import load_prediction_service

FACTS = {"model": "fake", "device": "cpu", "weights": "1" * 32}
FIRST = PLANES[0]
RUN = ("propagate", "interpolate", "seeds", "masks")


def alone(method):
    """A generator that refuses to begin while another one of the service is open, as a process's does."""

    @wraps(method)
    def generator(self, *arguments, **options):
        assert not self.at_work, "the service is at work for another call"
        self.at_work = True
        try:
            yield from method(self, *arguments, **options)
        finally:
            self.at_work = False

    return generator


class FakeService:
    """Masks that follow from the request and from nothing else."""

    at_work = False

    @alone
    def predict(self, request, source, cancelled=None):
        shape = np.asarray(source.read()).shape[:2]
        for turn in range(3):
            yield predicted(_random(shape, request.prompts, request.previous, turn, source.window)), turn == 2

    @alone
    def propagate(self, request, sources, cancelled=None):
        for number in request.seeds or request.anchors:
            for source in sources:
                shape = np.asarray(source.read()).shape[:2]
                mask = predicted(_random(shape, request.seeds.get(number), None, source.plane, None))
                yield number, PropagatedMask(source.plane, mask, 0.5)

    def close(self):
        """It keeps nothing."""


def _random(shape, *given):
    """A mask that depends on what is given."""
    texts = [getattr(one, "packed", None) or repr(one) for one in given]
    digest = blake2b(repr(texts).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big")).random(shape) > 0.5


def act(session, labels, service, action, plane, seed):
    """As `play`, with the masks of a service."""
    rng = np.random.default_rng(seed)
    if action == "apply":
        for waiting in session.pending:
            request = session.request(waiting)
            masks = service.predict(request, session.source(waiting))
            for _ in range(rng.integers(1, 4)):
                session.apply(request, next(masks)[0])
    elif action == "level":
        if session.levels(plane):
            session.choose_level(plane, int(rng.integers(-2, 3)))
    elif action in ("propagate", "seeds", "interpolate"):
        planes = stack_of(session.volume, plane)[: int(rng.integers(1, 6))]
        try:
            if action == "seeds":
                run = PropagationRun.seeds(session, planes, [(planes[0], Click((2, 2)))])
            elif action == "interpolate":
                run = PropagationRun.interpolation(session, planes)
            else:
                run = PropagationRun.propagation(session, planes)
        except ValueError:
            return
        sources = [session.source(plane) for plane in run.request.planes]
        stop = int(rng.integers(4))
        for count, (number, found) in enumerate(service.propagate(run.request, sources)):
            if count == stop:
                run.stop()
                return
            run.apply(number, found)
        run.finish()
    else:
        play(session, labels, action, plane, seed)


def new_session():
    """A session and its journal, from the beginning."""
    labels = fresh_labels()
    return Session(volume(), ArrayLabels(labels)), labels


def saved(session, folder, actions, labels):
    """The session after these actions, in a file."""
    journal = Journal(session, folder, image=folder / "image.npy")
    session.model = FACTS
    session.volume = session.volume.with_window()
    for action in actions:
        act(session, labels, FakeService(), *action)
    session.close_transaction()
    journal.save(folder / "session.lowlat")
    journal.close(discard=True)
    np.save(folder / "image.npy", PIXELS)
    return folder / "session.lowlat"


actions = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(PLANES), st.integers(0, 2**32 - 1)), max_size=30
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(actions)
def test_a_replay_makes_the_session_again(tmp_path_factory, actions):
    """Labels, objects, masks, both halves of the undo stack."""
    session, labels = new_session()
    path = saved(session, tmp_path_factory.mktemp("replay"), actions, labels)
    before = everything_of(session, labels)
    done = replay(read_session(path, volume()), volume(), lambda facts: FakeService())
    assert done.differing == 0
    assert done.voxels == labels.size
    assert everything_of(done.session, done.labels) == before


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(actions)
def test_the_exported_script_makes_the_labels_again(tmp_path_factory, actions):
    """Run as it is written, with the service of the test: also what the table of objects did."""
    session, labels = new_session()
    folder = tmp_path_factory.mktemp("script")
    path = saved(session, folder, actions, labels)
    code = folder / "again.py"
    found = read_session(path, volume())
    kinds = [action.kind for action in found.mirror.actions]
    assert all(before in RUN for before, kind in pairwise(kinds) if kind in ("masks", "finish"))
    code.write_text(exported_script(found))
    done = run_script(code)
    assert np.array_equal(np.load(folder / "again.npy"), labels)
    assert done["session"].facts == session.facts
    assert len(done["session"].undo_stack.done) == len(session.undo_stack.done)


def run_script(code):
    """The names in a script beside `image.npy`, after it has run and written `again.npy`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(napari_lowlat_seg, "load_predictor", lambda *args, **options: None, raising=False)
        patch.setattr(napari_lowlat_seg, "PredictionService", lambda predictor: FakeService(), raising=False)
        paths = code, code.with_name("image.npy"), code.with_name("again.npy")
        patch.setattr(sys, "argv", list(map(str, paths)))
        return runpy.run_path(str(code))


def test_a_script_calls_what_the_table_of_objects_did(tmp_path):
    """By the public functions: names, locks, merged, split and deleted objects, and what was proposed."""
    labels = fresh_labels()
    labels[0, 8:, 8:] = 3
    labels[0, :2, 5:7], labels[1, :2, 5:7], labels[2, 5, 5] = 5, 6, 7
    session = Session(volume(), ArrayLabels(labels))
    journal = Journal(session, tmp_path, image=tmp_path / "image.npy")
    np.save(tmp_path / "image.npy", PIXELS)
    session.model, session.volume = FACTS, session.volume.with_window()
    session.classes = (ObjectClass("axon", "#123456"),)

    def counts():
        return count_labels(session.labels, session.volume.shape)

    describe(session, [5, 6], name="two", category="axon")
    describe(session, [3], hidden=True)
    session.undo()
    assert split(session, counts(), 3) == (8,)
    assert merge(session, counts(), [6, 5]) == 6
    delete(session, counts(), [7])
    squares = np.zeros((12, 10), np.float32)
    squares[7:10, 2:5] = 0.8
    masks = {FIRST: SoftMask.of(squares, 0.9)}
    proposals = propose(session, [Proposal(0.25 * place, masks) for place in range(4)])
    reject_proposals(session, proposals[:2])
    accept_proposal(session, proposals[2])
    describe(session, [6], locked=True)
    correct_proposal(session, proposals[3])
    act(session, labels, FakeService(), "add", FIRST, 3)
    act(session, labels, FakeService(), "apply", FIRST, 3)
    session.accept()
    journal.save(tmp_path / "mine.lowlat")
    journal.close()
    script = exported_script(read_session(tmp_path / "mine.lowlat", volume()))
    for call in (
        "describe(session, [5, 6], name='two', category='axon')",
        "split(session, counts(), 3)",
        "merge(session, counts(), [6, 5])",
        "delete(session, counts(), [7])",
        "describe(session, [6], locked=True)",
    ):
        assert call in script
    (tmp_path / "again.py").write_text(script)
    done = run_script(tmp_path / "again.py")
    assert np.array_equal(np.load(tmp_path / "again.npy"), labels)
    assert (done["session"].facts, len(session.facts)) == (session.facts, 1)
    assert {3, 6, 8, 9, 10} <= set(np.unique(labels))


def shape_of(code):
    """A program without the texts in it."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    return ast.dump(tree)


def exported(folder, text, *, printable):
    """The script of a session that has a text wherever it may have one."""
    session = Session(Volume(PIXELS, name=text), ArrayLabels(fresh_labels()))
    journal = Journal(session, folder, image=text)
    session.model = {"model": text, "device": text, "closer_look": text, text: text}
    if printable:
        session.classes = (ObjectClass(text, "#112233"),)
        describe(session, [3], name=text, category=text)
    session.set_prompts(FIRST, (Click((1, 1)),))
    journal.save(folder / "hostile.lowlat")
    journal.close(discard=True)
    return exported_script(read_session(folder / "hostile.lowlat", volume()))


@pytest.mark.parametrize(
    "text",
    [
        *(
            '"""\nimport os\nos.abort()\n"""',
            "'; import os #",
            "\\",
            '\\"""',
            "{0} {name!r} {",
            "\r\nx = 1\n",
        ),
        *("\u2028x = 1", "\x85x = 1", "a\0b", "\udcff", "#\nx = 1", 3 * "'" + "\\"),
    ],
)
def test_texts_of_a_session_are_literals_in_its_script(tmp_path, text):
    """Name and place of the image, model, objects, classes: a stranger's session adds no code."""
    printable = text.isprintable()
    code = exported(tmp_path, text, printable=printable)
    assert shape_of(code) == shape_of(exported(tmp_path, "plain", printable=printable))
    code.encode()


def test_a_session_that_was_resumed_is_replayed_from_its_beginning(tmp_path):
    """Its caches were other ones after that, and the service is told."""
    session, labels = new_session()
    path = saved(session, tmp_path, script(0, 20), labels)
    session, journal = resume(path, volume(), folder=tmp_path / "journals")
    session.volume = session.volume.with_window()  # as a window does when it has read the image
    for action in script(1, 20):
        act(session, session.labels.data, FakeService(), *action)
    session.close_transaction()
    journal.close()
    closed = []

    class Noting(FakeService):
        def close(self):
            closed.append(True)

    done = replay(read_session(journal.path, volume()), volume(), lambda facts: Noting())
    assert done.differing == 0
    assert closed == [True]


@pytest.mark.parametrize("accepted", ["before", "after", "after another level"])
def test_a_session_that_was_resumed_between_two_masks_of_a_click_is_repeated(tmp_path, accepted):
    """The quick mask stays, as nothing waits for the last one any more, and an accept that did is written."""
    session, labels = new_session()
    before = labels.copy()
    session.model, session.volume = FACTS, session.volume.with_window()
    journal = Journal(session, tmp_path, image=tmp_path / "image.npy")
    np.save(tmp_path / "image.npy", PIXELS)
    session.add(FIRST, Click((3, 3)))
    request = session.request(FIRST)
    if accepted == "before":
        session.accept()
    session.apply(request, next(FakeService().predict(request, session.source(FIRST)))[0], final=False)
    assert np.array_equal(labels, before)
    journal.close()
    session, journal = resume(journal.path, volume(), folder=tmp_path / "journals")
    if accepted == "after another level":
        session.choose_level(FIRST, 1)
    if accepted != "before":
        session.accept()
    assert session.accepting == ()
    assert not np.array_equal(session.labels.data, before)
    journal.close()
    found = read_session(journal.path, volume())
    assert replay(found, volume(), lambda facts: FakeService()).differing == 0
    code = tmp_path / "again.py"
    code.write_text(exported_script(found))
    run_script(code)
    assert np.array_equal(np.load(tmp_path / "again.npy"), session.labels.data)


def test_a_chosen_level_is_chosen_again(tmp_path):
    """Of a mask that the network makes anew; later prompts refine it."""
    session, labels = new_session()
    chosen = [("add", FIRST, 8), ("apply", FIRST, 2), ("level", FIRST, 0), ("level", FIRST, 4)]
    actions = [*chosen, ("undo", FIRST, 0), ("add", FIRST, 2), ("apply", FIRST, 2), ("accept", FIRST, 0)]
    path = saved(session, tmp_path, actions, labels)
    kinds = [action.kind for action in read_session(path, volume()).mirror.actions]
    assert kinds.count("level") == 2
    done = replay(read_session(path, volume()), volume(), lambda facts: FakeService())
    assert (done.differing, labels.any()) == (0, True)
    assert "choose_level(Plane((1, None, None)), " in exported_script(read_session(path, volume()))


def test_a_part_of_a_huge_plane_is_predicted_as_that_part(tmp_path):
    """The tile is in the session's file."""
    session, _ = new_session()
    journal = Journal(session, tmp_path)
    session.model = FACTS
    tile = BoundingBox(2, 1, 8, 7)
    session.add(FIRST, Click((4, 4)))
    request = session.request(FIRST)
    part = session.volume.cropped(tile, FIRST)
    source = Session(part).source(FIRST)
    mask, _ = next(FakeService().predict(request.cropped(tile), source))
    session.apply(request, mask.on((12, 10), tile.corner).laid_over(None, tile), tile)
    session.choose_level(FIRST, 2)
    session.accept()
    journal.close()
    found = read_session(journal.path, volume())
    done = replay(found, volume(), lambda facts: FakeService())
    assert done.differing == 0
    assert done.labels.any()
    with pytest.raises(JournalError, match="parts of huge planes; replay it instead"):
        exported_script(found)


def test_what_cannot_be_replayed_is_said(tmp_path):
    """A session that is older than its journal; a service that gives no mask; no model."""
    session, labels = new_session()
    session.add(FIRST, Click((1, 1)))
    journal = Journal(session, tmp_path)
    session.add(FIRST, Click((2, 1)))
    journal.close()
    found = read_session(journal.path, volume())
    for work in (
        lambda: replay(found, volume(), lambda facts: FakeService()),
        lambda: exported_script(found),
    ):
        with pytest.raises(JournalError, match="does not hold the session from its beginning"):
            work()
    session, labels = new_session()
    path = saved(session, tmp_path, [("add", FIRST, 1), ("apply", FIRST, 1)], labels)
    empty = FakeService()
    empty.predict = lambda request, source: iter(())
    with pytest.raises(JournalError, match="predict, cannot be repeated: the network gave no mask"):
        replay(read_session(path, volume()), volume(), lambda facts: empty)


def test_other_masks_are_counted(tmp_path):
    """Voxel by voxel."""
    session, labels = new_session()
    path = saved(session, tmp_path, [("add", FIRST, 1), ("apply", FIRST, 1), ("accept", FIRST, 1)], labels)
    other = FakeService()
    other.predict = lambda request, source: iter([(predicted(np.zeros((12, 10), bool)), True)] * 3)
    done = replay(read_session(path, volume()), volume(), lambda facts: other)
    assert done.differing == np.count_nonzero(done.labels != labels) > 0


def test_the_image_is_found_beside_the_session_and_known_by_its_pixels(tmp_path):
    """On another machine the old path says nothing but the name."""
    session, labels = new_session()
    path = saved(session, tmp_path, [("add", FIRST, 1)], labels)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = path.rename(elsewhere / "mine.lowlat")
    (tmp_path / "image.npy").rename(elsewhere / "image.npy")
    info = journal_info(moved)
    assert image_of(info).identity == volume().identity
    (elsewhere / "image.npy").rename(elsewhere / "renamed.npy")
    assert image_of(info, elsewhere / "renamed.npy").identity == volume().identity
    with pytest.raises(FileNotFoundError):
        image_of(info)
    np.save(elsewhere / "other.npy", PIXELS[::-1])
    with pytest.raises(JournalError, match=r"has other pixels, of shape \(4, 12, 10\)"):
        image_of(info, elsewhere / "other.npy")
    journal = Journal(Session(volume()), tmp_path)
    journal.flush()
    journal.close()
    with pytest.raises(JournalError, match="does not say where its image lies; give the image"):
        image_of(journal_info(journal.path))


@pytest.mark.parametrize("axis", range(3))
def test_planes_are_written_as_ranges(axis):
    """A range of 5,000 planes is one entry."""
    planes = Volume(np.zeros((6, 7, 8))).planes(axis)
    assert plane_ranges(planes) == [(planes[0], len(planes))]
    assert plane_ranges([planes[0], planes[2], planes[3]]) == [(planes[0], 1), (planes[2], 2)]
    assert plane_ranges([Plane()]) == [(Plane(), 1)]


# The shipped model and session


# `test_a_chosen_level_is_chosen_again` has the mechanism, the tutorial's replay the shipped model.
@pytest.mark.slow
@pytest.mark.thorough
def test_a_level_of_the_shipped_model_is_chosen_again(tmp_path):
    """And what a later click makes of it, to the voxel; by the replay and by the script."""
    image = sample_path("em_fly_medulla.tif")
    volume = read_volume(image)
    session = Session(volume, ArrayLabels(np.zeros(volume.shape, np.uint16)))
    journal, service = Journal(session, tmp_path, image=image), load_prediction_service("default", "cpu")
    session.model = {"model": "default", "device": "cpu"}
    session.volume = volume.with_window()
    plane = Plane((20, None, None))

    def predict():
        request = session.request(plane)
        for mask, final in service.predict(request, session.source(plane)):
            session.apply(request, mask, final=final)

    session.add(plane, Click((207, 71)))
    predict()
    first = session.mask(plane)
    session.choose_level(plane, 2)
    assert not np.array_equal(session.mask(plane), first)
    session.add(plane, Click((120, 88), positive=False))
    predict()
    session.accept()
    journal.save(tmp_path / "mine.lowlat")
    journal.close()
    found = read_session(tmp_path / "mine.lowlat", volume)
    done = replay(found, volume, lambda facts: load_prediction_service("default", "cpu"))
    assert (done.differing, done.labels.any()) == (0, True)
    code = tmp_path / "again.py"
    code.write_text(exported_script(read_session(tmp_path / "mine.lowlat", volume)))
    subprocess.run([sys.executable, code, image, tmp_path / "again.npy"], check=True, capture_output=True)
    assert np.array_equal(np.load(tmp_path / "again.npy"), session.labels.data)


@pytest.mark.slow
def test_the_tutorial_is_replayed_without_a_voxel_that_differs(capsys):
    """With the shipped model and the session's precision, in a process of its own, as in napari."""
    with pytest.raises(SystemExit) as ended:
        main(["replay", str(sample_path("tutorial.lowlat")), "--json"])
    assert ended.value.code == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["voxels"], done["predictions"], done["objects"]) == (3_000_000, 15, 3)
    assert done["differing"] == 0
    assert not any(one.startswith("precision") for one in done["other"])


# `test_the_exported_script_makes_the_labels_again` has scripts of any actions, the replay above the tutorial.
@pytest.mark.slow
@pytest.mark.thorough
def test_the_script_of_the_tutorial_makes_its_labels(tmp_path):
    """Through the public API, in a Python of its own."""
    with pytest.raises(SystemExit) as ended:
        main(["export-script", str(sample_path("tutorial.lowlat")), "-o", str(tmp_path / "again.py")])
    assert ended.value.code == 0
    image, labels = sample_path("em_fly_medulla.tif"), tmp_path / "again.npy"
    done = subprocess.run(
        [sys.executable, tmp_path / "again.py", image, labels], capture_output=True, text=True, check=True
    )
    volume = image_of(journal_info(sample_path("tutorial.lowlat")))
    found = read_session(sample_path("tutorial.lowlat"), volume)
    found.mirror.write_labels()
    assert np.array_equal(np.load(labels), found.mirror.store.data)
    assert done.stdout.strip() == f"{np.count_nonzero(found.mirror.store.data)} voxels in 3 objects"


def test_prompts_of_the_tutorial_are_those_that_the_guide_names():
    """Clicks, a box, a scribble, on two axes."""
    volume = image_of(journal_info(sample_path("tutorial.lowlat")))
    found = read_session(sample_path("tutorial.lowlat"), volume)
    prompts = {type(p) for action in found.mirror.actions for p in action.prompts}
    assert prompts == {Click, Box, Scribble}
    assert sample_path("tutorial.lowlat").stat().st_size < 150_000
