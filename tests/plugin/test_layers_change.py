"""What happens to the image layers of an open window: new data, changed pixels, other places."""

import nibabel
import numpy as np
import pytest
from napari.utils.notifications import notification_manager

from bright_service import balls
from napari_lowlat_seg.core.volume import Plane

IMAGE, TRUTH = balls()
FIRST, SECOND = (20, 25), (9, 9)


@pytest.fixture
def it(bright_window):
    """The two balls, seen on plane 6."""
    it = bright_window(lambda viewer: viewer.add_image(IMAGE.copy(), name="balls"))
    it.look((6, None, None))
    it.settle()
    return it


def warnings_of():
    """What the user was warned of."""
    kinds = ("warning", "error")
    return " ".join(str(n.message) for n in notification_manager.records if n.severity.value in kinds)


def test_data_of_the_same_shape_begin_anew(it):
    """A click is answered from the new pixels; the old prompts are gone, the labels stay in use."""
    hand = it.hand()
    hand.click(FIRST)
    it.settle()
    hand.key("Enter")
    labels = it.controller().labels.layer
    hand.click(SECOND)
    it.settle()
    other, truth = balls(at=((6, 30, 40), (5, 9, 9)))
    it.viewer.layers["balls"].data = other
    it.settle()
    assert it.controller().session.prompted() == {}
    assert it.controller().labels.layer == labels
    assert it.controller().session.label == 2
    it.hand().click((30, 40))
    it.settle()
    assert np.array_equal(it.controller().session.mask(it.controller().plane), truth[6] == 1)


@pytest.mark.parametrize("shape", [(5, 20, 20), (20, 60, 70), (30, 40)])
def test_data_of_another_shape_begin_anew(it, shape):
    """The grid is that of the new data; labels of the old shape are left alone."""
    hand = it.hand()
    hand.click(FIRST)
    it.settle()
    hand.key("Enter")
    old = it.controller().labels.layer
    other = np.full(shape, 60, np.uint8)
    other[..., 8:14, 8:14] = 200
    it.viewer.layers["balls"].data = other
    right = other[0] == 200 if len(shape) == 3 else other == 200
    it.settle()
    controller = it.controller()
    assert controller.grid.shape == shape
    if len(shape) == 3:  # the old labels are still there, and with them planes that the image does not have
        assert ("beside the image" in it.widget.sentence) == (shape[0] < 7)
        it.look((min(15, shape[0] - 1), None, None))  # of the largest a plane that the old image had not
        it.settle()
    assert controller.labels.layer is None
    it.hand().click((10, 10))
    it.settle()
    assert np.array_equal(controller.session.mask(controller.plane), right)
    it.hand().key("Enter")
    it.settle()
    assert controller.labels.layer != old
    written = controller.labels.layer.data
    assert written.shape == shape
    assert np.array_equal(written[-1 if shape[0] < 16 else 15] if len(shape) == 3 else written, right)
    assert (written != 0).sum() == 36
    assert (old.data != 0).sum() == (TRUTH[6] == 1).sum() == 69  # what was written before stays as it was
    it.widget.turn_to(it.viewer.layers["balls"])  # chosen again: nothing to change
    it.settle()
    assert it.controller().grid.shape == shape


def test_pixels_changed_in_place_are_read_anew(it):
    """After `refresh` the plane is embedded again, and the next click is answered from what is seen."""
    before = it.controller().predictions.sources.source(Plane((6, None, None)))
    it.hand().click(SECOND)
    it.settle()
    layer = it.viewer.layers["balls"]
    layer.data[6] = np.roll(layer.data[6], 12, axis=1)
    layer.refresh()
    it.qtbot.waitUntil(lambda: "embedded again" in it.widget.sentence)
    it.settle()
    after = it.controller().predictions.sources.source(Plane((6, None, None)))
    assert before.identity != after.identity
    assert len(it.controller().prompts.points.data) == 1
    it.hand().key("U")
    it.hand().click((20, 37))
    it.settle()
    expected = np.roll(TRUTH[6] == 1, 12, axis=1)
    assert np.array_equal(it.controller().session.mask(it.controller().plane), expected)


def test_a_look_at_another_plane_or_a_changed_colour_reads_nothing_anew(it):
    """What napari redraws is no change of the image."""
    source = it.controller().predictions.sources.source(Plane((6, None, None)))
    layer = it.viewer.layers["balls"]
    layer.colormap = "magma"
    layer.visible = False
    layer.visible = True
    layer.refresh()
    it.look((5, None, None))
    it.look((6, None, None))
    it.qtbot.wait(400)
    again = it.controller().predictions.sources.source(Plane((6, None, None)))
    assert source.identity == again.identity


def test_the_displayed_contrast_is_followed(it):
    """With intensities as displayed, the window is that of the layer, also when it is changed later."""
    it.widget.form.details.controls["intensities"].value = "displayed"
    it.settle()
    layer = it.viewer.layers["balls"]
    layer.contrast_limits = (50, 150)
    it.qtbot.waitUntil(lambda: it.controller().session.volume.window == (50, 150))
    source = it.controller().predictions.sources.source(Plane((6, None, None)))
    assert source.window == (50, 150)


