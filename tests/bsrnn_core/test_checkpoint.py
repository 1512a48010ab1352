"""Checkpoints: back bit for bit, replaced all or nothing, refused in one sentence."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

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
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=list(DAMAGES))
def test_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    checkpoint.save(tmp_path / "best", model(), {})
    damage(tmp_path / "best")
    with pytest.raises(BadInput, match="best"):
        checkpoint.load(tmp_path / "best")


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
