"""`lowlat-seg embed` and the window speak of the same embeddings: no network runs on a plane made ahead."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from napari.layers import Image
from npe2 import PluginManifest

from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.cli import app
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.io.files import as_shown, read_volume
from napari_lowlat_seg.io.samples import sample_path
from napari_lowlat_seg.plugin.contributions import open_em_sample, open_mri_sample
from napari_lowlat_seg.plugin.controller.predictions import Predictions
from napari_lowlat_seg.plugin.layers.grid import grid_of
from napari_lowlat_seg.plugin.settings import embedding_folders
from napari_lowlat_seg.serving.process import PredictionProcess
from napari_lowlat_seg.serving.service import load_prediction_service


class Jotter:
    """A worker that writes down what it is asked for."""

    def __init__(self):
        self.looked, self.planned = [], []

    def embed(self, source):
        self.looked.append(source)

    def embed_ahead(self, sources):
        self.planned = list(sources)


def sources_of(layer, plane, *folders):
    """What is requested when a plane of a layer comes into view."""
    session = Session(grid_of(layer).volume.with_window())
    worker = Jotter()
    predictions = Predictions(session, worker, layer.name)
    predictions.sources.folders, predictions.planes_ahead = folders, 2
    predictions.look(plane)
    return worker.looked + worker.planned


def as_image(data, settings, kind):
    assert kind == "image"
    return Image(data, **settings)


SAMPLES = {
    "em_fly_medulla.tif": open_em_sample,
    "mri_glioma_flair.nii.gz": open_mri_sample,
}


@pytest.fixture
def fresh(tiny):
    """A service that holds nothing yet."""
    return load_prediction_service(str(tiny), "cpu")


def embed(path, tiny, *more):
    """The command, with a model that takes milliseconds."""
    with pytest.raises(SystemExit) as left:
        app.main(["embed", str(path), *more, "--model", str(tiny), "--device", "cpu"])
    assert left.value.code == 0


@pytest.mark.parametrize("name", SAMPLES)
def test_planes_embedded_by_the_command_are_hits_in_the_window(name, tmp_path, tiny, fresh):
    """The shipped EM stack (TIFF) and MRI volume (NIfTI), opened as samples: no pass of the network."""
    embed(sample_path(name), tiny, "-o", str(tmp_path / "cache"))
    layer = as_image(*SAMPLES[name]()[0])
    for middle in (0, 22, layer.data.shape[0] - 1):
        sources = sources_of(layer, Plane((middle, None, None)), tmp_path / "cache")
        assert [fresh.embed(source) for source in sources] == [0.0] * len(sources)
    assert fresh._encoded == 0
    across = sources_of(layer, Plane((None, 22, None)), tmp_path / "cache")
    assert fresh.embed(across[0]) > 0


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_opened_in_napari_finds_its_embeddings_by_itself(
    name, tmp_path, tiny, fresh, make_napari_viewer_proxy, plugin_settings, npe2pm
):
    """Beside the file, through the readers that napari chooses: its own for TIFF, ours for NIfTI."""
    for plugin in ("napari", "napari-lowlat-seg"):
        npe2pm.register(PluginManifest.from_distribution(plugin))
    path = tmp_path / name
    shutil.copy(sample_path(name), path)
    embed(path, tiny)
    viewer = make_napari_viewer_proxy()
    (layer,) = viewer.open(path, plugin="napari" if name.endswith("tif") else "napari-lowlat-seg")
    folders = embedding_folders(layer)
    assert folders == (tmp_path / f"{name}.embeddings",)
    (source, *_) = sources_of(layer, Plane((22, None, None)), *folders)
    assert fresh.embed(source) == 0.0


@pytest.mark.parametrize("name", SAMPLES)
def test_the_command_chooses_the_window_that_napari_chooses(name):
    """From the same sample of the same planes; for NIfTI too, whose axes are turned round."""
    there = as_shown(read_volume(sample_path(name))).with_window()
    here = grid_of(as_image(*SAMPLES[name]()[0])).volume.with_window()
    assert there.window == here.window
    plane = Plane((22, None, None))
    assert np.array_equal(there.plane(plane), here.plane(plane))


def test_a_model_in_a_process_finds_them_as_well(tmp_path, tiny):
    """Folders and planes travel with the question."""
    embed(sample_path("em_fly_medulla.tif"), tiny, "-o", str(tmp_path / "cache"))
    layer = as_image(*open_em_sample()[0])
    (source, *_) = sources_of(layer, Plane((22, None, None)), tmp_path / "cache")
    process = PredictionProcess(str(tiny), "cpu", threads=1)
    try:
        assert process.embed(source) == 0.0
        assert process.embed(replace(source, key="other", folders=())) == 0.0
    finally:
        process.close()
