"""Geometry: whatever is done to an array, a voxel of world position p is at p afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.geometry import UNITS, Axis, Geometry, find_unit, standard_unit, unit_ratio

LENGTHS = [unit.symbol for unit in UNITS if unit.kind == "space"]


@st.composite
def geometries(draw: st.DrawFn, ndim: int | None = None, straight: bool | None = None) -> Geometry:
    """Of 2 to 4 axes: axis orders, signs, oblique directions, steps from 1e-3 to 1e3, offsets, units."""
    count = draw(st.integers(2, 4)) if ndim is None else ndim
    names = "tzyx"[-count:]
    steps = [draw(st.floats(1e-3, 1e3)) for _ in range(count)]
    matrix = np.eye(count)[:, draw(st.permutations(range(count)))]
    matrix *= [draw(st.sampled_from((-1, 1))) for _ in range(count)]
    if not (draw(st.booleans()) if straight is None else straight):
        seed = draw(st.integers(0, 2**16))
        space = min(count, 3)
        turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(space, space)))
        matrix[-space:] = turn @ matrix[-space:]
    affine = np.eye(count + 1)
    affine[:-1, :-1] = matrix * steps
    affine[:-1, -1] = [draw(st.floats(-1e3, 1e3)) for _ in range(count)]
    unit = draw(st.sampled_from([*LENGTHS, None]))
    return Geometry(tuple(Axis.of(name, "s" if name == "t" else unit) for name in names), affine)


def shapes(ndim: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Lengths from 1 to 6."""
    return st.tuples(*(st.integers(1, 6) for _ in range(ndim)))


def same(one: np.ndarray, other: np.ndarray, geometry: Geometry) -> None:
    """Two places in the world are the same within a millionth of a voxel."""
    np.testing.assert_allclose(one, other, atol=1e-6 * min(geometry.spacing), rtol=1e-9)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_voxel_stays_where_it_is_whatever_is_done_to_its_array(data: st.DataObject) -> None:
    """Transposed, reversed, cut and thinned in any order: its value is still at its place."""
    geometry = data.draw(geometries())
    shape = data.draw(shapes(geometry.ndim))
    array = np.arange(np.prod(shape)).reshape(shape)
    before = {int(value): geometry.to_world(index) for index, value in np.ndenumerate(array)}
    now = geometry
    for _ in range(data.draw(st.integers(1, 5))):
        step = data.draw(st.sampled_from(("transpose", "flip", "crop", "downsample")))
        axis = data.draw(st.integers(0, array.ndim - 1))
        if step == "transpose":
            order = data.draw(st.permutations(range(array.ndim)))
            array, now = array.transpose(order), now.transpose(order)
        elif step == "flip":
            array, now = np.flip(array, axis), now.flip(axis, array.shape[axis])
        elif step == "crop":
            start = [data.draw(st.integers(0, n - 1)) for n in array.shape]
            array, now = array[tuple(slice(i, None) for i in start)], now.crop(start)
        else:
            factors = [data.draw(st.integers(1, 3)) for _ in array.shape]
            array = array[tuple(slice(None, None, f) for f in factors)]
            now = now.downsample(factors)
    for index, value in np.ndenumerate(array):
        same(now.to_world(index), before[int(value)], geometry)
        np.testing.assert_allclose(now.to_index(before[int(value)]), index, atol=1e-5)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_an_array_that_was_turned_is_turned_back(data: st.DataObject) -> None:
    """Orders, flips and other units of the other file are found from the two geometries alone."""
    geometry = data.draw(geometries())
    shape = data.draw(shapes(geometry.ndim))
    array = np.arange(np.prod(shape)).reshape(shape)
    order = data.draw(st.permutations(range(geometry.ndim)))
    turned, place = array.transpose(order), geometry.transpose(order)
    for axis in data.draw(st.sets(st.integers(0, geometry.ndim - 1))):
        turned, place = np.flip(turned, axis), place.flip(axis, turned.shape[axis])
    if geometry.unit is not None:
        place = place.in_unit(data.draw(st.sampled_from(LENGTHS)))
    found = geometry.turn_from(place, shape, turned.shape)
    assert found is not None
    np.testing.assert_array_equal(np.flip(turned.transpose(found[0]), found[1]), array)


