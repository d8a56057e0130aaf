"""How files become networks, and the errors when they cannot."""

import dataclasses
import json
import pickle
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import trustme
from safetensors import safe_open
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file

from hostile.checkpoints import TINY, official_content
from napari_lowlat_seg.inference import runtime
from napari_lowlat_seg.inference.predictor import load_predictor
from napari_lowlat_seg.models import checkpoints, registry
from napari_lowlat_seg.models.checkpoints import (
    download_model,
    import_model,
    list_models,
    load_model,
    model_info,
    model_path,
    save_model,
)
from napari_lowlat_seg.models.compact import Compact, CompactConfig
from napari_lowlat_seg.models.registry import WEIGHTS, Weights, known_path, known_sha256
from napari_lowlat_seg.models.segnext import SegNext

TINY_OURS = CompactConfig(size=256, width=32, heads=2, skip8=16, skip4=8, blocks=1)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("LOWLAT_SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def network() -> SegNext:
    torch.manual_seed(0)
    return SegNext(TINY).eval()


@pytest.fixture
def official(network: SegNext) -> dict[str, Any]:
    """An official checkpoint as torch.load gives it back."""
    return official_content(network)


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], Path]:
    """Write anything with torch.save to a file called some.pth."""

    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "some.pth")
        return tmp_path / "some.pth"

    return save


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_an_official_file_becomes_the_network(official, save, network) -> None:
    """Geometry, weights, evaluation mode; a list of checkpoints counts as its first."""
    for content in (official, [official, {"more": 1}]):
        loaded = load_model(save(content))
        assert isinstance(loaded, SegNext)
        assert loaded.config == TINY
        assert same_weights(loaded, network)
        assert not loaded.training


def test_half_precision_tensors_are_widened(official, save) -> None:
    """Whatever float type a file has, the network computes in float32."""
    official["state_dict"] = {key: value.half() for key, value in official["state_dict"].items()}
    assert {p.dtype for p in load_model(save(official)).parameters()} == {torch.float32}


class Hostile:
    """Pickles to a call."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


def test_a_hostile_pickle_is_not_run(official, save, tmp_path) -> None:
    """One sentence, and the payload did nothing; neither in an archive nor bare."""
    official["config"]["params"]["norm_radius"]["value"] = Hostile(tmp_path / "owned")
    with pytest.raises(ValueError, match=r"holds Python objects besides tensors .* it was not loaded"):
        load_model(save(official))
    (tmp_path / "some.pth").write_bytes(pickle.dumps(official))
    with pytest.raises(ValueError, match=r"some\.pth is damaged or not a torch file"):
        load_model(tmp_path / "some.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_one_sentence(official, save, share) -> None:
    """Cut anywhere."""
    path = save(official)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"some\.pth is damaged"):
        load_model(path)


@pytest.mark.parametrize(
    "content", [b"<html>quota</html>", b"\x80\x02garbage", b"PK\x03\x04nothing", b"\x00" * 99]
)
def test_a_file_of_something_else_is_one_sentence(tmp_path, content) -> None:
    """Web pages, zips, noise."""
    (tmp_path / "some.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.pth is damaged .* download it again"):
        load_model(tmp_path / "some.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"model": {"cls_token": 0, "pos_embed": 0}},
            r"some\.pth is a pre-trained encoder \(MAE\) without decoder",
        ),
        ({"image_encoder.pos_embed": 0}, r"some\.pth is a SAM checkpoint"),
        ({"model": {"image_encoder.trunk.pos_embed": 0}}, r"some\.pth is a SAM checkpoint"),
        ({"state_dict": {"backbone.pos_embed": 0}}, r"some\.pth has no 'config' beside its 'state_dict'"),
        ({"epoch": 3, "model": {}}, r"some\.pth has the keys 'epoch', 'model'; expected an official SegNext"),
        ({}, r"some\.pth has the keys none; expected"),
        ([], r"some\.pth holds a list; expected"),
        (7, r"some\.pth holds a int; expected"),
    ],
)
def test_other_checkpoints_are_named(save, content, message) -> None:
    """MAE, SAM, a missing config, and whatever else there is."""
    with pytest.raises(ValueError, match=message):
        load_model(save(content))


def set_value(name: str, value: Any, inner: str | None = None) -> Callable[[dict[str, Any]], None]:
    """A change to one constructor argument."""

    def change(content: dict[str, Any]) -> None:
        row = content["config"]["params"].setdefault(
            name, {"type": "builtin", "specified": True, "value": {}}
        )
        if inner is None:
            row["value"] = value
        else:
            row["value"][inner] = value

    return change


def set_state(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change to one tensor; None removes it."""

    def change(content: dict[str, Any]) -> None:
        content["state_dict"][key] = value
        if value is None:
            del content["state_dict"][key]

    return change


