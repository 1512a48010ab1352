"""Checkpoints: back bit for bit, replaced all or nothing, refused in one sentence."""

import json
import math
import pickle
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bsrnn_core
from bsrnn_core import checkpoint
from bsrnn_core.config import BsrnnConfig, ModelConfig, StftConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.model import BSRNN

CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=8000, n_fft=64, hop_samples=20),
    model=ModelConfig(
        band_schema="custom",
        splits=((1000.0, 250.0), (4000.0, 1000.0)),
        feature_dim=4,
        num_blstm_layers=1,
        mlp_dim=8,
    ),
    stems=("drums", "piano"),
    crop_seconds=0.5,
)


class Killed(BaseException):
    """Ends the process where it stands, as far as a test can."""


def model(seed=0):
    torch.manual_seed(seed)
    return BSRNN(CONFIG)


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def names(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_bit_for_bit(tmp_path):
    saved = model()
    metadata = {"step": 12, "epoch": 3, "git_commit": "abc", "score": None}
    checkpoint.save(tmp_path / "runs" / "best", saved, metadata)
    loaded = bsrnn_core.load(tmp_path / "runs" / "best")
    assert same_weights(loaded, saved)
    assert loaded.config == CONFIG
    assert not loaded.training
    mixture = torch.randn(1, 2, 33, 7, dtype=torch.complex64)
    assert torch.equal(loaded(mixture), saved(mixture))
    assert checkpoint.read_metadata(tmp_path / "runs" / "best") == metadata
    assert names(tmp_path / "runs") == ["best"]
    assert names(tmp_path / "runs" / "best") == ["config.json", "model.safetensors"]


def test_config_file_says_what_the_model_is(tmp_path):
    checkpoint.save(tmp_path / "best", model(), {})
    content = json.loads((tmp_path / "best" / "config.json").read_text())
    assert content["model"]["stems"] == ["drums", "piano"]
    assert content["model"]["stft"] == {"sample_rate": 8000, "n_fft": 64, "hop_samples": 20}
    assert content["model"]["model"]["band_schema"] == "custom"


def test_replaces_what_is_there(tmp_path):
    for seed in range(3):
        checkpoint.save(tmp_path / "last", model(seed), {"seed": seed})
    assert same_weights(checkpoint.load(tmp_path / "last"), model(2))
    assert checkpoint.read_metadata(tmp_path / "last") == {"seed": 2}
    assert names(tmp_path) == ["last"]


def test_failure_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last", model(0), {})

    def write_half(folder, *_):
        (folder / "model.safetensors").write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(checkpoint, "write_model", write_half)
    with pytest.raises(Killed):
        checkpoint.save(tmp_path / "last", model(1), {})
    assert same_weights(checkpoint.load(tmp_path / "last"), model(0))
    assert names(tmp_path) == ["last"]


def test_new_folder_bears_its_name_only_when_it_is_whole(tmp_path):
    def write(folder: Path):
        assert not (tmp_path / "best").exists()
        checkpoint.write_model(folder, model(), {})

    checkpoint.replace_folder(tmp_path / "best", write)
    assert same_weights(checkpoint.load(tmp_path / "best"), model())


def test_death_between_the_two_renames_leaves_the_predecessor(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last", model(0), {"step": 1})
    rename = Path.rename

    def die_on_the_second(path: Path, target: Path):
        if path.name != "last":
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_on_the_second)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path / "last", model(1), {"step": 2})
    assert names(tmp_path) == ["last.previous"]
    assert checkpoint.existing_folder(tmp_path / "last") == tmp_path / "last.previous"
    assert same_weights(checkpoint.load(tmp_path / "last"), model(0))
    assert checkpoint.read_metadata(tmp_path / "last") == {"step": 1}

    checkpoint.save(tmp_path / "last", model(2), {"step": 3})
    assert names(tmp_path) == ["last"]
    assert same_weights(checkpoint.load(tmp_path / "last"), model(2))


def test_leftovers_of_a_killed_replacement_do_no_harm(tmp_path):
    checkpoint.save(tmp_path / "last", model(0), {})
    checkpoint.save(tmp_path / "last.previous", model(1), {})
    checkpoint.save(tmp_path / "last.tmp.1", model(1), {})
    assert same_weights(checkpoint.load(tmp_path / "last"), model(0))
    checkpoint.save(tmp_path / "last", model(2), {})
    assert same_weights(checkpoint.load(tmp_path / "last"), model(2))
    assert not (tmp_path / "last.previous").exists()