@pytest.mark.slow
@given(geometries(), st.data())
@settings(max_examples=100, deadline=None)
def test_an_array_of_another_place_is_not_turned(geometry: Geometry, data: st.DataObject) -> None:
    """A quarter of a voxel off, twice as large, or without one of the axes."""
    shape = data.draw(shapes(geometry.ndim))
    quarter = geometry.crop([0.25] * geometry.ndim)
    assert geometry.turn_from(quarter, shape, shape) is None
    larger = (shape[0] + 1, *shape[1:])
    assert geometry.turn_from(geometry, shape, larger) is None
    fewer = Geometry.from_scale(geometry.names[:-1])
    assert geometry.turn_from(fewer, shape, shape[:-1]) is None


@pytest.mark.slow
@given(geometries(straight=True), st.data())
@settings(max_examples=100, deadline=None)
def test_an_axis_of_length_1_can_be_left_out(geometry: Geometry, data: st.DataObject) -> None:
    """The others stay where they are."""
    axis = data.draw(st.integers(0, geometry.ndim - 1))
    rest = geometry.squeeze([axis])
    index = np.arange(1.0, geometry.ndim + 1)
    index[axis] = 0
    row = geometry.nearest[axis]
    same(rest.to_world(np.delete(index, axis)), np.delete(geometry.to_world(index), row), geometry)
    assert rest.names == tuple(name for i, name in enumerate(geometry.names) if i != axis)


@pytest.mark.slow
@given(geometries(ndim=3), st.sampled_from(LENGTHS))
@settings(max_examples=100, deadline=None)
def test_another_unit_means_the_same_places(geometry: Geometry, unit: str) -> None:
    """World coordinates times the ratio of the units; units without one are refused."""
    if geometry.unit is None:
        with pytest.raises(ValueError, match=rf"no unit cannot be converted to '{unit}'"):
            geometry.in_unit(unit)
        return
    changed = geometry.in_unit(unit)
    expected = geometry.to_world((1, 2, 3)) * unit_ratio(geometry.unit, unit)
    np.testing.assert_allclose(changed.to_world((1, 2, 3)), expected, rtol=1e-9)
    assert changed.unit == unit


@pytest.mark.slow
@given(geometries(ndim=3))
@settings(max_examples=100, deadline=None)
def test_the_patient_s_two_worlds_mean_the_same_places(geometry: Geometry) -> None:
    """NIfTI's affine and DICOM's go into one geometry and come out again."""
    for made, affine in (
        (Geometry.from_nifti(geometry.xyz(), 3, unit=geometry.unit), geometry.xyz()),
        (Geometry.from_lps(geometry.lps(), 3, geometry.unit), geometry.xyz()),
    ):
        np.testing.assert_allclose(made.affine, geometry.affine, rtol=1e-12)
        np.testing.assert_allclose(made.xyz(), affine, rtol=1e-12)
        assert made.patient
        assert len(made.orientation) == 3


@pytest.mark.slow
@given(geometries(straight=True))
@settings(max_examples=100, deadline=None)
def test_as_a_viewer_shows_it_the_array_has_the_world_s_order(geometry: Geometry) -> None:
    """(t, z, y, x), whatever the file's order."""
    shown = geometry.transpose(geometry.shown_order)
    assert shown.names == tuple(axis.name for axis in geometry.world)
    assert shown.straight
    np.testing.assert_allclose(np.abs(np.diag(shown.matrix)), shown.spacing)


def test_a_nifti_of_time_has_axes_x_y_z_t() -> None:
    """Sagittal, in seconds."""
    affine = np.array([[0, 0, 2, -9], [-1, 0, 0, 3], [0, -1.5, 0, 4], [0, 0, 0, 1]], float)
    geometry = Geometry.from_nifti(affine, 4, (2.5,), "mm", "sec")
    assert geometry.names == ("y", "z", "x", "t")
    assert (geometry.orientation, geometry.signs) == ("PIR", (-1, -1, 1, 1))
    assert (geometry.spacing, geometry.units) == ((1.0, 1.5, 2.0, 2.5), ("mm", "mm", "mm", "s"))
    assert geometry.shown_order == (3, 1, 0, 2)


