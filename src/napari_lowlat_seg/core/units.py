"""The one table of units: every spelling that a file format uses, and what it is in metres or seconds.

A table and not pint: pint takes 0.3 s to import and longer to fill its registry, reads "A" as ampere, and is
no dependency of the engine.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit of length or time.

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
    """The unit that a text means; None if it is not in the table.

    Symbols count as they are written, names in any case.

    >>> find_unit("Micron").symbol, find_unit("um").factor, find_unit("Mm")
    ('µm', 1e-06, None)
    """
    text = text.strip()
    found = _BY_SPELLING.get(text)
    return found if found or len(text) < 4 else _BY_SPELLING.get(text.lower())


def standard_unit(text: str | None) -> str | None:
    """The symbol of a unit as files spell it; None for pixels and for no unit.

    A unit that is not in the table is returned as it is: it is kept, but never converted.

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
