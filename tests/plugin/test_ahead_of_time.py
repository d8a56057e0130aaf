"""`lowlat-seg embed` and the window speak of the same embeddings: no network runs on a plane made ahead."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image

from napari_lowlat_seg import cli
from napari_lowlat_seg.plugin.contributions import open_em_sample, open_mri_sample, read_scans
from napari_lowlat_seg.plugin.grid import grid_of
from napari_lowlat_seg.plugin.questions import Questions
from napari_lowlat_seg.plugin.settings import embedding_folders
from napari_lowlat_seg.precompute import EmbedJob, run_job
from napari_lowlat_seg.predictor import load_predictor
from napari_lowlat_seg.responder import Responder, load_responder
from napari_lowlat_seg.samples import sample_path
from napari_lowlat_seg.session import Session
from napari_lowlat_seg.volume import Plane


class Jotter:
    """A worker that writes down what it is asked for."""

    def __init__(self):
        self.looked, self.planned = [], []

    def look(self, source):
        self.looked.append(source)

    def ahead(self, sources):
        self.planned = list(sources)


def sources_of(layer, plane, *folders):
    """What a conversation about a layer asks for when somebody looks at a plane of it."""
    session = Session(grid_of(layer).volume.with_window())
    worker = Jotter()
    questions = Questions(session, worker, layer.name)
    questions.folders, questions.reach = folders, 2
    questions.look(plane)
    return worker.looked + worker.planned


def as_image(data, settings, kind):
    assert kind == "image"
    return Image(data, **settings)


SAMPLES = {
    "em_fly_medulla.tif": open_em_sample,
    "mri_glioma_flair.nii.gz": open_mri_sample,
}


@pytest.fixture(scope="module")
def predictor():
    return load_predictor("default", device="cpu")


@pytest.fixture
def fresh(predictor):
    """A responder that holds nothing yet."""
    return Responder(predictor, 2**28)


@pytest.mark.parametrize("name", SAMPLES)
def test_planes_embedded_by_the_command_are_hits_in_the_window(name, tmp_path, fresh, monkeypatch):
    """The shipped EM stack (TIFF) and MRI volume (NIfTI), opened as samples: no pass of the network."""
    from napari_lowlat_seg import precompute

    def few(job):
        """The planes around the middle: all of them would take a minute."""
        number = next(i for i in job.planes[0].index if i is not None)
        return run_job(job) if 20 <= number <= 24 else (0, len(job.planes))

    monkeypatch.setattr(precompute, "run_job", few)
    with pytest.raises(SystemExit) as left:
        cli.main(["embed", str(sample_path(name)), "-o", str(tmp_path / "cache"), "--device", "cpu"])
    assert left.value.code == 0
    layer = as_image(*SAMPLES[name]()[0])
    sources = sources_of(layer, Plane((22, None, None)), tmp_path / "cache")
    assert [source.plane.index[0] for source in sources] == [22, 23, 24, 21, 20]
    assert [fresh.embed(source) for source in sources] == [0.0] * 5
    assert fresh._encoded == 0
    # Without the folder, and on a plane that was not embedded ahead, it does run.
    assert fresh.embed(replace(sources[0], key="new", plane=Plane((30, None, None)))) > 0


def test_a_scan_read_from_its_file_is_hit_too(tmp_path, fresh):
    """Beside the file, without any setting: the layer says where it came from."""
    path = tmp_path / "scan.nii.gz"
    shutil.copy(sample_path("mri_glioma_flair.nii.gz"), path)
    data, settings, _ = read_scans(str(path))[0]
    layer = Image(data, **settings)
    window = grid_of(layer).volume.with_window().window
    job = EmbedJob(path, tmp_path / "scan.nii.gz.embeddings", "default", "cpu", None, window, (MIDDLE,))
    assert run_job(job) == (1, 1)
    (source, *_) = sources_of(layer, MIDDLE, tmp_path / "scan.nii.gz.embeddings")
    assert fresh.embed(source) == 0.0


MIDDLE = Plane((50, None, None))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_opened_in_napari_finds_its_embeddings_by_itself(
    name, tmp_path, fresh, make_napari_viewer_proxy, plugin_settings
):
    """Through the readers that napari chooses: its own for TIFF, ours for NIfTI."""
    path = tmp_path / name
    shutil.copy(sample_path(name), path)
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(path, plugin="napari" if name.endswith("tif") else "napari-lowlat-seg")
    folders = embedding_folders(layer)
    assert folders == (tmp_path / f"{name}.embeddings",)
    window = grid_of(layer).volume.with_window().window
    run_job(EmbedJob(path, folders[0], "default", "cpu", None, window, (Plane((22, None, None)),)))
    (source, *_) = sources_of(layer, Plane((22, None, None)), *folders)
    assert fresh.embed(source) == 0.0


def test_a_window_chosen_by_the_command_is_the_one_chosen_in_napari(tmp_path):
    """From the same sample of the same planes; for NIfTI too, whose axes are turned round."""
    from napari_lowlat_seg.io import as_shown, read_volume

    for name, open_sample in SAMPLES.items():
        there = as_shown(read_volume(sample_path(name)), name).with_window()
        here = grid_of(as_image(*open_sample()[0])).volume.with_window()
        assert there.window == here.window
        assert np.array_equal(there.plane(Plane((22, None, None))), here.plane(Plane((22, None, None))))


def test_a_model_in_a_process_finds_them_as_well(tmp_path, fresh):
    """Folders and planes travel with the question; pixels only where they must be read."""
    from napari_lowlat_seg.responder_process import ResponderProcess

    layer = as_image(*open_em_sample()[0])
    (source, *_) = sources_of(layer, Plane((22, None, None)), tmp_path)
    made = load_responder("default", "cpu")
    assert made.embed(source) > 0
    made._planes.save(made._keys[source.identity], made._embedding(source))
    writer = Responder(made._predictor, 10, tmp_path, 2**30)
    writer.embed(source)
    process = ResponderProcess("default", "cpu", threads=1)
    try:
        assert process.embed(source) == 0.0
    finally:
        process.close()