def set_config(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["config"].update({key: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_config("class", "os.system"),
            "names the class 'os.system'; expected one that ends",
        ),
        (set_config("params", None), "its config has no backbone_params"),
        (set_value("backbone_params", 3, "num_heads"), "dim 16 is no multiple of its 3 and 2 heads"),
        (
            set_value("backbone_params", 10**9, "num_heads"),
            r"num_heads must be .* in 1\.\.64, got 1000",
        ),
        (
            set_value("backbone_params", "2", "num_heads"),
            r"num_heads must be .* in 1\.\.64, got '2'",
        ),
        (set_value("backbone_params", 0, "global_atten_freq"), "global_atten_freq must be a whole number"),
        (set_value("backbone_params", (128, 128), "img_size"), "config says size 128, its tensors say 64"),
        (
            set_value("neck_params", [1, 2, 3, 4], "out_dims"),
            r"config says neck_dims \(1, 2, 3, 4\), its",
        ),
        (
            set_value("head_params", [3, 2, 1, 0], "in_select_index"),
            r"in_select_index must be \[0, 1, 2, 3\]",
        ),
        (set_value("norm_mean_std", [[0.5] * 3, [0.5] * 3]), "norm_mean_std must be .*, got"),
        (set_value("norm_radius", 900), r"norm_radius must be a whole number in 1\.\.64, got 900"),
        (set_value("fusion_params", "cross_attention", "type"), "its fusion is 'cross_attention'; only"),
        (set_value("with_zoom", True), "the config sets 'with_zoom', which no released model does"),
        (
            lambda content: content["config"]["params"].update(
                norm_radius={"type": "class", "value": "os.system"}
            ),
            "the config's 'norm_radius' is not a plain value",
        ),
        (set_state("head.seg_conv.bias", None), r"head\.seg_conv\.bias is missing \(1 in all\)"),
        (set_state("head.extra", torch.zeros(1)), r"head\.extra is unknown \(1 in all\)"),
        (set_state("backbone.fc_norm.bias", torch.zeros(3)), r"has shape \(3,\), expected \(16,\)"),
        (set_state("backbone.pos_embed", None), r"expected backbone\.pos_embed with 3 axes, got nothing"),
        (set_state("backbone.pos_embed", torch.zeros(4)), r"backbone\.pos_embed with 3 axes, got \(4,\)"),
        (set_state("head.seg_conv.bias", 3.0), r"'head\.seg_conv\.bias' is not a plain dense tensor"),
        (set_state("head.seg_conv.bias", torch.zeros(1, dtype=torch.int64)), "is not a plain dense tensor"),
        (set_state("head.seg_conv.bias", torch.zeros(1).expand(10**12)), "is not a plain dense tensor"),
        (set_state("head.seg_conv.bias", torch.zeros(9).to_sparse()), "holds Python objects"),
    ],
)
def test_an_official_file_that_does_not_fit_is_an_error_that_says_where(
    official, save, change, message
) -> None:
    """Every key, shape and value is checked, and what differs is named with both values."""
    change(official)
    with pytest.raises(ValueError, match=message):
        load_model(save(official))


def test_naive_fusion_loads(official, save) -> None:
    """The ablation without fusion blocks."""
    official["state_dict"] = {k: v for k, v in official["state_dict"].items() if not k.startswith("fusion_")}
    set_value("fusion_params", {"type": "naive"})(official)
    assert load_model(save(official)).config == dataclasses.replace(TINY, fusion_blocks=0)


@pytest.mark.slow
def test_an_imported_file_is_the_same_network(official, save, network, cache) -> None:
    """Import writes safetensors to the cache, where the model is then known by name; again is no harm."""
    path = import_model(save(official))
    assert path == cache / "some.safetensors"
    assert same_weights(load_model("some"), network)
    assert same_weights(load_model(path), network)
    assert import_model(save(official)) == path
    assert list_models()[-1]["name"] == "some"
    assert [file.name for file in cache.iterdir()] == ["some.safetensors"]


