"""The embedding cache: what falls where, what comes back, and what no accident may make it serve."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_lowlat_seg.core.atomic_file import ABANDONED, PREFIX
from napari_lowlat_seg.core.frame import Frame
from napari_lowlat_seg.core.volume import Plane, Volume
from napari_lowlat_seg.inference.predictor import Embedding
from napari_lowlat_seg.serving import embedding_cache, embedding_files
from napari_lowlat_seg.serving.embedding_cache import EmbeddingCache, EmbeddingKey, content_digest
from napari_lowlat_seg.serving.embedding_files import SUFFIX

FRAME = Frame.whole((8, 8), 16)
SIZE = 4 * (2 * 16) + 64
"""Bytes of an embedding as made below; its features take half of that in half precision."""

PATIENCE = 300  # seconds; a ceiling, no bar for speed


def _key(i: int) -> EmbeddingKey:
    return EmbeddingKey(f"pixels {i}", Plane((i, None, None)), FRAME, (0.0, 255.0), "net")


def _made(i: int) -> Embedding:
    """An embedding whose every value is its number; one feature channels last, as networks make them."""
    flat = torch.full((1, 4, 2, 2), float(i))
    last = torch.full((1, 2, 2, 4), float(i)).permute(0, 3, 1, 2)
    return Embedding((flat, last), FRAME, np.full((8, 8), i % 256, np.uint8), "net")


def _says(embedding: Embedding | None, i: int) -> bool:
    return (
        embedding is not None
        and all(bool((feature == i).all()) for feature in embedding.features)
        and bool((embedding.image == i % 256).all())
    )


def _refuse() -> Embedding:
    raise AssertionError("nothing had to be made")


def test_a_cached_embedding_is_not_made_again() -> None:
    """The same object, so a closer look still knows its picture."""
    cache = EmbeddingCache()
    first = cache.ensure(_key(3), lambda: _made(3))
    assert cache.ensure(_key(3), _refuse) is first
    assert cache.get(_key(3)) is first
    assert _key(3) in cache
    assert cache.get(_key(4)) is None
    assert _key(4) not in cache


def test_least_recently_used_entries_move_down_tier_by_tier(tmp_path: Path) -> None:
    """Device, host, disk, gone."""
    file = _file_size(tmp_path / "one")
    cache = EmbeddingCache(2 * SIZE, 128, tmp_path / "all", 2 * file)
    for i in range(3):
        cache.ensure(_key(i), lambda i=i: _made(i))
    assert cache.nbytes == (2 * SIZE, 128, 0)
    cache.ensure(_key(1), _refuse)  # used again: plane 2 falls before it
    cache.ensure(_key(3), lambda: _made(3))
    assert cache.nbytes == (2 * SIZE, 128, file)
    for i in (4, 5):
        cache.ensure(_key(i), lambda i=i: _made(i))
    assert [_key(i) in cache for i in range(6)] == [False, True, True, True, True, True]
    assert cache.nbytes == (2 * SIZE, 128, 2 * file)
    assert all(_says(cache.get(_key(i)), i) for i in (5, 4, 3, 1))


def _file_size(folder: Path) -> int:
    cache = EmbeddingCache(0, 0, folder)
    cache.ensure(_key(0), lambda: _made(0))
    return cache.nbytes.disk


def test_embeddings_stay_on_the_host_where_a_device_is_full(monkeypatch) -> None:
    """Also the next ones: whoever asks has the network on the host by then, or moves them."""
    cache, asked = EmbeddingCache(device="cuda:0"), []

    def unpacked(packed, device):  # type: ignore[no-untyped-def]
        asked.append(device)
        if device != "cpu":
            raise torch.cuda.OutOfMemoryError("full")
        return embedding_files.unpack(packed, device)

    monkeypatch.setattr(embedding_cache, "unpack", unpacked)
    for i in (3, 4):
        assert _says(cache.ensure(_key(i), lambda i=i: _made(i)), i)  # type: ignore[misc]
    assert asked == ["cuda:0", "cpu", "cpu"]


def test_without_a_folder_the_oldest_is_dropped() -> None:
    """A cache is allowed to forget."""
    cache = EmbeddingCache(SIZE, 0)
    cache.ensure(_key(0), lambda: _made(0))
    cache.ensure(_key(1), lambda: _made(1))
    assert _key(0) not in cache
    assert cache.nbytes == (SIZE, 0, 0)


def test_an_embedding_is_the_same_from_every_tier(tmp_path: Path) -> None:
    """To the bit, in type and in layout; also to another process that opens the folder later."""
    torch.manual_seed(0)
    made = Embedding(
        (torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last), torch.randn(1, 3, 7).bfloat16()),
        FRAME,
        np.arange(192, dtype=np.uint8).reshape(8, 8, 3),
        "net",
    )
    first = EmbeddingCache().ensure(_key(0), lambda: made)
    host = EmbeddingCache(0, 2**20)
    host.ensure(_key(0), lambda: made)
    EmbeddingCache(0, 0, tmp_path).ensure(_key(0), lambda: made)
    for again in (host.get(_key(0)), EmbeddingCache(0, 0, tmp_path).get(_key(0))):
        assert again is not None
        for got, expected in zip(again.features, first.features):
            assert got.dtype == expected.dtype
            assert got.stride() == expected.stride()
            assert torch.equal(got, expected)
        np.testing.assert_array_equal(again.image, first.image)
        assert (again.frame, again.model) == (first.frame, first.model)
    assert torch.allclose(first.features[0], made.features[0], rtol=2**-10)


def test_features_beyond_half_precision_stay_as_they_are(tmp_path: Path) -> None:
    """Infinity is not a rounding error."""
    made = replace(_made(1), features=(torch.tensor([[1e6, 1e-3]]), torch.tensor([[float("nan")]])))
    EmbeddingCache(0, 0, tmp_path).ensure(_key(0), lambda: made)
    again = EmbeddingCache(0, 0, tmp_path).get(_key(0))
    assert again is not None
    assert torch.equal(again.features[0], made.features[0])
    assert again.features[1].isnan().all()


def test_an_image_in_use_keeps_its_identity(tmp_path: Path) -> None:
    """Although its embedding went to disk: the closer look that holds it can be used again."""
    cache = EmbeddingCache(0, 0, tmp_path)
    look = cache.ensure(_key(0), lambda: _made(0))
    again = cache.ensure(_key(0), _refuse)
    assert again is not look
    assert again.image is look.image


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from([None, 0, 3]),
)
def test_any_order_of_use_serves_the_right_one_within_bounds(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], device: int, host: int, disk: int | None
) -> None:
    """A cache of any size returns what no cache would."""
    folder = tmp_path_factory.mktemp("cache")
    limit = None if disk is None else disk * 1000
    cache = EmbeddingCache(device * SIZE, host * 128, folder, limit)
    for i in order:
        assert _says(cache.ensure(_key(i), lambda i=i: _made(i)), i)
        held = cache.nbytes
        assert held.device <= device * SIZE
        assert held.host <= host * 128
        assert limit is None or held.disk <= limit


def test_threads_that_ask_at_once_share_one_embedding() -> None:
    """The second waits for the first."""
    cache = EmbeddingCache()
    started, go = threading.Event(), threading.Event()
    count: list[int] = []

    def make() -> Embedding:
        count.append(1)
        started.set()
        assert go.wait(PATIENCE)
        return _made(7)

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.ensure, _key(7), make) for _ in range(4)]
        assert started.wait(PATIENCE)
        go.set()
        embeddings = [future.result(PATIENCE) for future in waiting]
    assert len(count) == 1
    assert all(embedding is embeddings[0] for embedding in embeddings)


def test_threads_on_a_small_cache_get_what_they_asked_for(tmp_path: Path) -> None:
    """Entries move down and up between the tiers all the time."""
    cache = EmbeddingCache(2 * SIZE, 2 * 128, tmp_path, 4000)

    def use(seed: int) -> bool:
        order = np.random.default_rng(seed).integers(0, 12, 100).tolist()
        return all(_says(cache.ensure(_key(i), lambda i=i: _made(i)), i) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(4)))


def test_an_error_of_make_is_raised_and_nothing_is_kept() -> None:
    """The next one may try again."""
    cache = EmbeddingCache()

    def fail() -> Embedding:
        raise ValueError("no finite pixel")

    with pytest.raises(ValueError, match="no finite pixel"):
        cache.ensure(_key(0), fail)
    assert _says(cache.ensure(_key(0), lambda: _made(0)), 0)


def test_a_thread_that_waited_for_a_failed_make_calls_its_own() -> None:
    """An interruption in one thread is no error of another."""
    cache = EmbeddingCache()
    started, go = threading.Event(), threading.Event()

    def give_up() -> Embedding:
        started.set()
        assert go.wait(PATIENCE)
        raise ValueError("interrupted")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.ensure, _key(0), give_up)
        assert started.wait(PATIENCE)
        second = pool.submit(cache.ensure, _key(0), lambda: _made(0))
        time.sleep(0.05)
        go.set()
        assert _says(second.result(PATIENCE), 0)
        with pytest.raises(ValueError, match="interrupted"):
            first.result(PATIENCE)


def test_saving_writes_one_at_once(tmp_path: Path) -> None:
    """Without a folder there is nothing to do."""
    for folder in (None, tmp_path):
        cache = EmbeddingCache(folder=folder)
        for i in (0, 1):
            cache.ensure(_key(i), lambda i=i: _made(i))
        cache.save(_key(1), cache.ensure(_key(1), _refuse))
    assert [path.name for path in tmp_path.iterdir()] == [_key(1).filename]


def test_another_embedding_than_the_key_says_is_refused() -> None:
    """It would be served to everyone who asks for that key."""
    with pytest.raises(
        ValueError, match=r"must be what its key says, Frame.*16.* by net; got Frame.* by other"
    ):
        EmbeddingCache().ensure(_key(0), lambda: replace(_made(0), model="other"))


def test_negative_sizes_are_refused() -> None:
    """The error is raised when the cache is made."""
    with pytest.raises(ValueError, match=r"sizes of 0 bytes or more; got \(-1, "):
        EmbeddingCache(-1)


def test_every_part_of_the_key_counts() -> None:
    """Another pixel, plane, frame, window or model is another embedding."""
    key = _key(0)
    others = [
        replace(key, content="other"),
        replace(key, plane=Plane((1, None, None))),
        replace(key, frame=Frame.whole((8, 8), 32)),
        replace(key, window=None),
        replace(key, model="other"),
    ]
    assert len({key, *others}) == 6
    assert len({k.filename for k in (key, *others)}) == 6
    assert replace(key, window=(np.float32(0), np.float64(255))).filename == key.filename  # type: ignore[arg-type]


def test_the_key_of_a_plane_depends_on_its_pixels() -> None:
    """An edited plane is another plane, the others stay what they are."""

    class Net:
        model, size = "net", 16

        class network:
            fit = "letterbox"

    data = np.zeros((3, 8, 8), np.uint16)
    volume = Volume(data, spacing=(4, 2, 1), window=(0, 9))
    keys = [EmbeddingKey.of(Net(), volume, plane) for plane in volume.planes()]  # type: ignore[arg-type]
    data[1, 2, 3] = 1
    again = [EmbeddingKey.of(Net(), volume, plane) for plane in volume.planes()]  # type: ignore[arg-type]
    assert [a == b for a, b in zip(keys, again)] == [True, False, True]
    assert keys[0].frame == Frame.whole((8, 8), 16, spacing=(2, 1))
    assert content_digest(data) != content_digest(data.astype(np.int16))


def test_no_damage_to_a_file_is_ever_served(tmp_path: Path) -> None:
    """Cut anywhere, any bit turned, another key's file: it is a miss, and the file is gone."""
    cache = EmbeddingCache(0, 0, tmp_path)
    for i in (0, 1):
        cache.ensure(_key(i), lambda i=i: _made(i))
    path, other = (tmp_path / _key(i).filename for i in (0, 1))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in range(0, len(whole), 7)] + [whole + b"\0", other.read_bytes()]
    for at in rng.integers(0, len(whole), 100).tolist():
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    for blob in damaged:
        path.write_bytes(blob)
        assert cache.get(_key(0)) is None
        assert not path.exists()
    assert _says(cache.ensure(_key(0), lambda: _made(0)), 0)


