"""What earlier versions have written still opens: sessions, journals, prompts, embeddings, model files.

`python tests/test_upgrade.py VERSION` writes the files of this version into tests/upgrade/VERSION, once, at
its release; they are never written again. Settings are in `plugin/test_settings.py`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lowlat_seg import (
    ArrayLabels,
    Box,
    Click,
    ObjectPrompts,
    Scribble,
    Session,
    Volume,
    load_prompts,
    save_prompts,
)
from napari_lowlat_seg.annotation.journal import Journal, JournalError, open_session, read_session, resume
from napari_lowlat_seg.annotation.journal.replay import replay
from napari_lowlat_seg.annotation.journal.script import exported_script
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import PlaneSource, Request
from napari_lowlat_seg.models.checkpoints import load_model, save_model
from napari_lowlat_seg.models.segnext import SegNext, SegNextConfig
from napari_lowlat_seg.serving.embedding_files import EmbeddingFolder, PackedEmbedding

VERSIONS = sorted(path for path in (Path(__file__).parent / "upgrade").iterdir() if path.is_dir())
MASKS = {2: np.s_[3:10, 4:12], 3: np.s_[12:20, 2:9]}
"""By plane, where the first and the second object are."""


def image() -> Volume:
    """The image of all files: (6, 24, 20) uint8."""
    return Volume(np.arange(6 * 24 * 20, dtype=np.uint32).reshape(6, 24, 20).astype(np.uint8))


def predicted(session: Session, position: int) -> None:
    """Answer what is asked on a plane."""
    request = session.request(session.volume.planes()[position])
    assert request is not None
    mask = np.zeros((24, 20), bool)
    mask[MASKS[position]] = True
    session.apply(request, SoftMask.from_mask(mask))


def write_files(folder: Path) -> None:
    """A session of two accepted objects, one undone and a brush stroke; prompts, an embedding, a model."""
    volume = image()
    planes = volume.planes()
    with tempfile.TemporaryDirectory() as journals:
        session = Session(volume)
        journal = Journal(session, journals, image="old.tif")
        session.use_labels(ArrayLabels(np.zeros(volume.shape, np.uint16)))
        session.add(planes[2], Click((5.0, 6.0)))
        predicted(session, 2)
        session.accept()
        session.add(planes[3], Box((12.0, 2.0), (19.0, 8.0)))
        session.add(planes[3], Scribble(((13.0, 15.0), (18.0, 16.0)), positive=False))
        predicted(session, 3)
        mask = session.mask(planes[3])
        assert mask is not None
        mask[20:22, 2:9] = True
        session.paint(planes[3], mask)
        session.accept()
        session.undo()
        journal.save(folder / "session.lowlat")
        journal.flush()
        (path,) = Path(journals).glob("*.journal")
        shutil.copy(path, folder / "session.journal")
        journal.close(discard=True)
    prompts = {planes[2]: (Click((5.0, 6.0)),)}
    save_prompts(folder / "prompts.json", volume, [ObjectPrompts(label=7, prompts=prompts)])
    feature = torch.arange(16, dtype=torch.float16).reshape(1, 1, 4, 4)
    packed = PackedEmbedding((feature,), ("float32",), np.zeros((4, 4, 3), np.uint8))
    EmbeddingFolder(folder, None).write("plane.embedding", "an old key", packed)
    torch.manual_seed(0)
    config = SegNextConfig(
        size=32, dim=8, depth=1, heads=2, fusion_heads=2, neck_dims=(4, 4, 4, 4), head_dim=4, fit="letterbox"
    )
    save_model(SegNext(config).eval(), folder / "model.safetensors")


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the files of one version: what reads them may delete them."""
    return Path(shutil.copytree(request.param, tmp_path / "old"))


def written(session: Session) -> np.ndarray:
    """The labels in memory that a session writes to."""
    assert isinstance(session.labels, ArrayLabels)
    return np.asarray(session.labels.data)