def test_an_import_overwrites_nothing(official, save, tmp_path) -> None:
    """Another model under the same name is refused."""
    target = tmp_path / "kept" / "mine.safetensors"
    assert import_model(save(official), target) == target
    official["state_dict"]["head.seg_conv.bias"] += 1
    with pytest.raises(ValueError, match=r"mine\.safetensors is there already and holds another model"):
        import_model(save(official), target)


def test_half_files_are_half_as_large(network, tmp_path) -> None:
    """float16 in the file, float32 in the network."""
    path = save_model(network, tmp_path / "half.safetensors", half=True, licence="none")
    with safe_open(path, "pt") as file:
        assert file.metadata()["licence"] == "none"
        assert file.get_tensor("head.seg_conv.bias").dtype == torch.float16
    loaded = load_model(path)
    assert loaded.head.seg_conv.bias.dtype == torch.float32
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), rtol=1e-3, atol=1e-3)


def test_a_changed_safetensors_file_is_noticed(network, tmp_path) -> None:
    """One flipped bit in a tensor."""
    path = save_model(network, tmp_path / "mine.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.safetensors was changed since it was written"):
        load_model(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"is a safetensors file without a model of ours"),
        ({"family": "os", "config": "{}"}, r"is a safetensors file without a model of ours"),
        ({"family": "segnext", "config": "{"}, r"has a config that does not fit segnext"),
        ({"family": "segnext", "config": '{"wings": 2}'}, r"has a config that does not fit segnext"),
        ({"family": "segnext", "config": '{"dim": 1000000000}'}, r"dim must lie in 8\.\.4096"),
        ({"family": "segnext", "config": '{"dim": "x"}'}, r"has a config that does not fit segnext"),
        (
            {"family": "segnext", "config": '{"neck_dims": ["a", 1, 2, 3]}'},
            r"has a config that does not fit segnext",
        ),
        ({"family": "segnext", "config": "[" * 100_000}, r"has a config that does not fit segnext"),
        (
            {"family": "segnext", "config": "{}"},
            r"fit segnext: backbone\.pos_embed is missing; .* in all",
        ),
    ],
)
def test_a_strange_safetensors_file_is_one_sentence(tmp_path, metadata, message) -> None:
    """Other people's files, other families, configs that fit nothing."""
    save_file({"a": torch.zeros(2)}, tmp_path / "some.safetensors", metadata)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "some.safetensors")


def test_a_damaged_safetensors_file_is_one_sentence(network, tmp_path) -> None:
    """Cut short."""
    path = save_model(network, tmp_path / "mine.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"mine\.safetensors is damaged, cut short or no safetensors file"):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nonsense",
            r"unknown model 'nonsense'; choose one of default, segnext-sax1, .* or give",
        ),
        ("nowhere/some.pth", r"there is no model file nowhere/some\.pth"),
        ("../segnext-sax1", "unknown model"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, message) -> None:
    """And a missing file is called a missing file."""
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_a_download_of_an_unknown_name_lists_the_known_ones() -> None:
    """Paths are not downloaded."""
    with pytest.raises(ValueError, match=r"unknown model 'some\.pth'; choose one of default"):
        download_model("some.pth")


def test_a_missing_model_is_an_error_that_says_how_to_get_it(monkeypatch, tmp_path) -> None:
    """The packaged one by installing again, the others by downloading."""
    monkeypatch.setattr(registry, "PACKAGED", tmp_path)
    with pytest.raises(ValueError, match=r"model 'default' is not at .*; install the package again"):
        load_model("default")
    with pytest.raises(ValueError, match=r"model 'segnext-sax1' is not at .*models download segnext-sax1"):
        model_path("segnext-sax1")


def test_all_models_are_listed() -> None:
    """Known without a download: family, parameters, size, licence, address."""
    rows = {row["name"]: row for row in list_models()}
    assert list(rows) == ["default", "segnext-sax1", "segnext-sax2", "segnext-sax2-hq"]
    hq = rows["segnext-sax2-hq"]
    assert (hq["family"], hq["parameters"], hq["size"]) == ("segnext", 113_789_633, 1024)
    assert (hq["downloaded"], hq["path"], hq["sha256"], hq["bytes"]) == (False, None, None, None)
    assert "non-commercial" in hq["licence"]
    assert hq["url"].startswith("https://drive.usercontent.google.com/")
    assert json.dumps(list(rows.values()))


