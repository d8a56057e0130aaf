"""Where voxels lie: axes with names and units, and the affine from array indices to world coordinates.

Every reader makes a `Geometry`, every writer writes it or refuses. The world has one order of axes for all
formats: time first, then z, y, x. So NIfTI's (i, j, k), which is an order of the *array*, and napari's
(z, y, x), which is an order of the *world*, meet in this file and nowhere else. A patient's world is
NIfTI's: x grows to the right, y to the front, z upward (RAS+); DICOM, NRRD and ITK count x and y the other
way (LPS+) and are turned here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

TOLERANCE = 1e-3
"""Two places are the same, and an axis is straight, if no voxel is off by more than this part of a voxel."""

_KINDS = ("space", "time", "channel")

_RANK = {"t": 0, "z": 2, "y": 3, "x": 4}


@dataclass(frozen=True)
class Unit:
    """A unit of length or time; `UNITS` is the one table of them, with every spelling of a file format.

    A table and not pint: pint takes 0.3 s to import and longer to fill its registry, reads "A" as ampere, and
    is no dependency of the engine.

    Attributes
    ----------
    symbol
        How this project writes it; OME-TIFF writes the same symbols.
    name
        The name in OME-Zarr (UDUNITS-2), which napari understands too.
    kind
        "space" or "time".
    factor
        Metres or seconds.
    spellings
        What else means this unit, exactly so: "Mm" is not "mm".
    """

    symbol: str
    name: str
    kind: str
    factor: float
    spellings: tuple[str, ...] = ()


UNITS = (
    Unit("fm", "femtometer", "space", 1e-15, ("femtometre",)),
    Unit("pm", "picometer", "space", 1e-12, ("picometre",)),
    Unit("Å", "angstrom", "space", 1e-10, ("\u212b", "A", "Ångström", "ångström", "angstroms")),
    Unit("nm", "nanometer", "space", 1e-9, ("nanometre", "nanometers", "nanometres")),
    # Greek mu and the micro sign look alike; ImageJ writes the letters \u00B5m.
    Unit("µm", "micrometer", "space", 1e-6,
         ("\u03bcm", "um", "\\u00B5m", "micron", "microns", "micrometre", "micrometers", "micrometres")),
    Unit("mm", "millimeter", "space", 1e-3, ("millimetre", "millimeters", "millimetres")),
    Unit("cm", "centimeter", "space", 1e-2, ("centimetre", "centimeters", "centimetres")),
    Unit("dm", "decimeter", "space", 1e-1, ("decimetre",)),
    Unit("m", "meter", "space", 1.0, ("metre", "meters", "metres")),
    Unit("km", "kilometer", "space", 1e3, ("kilometre",)),
    Unit("in", "inch", "space", 0.0254, ("inches", '"')),
    Unit("ft", "foot", "space", 0.3048, ("feet",)),
    Unit("yd", "yard", "space", 0.9144, ("yards",)),
    Unit("thou", "mil", "space", 25.4e-6),
    Unit("pt", "point", "space", 0.0254 / 72),
    Unit("ns", "nanosecond", "time", 1e-9, ("nsec",)),
    Unit("µs", "microsecond", "time", 1e-6, ("\u03bcs", "us", "usec")),
    Unit("ms", "millisecond", "time", 1e-3, ("msec", "milliseconds")),
    Unit("s", "second", "time", 1.0, ("sec", "seconds")),
    Unit("min", "minute", "time", 60.0, ("minutes",)),
    Unit("h", "hour", "time", 3600.0, ("hours",)),
    Unit("d", "day", "time", 86400.0, ("days",)),
)  # fmt: skip

_NONE = ("", "pixel", "pixels", "px", "voxel", "none", "unknown", "dimensionless", "reference frame")

_BY_SPELLING = {spelling: unit for unit in UNITS for spelling in (unit.symbol, unit.name, *unit.spellings)}


def find_unit(text: str) -> Unit | None:
    """The unit that a text means, symbols as they are written, names in any case; None if it is not known.

    >>> find_unit("Micron").symbol, find_unit("um").factor, find_unit("Mm")
    ('µm', 1e-06, None)
    """
    text = text.strip()
    found = _BY_SPELLING.get(text)
    return found if found or len(text) < 4 else _BY_SPELLING.get(text.lower())


def standard_unit(text: str | None) -> str | None:
    """The symbol of a unit as files spell it, an unknown one as it is; None for pixels and for no unit.

    >>> standard_unit("micrometer"), standard_unit("pixel"), standard_unit("furlong")
    ('µm', None, 'furlong')
    """
    if text is None or text.strip().lower() in _NONE:
        return None
    unit = find_unit(text)
    return text.strip() if unit is None else unit.symbol


def unit_ratio(one: str | None, other: str | None) -> float:
    """How many of the other unit one unit is.

    >>> unit_ratio("mm", "µm")
    1000.0

    Raises
    ------
    ValueError
        If one of them is unknown, or one is a length and the other a time.
    """
    if one == other:
        return 1.0
    units = [find_unit(text or "") for text in (one, other)]
    if units[0] is None or units[1] is None or units[0].kind != units[1].kind:
        names = [repr(text) if text else "no unit" for text in (one, other)]
        raise ValueError(f"{names[0]} cannot be converted to {names[1]}")
    # Rounded to 15 digits: 1e-3 / 1e-6 is 1000.0000000000001.
    return float(f"{units[0].factor / units[1].factor:.15g}")


@dataclass(frozen=True)
class Axis:
    """An axis of the world.

    Attributes
    ----------
    name
        Such as "z"; unique in a geometry.
    kind
        "space", "time", "channel" or "other" (angles, ...).
    unit
        A symbol of `UNITS`, another text if the file names a unit that is not known, or None.
    """

    name: str
    kind: str = "space"
    unit: str | None = None

    @classmethod
    def of(cls, name: str, unit: str | None = None, kind: str | None = None) -> Axis:
        """An axis, its unit spelled as in `UNITS`; without a kind, "t" is time and "c" channels."""
        if kind is None:
            kind = {"t": "time", "c": "channel"}.get(name, "space")
        return cls(name, kind if kind in _KINDS else "other", standard_unit(unit))


@dataclass(frozen=True, eq=False)
class Geometry:
    """Array indices of an image to world coordinates. Indices name voxel centres.

    Parameters
    ----------
    world
        The world's axes. They are sorted: time, others, then z, y, x; rows of the affine with them.
    affine
        (n + 1, n + 1) float64: a column for each axis of the array in its order, a row for each of the world.
    patient
        Whether x, y, z are a patient's right, front and top (RAS+).

    Raises
    ------
    ValueError
        For an affine of another shape, not finite or without an inverse, and for names that are not unique.
    """

    world: tuple[Axis, ...]
    affine: np.ndarray
    patient: bool = False

    def __post_init__(self) -> None:
        count = len(self.world)
        affine = np.array(self.affine, np.float64)
        if affine.shape != (count + 1, count + 1) or not np.isfinite(affine).all():
            raise ValueError(
                f"an affine of {count} axes needs {count + 1} x {count + 1} finite numbers; "
                f"got shape {affine.shape}"
            )
        lengths = np.linalg.norm(affine[:-1, :-1], axis=0)
        if count and (not (lengths > 0).all() or np.linalg.cond(affine[:-1, :-1] / lengths) > 1e6):
            raise ValueError("an affine must give every axis a length and a direction of its own")
        names = [axis.name for axis in self.world]
        if len(set(names)) < count:
            raise ValueError(f"axes need names that are unique; got {', '.join(names)}")
        order = sorted(range(count), key=lambda i: _RANK.get(names[i], 1))
        affine = affine[[*order, count]]
        affine.flags.writeable = False
        object.__setattr__(self, "world", tuple(self.world[i] for i in order))
        object.__setattr__(self, "affine", affine)

    # Ways to make one -------------------------------------------------------------------------------------

    @classmethod
    def from_scale(
        cls,
        names: Sequence[str],
        scale: Sequence[float] | None = None,
        translation: Sequence[float] | None = None,
        units: Sequence[str | None] | None = None,
        kinds: Sequence[str | None] | None = None,
    ) -> Geometry:
        """The geometry of an array whose axes are the world's, as in OME-Zarr and TIFF.

        Parameters
        ----------
        names, scale, translation, units, kinds
            One entry for each axis of the array, in its order; None for steps of 1, no translation, no units
            and the kinds that follow from the names. A scale may be negative. Axes of space in several units
            are brought to that of the last one.

        Examples
        --------
        >>> Geometry.from_scale("zyx", (3, 0.5, 0.5), units=("µm",) * 3).spacing
        (3.0, 0.5, 0.5)
        """
        count = len(names)
        axes = [
            Axis.of(*one) for one in zip(names, units or [None] * count, kinds or [None] * count, strict=True)
        ]
        affine = np.eye(count + 1)
        affine[range(count), range(count)] = [1.0] * count if scale is None else list(scale)
        affine[:-1, -1] = [0.0] * count if translation is None else list(translation)
        made = cls(tuple(axes), affine)
        spaces = [axis.unit or "" for axis in axes if axis.kind == "space"]
        if len(set(spaces)) > 1 and all(find_unit(unit) for unit in spaces):
            return made.in_unit(spaces[-1])
        return made

    @classmethod
    def from_nifti(
        cls,
        affine: np.ndarray,
        ndim: int,
        steps: Sequence[float] = (),
        unit: str | None = "mm",
        time: str | None = None,
    ) -> Geometry:
        """The geometry of an array (i, j, k, ...), whose first three axes an affine takes to RAS+ (x, y, z).

        Parameters
        ----------
        affine
            (4, 4), as nibabel gives it.
        ndim
            Axes of the array, 1 or more. Of a 2-D image the affine's third column is left out.
        steps
            Of the fourth axis (time) and those after it; 1 where there is none.
        unit, time
            Of space and of time.
        """
        names = ["x", "y", "z", "t", *(f"d{i}" for i in range(4, ndim))][:ndim]
        full = np.eye(ndim + 1)
        space = min(3, ndim)
        full[:space, :space] = np.asarray(affine)[:space, :space]
        full[:space, -1] = np.asarray(affine)[:space, 3]
        for axis, step in zip(range(3, ndim), steps):
            full[axis, axis] = step if np.isfinite(step) and step > 0 else 1.0
        axes = [
            Axis.of(name, unit if i < 3 else time if i == 3 else None, "other" if i > 3 else None)
            for i, name in enumerate(names)
        ]
        return cls(tuple(axes), full, patient=True)

    @classmethod
    def from_lps(cls, affine: np.ndarray, ndim: int = 3, unit: str | None = "mm") -> Geometry:
        """As `from_nifti`, of an affine to LPS+ (x, y, z), which DICOM, NRRD and ITK use."""
        turned = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, np.float64)
        return cls.from_nifti(turned, ndim, unit=unit)

    # Questions --------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """The number of axes of the array, which is that of the world."""
        return len(self.world)

    @property
    def matrix(self) -> np.ndarray:
        """The affine without translation: (n, n)."""
        return self.affine[:-1, :-1]

    @property
    def translation(self) -> np.ndarray:
        """World coordinates of the first voxel: (n,)."""
        return self.affine[:-1, -1]

    @property
    def spacing(self) -> tuple[float, ...]:
        """World units from one voxel to the next, along each axis of the array."""
        return tuple(float(length) for length in np.linalg.norm(self.matrix, axis=0))

    @property
    def nearest(self) -> tuple[int, ...]:
        """For each axis of the array, the index of the world's axis that it follows most; each once."""
        cosines = np.abs(self.matrix) / np.linalg.norm(self.matrix, axis=0)
        largest = cosines.argmax(axis=0)
        if len(set(largest)) == self.ndim:  # no two axes compete, so this is the best assignment
            return tuple(int(row) for row in largest)
        from scipy.optimize import linear_sum_assignment  # takes 0.3 s to import, and is rarely needed

        rows, columns = linear_sum_assignment(-cosines)
        return tuple(int(rows[list(columns).index(axis)]) for axis in range(self.ndim))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """For each axis of the array, the axis of the world that it follows most."""
        return tuple(self.world[i] for i in self.nearest)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the array's axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def units(self) -> tuple[str | None, ...]:
        """Units of the array's axes."""
        return tuple(axis.unit for axis in self.axes)

    @property
    def unit(self) -> str | None:
        """The unit of space; None where there is none, or several."""
        units = {axis.unit for axis in self.world if axis.kind == "space"}
        return units.pop() if len(units) == 1 else None

    @property
    def signs(self) -> tuple[int, ...]:
        """For each axis of the array, 1 if the world's axis grows along it, -1 if it falls."""
        return tuple(1 if self.matrix[row, axis] > 0 else -1 for axis, row in enumerate(self.nearest))

    @property
    def straight(self) -> bool:
        """Whether every axis of the array runs along an axis of the world, in either direction."""
        off = np.abs(self.matrix) / np.linalg.norm(self.matrix, axis=0)
        off[self.nearest, range(self.ndim)] = 0
        return bool((off <= TOLERANCE * 0.1).all())

    @property
    def calibrated(self) -> bool:
        """Whether it says more than axis names: a size, a place, a unit or an orientation."""
        known = self.patient or any(axis.unit for axis in self.world)
        return known or not np.array_equal(self.matrix[self.nearest, :], np.eye(self.ndim)) or bool(
            self.translation.any()
        )  # fmt: skip

    @property
    def orientation(self) -> str:
        """Where a patient's array axes lead, such as "RAS" or "LPI"; "" if it is no patient's."""
        letters = {"x": "LR", "y": "PA", "z": "IS"}
        if not self.patient:
            return ""
        pairs = zip(self.names, self.signs, strict=True)
        return "".join(letters[name][sign > 0] for name, sign in pairs if name in letters)

    @property
    def shown_order(self) -> tuple[int, ...]:
        """The array's axes in the order in which a viewer shows them: as the world's, (t, z, y, x)."""
        return tuple(int(axis) for axis in np.argsort(self.nearest))

    def to_world(self, index: Any) -> np.ndarray:
        """World coordinates (..., n), in the order of `world`, of indices (..., n)."""
        points: np.ndarray = np.asarray(index, np.float64) @ self.matrix.T + self.translation
        return points

    def to_index(self, world: Any) -> np.ndarray:
        """Array indices (..., n), not rounded, of world coordinates (..., n) in the order of `world`."""
        points = np.asarray(world, np.float64) - self.translation
        indices: np.ndarray = points @ np.linalg.inv(self.matrix).T
        return indices

    # What happens to arrays, and to their geometry with them ----------------------------------------------

    def transpose(self, order: Sequence[int]) -> Geometry:
        """Of the array with its axes in another order, as in `numpy.transpose`."""
        return replace(self, affine=self.affine[:, [*order, self.ndim]])

    def flip(self, axis: int, length: int) -> Geometry:
        """Of the array with an axis of this length reversed."""
        affine = self.affine.copy()
        affine[:-1, -1] += (length - 1) * affine[:-1, axis]
        affine[:-1, axis] *= -1
        return replace(self, affine=affine)

    def crop(self, start: Sequence[float]) -> Geometry:
        """Of the part of the array that begins at an index."""
        affine = self.affine.copy()
        affine[:-1, -1] = self.to_world(start)
        return replace(self, affine=affine)

    def downsample(self, factors: Sequence[float]) -> Geometry:
        """Of the array with every `factor`-th voxel of each axis."""
        affine = self.affine.copy()
        affine[:-1, :-1] *= np.asarray(factors, np.float64)
        return replace(self, affine=affine)

    def squeeze(self, dropped: Sequence[int]) -> Geometry:
        """Of the array without some axes of length 1, and of a world without theirs.

        Raises
        ------
        ValueError
            For an axis of the array that is oblique: its world axis is not its own.
        """
        rows = [self.nearest[axis] for axis in dropped]
        columns = [axis for axis in range(self.ndim) if axis not in dropped]
        kept = [row for row in range(self.ndim) if row not in rows]
        mixed = np.abs(self.matrix[np.ix_(rows, columns)]).max(initial=0)
        if max(mixed, np.abs(self.matrix[np.ix_(kept, list(dropped))]).max(initial=0)) > TOLERANCE * min(
            self.spacing, default=1
        ):
            raise ValueError("an axis that lies oblique in the world cannot be left out")
        affine = self.affine[np.ix_([*kept, self.ndim], [*columns, self.ndim])]
        return replace(self, world=tuple(self.world[row] for row in kept), affine=affine)

    # What happens to the world ----------------------------------------------------------------------------

    def in_unit(self, unit: str, kind: str = "space") -> Geometry:
        """The same places in another unit of space, or of time.

        Raises
        ------
        ValueError
            If an axis has no unit, or one that cannot be converted.
        """
        affine = self.affine.copy()
        world = list(self.world)
        for row, axis in enumerate(self.world):
            if axis.kind == kind:
                affine[row] *= unit_ratio(axis.unit, unit)
                world[row] = replace(axis, unit=unit)
        return replace(self, world=tuple(world), affine=affine)

    def lps(self) -> np.ndarray:
        """(4, 4) affine to LPS+ (x, y, z) of a volume with the axes z, y, x."""
        turned: np.ndarray = np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.xyz()
        return turned

    def xyz(self) -> np.ndarray:
        """(4, 4) affine of the array's axes of space, in its order, to (x, y, z): NIfTI's.

        An axis of space that is missing gets a step of 1.
        """
        rows = [i for i, axis in enumerate(self.world) if axis.kind == "space"][::-1]
        columns = [i for i, row in enumerate(self.nearest) if row in rows]
        affine = np.eye(4)
        count = len(rows)
        affine[:count, :count] = self.matrix[np.ix_(rows, columns)]
        affine[:count, 3] = self.translation[rows]
        return affine

    # Two of them ------------------------------------------------------------------------------------------

    def turn_from(
        self, other: Geometry, shape: Sequence[int], other_shape: Sequence[int]
    ) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """How another array of the same places must be turned to lie on this one.

        Returns
        -------
        tuple or None
            `order` and `flips`: `np.flip(np.transpose(other, order), flips)` lies on this array voxel by
            voxel. None if no transposition and reversal of axes does that.
        """
        mine, theirs = [axis.name for axis in self.world], [axis.name for axis in other.world]
        if set(mine) != set(theirs):
            return None
        try:
            other = other._in_units_of(self)
        except ValueError:
            return None
        # Other index of this index: a transposition with signs if the arrays fit.
        rows = [theirs.index(name) for name in mine]
        change = np.linalg.inv(other.matrix[rows]) @ self.matrix
        order = tuple(int(i) for i in np.abs(change).argmax(axis=0))
        if len(set(order)) < self.ndim or tuple(other_shape[i] for i in order) != tuple(shape):
            return None
        flips = tuple(axis for axis, i in enumerate(order) if change[i, axis] < 0)
        turned = replace(other, affine=other.affine[[*rows, other.ndim]], world=self.world).transpose(order)
        for axis in flips:
            turned = turned.flip(axis, shape[axis])
        corners = np.array(list(itertools.product(*([0, n - 1] for n in shape))))
        away = np.abs(self.to_index(turned.to_world(corners)) - corners).max(initial=0)
        return (order, flips) if away <= 0.1 else None

    def _in_units_of(self, other: Geometry) -> Geometry:
        """The same places in the other's units of space and time; no unit at all is taken for the other's."""
        found = self
        for kind in ("space", "time"):
            mine, theirs = ({axis.unit for axis in one.world if axis.kind == kind} for one in (self, other))
            if len(theirs) == 1 and mine != {None} and (unit := theirs.pop()):
                found = found.in_unit(unit, kind)
        return found