def test_units_of_several_axes_become_one() -> None:
    """That of the last axis."""
    geometry = Geometry.from_scale("zyx", (2, 500, 500), (1, 0, 0), ("µm", "nm", "nm"))
    assert (geometry.spacing, geometry.unit) == ((2000.0, 500.0, 500.0), "nm")
    assert geometry.translation.tolist() == [1000, 0, 0]


def test_what_says_nothing_is_not_calibrated() -> None:
    """Steps of 1 without unit, in any order of axes; any other geometry is calibrated."""
    assert not Geometry.from_scale("xyt").calibrated
    assert Geometry.from_scale("zyx", (1, 1, 2)).calibrated
    assert Geometry.from_scale("zyx", None, (0, 0, 1)).calibrated
    assert Geometry.from_scale("yx", units=("mm", "mm")).calibrated
    assert Geometry.from_nifti(np.eye(4), 3).calibrated


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geometry.from_scale("zyx", (1, 0, 1)), r"every axis a length and a direction of its own"),
        (lambda: Geometry.from_scale("yx", (1, np.nan)), r"an affine of 2 axes needs 3 x 3 finite numbers"),
        (lambda: Geometry((Axis("x"),), np.eye(3)), r"an affine of 1 axes needs 2 x 2 finite numbers; got"),
        (lambda: Geometry.from_scale("yyx"), r"axes need names that are unique; got y, y, x"),
        (lambda: unit_ratio("mm", "s"), r"'mm' cannot be converted to 's'"),
        (lambda: unit_ratio("furlong", "mm"), r"'furlong' cannot be converted to 'mm'"),
    ],
)
def test_what_is_no_geometry_is_refused(make, message: str) -> None:
    """In one sentence."""
    with pytest.raises(ValueError, match=message):
        make()


def test_an_oblique_axis_cannot_be_left_out() -> None:
    """Its place in the world is shared with others."""
    half = np.sqrt(0.5)
    affine = np.array([[half, -half, 0], [half, half, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match="lies oblique in the world cannot be left out"):
        Geometry((Axis("y"), Axis("x")), affine).squeeze([0])


@pytest.mark.parametrize(
    ("text", "symbol"),
    [
        ("µm", "µm"), ("μm", "µm"), ("um", "µm"), ("Micron", "µm"), ("\\u00B5m", "µm"), ("micrometer", "µm"),
        ("Å", "Å"), ("\u212b", "Å"), ("Angstrom", "Å"), ("A", "Å"), ("pm", "pm"), ("picometer", "pm"),
        ("inch", "in"), ("in", "in"), ("cm", "cm"), ("msec", "ms"),
        ("usec", "µs"), ("pixel", None), ("", None), (None, None),
        ("reference frame", None), ("Mm", "Mm"), ("furlong", "furlong"),
    ],
)  # fmt: skip
def test_every_spelling_of_a_unit_is_known_by_one_symbol(text: str | None, symbol: str | None) -> None:
    """Of ImageJ, OME-TIFF, OME-Zarr, NIfTI, MRC and NRRD; unknown units are kept."""
    assert standard_unit(text) == symbol


def test_no_spelling_means_two_units() -> None:
    """Each is found again, by itself."""
    spellings = [text for unit in UNITS for text in (unit.symbol, unit.name, *unit.spellings)]
    assert len(spellings) == len(set(spellings))
    assert all(find_unit(text) is not None for text in spellings)


def test_lengths_are_exact_where_decimals_are() -> None:
    """4 Å are 0.0004 µm, 1 inch 25.4 mm."""
    assert 4 * unit_ratio("Å", "µm") == 0.0004
    assert unit_ratio("in", "mm") == 25.4
    assert unit_ratio("µm", "nm") == 1000
