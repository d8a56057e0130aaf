"""Any measure over the objects of a data set, without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lowlat_seg.evaluation.inputs.datasets import FolderOptions, Sample, Target, find_targets
from napari_lowlat_seg.evaluation.inputs.segmenters import Segmenter
from napari_lowlat_seg.evaluation.runner import EvaluationSettings, check_names, over_objects


@pytest.fixture
def targets(tmp_path: Path) -> list[Target]:
    """Two pictures with the objects 1 and 2 each."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            pixels = np.zeros((8, 8), np.uint8)
            pixels[1:3], pixels[5:7] = 1, 2
            Image.fromarray(pixels).save(tmp_path / folder / f"{name}.png")
    return find_targets("folder", tmp_path, options=FolderOptions())


def names(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[str]]:
    """The name of each object, twice."""
    for sample in samples:
        yield [sample.name] * 2


def test_results_come_in_the_order_of_the_targets(targets: list[Target]) -> None:
    """All results of an object together."""
    found, complete = over_objects(names, EvaluationSettings(()), targets)
    assert (found, complete) == ([t.name for t in targets for _ in range(2)], True)


def test_an_interrupt_keeps_the_objects_that_are_done(targets: list[Target]) -> None:
    """And says that there are more."""

    def interrupted(models: Sequence[Segmenter], samples: Iterable[Sample]) -> Iterator[list[str]]:
        yield [next(iter(samples)).name]
        raise KeyboardInterrupt

    assert over_objects(interrupted, EvaluationSettings(()), targets) == ([targets[0].name], False)


def test_a_negative_number_of_workers_is_refused() -> None:
    """0 means one for every two cores."""
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        EvaluationSettings((), workers=-1)


def test_no_models_are_refused() -> None:
    """Nothing to stand side by side."""
    with pytest.raises(ValueError, match="expected models of different names, at least one; got none"):
        check_names([])
