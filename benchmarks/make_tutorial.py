"""Makes the tutorial session that is shipped: three objects of the shipped EM stack, prompted in many ways.

    python -m benchmarks.make_tutorial sample_data/tutorial.lowlat

It holds the hash of the weights, so make it anew when the default model changes.
"""

from __future__ import annotations

import sys
import tempfile

import numpy as np

from napari_lowlat_seg import ArrayLabels, Box, Click, Plane, PropagationRun, Scribble, Session, sample_path
from napari_lowlat_seg.annotation.journal import Journal
from napari_lowlat_seg.core.masks import PostProcessing
from napari_lowlat_seg.io.files import read_volume
from napari_lowlat_seg.serving.process import PredictionProcess

IMAGE = "em_fly_medulla.tif"


def main(path: str) -> None:
    """Annotate and save."""
    session = Session(read_volume(sample_path(IMAGE)))
    service = PredictionProcess("default", "cpu", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(session, folder, image=IMAGE)
        session.volume = session.volume.with_window()
        session.model = {name: fact for name, fact in service.describe().items() if name != "process"}
        labels = np.zeros(session.volume.shape, np.uint16)
        session.use_labels(ArrayLabels(labels))
        annotate(session, service)
        print(np.bincount(labels.ravel()), len(session.undo_stack.done))
        journal.save(path)
        journal.close(discard=True)
    service.close()


def annotate(session: Session, service: PredictionProcess) -> None:
    """What a newcomer would try."""

    def plane(position: int) -> Plane:
        return Plane((position, None, None))

    def predict(position: int) -> None:
        request = session.request(plane(position))
        assert request is not None
        for mask, _ in service.predict(request, session.source(plane(position))):
            session.apply(request, mask)

    def prompt(position: int, given: Click | Box | Scribble) -> None:
        session.add(plane(position), given)
        predict(position)

    # A neuron from one click, a correction, through five planes.
    prompt(20, Click((185.0, 86.0)))
    prompt(20, Click((215.0, 60.0), positive=False))
    run = PropagationRun.propagation(session, [plane(position) for position in range(18, 23)])
    run.complete(service)
    session.accept()
    # One from a box, then undone, redone, painted and accepted.
    prompt(20, Box((16.0, 18.0), (50.0, 60.0)))
    session.undo()
    session.redo()
    mask = session.mask(plane(20))
    assert mask is not None
    mask[28:34, 30:40] = True
    session.paint(plane(20), mask)
    session.finish = PostProcessing(fill_holes=True)
    session.accept()
    # One from a scribble on another axis.
    across = Plane((None, 238, None))
    session.add(across, Scribble(((12.0, 85.0), (30.0, 90.0))))
    request = session.request(across)
    assert request is not None
    for soft_mask, _ in service.predict(request, session.source(across)):
        session.apply(request, soft_mask)
    session.accept()
    session.edit_object(plane(20), (31, 36))
    session.accept()


if __name__ == "__main__":
    main(sys.argv[1])