@pytest.mark.parametrize("name", ["session.lowlat", "session.journal"])
def test_a_session_of_an_earlier_version_opens(old: Path, name: str) -> None:
    """Labels, prompts, masks and undo steps, and the undone one can be done again."""
    session = open_session(old / name, image())
    labels = written(session)
    expected = np.zeros((6, 24, 20), np.uint16)
    expected[2][MASKS[2]] = 1
    np.testing.assert_array_equal(labels, expected)
    plane = session.volume.planes()[3]
    assert [type(prompt) for prompt in session.state(plane).prompts] == [Box, Scribble]
    session.redo()
    labels = written(session)
    assert labels[3][20:22, 2:9].all()
    assert labels[3].max() == 2


def test_a_journal_of_an_earlier_version_goes_on(old: Path) -> None:
    """It becomes one of this version; a script can be made of it."""
    session, journal = resume(old / "session.journal", image())
    session.redo()
    journal.save(old / "again.lowlat")
    journal.close()
    again = open_session(old / "again.lowlat", image())
    assert len(again.undo_stack.done) == len(session.undo_stack.done)
    assert "Click" in exported_script(read_session(old / "again.lowlat", image()))


@pytest.mark.parametrize("name", ["chosen.lowlat", "chosen.journal"])
def test_a_mask_that_an_older_model_drew_beside_the_first_is_kept(name: str, tmp_path: Path) -> None:
    """Before there were levels, a model could draw further masks; the files are of a session that chose one.

    It is the mask as it was predicted, with levels of its own; undo shows the first one. What no model can
    repeat is neither replayed nor exported.
    """
    old = Path(shutil.copy(Path(__file__).parent / "upgrade" / "0.1.0" / name, tmp_path))
    session, plane = open_session(old, image()), image().planes()[2]
    chosen, first = np.zeros((24, 20), bool), np.zeros((24, 20), bool)
    chosen[3:10, 4:18] = first[3:10, 4:12] = True
    state = session.state(plane)
    assert state.soft_mask is not None
    assert (state.soft_mask.quality, state.first, state.level) == (0.7, None, 0)
    np.testing.assert_array_equal(session.mask(plane), chosen)
    assert session.levels(plane) == (0,)
    session.undo()
    np.testing.assert_array_equal(session.mask(plane), first)
    assert session.levels(plane) == (0, 1)
    session.choose_level(plane, 1)
    first[3:10, 12:14] = True
    np.testing.assert_array_equal(session.mask(plane), first)
    found = read_session(old, image())
    with pytest.raises(JournalError, match=r"choose, cannot be repeated: a mask was chosen .* restore the"):
        replay(found, image(), lambda facts: NoModel())
    with pytest.raises(JournalError, match=r"cannot be exported: a mask was chosen that the model drew"):
        exported_script(found)


class NoModel:
    """A service that repeats the first mask only."""

    def predict(self, request: Request, source: PlaneSource) -> Iterator[tuple[SoftMask, bool]]:
        yield SoftMask.of(np.full((24, 20), 0.9, np.float32)), True

    def close(self) -> None:
        """It keeps nothing."""


def test_prompts_embeddings_and_models_of_an_earlier_version_are_read(old: Path) -> None:
    """What was kept beside images, in caches and in the folder of models."""
    volume = image()
    (one,) = load_prompts(old / "prompts.json", volume)
    assert (one.label, one.prompts) == (7, {volume.planes()[2]: (Click((5.0, 6.0)),)})
    packed = EmbeddingFolder(old, None).read("plane.embedding", "an old key")
    assert packed is not None
    assert packed.features[0].sum() == 120
    assert load_model(old / "model.safetensors").size == 32


if __name__ == "__main__":
    target = Path(__file__).parent / "upgrade" / sys.argv[1]
    target.mkdir(exist_ok=True)
    write_files(target)
