"""Objects that begin as points in a volume: the prediction on the plane of each point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.propagation.sweep import M, MaskPredictor, embed_plane, without_looks


def object_anchors(
    predictor: MaskPredictor[M],
    volume: Volume,
    objects: Mapping[int, Sequence[Sequence[float]]],
    axis: int = 0,
) -> dict[int, dict[Plane, M]]:
    """The predictions of objects on the planes of their points, one for all points of an object on a plane.

    Parameters
    ----------
    objects
        By the number of an object its points: one number per spatial axis of the volume, pixel centres on
        integers.
    axis
        Along which the objects will be propagated.

    Raises
    ------
    ValueError
        For a point with another number of coordinates, or outside the volume.
    """
    anchors: dict[int, dict[Plane, M]] = {}
    for plane, of_objects in object_clicks(volume, objects, axis).items():
        embedding = embed_plane(predictor, volume, plane)
        for number, of_object in of_objects.items():
            prediction = without_looks(predictor.predict(embedding, of_object, None))
            anchors.setdefault(number, {})[plane] = prediction
    return dict(sorted(anchors.items()))


def object_clicks(
    volume: Volume, objects: Mapping[int, Sequence[Sequence[float]]], axis: int = 0
) -> dict[Plane, dict[int, list[Click]]]:
    """The points of objects as clicks, by plane and number; parameters and errors as of `object_anchors`."""
    clicks: dict[Plane, dict[int, list[Click]]] = {}
    for number, points in objects.items():
        for point in points:
            plane, click = _placed(volume, point, axis)
            clicks.setdefault(plane, {}).setdefault(number, []).append(click)
    return clicks


def _placed(volume: Volume, point: Sequence[float], axis: int) -> tuple[Plane, Click]:
    """The plane on which a point lies, and the click there."""
    if len(point) != volume.ndim or not all(
        -0.5 <= x <= n - 0.5 for x, n in zip(point, volume.shape, strict=True)
    ):
        raise ValueError(
            f"a seed needs {volume.ndim} coordinates inside a volume of {volume.shape}; got {tuple(point)}"
        )
    whole = [min(max(round(x), 0), n - 1) for x, n in zip(point, volume.shape, strict=True)]
    row, col = volume.planes(axis)[0].axes
    positions = [x for a, x in enumerate(whole) if a not in (row, col)]
    return volume.plane_at(positions, axis), Click((point[row], point[col]))
