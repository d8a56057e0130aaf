"""Planes linked into objects: one to one, over a missing plane, never two merged into one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_lowlat_seg.propagation.linking import link_planes, matches, overlaps


def _row(text: str) -> np.ndarray:
    return np.array([[int(letter) for letter in text]])


def _numbers(*planes: str, **options: float) -> list[str]:
    """The objects of planes, each a row of one-digit labels."""
    rows = [_row(plane) for plane in planes]
    return ["".join(map(str, table[row][0])) for row, table in zip(rows, link_planes(rows, **options))]


def test_an_object_keeps_its_number_whatever_its_label() -> None:
    """And a new one gets the next."""
    assert _numbers("11100220", "22200010", "33301110") == ["11100220", "11100020", "11102220"]


def test_a_plane_without_the_object_is_bridged() -> None:
    """One, not two."""
    assert _numbers("1110", "0000", "1110") == ["1110", "0000", "1110"]
    assert _numbers("1110", "0000", "0000", "1110") == ["1110", "0000", "0000", "2220"]
    assert _numbers("1110", "0000", "1110", reach=1) == ["1110", "0000", "2220"]


def test_two_objects_that_merge_on_a_plane_stay_two() -> None:
    """The larger goes on; the other one ends, and may come back beyond the wrong plane."""
    assert _numbers("1111222", "3333333", "1111222") == ["1111222", "1111111", "1111222"]


def test_little_overlap_is_no_link() -> None:
    """Unless the lowest IoU allows it."""
    assert _numbers("11100", "00111") == ["11100", "00222"]
    assert _numbers("11100", "00111", min_iou=0.2) == ["11100", "00111"]


def test_empty_planes_have_no_objects() -> None:
    """Empty planes have a table of one entry."""
    assert [table.tolist() for table in link_planes([_row("000"), _row("000")])] == [[0], [0]]
    assert list(link_planes([])) == []


@given(*(arrays(np.uint8, (4, 6), elements=st.integers(0, 4)) for _ in range(2)))
def test_overlaps_are_those_of_the_masks(first: np.ndarray, second: np.ndarray) -> None:
    """Compared with the naive way."""
    a, b, iou = overlaps(first, second)
    expected = {
        (i, j): np.sum((first == i) & (second == j)) / np.sum((first == i) | (second == j))
        for i in range(1, 5)
        for j in range(1, 5)
        if np.any((first == i) & (second == j))
    }
    assert list(zip(a.tolist(), b.tolist())) == sorted(expected)
    assert dict(zip(zip(a.tolist(), b.tolist()), iou.tolist())) == pytest.approx(expected)


@given(*(arrays(np.uint8, (4, 6), elements=st.integers(0, 4)) for _ in range(2)))
def test_matches_are_one_to_one(first: np.ndarray, second: np.ndarray) -> None:
    """On both sides, and in the order of the first labels."""
    pairs = matches(first, second, 0.1)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert pairs == sorted(pairs)
