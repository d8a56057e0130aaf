"""A session done again through the network, from its first action to the last, and what differs then.

Masks that a person drew and strokes on labels are repeated as they were; every mask of the network is made
anew. What was done in a session is in `actions`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from napari_lowlat_seg.annotation.contents import LIMIT_BYTES
from napari_lowlat_seg.annotation.history import ObjectRecord
from napari_lowlat_seg.annotation.journal.actions import CHOSEN, METHODS, Action
from napari_lowlat_seg.annotation.journal.encoding import AboutLabels
from napari_lowlat_seg.annotation.journal.files import FoundSession, JournalInfo
from napari_lowlat_seg.annotation.journal.frames import JournalError
from napari_lowlat_seg.annotation.propagation_run import PropagationRun
from napari_lowlat_seg.annotation.session import Session
from napari_lowlat_seg.core.boxes import BoundingBox, Patch
from napari_lowlat_seg.core.labels import ArrayLabels, LabelStore
from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest, Request
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.io.files import as_shown, read_volume
from napari_lowlat_seg.propagation.sweep import PropagatedMask


class ReplayService(Protocol):
    """What a replay needs of a `PredictionService`."""

    def predict(self, request: Request, source: PlaneSource) -> Iterator[tuple[SoftMask, bool]]:
        """As `PredictionService.predict`."""

    def propagate(
        self, request: PropagationRequest, sources: list[PlaneSource]
    ) -> Iterator[tuple[int, PropagatedMask[SoftMask]]]:
        """As `PredictionService.propagate`."""

    def close(self) -> None:
        """Drop all embeddings."""


MakeService = Callable[[Mapping[str, Any]], ReplayService]
"""Makes a service from `PredictionService.describe` of the one that a session was made with."""


@dataclass(frozen=True)
class Replayed:
    """What a replay gave.

    Attributes
    ----------
    session
        The session that was made.
    labels
        The labels that it wrote to last; None without any.
    differing, voxels
        Voxels of all labels that differ from those of the session that was replayed, and all voxels.
    predictions
        Masks that the network made.
    """

    session: Session
    labels: np.ndarray | None
    differing: int
    voxels: int
    predictions: int


def replay(found: FoundSession, volume: Volume, make_service: MakeService) -> Replayed:
    """Do a session again.

    Parameters
    ----------
    found
        Of `read_session`, read without labels of one's own. Its labels are written.
    volume
        The image.
    make_service
        Called when the session says which model it uses, and again when it uses another one.

    Raises
    ------
    JournalError
        For a session that was begun before its journal, and one whose masks the network cannot repeat.
    """
    mirror = found.mirror
    if mirror.actions is None:
        raise JournalError(
            f"{found.info.path} does not hold the session from its beginning; only such ones can be replayed"
        )
    mirror.write_labels()
    again = _Again(volume, mirror.stores, mirror.undo_stack.limit, make_service)
    for place, action in enumerate(mirror.actions):
        try:
            again.do(action)
        except (ValueError, StopIteration) as error:
            reason = str(error) or "the network gave no mask"
            raise JournalError(f"action {place + 1}, {action.kind}, cannot be repeated: {reason}") from error
    differing = voxels = 0
    for store in mirror.stores:
        before, after = np.asarray(store.data), again.array_of(store)  # type: ignore[attr-defined]
        differing += int(np.count_nonzero(before != after))
        voxels += before.size
    last = None if mirror.store is None else again.array_of(mirror.store)
    return Replayed(again.session, last, differing, voxels, again.predictions)


class _Again:
    """A session in which actions are done once more."""

    def __init__(
        self,
        volume: Volume,
        stores: Mapping[LabelStore, AboutLabels],
        limit: int = LIMIT_BYTES,
        make_service: MakeService | None = None,
    ) -> None:
        self.session = Session(volume, limit=limit)
        self.predictions = 0
        self._about = dict(stores)
        self._stores: dict[LabelStore, ArrayLabels] = {}
        self._make_service = make_service
        self._service: ReplayService | None = None
        self._asked: dict[tuple[int, Plane], tuple[Request, Iterator[tuple[SoftMask, bool]]]] = {}
        self._run: PropagationRun | None = None
        self._found: Iterator[tuple[int, PropagatedMask[SoftMask]]] = iter(())  # of a run, one by one

    def array_of(self, store: LabelStore) -> np.ndarray:
        """The labels made here in place of those of the session."""
        data: np.ndarray = self._store(store).data
        return data

    def _store(self, store: LabelStore) -> ArrayLabels:
        if store not in self._stores:
            self._stores[store] = self._about[store].in_memory(self.session.volume.shape)
        return self._stores[store]

    def do(self, action: Action) -> None:
        """Do one action."""
        if action.kind in METHODS:
            getattr(self.session, METHODS[action.kind])()
        else:
            getattr(self, f"_{action.kind}")(action)

    def _prompts(self, action: Action) -> None:
        self.session.set_prompts(_plane(action), action.prompts)

    def _paint(self, action: Action) -> None:
        drawn = action.drawn
        if drawn is None:
            raise ValueError("nothing is drawn")
        self.session.paint(_plane(action), drawn.mask)

    def _reshape(self, action: Action) -> None:
        self.session.reshape({plane: Patch((0, 0), drawn.mask) for plane, drawn in action.drawings})

    def _level(self, action: Action) -> None:
        self.session.choose_level(_plane(action), action.level)

    def _choose(self, action: Action) -> None:
        raise ValueError(CHOSEN)

    def _label(self, action: Action) -> None:
        self.session.choose_label(action.label)

    def _edit(self, action: Action) -> None:
        self.session.edit_object(_plane(action), action.at or (0, 0))

    def _stroke(self, action: Action) -> None:
        self.session.close_transaction()
        if self.session.labels is not None:
            self.session.labels.write(action.edits)
        self.session.record_stroke(action.edits)

    def _objects(self, action: Action) -> None:
        """Repeat a step with the same voxels; its states get tickets that no other state here has."""
        step, session = action.step, self.session
        if step is None:
            raise ValueError("it has no step")
        store = None if step.store is None else self._store(step.store)
        contents = session.contents
        for _, before, _ in step.records:
            if before is None:
                contents.new_number()  # numbers are drawn as they were
        records = [(n, contents.records.get(n), self._moved(after)) for n, _, after in step.records]
        states = [contents.change(number, plane, after) for (number, plane), _, after in step.states]
        session.do_step(replace(step, store=store, records=tuple(records), states=tuple(states)))

    def _moved(self, record: ObjectRecord) -> ObjectRecord:
        return replace(record, store=None if record.store is None else self._store(record.store))

    def _labels(self, action: Action) -> None:
        store = None if action.store is None else self._store(action.store)
        self.session.use_labels(store, action.label)

    def _settings(self, action: Action) -> None:
        for name, value in action.settings.items():
            if name == "preprocessing":
                given = {part: value.get(part) for part in ("window", "spacing")}
                self.session.volume = replace(self.session.volume, **given)
                continue
            setattr(self.session, name, value)
            if name == "model" and value and self._make_service is not None:
                self._service = self._make_service(value)

    def _resume(self, action: Action) -> None:
        self.session.restore(self.session.contents)  # a mask that was to be refined then stayed what it was
        self.session.write_accepted()
        if self._service is not None:
            self._service.close()

    def _predict(self, action: Action) -> None:
        """Apply the next mask of a request; several come for one, each better than the last."""
        plane, session = _plane(action), self.session
        request, key = session.request(plane, action.number), (action.number, plane)
        if request is not None and (key not in self._asked or self._asked[key][0].ticket != request.ticket):
            asked = self._in_tile(request, action.tile)
            self._asked[key] = request, repeated(lambda: list(self._loaded().predict(*asked)))
        request, masks = self._asked[key]
        mask, last = next(masks)
        if last and not action.final:  # it was interrupted, and asked again
            mask, _ = next(masks)
        if action.tile is not None:
            mask = self._placed(mask, plane, action.tile).laid_over(request.previous, action.tile)
        if not session.apply(request, mask, action.tile, final=action.final):
            raise ValueError("its prompts are others")
        self.predictions += 1

    def _in_tile(self, request: Request, tile: BoundingBox | None) -> tuple[Request, PlaneSource]:
        """What a service is asked, and the pixels; of the whole plane without a tile."""
        plane, session = request.plane, self.session
        source = session.source(plane)
        if tile is None:
            return request, source
        part = session.volume.cropped(tile, plane)
        source = replace(source, key=(*source.key, tile), read=lambda: part.plane(plane))  # type: ignore[misc]
        return request.cropped(tile), source

    def _placed(self, mask: SoftMask, plane: Plane, tile: BoundingBox) -> SoftMask:
        return mask.on(self.session.volume.sides(plane), tile.corner)

    def _refuse(self, action: Action) -> None:
        request = self.session.request(_plane(action), action.number)
        if request is not None:
            self.session.refuse(request, "it could not be answered")

    def _propagate(self, action: Action) -> None:
        self._begin(PropagationRun.propagation(self.session, action.planes))

    def _interpolate(self, action: Action) -> None:
        self._begin(PropagationRun.interpolation(self.session, action.planes))

    def _seeds(self, action: Action) -> None:
        self._begin(PropagationRun.seeds(self.session, action.planes, action.seeds))

    def _begin(self, run: PropagationRun) -> None:
        sources = [self.session.source(plane) for plane in run.request.planes]
        self._run, self._found = run, self._loaded().propagate(run.request, sources)

    def _masks(self, action: Action) -> None:
        left = action.count
        while left:
            number, found = next(self._found)
            left -= self._running().apply(number, found)
            self.predictions += 1

    def _finish(self, action: Action) -> None:
        for number, found in self._found:  # what is said of the last planes, and no mask
            self._running().apply(number, found)
        self._running().finish()

    def _stop(self, action: Action) -> None:
        self._running().stop()

    def _running(self) -> PropagationRun:
        if self._run is None:
            raise ValueError("no run has begun")
        return self._run

    def _loaded(self) -> ReplayService:
        """The service, which does one thing at a time: whatever is asked ends what is left of a run."""
        if isinstance(self._found, Generator):
            self._found.close()
        if self._service is None:
            if self._make_service is None:
                raise ValueError("there is no model")
            self._service = self._make_service(self.session.model)
        return self._service


REPEATED = 1000
"""How often a request may have been interrupted."""


def repeated(predict: Callable[[], Iterable[tuple[SoftMask, bool]]]) -> Iterator[tuple[SoftMask, bool]]:
    """The masks for a request, over and over: one that was interrupted was asked again."""
    for _ in range(REPEATED):
        yield from predict()


def _plane(action: Action) -> Plane:
    if action.plane is None:
        raise ValueError("it has no plane")
    return action.plane


def image_of(info: JournalInfo, path: str | Path | None = None) -> Volume:
    """The image of a session, read from a file as it lies there or as napari shows it.

    Parameters
    ----------
    path
        None for where it lay when the session was begun, or beside the session's file under the same name.

    Raises
    ------
    JournalError
        If no file is known, and for one with other pixels.
    FileNotFoundError, ValueError
        As `read_volume` does.
    """
    if path is None:
        if info.image is None:
            raise JournalError(f"{info.path} does not say where its image lies; give the image as well")
        beside = info.path.with_name(Path(info.image).name)
        path = beside if beside.exists() else info.image
    volume = read_volume(path, channel=info.channel)
    for one in (volume, as_shown(volume, path)):
        if one.identity == info.identity:
            return one
    raise JournalError(
        f"{path} has other pixels, of shape {volume.shape}, than the image of {info.path}, of {info.shape}; "
        "give that image"
    )