def test_half_written_files_are_swept_when_their_writer_is_long_gone(tmp_path: Path) -> None:
    """A young one may belong to another process that is at it."""
    old, young = tmp_path / f"{PREFIX}0123456789ab-a{SUFFIX}", tmp_path / f"{PREFIX}0123456789ab-b{SUFFIX}"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (time.time() - ABANDONED - 60,) * 2)
    EmbeddingCache(folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [young.name]


def big_key(i: int) -> EmbeddingKey:
    """Of `big`."""
    return replace(_key(i), frame=Frame.whole((512, 512), 16))


def big(i: int) -> Embedding:
    """An embedding of 1.3 MB, so that a kill may well come in the middle of writing it."""
    features = (torch.full((1, 256, 32, 32), float(i)), torch.full((1, 64, 32, 32), float(i)))
    return Embedding(features, big_key(i).frame, np.full((512, 512), i, np.uint8), "net")


def says_big(embedding: Embedding, i: int) -> bool:
    """Whether all of it is number i."""
    return all(bool((f == i).all()) for f in embedding.features) and bool((embedding.image == i).all())


COUNT = 10
"""Embeddings that the processes below write, read and delete: some more than there is room for."""


@pytest.fixture(scope="module")
def apart() -> Callable[..., ProcessPoolExecutor]:
    """Pools of processes forked from one that has imported torch: a Python each would only import it."""
    context = get_context("forkserver" if hasattr(os, "fork") else "spawn")
    context.set_forkserver_preload(["torch", "napari_lowlat_seg.serving.embedding_cache"])
    return lambda count=1: ProcessPoolExecutor(count, mp_context=context)


def _killed_while_writing(folder: Path, kills: int) -> int:
    """How many half-written files children have left that were killed; fails if one was taken for whole.

    Goes on after so many kills until one did hit a write.
    """
    chance, torn = random.Random(0), 0
    for turn in range(10 * kills):
        if turn >= kills and torn:
            break
        child = os.fork()
        if child == 0:
            cache = EmbeddingCache(0, 0, folder, 6_000_000)
            for i in range(1_000_000):
                cache.ensure(big_key(i % COUNT), lambda i=i: big(i % COUNT))
                if i % 3 == 0:
                    (folder / big_key((i * 7) % COUNT).filename).unlink(missing_ok=True)
            os._exit(1)
        time.sleep(chance.uniform(0.002, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for part in folder.glob(".part-*"):
            torn += 1
            part.unlink()
        reader = EmbeddingCache(0, 0, folder)
        for i in range(COUNT):
            found = reader.get(big_key(i))
            assert found is None or says_big(found, i), (turn, i)
    return torn


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [60, pytest.param(200, marks=pytest.mark.thorough)])  # more of the same
def test_a_kill_while_writing_never_leaves_a_torn_entry(apart, tmp_path: Path, kills: int) -> None:
    """At random moments; some did hit a write."""
    with apart() as pool:
        assert pool.submit(_killed_while_writing, tmp_path, kills).result() > 0


def _used(folder: Path, seed: int) -> bool:
    """Whether a process got what it asked for, at random, 300 times."""
    cache, chance = EmbeddingCache(0, 0, folder, 6_000_000), random.Random(seed)
    order = [chance.randrange(COUNT) for _ in range(300)]
    return all(says_big(cache.ensure(big_key(i), lambda i=i: big(i)), i) for i in order)


@pytest.mark.slow
def test_two_processes_share_a_folder(apart, tmp_path: Path) -> None:
    """Both write, read and delete the same files; each gets what it asked for."""
    with apart(2) as pool:
        assert list(pool.map(_used, [tmp_path] * 2, (1, 2))) == [True, True]


def _used_on_a_full_disk(folder: Path) -> list[str]:
    """The warnings of a cache whose files may not grow."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    cache = EmbeddingCache(8_000_000, 0, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in range(30):
            assert says_big(cache.ensure(big_key(i), lambda i=i: big(i)), i), i
    return [str(one.message).split(";")[0] for one in caught]


@pytest.mark.slow
def test_a_full_disk_causes_one_warning_and_the_cache_goes_on(apart, tmp_path: Path) -> None:
    """The file system refuses to let files grow; nothing half is left."""
    pytest.importorskip("resource")
    with apart() as pool:
        warned = pool.submit(_used_on_a_full_disk, tmp_path).result()
    assert warned == [f"the embedding cache cannot write to {tmp_path} (File too large)"]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_still_serves(tmp_path: Path, monkeypatch) -> None:
    """A cache on shared storage may be read-only."""
    EmbeddingCache(0, 0, tmp_path).ensure(_key(0), lambda: _made(0))
    cache = EmbeddingCache(0, 0, tmp_path)
    # A folder in the way of the temporary file: refused to every user, root included.
    monkeypatch.setattr("secrets.token_hex", lambda count: "0123456789ab")
    (tmp_path / f"{PREFIX}0123456789ab-{_key(1).filename}").mkdir()
    with pytest.warns(RuntimeWarning, match=r"cannot write to .* make room there or choose another folder"):
        cache.ensure(_key(1), lambda: _made(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.ensure(_key(2), lambda: _made(2))
    assert _says(cache.get(_key(0)), 0)


def sealed(tensors: dict[str, torch.Tensor]) -> bytes:
    """A file with a right digest, whatever is in it."""
    body = safetensors.torch.save(tensors)
    return body + hashlib.blake2b(body, digest_size=embedding_files.CHECKSUM).digest()


MALFORMED = {
    "no key": lambda good: {name: t for name, t in good.items() if name != "key"},
    "no image": lambda good: {name: t for name, t in good.items() if name != "image"},
    "no features": lambda good: {name: good[name] for name in ("key", "image")},
    "a feature without a number": lambda good: good | {"x float32": torch.zeros(1)},
    "a feature without a layout": lambda good: good | {"1": torch.zeros(1)},
    "a feature of an unknown type": lambda good: good | {"1 nonsense": torch.zeros(1)},
    "a feature of a name in torch": lambda good: good | {"1 load": torch.zeros(1)},
    "a layout of another number of axes": lambda good: good | {"1 float32 last": torch.zeros(1)},
    "whole numbers": lambda good: good | {"1 float32": torch.zeros(1, dtype=torch.int64)},
    "a gap": lambda good: good | {"7 float32": torch.zeros(1)},
    "an image of floats": lambda good: good | {"image": torch.zeros(4, 4)},
    "an image of one axis": lambda good: good | {"image": torch.zeros(4, dtype=torch.uint8)},
    "an empty image": lambda good: good | {"image": torch.zeros(0, 4, dtype=torch.uint8)},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_sealed_but_malformed_file_is_a_miss(name: str, tmp_path: Path) -> None:
    """It is removed and made again, rather than an error at every click."""
    EmbeddingCache(0, 0, tmp_path).ensure(_key(0), lambda: _made(1))
    [path] = tmp_path.glob("*.embedding")
    good = safetensors.torch.load(path.read_bytes()[: -embedding_files.CHECKSUM])
    path.write_bytes(sealed(MALFORMED[name](good)))
    assert EmbeddingCache(0, 0, tmp_path).get(_key(0)) is None
    assert not path.exists()
    path.write_bytes(sealed(good))
    assert EmbeddingCache(0, 0, tmp_path).get(_key(0)) is not None
