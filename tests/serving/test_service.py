"""A prediction service caches planes and closer looks, and its requests can be cancelled."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_lowlat_seg.core.masks import SoftMask
from napari_lowlat_seg.core.prompts import Click
from napari_lowlat_seg.core.requests import PlaneSource, PropagationRequest
from napari_lowlat_seg.core.volume import Plane
from napari_lowlat_seg.inference.predictor import Predictor
from napari_lowlat_seg.inference.runtime import Runtime
from napari_lowlat_seg.models import checkpoints
from napari_lowlat_seg.models.network import Network
from napari_lowlat_seg.models.registry import WEIGHTS
from napari_lowlat_seg.serving.service import PredictionService, load_prediction_service
from napari_lowlat_seg.serving.worker_process import Interrupted


@dataclass(frozen=True)
class FakeRequest:
    """The fields of a request that a service reads."""

    prompts: tuple[Any, ...]
    previous: SoftMask | None = None
    object: int = 1
    ticket: int = 1


class Disk(Network):
    """Takes what was clicked, and four pixels around it, for the object; counts what it embeds."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.radius, self.fit, self.regions = 64, 4, "letterbox", "prior"  # type: ignore[assignment]
        self.pad = (0.0, 0.0, 0.0)
        self.layer = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.encoded = 0
        self.priors: list[float] = []

    def encode(self, image: Tensor) -> tuple[Tensor, ...]:
        self.encoded += 1
        return (self.layer(image),)

    def fuse(self, features: tuple[Tensor, ...], maps: Tensor) -> tuple[Tensor, ...]:
        self.priors.append(float(maps[:, 0].max()))
        return (maps[:, 1:2],)

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        return self.layer(16 * fused[0] - 8), torch.tensor([0.75])


@pytest.fixture
def network() -> Disk:
    return Disk()


@pytest.fixture
def service(network: Disk) -> PredictionService:
    return PredictionService(Predictor(network, Runtime()), 2**24)


@pytest.fixture
def source() -> PlaneSource:
    """A plane of 400 x 400, of which one click of the network covers little."""
    pixels = np.random.default_rng(0).integers(0, 256, (400, 400), np.uint8)
    return PlaneSource("plane 0", lambda: pixels)


def unread() -> np.ndarray:
    raise AssertionError("these pixels must not be read")


def test_a_plane_is_embedded_once(service, network, source) -> None:
    """The second time costs nothing and reads nothing."""
    assert service.embed(source) > 0
    assert service.embed(replace(source, read=unread)) == 0.0
    assert network.encoded == 1


OTHERS = [
    {"key": "plane 1", "plane": Plane((1, None, None))},
    {"key": "plane 1", "read": lambda: np.ones((400, 400), np.uint8)},
    {"window": (0.0, 9.0)},
    {"spacing": (1.0, 2.0)},
]


@pytest.mark.parametrize("other", OTHERS)
def test_another_plane_window_or_spacing_is_another_embedding(service, network, source, other) -> None:
    """All that an embedding depends on is in its key."""
    service.embed(source)
    service.embed(replace(source, **other))
    assert network.encoded == 2


@pytest.mark.parametrize("other", [{"key": "opened again"}, {"spacing": (10.0, 10.0)}])
def test_the_same_pixels_are_embedded_once_whoever_shows_them(service, network, source, other) -> None:
    """Keys are by content; a spacing counts by its ratio."""
    service.embed(source)
    assert service.embed(replace(source, **other)) == 0.0
    assert network.encoded == 1


def test_pixels_that_changed_are_another_plane(network, source) -> None:
    """An embedding that has fallen out is made of what is there now, and not served under the old name."""
    service = PredictionService(Predictor(network, Runtime(), "off"), 10)
    pixels = source.read().copy()
    edited = replace(source, read=lambda: pixels)
    first = service._embedding(edited).features[0].clone()
    pixels[:] = 0
    assert not torch.equal(service._embedding(edited).features[0], first)


