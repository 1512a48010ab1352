"""From words, presets and files to a configuration."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from bsrnn_core.config import StftConfig
from bsrnn_core.errors import BadInput
from pipelines.config import OF_ONE_RUN, PRESETS, TrainConfig, original
from pipelines.config_files import (
    RUN_CONFIG,
    leaf_values,
    leaves,
    read_yaml,
    save_yaml,
    with_values,
)
from pipelines.flags import parse
from pipelines.infer import InferConfig
from pipelines.tune_plan import TuneConfig


@dataclass(frozen=True, kw_only=True)
class OtherConfig:
    """A command that shares the STFT with a training, and a name with another meaning."""

    out: str = "mine"
    level: int
    stft: StftConfig = field(default_factory=StftConfig)


@dataclass(frozen=True, kw_only=True)
class OptionalOtherConfig:
    """The same with a default for everything."""

    out: str = "mine"
    stft: StftConfig = field(default_factory=StftConfig)


def train(*words: str, shared: dict[str, str] | None = None) -> TrainConfig:
    return parse(TrainConfig, words, prog="bsrnn train", presets=PRESETS, shared=shared)


def refusal(*words: str) -> str:
    with pytest.raises(BadInput) as refused:
        train(*words)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- flags ----------------------------------------------------------------------------------


def test_no_words_give_the_original_preset():
    assert train() == original()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_whole(name: str):
    assert train("--preset", name) == PRESETS[name]()


def test_a_preset_reaches_only_what_another_command_shares_with_it():
    config = parse(OptionalOtherConfig, ["--preset=tiny"], prog="bsrnn other", presets=PRESETS)
    assert config.stft == PRESETS["tiny"]().stft
    assert config.out == "mine"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--part", "a", "--part", "b"], {"part": ("a", "b")}),
        (["--part=a"], {"part": ("a",)}),
        (["--stem_names", "x", "y"], {"stem_names": ("x", "y")}),
        (["--splits", "100", "50", "200", "10", "--band_schema", "custom"],
         {"splits": ((100.0, 50.0), (200.0, 10.0)), "band_schema": "custom"}),
        (["--seed", "-1"], {"seed": -1}),
        (["--name=--odd"], {"name": "--odd"}),
        (["--batch-size", "3"], {"batch_size": 3}),
        (["--lr", "1", "--lr", "2"], {"lr": 2.0}),
        (["--reduce_size"], {"reduce_size": True}),
        (["--reduce_size", "true"], {"reduce_size": True}),
        (["--reduce_size=True", "--name", "x"], {"reduce_size": True, "name": "x"}),
        (["--remix", "false"], {"remix": False}),
        (["--no_remix"], {"remix": False}),
        (["--no-remix"], {"remix": False}),
        (["--generic_bands", "true"], {"band_schema": "generic"}),
        (["--generic_bands", "true", "--band_schema", "generic"], {"band_schema": "generic"}),
        (["--generic_bands", "false"], {}),
        (["--generic_bands", "false", "--band_schema", "v1"], {"band_schema": "v1"}),
        (["--chunk_size_in_seconds", "9", "--crop_seconds", "8"],
         {"chunk_size_in_seconds": 9.0, "crop_seconds": 8.0}),
    ],
)  # fmt: skip
def test_flags(words: list[str], expected: dict[str, object]):
    assert leaf_values(train(*words)) == leaf_values(original()) | expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lrr", "3"], "did you mean --lr?"),
        (["--no_lr"], "no option --no_lr"),
        (["stray"], "stray"),
        (["--lr"], "--lr"),
        (["--lr", "abc"], "--lr: could not convert string to float: 'abc'"),
        (["--max_minutes", "abc"], "--max_minutes: could not convert string to float: 'abc'"),
        (["--lr", "1", "2"], "2"),
        (["--precision", "fp8"], "--precision"),
        (["--batch_size", "0"], "batch_size must be positive, not 0"),
        (["--crop_seconds", "9"], "crop_seconds = 9 is longer than a stored chunk of 1 s"),
        (["--reduce_size", "maybe"], "--reduce_size takes true or false, not maybe"),
        (["--no_remix", "true"], "--no_remix takes no value"),
        (["--preset", "timy"], "choose one of original, tiny"),
        (["--preset"], "--preset takes one value"),
        (["--generic_bands", "true", "--band_schema", "v7"], "contradicts --band_schema v7"),
        (["--generic_bands", "false", "--band_schema", "generic"], "contradicts"),
        (["--generic_bands", "perhaps"], "takes true or false"),
    ],
)
def test_refused_flags(words: list[str], said: str):
    assert said in refusal(*words)
    assert "Got errors" not in refusal(*words)


def test_a_value_that_is_required_is_asked_for():
    with pytest.raises(BadInput, match="--level must be given"):
        parse(OtherConfig, [], prog="bsrnn other")
    with pytest.raises(BadInput, match="--level must be given"):
        parse(OtherConfig, ["--preset", "tiny"], prog="bsrnn other", presets=PRESETS)
    words = ["--preset", "tiny", "--level", "3"]
    config = parse(OtherConfig, words, prog="bsrnn other", presets=PRESETS)
    assert config == OtherConfig(level=3, stft=PRESETS["tiny"]().stft)
    assert parse(OtherConfig, ["--level", "3"], prog="bsrnn other").level == 3


def test_what_is_required_may_stand_in_the_file(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("level: 4\n")
    words = ["--config", str(tmp_path / "run.yaml")]
    assert parse(OtherConfig, words, prog="bsrnn other").level == 4


def test_preset_is_unknown_where_there_is_none():
    with pytest.raises(BadInput, match="no option --preset"):
        parse(OtherConfig, ["--preset", "tiny"], prog="bsrnn other")


def test_a_global_flag_is_dropped_where_it_means_nothing():
    shared = {"device": "cpu", "seed": "1"}
    assert parse(OptionalOtherConfig, [], prog="x", shared=shared) == OptionalOtherConfig()


def test_help_shows_every_flag_and_the_presets_own_defaults(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        train("--preset", "tiny", "--help")
    shown = capsys.readouterr().out
    assert not stop.value.code
    for name in [*leaves(TrainConfig), "preset", "config", "generic_bands"]:
        assert f"--{name}" in shown
    assert str(PRESETS["tiny"]().optim.lr) in shown


# --- files ----------------------------------------------------------------------------------


def test_two_fields_of_one_name_are_found_out():
    twice = dataclasses.make_dataclass("Twice", [("n_fft", int), ("stft", StftConfig)])
    with pytest.raises(AssertionError, match="n_fft"):
        leaves(twice)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_saved_is_taken_back(tmp_path: Path, name: str):
    config = with_values(
        PRESETS[name](),
        {"part": ("drums", "bass"), "band_schema": "custom", "splits": ((1000.0, 100.0),),
         "name": "-x: y", "max_minutes": 0.1, "remix": False, "lr": 1e-5},
    )  # fmt: skip
    save_yaml(config, tmp_path / "sub" / "run.yaml")
    assert train("--config", str(tmp_path / "sub" / "run.yaml")) == config
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["run.yaml"]


def test_flags_count_for_more_than_the_file_and_that_for_more_than_the_preset(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("part: [drums]\noptim: {lr: 1e-4, batch_size: 6}\nremix: false\n")
    config = train("--preset", "tiny", "--config", str(file), "--part", "bass", "--remix")
    expected = {"part": ("bass",), "lr": 1e-4, "batch_size": 6, "remix": True}
    assert leaf_values(config) == leaf_values(PRESETS["tiny"]()) | expected


def test_file_and_flags_need_only_fit_together(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("chunk_size_in_seconds: 0.5\n")
    assert train("--config", str(file), "--crop_seconds", "0.5").crop_seconds == 0.5
    assert "crop_seconds" in refusal("--config", str(file))


def test_the_generic_alias_counts_for_more_than_the_file(tmp_path: Path):
    file = tmp_path / "run.yaml"
    file.write_text("model:\n  band_schema: v1\n")
    config = train("--config", str(file), "--generic_bands", "true")
    assert config.model.band_schema == "generic"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lrr: 1", "no option lrr; did you mean lr?"),
        ("optim: {n_ftt: 1}", "no option n_ftt under optim"),
        ("optim: {n_fft: 1024}", "no option n_fft under optim"),
        ("optin: {lr: 1}", "did you mean optim?"),
        ("optim: 3", "optim must be a mapping"),
        ("lr: {a: 1}", "lr takes a value, not a mapping"),
        ("lr: 1\noptim: {lr: 2}", "lr is given twice"),
        ("lr: [1, 2]", "lr takes one value, not a list"),
        ("part: drums", "part takes a list"),
        ("lr: true", "lr takes a value other than true or false"),
        ("reduce_size: 1", "reduce_size takes true or false, not 1"),
        ("name:", "name has no value"),
        ("lr: abc", "--lr: could not convert"),
        ("- lr", "must hold a mapping"),
        ("a: [", "not valid YAML (line 1)"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, said: str):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    sentence = refusal("--config", str(file))
    assert said in sentence
    assert str(file) in sentence


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    assert "none.yaml cannot be read" in refusal("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml cannot be read" in refusal("--config", str(tmp_path / "binary.yaml"))


def test_resume_takes_the_options_of_the_run(tmp_path: Path):
    first = train("--name", "a", "--out", str(tmp_path), "--lr", "0.5", "--part", "bass")
    save_yaml(first, tmp_path / "a" / RUN_CONFIG)
    again = ["--name", "a", "--out", str(tmp_path)]
    resumed = train(*again, "--resume", "--max_epochs", "7")
    assert (resumed.optim.lr, resumed.part, resumed.optim.max_epochs) == (0.5, ("bass",), 7)
    assert resumed.resume and not first.resume
    for words in (again, [*again, "--resume", "false"], ["--name", "b", "--resume"]):
        assert train(*words).optim.lr == TrainConfig().optim.lr


@pytest.fixture
def earlier(tmp_path: Path) -> TrainConfig:
    """The options of a run in the folder "a", with something for each that is of one run only."""
    config = with_values(
        PRESETS["tiny"](),
        {"name": "a", "part": ("bass",), "stem_weights": (2.0,), "checkpoint_fp": "other/best",
         "transfer": True, "unfreeze_after_epochs": 3, "out": str(tmp_path), "resume": True,
         "max_minutes": 9.0, "musdbhq_location": "music", "lr": 0.5, "remix": False},
    )  # fmt: skip
    assert all(leaf_values(config)[n] != leaf_values(original())[n] for n in OF_ONE_RUN)
    save_yaml(config, tmp_path / "a" / RUN_CONFIG)
    return config


def test_a_checkpoint_brings_the_options_of_its_run(tmp_path: Path, earlier: TrainConfig):
    best = str(tmp_path / "a" / "best")
    of_one_run = {name: leaf_values(original())[name] for name in OF_ONE_RUN}
    expected = {**leaf_values(earlier), **of_one_run, "checkpoint_fp": best}
    assert leaf_values(train("--checkpoint_fp", best)) == expected
    assert leaf_values(train("--checkpoint_fp", f"{best}/")) == expected | {
        "checkpoint_fp": f"{best}/"
    }
    words = ["--lr", "0.25", "--remix", "--part", "drums", "--transfer", "--max_minutes", "2"]
    said = {"lr": 0.25, "remix": True, "part": ("drums",), "transfer": True, "max_minutes": 2.0}
    assert leaf_values(train("--checkpoint_fp", best, *words)) == expected | said


def test_other_music_than_the_runs_needs_other_shards(tmp_path: Path, earlier: TrainConfig):
    save_yaml(with_values(earlier, {"shards": "prepared"}), tmp_path / "a" / RUN_CONFIG)
    words = ["--checkpoint_fp", str(tmp_path / "a" / "best")]
    assert train(*words).shards == "prepared"
    named = train(*words, "--musdbhq_location", "mine")
    assert (named.shards, named.source.musdbhq_location) == (None, "mine")


def test_a_preset_or_a_file_counts_for_more_than_the_run_of_the_checkpoint(
    tmp_path: Path, earlier: TrainConfig
):
    best = str(tmp_path / "a" / "best")
    (tmp_path / "mine.yaml").write_text("lr: 0.125\n")
    for words, expected in [
        (["--preset", "original"], leaf_values(original())),
        (["--config", str(tmp_path / "mine.yaml")], leaf_values(original()) | {"lr": 0.125}),
    ]:
        assert leaf_values(train("--checkpoint_fp", best, *words)) == expected | {
            "checkpoint_fp": best
        }


def test_a_resumed_run_keeps_its_own_options(tmp_path: Path, earlier: TrainConfig):
    mine = with_values(original(), {"name": "b", "out": str(tmp_path), "lr": 0.75})
    save_yaml(mine, tmp_path / "b" / RUN_CONFIG)
    words = ["--checkpoint_fp", str(tmp_path / "a" / "best"), "--name", "b", "--out", str(tmp_path)]
    assert train(*words, "--resume").optim.lr == 0.75
    assert train(*words).optim.lr == earlier.optim.lr


def test_a_checkpoint_without_its_run_takes_what_is_said(tmp_path: Path):
    best = str(tmp_path / "moved")
    expected = leaf_values(original()) | {"checkpoint_fp": best, "feature_dim": 48}
    assert leaf_values(train("--checkpoint_fp", best, "--feature_dim", "48")) == expected


def test_a_checkpoint_brings_nothing_to_a_command_that_only_uses_it(
    tmp_path: Path, earlier: TrainConfig
):
    words = ["--checkpoint_fp", str(tmp_path / "a" / "best"), "--input", "x", "--out", "y"]
    config = parse(InferConfig, words, prog="bsrnn infer")
    assert (config.input, config.out) == (("x",), "y")


def tune(*words: str) -> TuneConfig:
    return parse(TuneConfig, list(words), prog="bsrnn tune", presets=PRESETS)


def test_a_sweep_takes_the_options_of_a_training_in_every_stage(
    tmp_path: Path, earlier: TrainConfig
):
    space = ("--space", "lr=[1e-3,2e-3]", "mlp_dim=[8,16]")
    mtl = tune("--part", "bass", "--part", "drums", "--stem_weights", "1", "2", *space)
    assert (mtl.train.stage, mtl.space) == ("mtl", ("lr=[1e-3,2e-3]", "mlp_dim=[8,16]"))
    best = str(tmp_path / "a" / "best")
    words = ("--part", "vocals", "--transfer", "--checkpoint_fp", best, *space)
    transfer = tune(*words, "--batch_size", "3")
    assert transfer.train.stage == "transfer"
    # All else is as in the run of the checkpoint, whose file holds a training and no sweep.
    asked = ["--part", "vocals", "--transfer", "--checkpoint_fp", best, "--batch_size", "3"]
    assert transfer.train == train(*asked)
    assert transfer.train.optim.lr == earlier.optim.lr


def test_the_options_of_a_training_are_those_of_what_holds_one(
    tmp_path: Path, earlier: TrainConfig
):
    file = str(tmp_path / "a" / RUN_CONFIG)
    assert tune("--config", file, "--search", "tpe").train == earlier
    (tmp_path / "wrong.yaml").write_text("optim: {feature_dim: 3}\n")
    with pytest.raises(BadInput, match=r"there is no option feature_dim under train\.optim"):
        tune("--config", str(tmp_path / "wrong.yaml"))


def test_an_empty_file_changes_nothing(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("# nothing yet\n")
    assert read_yaml(tmp_path / "run.yaml", TrainConfig) == {}


def test_a_saved_file_is_plain_yaml(tmp_path: Path):
    save_yaml(original(), tmp_path / "run.yaml")
    content = yaml.safe_load((tmp_path / "run.yaml").read_text())
    assert content["stft"]["n_fft"] == original().stft.n_fft
    assert content["source"]["stem_names"] == list(original().source.stem_names)