def test_the_facts_about_a_file_are_read_from_it(network, tmp_path) -> None:
    """Read from the file, not from a table."""
    path = save_model(network, tmp_path / "mine.safetensors")
    info = model_info(path)
    assert info["parameters"] == sum(p.numel() for p in network.parameters())
    assert (info["family"], info["size"], info["bytes"]) == ("segnext", 64, path.stat().st_size)
    assert (info["downloaded"], info["url"], info["path"]) == (True, None, str(path))


class Quiet(SimpleHTTPRequestHandler):
    """A file server without a log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server of the files in the folder served."""
    (tmp_path / "served").mkdir()
    authority, keys = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(keys)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "authority.pem"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")) as server:
        server.socket = keys.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"https://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> Path:
    """The folder of a server from which the model "far" can be had as some.pth."""
    monkeypatch.setitem(WEIGHTS, "far", Weights("segnext", "none", "a test", f"{address}/some.pth"))
    return tmp_path / "served"


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str) -> Path:
    """The file of a small model of ours on a server; a row "ours" has its address and sha256."""
    torch.manual_seed(0)
    path = save_model(Compact(TINY_OURS).eval(), tmp_path / "served" / "ours.safetensors", half=True)
    digest = checkpoints.file_sha256(path)
    row = Weights("compact", "none", "a test", f"{address}/ours.safetensors", digest, 30_804_389, 512)
    monkeypatch.setitem(WEIGHTS, "ours", row)
    return path


def test_the_sha256_of_the_first_download_is_required_later(official, save, network, remote, cache) -> None:
    """Its sha256 is recorded once it has loaded; a changed file is refused from then on."""
    save(official).rename(remote / "some.pth")
    assert download_model("far", lambda *_: None) == cache / "far.pth"
    assert same_weights(load_model("far"), network)
    assert model_info("far")["sha256"] == checkpoints.file_sha256(cache / "far.pth")
    official["state_dict"]["head.seg_conv.bias"] += 1
    save(official).replace(cache / "far.pth")
    with pytest.raises(ValueError, match=r"far\.pth is not the file it should be: expected sha256"):
        load_model("far")
    (cache / "far.pth").unlink()
    save(official).replace(remote / "some.pth")
    with pytest.raises(ValueError, match=r"far\.pth from http.* has sha256 .*, expected .*; it was not kept"):
        download_model("far", lambda *_: None)


def test_a_first_download_that_is_no_model_is_not_kept(save, remote, cache) -> None:
    """Neither the file nor its sha256: the next try starts clean."""
    save({"epoch": 1}).rename(remote / "some.pth")
    with pytest.raises(ValueError, match=r"far\.pth has the keys 'epoch'"):
        download_model("far", lambda *_: None)
    assert list(cache.iterdir()) == []


def test_facts_about_a_model_are_known_before_its_download(release, cache) -> None:
    """All but the number of bytes is in the table."""
    info = model_info("ours")
    assert (info["family"], info["size"], info["parameters"]) == ("compact", 512, 30_804_389)
    assert (info["downloaded"], info["bytes"], info["path"]) == (False, None, None)
    assert info["url"].endswith("/ours.safetensors")
    assert info["sha256"] == known_sha256("ours") == checkpoints.file_sha256(release)
    assert known_path("ours") == cache / "ours.safetensors"


@pytest.mark.slow
def test_a_model_of_ours_is_downloaded_as_it_is(release, cache, monkeypatch) -> None:
    """Byte for byte and with progress; then it is loaded by its name and listed once."""
    monkeypatch.setattr(runtime, "has_openvino", lambda: False)  # converting it would take seconds
    steps: list[tuple[int, int | None]] = []
    assert download_model("ours", lambda *step: steps.append(step)) == cache / "ours.safetensors"
    assert (cache / "ours.safetensors").read_bytes() == release.read_bytes()
    assert steps[-1] == (release.stat().st_size, release.stat().st_size)
    release.unlink()
    assert same_weights(load_model("ours"), load_model(cache / "ours.safetensors"))
    assert [row["downloaded"] for row in list_models() if row["name"] == "ours"] == [True]
    assert [file.name for file in cache.iterdir()] == ["ours.safetensors"]
    assert load_predictor("ours", "cpu").network.config == TINY_OURS


