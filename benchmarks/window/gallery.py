"""The pictures and recordings of README and documentation, made from the real window on the shipped data.

    xvfb-run -s "-screen 0 1600x1200x24" python -m benchmarks.window.gallery docs/images [NAME ...]

Names are those of `SCENES`; without one all are made. Look at each before it is committed. Recordings are
animated WebP of less than 2 MB; what the mouse does is drawn into them. `stages` needs no window.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.window.common import wait, wait_until

SIZE = (1350, 860)
"""Of the window, in pixels."""

PLANE, NEURON = 20, (120.0, 88.0)
"""A plane of the EM sample, and a place in a neuron there."""

NEURONS = (NEURON, (180.0, 84.0), (224.0, 92.0))
"""Places in three neurons on this plane."""

LARGEST = 2_000_000
"""Bytes of a recording."""


class Scene:
    """A window with one of the samples, or a file, and the widget, and a hand that uses it.

    Attributes
    ----------
    frames
        Pictures of a recording, with the milliseconds for which each is shown.
    """

    def __init__(self, image: str | Path) -> None:
        import napari

        from napari_lowlat_seg.plugin.widget import LowlatWidget

        sys.path.append(str(Path(__file__).parents[2] / "tests"))
        self.viewer: Any = napari.Viewer()
        self.viewer.window.resize(*SIZE)
        if isinstance(image, Path):
            self.viewer.open(str(image), plugin="napari" if image.suffix == ".tif" else "napari-lowlat-seg")
        else:
            self.viewer.open_sample("napari-lowlat-seg", image)
        self.widget = LowlatWidget(self.viewer)
        self.viewer.window.add_dock_widget(self.widget, name="Segment by clicking")
        wait_until(lambda: self.widget.controller is not None and self.widget.sentence == "ready", 300)
        self.hand = importlib.import_module("hand").Hand(self.viewer, self.controller.grid)
        self.page = importlib.import_module("widget_page").WidgetPage(self.widget)
        self.frames: list[tuple[Image.Image, int]] = []
        self.viewer.reset_view()
        self.rest()

    @property
    def controller(self) -> Any:
        """The controller of the sample."""
        return self.widget.controller

    def go(self, plane: int) -> None:
        """Show a plane."""
        from napari_lowlat_seg.core.volume import Plane

        self.controller.grid.look_at(self.viewer.dims, Plane((plane, None, None)))
        self.rest()

    def rest(self) -> None:
        """Wait until everything is answered and drawn."""
        session = self.controller.session
        wait_until(
            lambda: not session.accepting and not session.requests() and not self.widget.worker.busy, 300
        )
        wait(0.5)

    def key(self, text: str) -> None:
        """Press a key and wait for what it does."""
        self.hand.key(text)
        self.rest()

    def click(self, point: tuple[float, float], key: str = "") -> None:
        """Click and wait for the mask."""
        self.hand.click(point, key)
        self.rest()

    def drag(self, *points: tuple[float, float], key: str = "") -> None:
        """Drag along points and wait for the mask."""
        self.hand.drag(*points, key=key)
        self.rest()

    def picture(self) -> Image.Image:
        """The window as it is now."""
        shot: np.ndarray = self.viewer.screenshot(canvas_only=False, flash=False)
        return Image.fromarray(shot[..., :3])

    def record(self, milliseconds: int, at: tuple[float, float] | None = None, down: bool = False) -> None:
        """Add a frame to the recording, with the mouse at a place of the plane, pressed or not."""
        from qtpy.QtCore import QPoint

        shot = self.picture()
        if at is not None:
            window = self.hand.canvas.window()
            corner = self.hand.canvas.mapTo(window, QPoint(0, 0))
            where, ratio = self.hand.where(at), shot.width / window.width()
            _draw_mouse(shot, (corner.x() + where.x()) * ratio, (corner.y() + where.y()) * ratio, down)
        self.frames.append((shot, milliseconds))

    def close(self) -> None:
        """Close the window."""
        self.widget.close()
        self.viewer.close()


def _draw_mouse(shot: Image.Image, x: float, y: float, down: bool) -> None:
    draw = ImageDraw.Draw(shot)
    if down:
        draw.ellipse((x - 16, y - 16, x + 16, y + 16), outline="#ffffff", width=3)
    arrow = [(0, 0), (0, 22), (5, 17), (9, 26), (13, 24), (9, 16), (16, 16)]
    draw.polygon([(x + right, y + low) for right, low in arrow], fill="white", outline="black")


def save_recording(frames: list[tuple[Image.Image, int]], path: Path) -> None:
    """Write an animated WebP; smaller and coarser until it has less than `LARGEST` bytes."""
    for width, quality in ((1000, 70), (900, 55), (800, 45), (700, 35)):
        scaled = [
            shot.resize((width, round(shot.height * width / shot.width)), Image.Resampling.LANCZOS)
            for shot, _ in frames
        ]
        scaled[0].save(
            path,
            save_all=True,
            append_images=scaled[1:],
            duration=[milliseconds for _, milliseconds in frames],
            loop=0,
            quality=quality,
            method=4,
        )
        if path.stat().st_size < LARGEST:
            return
    raise RuntimeError(f"{path} has {path.stat().st_size} bytes, more than {LARGEST}; record fewer frames")


@contextmanager
def window(image: str | Path) -> Iterator[Scene]:
    """A scene that is closed at the end."""
    scene = Scene(image)
    try:
        yield scene
    finally:
        scene.close()


def em_pictures(folder: Path) -> None:
    """Click, box, lasso, propagated volume, details, keys, light theme: of one window on the EM stack."""
    with window("em") as scene:
        scene.go(PLANE)
        scene.click(NEURON)
        _save(scene.picture(), folder / "guide-click.png")
        scene.key("U")
        scene.drag((158.0, 62.0), (202.0, 106.0), key="Shift")
        _save(scene.picture(), folder / "guide-box.png")
        scene.key("U")
        scene.key("Q")
        scene.key("Q")
        angles = np.linspace(0, 2 * np.pi, 13)
        scene.drag(*((180 + 21 * np.sin(a), 84 + 23 * np.cos(a)) for a in angles))
        _save(scene.picture(), folder / "guide-lasso.png")
        scene.key("U")
        scene.key("Q")
        scene.click(NEURON)
        scene.controller.propagation.range = (PLANE - 12, PLANE + 12)
        scene.widget._show()
        scene.key("Shift+J")
        scene.rest()
        _save(scene.picture(), folder / "guide-volume.png")
        scene.page.show_details()
        wait(0.5)
        _save(_panel(scene), folder / "plugin-dark.png")
        dialog = scene.widget.show_shortcuts()
        dialog.resize(780, 880)
        wait(0.5)
        _save(_grab(dialog), folder / "plugin-keys.png")
        dialog.close()
        scene.viewer.theme = "light"
        wait(0.5)
        _save(_panel(scene), folder / "plugin-light.png")


def _panel(scene: Scene) -> Image.Image:
    """The widget alone, as high as the screen allows."""
    scene.viewer.window.resize(SIZE[0], 1190)
    wait(0.5)
    return _grab(scene.widget)


def _save(image: Image.Image, path: Path) -> None:
    """Write a PNG of 256 colours: gray images and flat controls need no more."""
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _grab(widget: Any) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "widget.png"
        widget.grab().save(str(path))
        return Image.open(path).convert("RGB")


def mri_pictures(folder: Path) -> None:
    """A tumour by one scribble, recorded and as a picture."""
    from napari_lowlat_seg.io.files import as_shown, read_volume
    from napari_lowlat_seg.io.samples import sample_path

    tumour = np.asarray(as_shown(read_volume(sample_path("mri_glioma_reference.nii.gz"))).data) > 0
    plane = int(tumour.sum(axis=(1, 2)).argmax())
    places = np.argwhere(tumour[plane])
    row = int(np.median(places[:, 0]))
    cols = places[places[:, 0] == row][:, 1]
    start, end = (float(row), float(np.percentile(cols, 20))), (float(row), float(np.percentile(cols, 80)))
    with window("mri") as scene:
        scene.go(plane)
        scene.record(700, start)
        points = [
            tuple(np.asarray(start) + part * (np.asarray(end) - start)) for part in np.linspace(0, 1, 7)
        ]
        scene.hand.press(points[0])
        for before, after in pairwise(points):
            scene.hand.move(before, after)
            wait(0.6)
            scene.record(180, after, down=True)
        scene.hand.release(points[-1])
        scene.rest()
        scene.record(2500, end)
        _save(scene.picture(), folder / "guide-scribble.png")
        save_recording(scene.frames, folder / "recording-scribble.webp")


def end_picture(folder: Path) -> None:
    """A tumour propagated from one click, and the plane behind its end, which the strip marks."""
    from napari_lowlat_seg.io.files import as_shown, read_volume
    from napari_lowlat_seg.io.samples import sample_path

    tumour = np.asarray(as_shown(read_volume(sample_path("mri_glioma_reference.nii.gz"))).data) > 0
    plane = int(tumour.sum(axis=(1, 2)).argmax())
    row, col = np.median(np.argwhere(tumour[plane]), axis=0)
    with window("mri") as scene:
        scene.go(plane)
        scene.click((float(row), float(col)))
        scene.key("Shift+J")
        (end, _), *_ = scene.controller.propagation.state.marks
        scene.widget.form.volume.strip.clicked.emit(end - 1)
        scene.rest()
        _save(scene.picture(), folder / "guide-end.png")


def recording_click(folder: Path) -> None:
    """One click, accept, the next object."""
    with window("em") as scene:
        scene.go(PLANE)
        scene.record(900, NEURON)
        for point in NEURONS:
            scene.record(300, point)
            scene.record(250, point, down=True)
            scene.click(point)
            scene.record(1200, point)
            scene.key("Enter")
            scene.record(900, point)
        scene.frames[-1] = (scene.frames[-1][0], 2500)
        save_recording(scene.frames, folder / "recording-click.webp")


def recording_propagate(folder: Path) -> None:
    """Propagate, go to the least certain plane, correct, propagate again, accept."""
    with window("em") as scene:
        scene.go(PLANE)
        scene.record(700, NEURON)
        scene.click(NEURON)
        scene.record(1000, NEURON)
        scene.controller.propagation.range = (PLANE - 6, PLANE + 6)
        scene.widget._show()
        scene.hand.key("Shift+J")
        for _ in range(20):
            wait(1.0)
            scene.record(120)
            if not scene.widget.worker.busy:
                break
        scene.rest()
        scene.record(1200)
        for plane in range(PLANE, PLANE + 7, 2):
            scene.go(plane)
            scene.record(350)
        scene.key("Shift+W")
        scene.record(1500)
        scene.key("Enter")
        scene.record(2500)
        save_recording(scene.frames, folder / "recording-propagate.webp")


def objects_picture(folder: Path) -> None:
    """Three accepted objects in the table of objects."""
    with window("em") as scene:
        scene.go(PLANE)
        for point in NEURONS:
            scene.click(point)
            scene.key("Enter")
        scene.page.show_fold("Objects")
        scene.viewer.window.resize(SIZE[0], 1190)  # the table is far below
        wait(1.0)
        _save(scene.picture(), folder / "guide-objects.png")


def recording_levels(folder: Path) -> None:
    """Larger and smaller masks of a click, by Tab."""
    point = (207.0, 71.0)
    with window("em") as scene:
        scene.go(PLANE)
        scene.record(900, point)
        scene.click(point)
        wait(2.0)
        scene.record(1500, point)
        for _ in range(5):
            scene.key("Tab")
            scene.record(1500, point)
        save_recording(scene.frames, folder / "recording-levels.webp")


def error_picture(folder: Path) -> None:
    """An error, as napari's notification and in the state line."""
    with window("em") as scene:
        scene.go(PLANE)
        scene.widget.models.fail(
            "the model must be a name of `lowlat-seg models list` or a file; got 'my-model'"
        )
        wait(1.5)
        _save(scene.picture(), folder / "guide-error.png")


