"""One method for songs in any form; what it answers is what ``separate`` does."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from bsrnn_core import BSRNN, BadInput, BsrnnConfig, ModelConfig, StftConfig, separate
from bsrnn_core.audio_files import read_audio, write_audio
from bsrnn_core.checkpoint import save
from bsrnn_core.config import SeparationConfig
from bsrnn_core.prediction import Predictor, _load_pyfunc, default_params

CONFIG = BsrnnConfig(
    stft=StftConfig(sample_rate=8000, n_fft=256),
    model=ModelConfig(band_schema="v1", feature_dim=4, num_blstm_layers=1, mlp_dim=4),
    stems=("drums", "bass"),
)
OPTIONS = {"window_seconds": 0.5, "overlap": 0.5, "batch_size": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def model() -> BSRNN:
    torch.manual_seed(0)
    return BSRNN(CONFIG).eval()


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("songs") / "song.wav"
    write_audio(file, 0.1 * torch.randn(2, 9000), 16000, subtype="FLOAT")
    return file


def assert_same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for stem, samples in expected.items():
        assert found[stem].dtype == np.float32
        np.testing.assert_array_equal(found[stem], samples.numpy())


def test_a_path_gives_the_stems_of_its_song(model: BSRNN, song: Path) -> None:
    for path in (song, str(song)):
        assert_same(Predictor(model).predict(path), separate(model, song))


def test_several_songs_give_a_list(model: BSRNN, song: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.flac"
    write_audio(other, 0.1 * torch.randn(1, 3000), 8000)
    names = [str(song), str(other)]
    for several in (names, tuple(names), pandas.DataFrame({"number": [1, 2], "path": names})):
        found = Predictor(model).predict(several)
        assert isinstance(found, list) and len(found) == 2
        assert_same(found[0], separate(model, song))
        assert_same(found[1], separate(model, other))


def test_samples_are_at_the_rate_that_is_said(model: BSRNN, song: Path) -> None:
    samples = read_audio(song)
    predictor = Predictor(model)
    assert_same(predictor.predict(samples.numpy()), separate(model, samples))
    found = predictor.predict(samples.double().numpy(), {"sample_rate": np.int64(16000)})
    assert_same(found, separate(model, samples, 16000))
    # A file has a rate of its own.
    assert_same(predictor.predict(song, {"sample_rate": 8000}), separate(model, song))


def test_options_are_those_of_the_separation(model: BSRNN, song: Path) -> None:
    expected = separate(model, song, config=SeparationConfig(**OPTIONS))
    assert not torch.equal(expected["drums"], separate(model, song)["drums"])
    assert_same(Predictor(model).predict(song, OPTIONS), expected)
    assert set(default_params(model)) == {"sample_rate", *OPTIONS}
    assert default_params(model)["sample_rate"] == 8000


@pytest.mark.parametrize(
    ("data", "params", "sentence"),
    [
        (np.zeros((2, 9), np.int16), {}, "floating-point numbers in units of full scale, not int1"),
        (np.zeros(9, np.float32), {}, r"must be \[channels, samples\]"),
        (np.zeros((1, 9)), {"sample_rate": 0}, "sample_rate must be positive, not 0"),
        (np.zeros((1, 9)), {"precision": "half"}, "one of float32, bf16, auto, not half"),
        (np.zeros((1, 9)), {"overlap": 1.5}, r"overlap must lie in \[0, 1\), not 1.5"),
        (pandas.DataFrame({"file": ["a"]}), {}, "no column path, but file"),
        (["a.wav", 3], {}, "not a int"),
        (7, {}, "give a path, a list of paths"),
        ("nowhere.wav", {}, "nowhere.wav: there is no such file"),
    ],
)
def test_bad_input_is_refused(
    model: BSRNN, data: Any, params: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        Predictor(model).predict(data, params)


def test_a_checkpoint_is_loaded_by_the_name_that_mlflow_calls(
    model: BSRNN, song: Path, tmp_path: Path
) -> None:
    save(tmp_path / "best", model, {})
    loaded = _load_pyfunc(str(tmp_path / "best"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(loaded.model.parameters()).device.type == device
    if device == "cpu":
        assert_same(loaded.predict(song), separate(model, song))