@pytest.mark.slow
def test_a_model_of_ours_is_downloaded_at_first_use(release, cache) -> None:
    """By its name alone."""
    assert same_weights(load_model("ours"), load_model(release))
    assert known_path("ours").is_file()


def test_a_cancelled_download_of_ours_leaves_nothing(release, cache) -> None:
    """What the progress raises comes back."""

    def stop(done: int, total: int | None) -> None:
        raise InterruptedError(f"{done} of {total}")

    with pytest.raises(InterruptedError, match=" of "):
        download_model("ours", stop)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_another_file_than_the_table_s_is_refused(release, cache) -> None:
    """On its way, and where the download should lie."""
    other = save_model(Compact(TINY_OURS).eval(), release)
    with pytest.raises(ValueError, match=r"ours\.safetensors from http.* has sha256 .*; it was not kept"):
        download_model("ours", lambda *_: None)
    assert list(cache.iterdir()) == []
    other.rename(cache / "ours.safetensors")
    with pytest.raises(ValueError, match=r"ours\.safetensors is not the file it should be: expected sha256"):
        load_model("ours")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ours.safetensors", "ours (1).safetensors"])
def test_the_file_of_a_download_can_be_imported_instead(release, cache, name) -> None:
    """For a machine without network: its sha256 identifies it, whatever its name; twice is harmless."""
    brought = release.rename(release.with_name(name))
    assert [import_model(brought) for _ in range(2)] == 2 * [cache / "ours.safetensors"]
    assert known_path("ours").read_bytes() == brought.read_bytes()
    assert same_weights(load_model("ours"), load_model(brought))
    assert import_model("ours") == known_path("ours")


@pytest.mark.parametrize("name", ["default", "segnext-sax1"])
def test_no_other_model_is_imported_under_a_known_name(network, tmp_path, cache, name) -> None:
    """The name would go on to mean the known one; elsewhere the file may be called what it likes."""
    path = save_model(network, tmp_path / f"{name}.safetensors")
    digest = checkpoints.file_sha256(path)
    message = (
        rf"the name '{name}' is kept for a known model \(sha256 .*\), but .* has sha256 {digest}; rename"
    )
    with pytest.raises(ValueError, match=message):
        import_model(path)
    assert not cache.exists()
    assert import_model(path, tmp_path / "kept") == tmp_path / "kept" / f"{name}.safetensors"


def test_an_imported_file_of_ours_keeps_its_type_and_notes(network, tmp_path, cache) -> None:
    """It is copied, not written anew."""
    path = save_model(network, tmp_path / "mine.safetensors", half=True, licence="none")
    assert import_model(path).read_bytes() == path.read_bytes()
    assert [file.name for file in cache.iterdir()] == ["mine.safetensors"]


def test_tensors_keep_their_names_in_our_files(network, tmp_path) -> None:
    """The official keys, so that a file can be read elsewhere."""
    path = save_model(network, tmp_path / "mine.safetensors")
    assert load_tensors(path).keys() == network.state_dict().keys()


def test_a_model_that_cannot_be_written_is_one_sentence(network, tmp_path) -> None:
    """The folder is not there, or is read-only."""
    with pytest.raises(OSError, match=r"a.safetensors could not be written: "):
        checkpoints.save_model(network, tmp_path / "no" / "a.safetensors")


def test_the_ending_of_a_file_may_be_in_capitals(network, tmp_path) -> None:
    """As some systems write it."""
    path = checkpoints.save_model(network, tmp_path / "a.safetensors").rename(tmp_path / "A.SAFETENSORS")
    assert same_weights(checkpoints.load_model(path), network)


def test_an_interrupted_record_is_no_record(cache) -> None:
    """The next download is the first again, instead of one that never matches."""
    cache.mkdir(exist_ok=True)
    (cache / "segnext-sax1.pth.sha256").write_text("")
    assert checkpoints.model_info("segnext-sax1")["sha256"] is None


def test_the_names_are_listed_without_torch(run_python) -> None:
    """A window that lists models does not wait for the library that runs them."""
    listed = run_python(
        "import sys\nfrom napari_lowlat_seg.models.registry import known_names\n"
        "print(known_names()[0], 'torch' in sys.modules)"
    )
    assert listed == "default False"