def stages(folder: Path) -> None:
    """What happens to a click: from the plane to the mask, without a window."""
    from napari_lowlat_seg import Click, load_predictor
    from napari_lowlat_seg.core.prompts import Prompt, Scribble
    from napari_lowlat_seg.io.files import read_volume
    from napari_lowlat_seg.io.samples import sample_path

    volume = read_volume(sample_path("em_fly_medulla.tif")).with_window()
    plane = volume.plane(volume.planes()[PLANE])
    gray = np.asarray(plane if plane.ndim == 2 else plane[..., 0], float)
    gray = 255 * (gray - gray.min()) / (np.ptp(gray) or 1)
    image = np.repeat(gray[..., None], 3, axis=2)
    prompts: list[Prompt] = [Click((207, 71)), Scribble(((222, 52), (238, 52)), positive=False)]
    whole = load_predictor("default", device="cpu", closer_look="off")
    both = load_predictor("default", device="cpu")
    rows, cols = gray.shape
    grid = np.indices((rows, cols))

    def disk(point: tuple[float, float]) -> np.ndarray:
        inside: np.ndarray = (grid[0] - point[0]) ** 2 + (grid[1] - point[1]) ** 2 <= 2.5**2
        return inside

    maps = image * 0.35
    maps[disk((207, 71))] = (43, 140, 230)
    for row in np.linspace(222, 238, 8):
        maps[disk((row, 52))] = (230, 120, 30)
    first = whole.predict(whole.embed(plane), prompts)
    final = both.predict(both.embed(plane), prompts)

    def heat(probability: np.ndarray) -> np.ndarray:
        part = probability[..., None]
        return np.asarray(image * (1 - part) + part * np.array([255.0, 190.0, 0.0]))

    outlined = image.copy()
    outlined[final.mask] = 0.5 * outlined[final.mask] + np.array([128.0, 95.0, 0.0])
    crop = np.s_[165:245, 40:120]
    panels = {
        "1. the plane": image,
        "3. prompts as pixels": maps,
        "4. first answer (part of the plane)": heat(first.probability)[crop],
        "5. with the closer look": heat(final.probability)[crop],
        "6. the mask": outlined[crop],
    }
    side, head, gap = 300, 28, 12
    sheet = Image.new("RGB", (len(panels) * (side + gap) - gap, side + head), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, pixels) in enumerate(panels.items()):
        part = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((side, side))
        sheet.paste(part, (place * (side + gap), head))
        draw.text((place * (side + gap) + 4, 6), title, fill="black", font_size=15)
    sheet.save(folder / "stages.png")


SCENES: dict[str, Callable[[Path], None]] = {
    "em": em_pictures,
    "mri": mri_pictures,
    "end": end_picture,
    "click": recording_click,
    "propagate": recording_propagate,
    "objects": objects_picture,
    "levels": recording_levels,
    "error": error_picture,
    "stages": stages,
}


def main() -> None:
    """Make the scenes that are named, with settings and sessions of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENES))
    given = parser.parse_args()
    for name in given.names or SCENES:
        with tempfile.TemporaryDirectory() as scratch:  # else the session before is offered
            os.environ |= {"XDG_STATE_HOME": scratch, "NAPARI_CONFIG": str(Path(scratch) / "napari.yaml")}
            SCENES[name](given.folder)
        print(f"made: {name}", flush=True)


if __name__ == "__main__":
    main()