def test_scale_and_units_are_followed(it):
    """Layers lie where the image lies, and the model sees the new size of a voxel."""
    layer = it.viewer.layers["balls"]
    it.hand().click(FIRST)
    it.settle()
    layer.scale = (4, 2, 1)
    it.settle()
    assert it.controller().session.volume.spacing == (4, 2, 1)
    world = layer.data_to_world((6, *FIRST))
    assert np.allclose(it.controller().prompts.points.data_to_world((6, *FIRST)), world)
    layer.units = ("um", "nm", "nm")
    it.settle()
    assert it.controller().session.volume.spacing == pytest.approx((4000, 2, 1))
    it.hand().key("Enter")
    it.settle()
    labels = it.controller().labels.layer
    assert np.allclose(labels.scale, (4, 2, 1))
    assert [str(unit) for unit in labels.units] == ["micrometer", "nanometer", "nanometer"]


def test_an_image_that_takes_the_place_of_another_in_one_turn_is_begun_with(it):
    """Removed and added before Qt's loop turns."""
    it.viewer.layers.remove("balls")
    it.viewer.add_image(IMAGE[:, ::-1], name="other")
    it.qtbot.waitUntil(lambda: it.widget.controller and it.controller().layer.name == "other")


def test_adopted_layers_are_ready_to_click(it):
    """A layer of the user's takes clicks at once."""
    mine = it.viewer.add_points(ndim=3, name="mine")
    it.viewer.layers.selection.active = it.viewer.layers["balls"]
    it.widget.controllers.adopt(mine, None)
    assert it.viewer.layers.selection.active == mine
    assert mine.mode == "add"
    it.look((6, None, None))
    it.hand().click(FIRST)
    it.settle()
    assert len(mine.data) == 1
    assert np.array_equal(it.controller().session.mask(it.controller().plane), TRUTH[6] == 1)


@pytest.mark.parametrize("lost", ["all", "one"])
def test_a_plane_without_pixels_does_not_keep_an_object_from_being_accepted(bright_window, lost):
    """What is answered is written, and the other plane is named with the reason."""
    image = IMAGE.astype(np.float32)
    image[7] = np.nan
    it = bright_window(lambda viewer: viewer.add_image(image, name="gap", contrast_limits=(0, 255)))
    if lost == "one":
        it.look((6, None, None))
        it.hand().click(FIRST)
        it.settle()
    it.look((7, None, None))
    it.hand().click(FIRST)
    it.settle()
    if lost == "one":
        it.look((6, None, None))
        it.settle()
    it.hand().key("Enter")
    it.settle()
    assert "plane 7" in it.widget.sentence
    assert "no finite pixel" in it.widget.sentence
    labels = it.controller().labels.layer.data
    assert np.array_equal(labels[6] == 1, (TRUTH[6] == 1) & (lost == "one"))
    assert (labels != 0).sum() == (69 if lost == "one" else 0)
    assert it.controller().session.label == 2
    it.hand().key("Ctrl+Z")
    assert it.controller().session.label == 1


def test_an_object_with_a_negative_label_is_not_opened(it):
    """One sentence; the current object stays as it is."""
    data = np.zeros(IMAGE.shape, np.int32)
    data[TRUTH == 2] = -1
    labels = it.viewer.add_labels(data, name="mine")
    it.controller().labels.use(labels)
    it.settle()
    it.controller().prompts.activate()
    it.look((5, None, None))
    it.viewer.cursor.position = it.controller().layer.data_to_world((5, *SECOND))
    it.hand().key("W")
    assert it.controller().session.label == 1
    assert "label -1 here is negative" in warnings_of()
    it.hand().click((20, 25))
    it.settle()
    it.hand().key("Enter")
    it.settle()
    assert np.array_equal(labels.data == -1, TRUTH == 2)
    assert np.array_equal(labels.data[5] == 1, TRUTH[5] == 1)
    assert set(np.unique(labels.data)) == {-1, 0, 1}


def test_an_object_of_a_scan_is_saved_from_the_window_as_it_lies(bright_window, tmp_path):
    """Opened, clicked, accepted and saved as NIfTI: voxels, affine and unit of the scan."""
    affine = np.diag([0.7, 0.8, 3.0, 1])
    affine[:3, 3] = (5, 6, 7)
    scan = nibabel.Nifti1Image(IMAGE.transpose(2, 1, 0), affine)
    scan.header.set_xyzt_units("mm")
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    it = bright_window(lambda viewer: viewer.open(tmp_path / "scan.nii.gz", plugin="napari-lowlat-seg"))
    it.look((6, None, None))
    it.settle()
    it.hand().click(FIRST)
    it.settle()
    it.hand().key("Enter")
    it.settle()
    it.controller().labels.layer.save(str(tmp_path / "labels.nii.gz"), plugin="napari-lowlat-seg")
    back = nibabel.load(tmp_path / "labels.nii.gz")
    right = (TRUTH == 1) & (np.arange(12) == 6)[:, None, None]
    assert np.array_equal(np.asarray(back.dataobj) == 1, right.transpose(2, 1, 0))
    assert np.allclose(back.affine, affine)
    assert back.header.get_xyzt_units()[0] == "mm"