def test_embeddings_unused_for_longest_are_forgotten(network, source) -> None:
    """What is kept is bounded in bytes: here there is room for one plane ready and one in half precision."""
    service = PredictionService(Predictor(network, Runtime(), "off"), 8 * 220_000 // 3)
    for number in (0, 1, 0, 2, 0, 1, 0):
        pixels = np.full((400, 400), number, np.uint8)
        service.embed(replace(source, key=number, read=lambda pixels=pixels: pixels))
    assert network.encoded == 4


def test_what_was_kept_in_a_folder_is_there_the_next_time(network, source, tmp_path) -> None:
    """Also when the first process was killed: its files are written at once, up to their bound."""
    predictor = Predictor(network, Runtime(), "off")
    assert PredictionService(predictor, 10, tmp_path, 2**20).embed(source) > 0
    again = PredictionService(predictor, 2**24, tmp_path, 2**20)
    assert again.embed(replace(source, key="another session")) == 0.0
    assert network.encoded == 1
    assert PredictionService(predictor, 10, tmp_path / "small", 1000).embed(source) > 0
    assert list((tmp_path / "small").iterdir()) == []


def test_embeddings_made_ahead_are_found_in_their_folder_which_is_only_read(
    network, source, tmp_path
) -> None:
    """In any folder of the source that exists; nothing is written there."""
    predictor = Predictor(network, Runtime())
    PredictionService(predictor, 10, tmp_path / "ahead", 2**20).embed(source)
    before = {path.name for path in (tmp_path / "ahead").iterdir()}
    there = replace(source, folders=(tmp_path / "none", tmp_path / "ahead"))
    service = PredictionService(predictor, 2**24)
    assert service.embed(there) == 0.0
    assert service.embed(replace(there, read=unread)) == 0.0
    assert network.encoded == 1
    service.embed(replace(there, key="other", read=lambda: np.ones((9, 9))))
    assert {path.name for path in (tmp_path / "ahead").iterdir()} == before
    assert len(list(service.predict(FakeRequest((Click((200, 200)),)), there))) == 3


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_causes_a_warning(monkeypatch, tmp_path, tiny) -> None:
    """The model loads all the same."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match=r"cannot be kept in .*embeddings \(.*\); they are"):
        service = load_prediction_service(str(tiny), "cpu", disk_bytes=2**20)
    assert service.describe()["parameters"] > 0


@pytest.mark.slow
def test_embeddings_are_kept_beside_the_models(monkeypatch, tmp_path, tiny) -> None:
    """Only where room on the disk was given."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))
    load_prediction_service(str(tiny), "cpu")
    assert not (tmp_path / "embeddings").exists()
    load_prediction_service(str(tiny), "cpu", disk_bytes=2**20)
    assert (tmp_path / "embeddings").is_dir()


def test_an_embedding_larger_than_the_cache_is_made_anew_each_time(network, source) -> None:
    """It is made anew each time."""
    service = PredictionService(Predictor(network, Runtime(), "off"), 10)
    for _ in range(2):
        assert len(list(service.predict(FakeRequest((Click((9, 9)),)), source))) == 2
    assert network.encoded == 2


def test_the_quick_prediction_comes_first_and_the_last_one_is_marked(service, network, source) -> None:
    """The whole plane, then the closer look, which makes it smaller, then that it was the last one."""
    predictions = list(service.predict(FakeRequest((Click((200, 200)),)), source))
    assert [final for _, final in predictions] == [False, False, True]
    coarse, fine, last = (int((soft_mask.probability > 0.5).sum()) for soft_mask, _ in predictions)
    assert coarse > 2 * fine == 2 * last
    assert network.encoded == 2
    assert predictions[0][0].quality == 0.75


def test_the_next_click_uses_the_closer_look_of_the_click_before(service, network, source) -> None:
    """Nothing is embedded again while the object fits."""
    *_, (first, _) = service.predict(FakeRequest((Click((200, 200)),)), source)
    clicks = (Click((200, 200)), Click((203, 200)))
    predictions = list(service.predict(FakeRequest(clicks, first), source))
    assert [final for _, final in predictions] == [False, True]
    assert network.encoded == 2


class LeftHalf(Disk):
    """Takes the left half of what it sees, with a soft outline, for the object."""

    def decode(self, fused: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
        across = torch.linspace(6, -6, 64).expand(len(fused[0]), 1, 64, 64)
        return across.clone(), torch.tensor([0.9])


def test_crops_along_an_outline_are_embedded_once_for_all_objects(source) -> None:
    """A correction of a large object embeds some, the rest follows; the next click and object need none."""
    network = LeftHalf()
    service = PredictionService(Predictor(network, Runtime()), 2**24)
    clicks = (Click((200, 50)), Click((50, 150)), Click((350, 150)))
    [*_, (begun, _)] = service.predict(FakeRequest(clicks[:1]), source)
    assert network.encoded == 1
    masks = list(service.predict(FakeRequest(clicks[:2], begun), source))
    assert [final for _, final in masks] == [False, False, False, True]
    embedded = network.encoded
    assert embedded > 2
    list(service.predict(FakeRequest(clicks, masks[-1][0]), source))
    list(service.predict(FakeRequest(clicks[:2], begun, object=2), source))
    assert network.encoded == embedded


def test_a_preview_embeds_no_crops(source) -> None:
    """It shows the quick prediction only."""
    network = LeftHalf()
    service = PredictionService(Predictor(network, Runtime()), 2**24)
    clicks = (Click((200, 50)), Click((50, 150)))
    [*_, (begun, _)] = service.predict(FakeRequest(clicks[:1]), source)
    assert len(list(service.predict(FakeRequest(clicks, begun, ticket=0), source))) == 1
    assert network.encoded == 1


def test_another_object_on_the_plane_has_a_closer_look_of_its_own(service, network, source) -> None:
    """Looks are kept for each object and plane."""
    for number, place in ((1, 100), (2, 300)):
        *_, (soft_mask, _) = service.predict(FakeRequest((Click((place, place)),), None, number), source)
        list(service.predict(FakeRequest((Click((place, place)),), soft_mask, number), source))
    assert network.encoded == 3


def test_the_previous_mask_is_fed_back_also_a_drawn_one(service, network, source) -> None:
    """A mask by hand enters as one of the network's own does."""
    mask = np.zeros((400, 400), bool)
    mask[150:250, 150:250] = True
    list(service.predict(FakeRequest((Click((200, 200)),), SoftMask.from_mask(mask)), source))
    assert network.priors[0] == 1.0


CLICK, BESIDE = Click((200, 200)), Click((200, 240))


@pytest.mark.parametrize(
    ("before", "spared"),
    [
        ([FakeRequest((CLICK,), ticket=0)], 1),
        ([FakeRequest((CLICK,), ticket=0), FakeRequest((BESIDE,), ticket=0)], 0),
        ([FakeRequest((CLICK,), ticket=0), FakeRequest((BESIDE,))], 0),
        ([FakeRequest((CLICK,), object=2, ticket=0)], 0),
        ([FakeRequest((CLICK,), SoftMask.from_mask(np.ones((400, 400), bool)), ticket=0)], 1),
        ([FakeRequest((CLICK,), SoftMask.from_mask(np.eye(400, dtype=bool)), ticket=0)], 0),
    ],
    ids=["same", "elsewhere", "a request between", "another object", "same mask", "another mask"],
)
def test_a_request_goes_on_from_the_preview_of_the_same(service, network, source, before, spared) -> None:
    """Its masks are those that it would have given; the first of them is not predicted twice."""
    other = Disk()
    fresh = PredictionService(Predictor(other, Runtime()), 2**24)
    ones = SoftMask.from_mask(np.ones((400, 400), bool))
    asked = FakeRequest((CLICK,), ones if before[0].previous is not None else None)
    expected = [(mask.value, final) for mask, final in fresh.predict(asked, source)]
    predicted = len(other.priors)
    for one in before:
        list(service.predict(one, source))
    network.priors.clear()
    assert [(mask.value, final) for mask, final in service.predict(asked, source)] == expected
    assert predicted - len(network.priors) == spared


def test_a_preview_gets_the_quick_prediction_only(service, network, source) -> None:
    """A stroke under way and a hovering mouse come too often for more."""
    predictions = list(service.predict(FakeRequest((Click((200, 200)),), ticket=0), source))
    assert [final for _, final in predictions] == [True]
    assert network.encoded == 1


def test_a_cancelled_embedding_stops_between_two_layers(service, network, source) -> None:
    """It is not kept, and the next one is whole."""
    with pytest.raises(Interrupted):
        service.embed(source, lambda: True)
    assert service.embed(source) > 0


def test_no_prediction_follows_once_a_request_is_cancelled(service, network, source) -> None:
    """Neither between two predictions nor in the middle of one."""
    cancelled = []
    predictions = service.predict(FakeRequest((Click((200, 200)),)), source, lambda: bool(cancelled))
    next(predictions)
    cancelled.append(True)
    assert list(predictions) == []
    assert list(service.predict(FakeRequest((Click((200, 200)),)), source, lambda: True)) == []
    assert network.encoded == 1


def propagation_of(
    pixels: np.ndarray, *, read: list[int] | None = None
) -> tuple[PropagationRequest, list[PlaneSource]]:
    """From the middle one of some planes, where the object is a square in the middle."""
    planes = tuple(Plane((z, None, None)) for z in range(len(pixels)))

    def source(z: int) -> PlaneSource:
        def look() -> np.ndarray:
            if read is not None:
                read.append(z)
            picture: np.ndarray = pixels[z]
            return picture

        return PlaneSource(z, look, (0.0, 255.0), plane=planes[z])

    mask = np.zeros(pixels.shape[1:], bool)
    mask[90:110, 90:110] = True
    anchor = {planes[len(pixels) // 2]: SoftMask.from_mask(mask)}
    return PropagationRequest(planes, {7: anchor}), [source(z) for z in range(len(pixels))]


def test_propagation_reads_each_plane_once(network) -> None:
    """Embeddings are kept: the second time nothing is embedded and the masks are the same."""
    service = PredictionService(Predictor(network, Runtime(), closer_look="off"), 2**24)
    read: list[int] = []
    request, sources = propagation_of(np.full((5, 200, 200), 90, np.uint8), read=read)
    found = list(service.propagate(request, sources))
    assert [(number, item.plane.position) for number, item in found] == [(7, 1), (7, 0), (7, 3), (7, 4)]
    assert all(item.prediction.mask[100, 100] for _, item in found)
    assert sorted(read) == [0, 1, 2, 3, 4]
    encoded = network.encoded
    again = list(service.propagate(request, sources))
    assert [item.confidence for _, item in again] == [item.confidence for _, item in found]
    assert network.encoded == encoded == 4


def test_a_seed_is_predicted_first_and_then_propagated(service) -> None:
    """Its own plane comes with confidence 1."""
    request, sources = propagation_of(np.full((3, 200, 200), 90, np.uint8))
    seeds = {4: (request.planes[1], Click((60, 60))), 5: (request.planes[1], Click((140, 140)))}
    found = list(service.propagate(PropagationRequest(request.planes, seeds=seeds), sources))
    assert [(number, item.plane.position) for number, item in found[:2]] == [(4, 1), (5, 1)]
    assert found[0][1].confidence == 1.0
    assert {number for number, _ in found[2:]} == {4, 5}


def test_shapes_are_interpolated_without_the_network(service, network) -> None:
    """Between two outlines, as sure as they agree."""
    request, sources = propagation_of(np.full((5, 200, 200), 90, np.uint8))
    square = next(iter(request.anchors[7].values()))
    ends = {request.planes[0]: square, request.planes[4]: square}
    found = list(service.propagate(PropagationRequest(request.planes, {7: ends}, shapes=True), sources))
    assert [(item.plane.position, item.confidence) for _, item in found] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert network.encoded == 0
    assert (
        list(
            service.propagate(
                PropagationRequest(request.planes, {7: ends}, shapes=True), sources, lambda: True
            )
        )
        == []
    )


def test_a_cancelled_propagation_stops_between_two_layers(network) -> None:
    """What has come so far stays with who asked."""
    service = PredictionService(Predictor(network, Runtime(), closer_look="off"), 2**24)
    request, sources = propagation_of(np.full((5, 200, 200), 90, np.uint8))
    found = []
    for item in service.propagate(request, sources, lambda: len(found) == 1 and network.encoded > 1):
        found.append(item)
    assert len(found) == 1


def test_errors_are_the_predictors_own(service, source) -> None:
    """The same sentence arrives, and reading errors pass through."""
    with pytest.raises(ValueError, match=r"expected an image of shape .*, got \(4,\)"):
        service.embed(replace(source, read=lambda: np.zeros(4)))
    with pytest.raises(ValueError, match="outside"):
        list(service.predict(FakeRequest((Click((900, 900)),)), source))


def test_the_service_describes_its_model(service) -> None:
    """Model, device and precision as found."""
    facts = service.describe()
    assert (facts["device"], facts["precision"], facts["size"], facts["parameters"]) == ("cpu", "fp32", 64, 3)
    assert facts["licence"] == "that of its file"


def test_closing_drops_embeddings_and_restarting_does_nothing(service, network, source) -> None:
    """Both are there for those who talk to a process."""
    service.embed(source)
    service.restart()
    service.close()
    service.embed(source)
    assert network.encoded == 2


@pytest.mark.slow
def test_the_default_model_is_loaded_by_name() -> None:
    """Its licence comes from the table of known models."""
    facts = load_prediction_service("default", "cpu").describe()
    assert facts["model"] == "default"
    assert facts["licence"] == WEIGHTS["default"].licence


def test_a_missing_model_is_downloaded_with_progress(monkeypatch, tmp_path) -> None:
    """Whatever the progress raises cancels it."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path))

    def fetch(url: str, path: Any, sha256: Any, progress: Any, *_: Any, **__: Any) -> None:
        progress(1, 2)

    monkeypatch.setattr(checkpoints, "fetch", fetch)

    def cancel(done: int, total: int | None) -> None:
        raise Interrupted(f"{done} of {total}")

    with pytest.raises(Interrupted, match="1 of 2"):
        load_prediction_service("segnext-sax1", progress=cancel)


@pytest.mark.slow
def test_importing_the_service_imports_no_torch(run_python) -> None:
    """A window may know its doors."""
    code = "import sys, napari_lowlat_seg.serving.process; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_objects_are_found_without_a_prompt_plane_by_plane(service, source) -> None:
    """How far it is comes first, labels and scores at the end; a plane without a number has none."""
    blank = PlaneSource("blank", lambda: np.full((20, 30), np.nan, np.float32))
    found = list(service.find_objects({"grid": 2}, [source, blank]))
    assert [place for place, _ in found] == [0, 0, 1]
    assert (found[0][1].done, found[0][1].total, found[0][1].labels) == (4, 4, None)
    last = found[1][1]
    assert (last.labels.shape, int(last.labels.max())) == ((400, 400), len(last.scores))
    assert (found[2][1].labels.shape, len(found[2][1].scores)) == ((20, 30), 0)
    assert list(service.find_objects({}, [source], lambda: True)) == []
    with pytest.raises(ValueError, match="a grid needs 1 click or more"):
        list(service.find_objects({"grid": 0}, [source]))