def test_missing_folder(tmp_path):
    assert checkpoint.existing_folder(tmp_path / "best") is None
    for function in (checkpoint.load, checkpoint.read_metadata):
        with pytest.raises(BadInput, match=r"best: there is no such"):
            function(tmp_path / "best")


def damage_weights(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_config(folder: Path, change):
    content = json.loads((folder / "config.json").read_text())
    change(content["model"])
    (folder / "config.json").write_text(json.dumps(content))


DAMAGES = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "config cut short": lambda folder: (folder / "config.json").write_text('{"model"'),
    "config of another kind": lambda folder: (folder / "config.json").write_text("[1]"),
    "config not text": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"),
    "config empty": lambda folder: (folder / "config.json").write_text("{}"),
    "model of another kind": lambda folder: (folder / "config.json").write_text('{"model": []}'),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "weights cut short": damage_weights,
    "weights of another kind": lambda f: (f / "model.safetensors").write_bytes(b"no weights"),
    "unknown option": lambda f: change_config(f, lambda model: model["model"].update(depth=3)),
    "illegal option": lambda f: change_config(f, lambda model: model["stft"].update(n_fft=-2)),
    "option of another type": lambda f: change_config(f, lambda m: m["stft"].update(n_fft="2")),
    "other size": lambda f: change_config(f, lambda model: model["model"].update(feature_dim=5)),
    "other stems": lambda f: change_config(f, lambda model: model.update(stems=["drums"])),
    "stems of another type": lambda f: change_config(f, lambda m: m.update(stems=[1, 2])),
    "stems as a word": lambda f: change_config(f, lambda m: m.update(stems="ab")),
    "a stem that leaves the folder": lambda f: change_config(
        f, lambda m: m.update(stems=["drums", "../../../piano"])
    ),
    "a fraction": lambda f: change_config(f, lambda m: m["stft"].update(n_fft=64.0)),
    "not a number": lambda f: change_config(f, lambda m: m.update(crop_seconds=math.nan)),
    "infinite": lambda f: change_config(f, lambda m: m.update(crop_seconds=math.inf)),
    "text for a number": lambda f: change_config(f, lambda m: m.update(crop_seconds="3")),
    "splits of another type": lambda f: change_config(f, lambda m: m["model"].update(splits=[7])),
    "metadata and nothing else": lambda f: (f / "config.json").write_text('{"metadata": 3}'),
    "config nested without end": lambda f: (f / "config.json").write_text("[" * 100_000),
    "config too long": lambda f: (f / "config.json").write_text(" " * 10_000_001),
    "version of another type": lambda f: (f / "config.json").write_text('{"format_version": "2"}'),
    # Petabytes, if they were made; and loops that would not end.
    "huge rate": lambda f: change_config(f, lambda m: m["stft"].update(sample_rate=10**15)),
    "huge window": lambda f: change_config(f, lambda m: m["stft"].update(n_fft=10**15)),
    "huge windows": lambda f: change_config(f, lambda m: m["stft"].update(n_fft=2**20)),
    "huge features": lambda f: change_config(f, lambda m: m["model"].update(feature_dim=16384)),
    "huge depth": lambda f: change_config(f, lambda m: m["model"].update(num_blstm_layers=10**9)),
    "huge heads": lambda f: change_config(f, lambda m: m["model"].update(mlp_dim=2**16)),
    "huge octave": lambda f: change_config(
        f, lambda m: m["model"].update(band_schema="generic", splits=[], divisions=10**12)
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    checkpoint.save(tmp_path / "best", model(), {})
    damage(tmp_path / "best")
    with pytest.raises(BadInput, match="best"):
        checkpoint.load(tmp_path / "best")


def test_any_flipped_bit_of_the_weights_is_noticed(tmp_path):
    checkpoint.save(tmp_path / "best", model(), {})
    file = tmp_path / "best" / "model.safetensors"
    content = file.read_bytes()
    for place in torch.randint(len(content), (20,)).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        with pytest.raises(BadInput, match=r"best: .*damaged: copy it anew"):
            checkpoint.load(tmp_path / "best")
    file.write_bytes(content)
    assert same_weights(checkpoint.load(tmp_path / "best"), model())


def test_a_checkpoint_from_before_sums_and_versions_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "best", model(), {"step": 1})
    file = tmp_path / "best" / "config.json"
    content = json.loads(file.read_text())
    assert content.pop("format_version") == 1
    assert len(content.pop("weights_sha256")) == 64
    file.write_text(json.dumps(content))
    assert same_weights(checkpoint.load(tmp_path / "best"), model())
    # Without a sum, weights that can be of no training are refused still.
    weights = safetensors.torch.load_file(tmp_path / "best" / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = math.nan
    safetensors.torch.save_file(weights, tmp_path / "best" / "model.safetensors")
    with pytest.raises(BadInput, match="NaN or infinite"):
        checkpoint.load(tmp_path / "best")


def test_a_checkpoint_of_a_newer_version_says_so(tmp_path):
    checkpoint.save(tmp_path / "best", model(), {})
    content = json.loads((tmp_path / "best" / "config.json").read_text())
    (tmp_path / "best" / "config.json").write_text(json.dumps(content | {"format_version": 2}))
    for function in (checkpoint.load, checkpoint.read_metadata):
        with pytest.raises(BadInput, match=r"best: made by a newer version.*update the program"):
            function(tmp_path / "best")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_is_never_executed(tmp_path):
    proof = tmp_path / "executed"
    payload = pickle.dumps(Payload(proof))
    pickle.loads(payload)
    assert proof.exists()
    proof.unlink()
    checkpoint.save(tmp_path / "best", model(), {})
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    del config["weights_sha256"]
    (tmp_path / "best" / "config.json").write_text(json.dumps(config))
    torch.save({"a": Payload(proof)}, tmp_path / "saved")
    for content in (payload, (tmp_path / "saved").read_bytes()):
        (tmp_path / "best" / "model.safetensors").write_bytes(content)
        with pytest.raises(BadInput, match="cannot be loaded"):
            checkpoint.load(tmp_path / "best")
    (tmp_path / "old").mkdir()
    (tmp_path / "saved").rename(tmp_path / "old" / "model.pt")
    with pytest.raises(BadInput, match="not a checkpoint"):
        checkpoint.load(tmp_path / "old")
    assert not proof.exists()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([0, -1, 2**20, 2**31, 2**63, 10**30, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_is_in_the_two_files_gives_a_model_or_a_sentence(data):
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(Path(folder) / "best", model(), {})
        weights, config = (Path(folder) / "best" / n for n in ("model.safetensors", "config.json"))
        content = json.loads(config.read_text())
        del content["weights_sha256"]
        kind = data.draw(st.sampled_from(["bytes", "header", "config", "value"]))
        if kind == "bytes":
            weights.write_bytes(data.draw(st.binary(max_size=200)))
        elif kind == "header":
            start = bytearray(weights.read_bytes())
            for _ in range(data.draw(st.integers(1, 4))):
                start[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
            weights.write_bytes(start)
        elif kind == "value":
            part = data.draw(st.sampled_from(["stft", "model"]))
            name = data.draw(st.sampled_from(sorted(content["model"][part])))
            content["model"][part][name] = data.draw(json_values)
        if kind == "config":
            config.write_bytes(data.draw(st.binary(max_size=200)))
        else:
            config.write_text(json.dumps(content))
        try:
            assert isinstance(checkpoint.load(Path(folder) / "best"), BSRNN)
        except BadInput as error:
            assert str(error).startswith(f"{folder}/best: ")


@pytest.mark.parametrize("write", ["safetensors", "torch", "plain"])
def test_a_full_disk_leaves_the_old_one_and_is_said_to_be_full(small_disk, write):
    disk = small_disk(1)
    checkpoint.save(disk / "last", model(), {"step": 1})
    before = {file.name: file.read_bytes() for file in (disk / "last").iterdir()}
    (disk / "filler").write_bytes(bytes(1024 * 1024 - 200_000))

    def fill(folder: Path) -> None:
        values = torch.zeros(100_000)
        if write == "safetensors":
            safetensors.torch.save_file({"a": values}, folder / "model.safetensors")
        elif write == "torch":
            torch.save(values, folder / "state.pt")
        else:
            (folder / "config.json").write_bytes(values.numpy().tobytes())

    with pytest.raises(BadInput, match="no room for last: the disk is full"):
        checkpoint.replace_folder(disk / "last", fill)
    assert names(disk) == ["filler", "last"]
    assert {file.name: file.read_bytes() for file in (disk / "last").iterdir()} == before


def test_a_failure_of_another_kind_is_not_called_a_full_disk(tmp_path):
    def fail(_: Path) -> None:
        raise RuntimeError("shapes do not go together")

    with pytest.raises(RuntimeError, match="shapes"):
        checkpoint.replace_folder(tmp_path / "last", fail)
