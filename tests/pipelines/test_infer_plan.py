"""What is to be separated and where it goes: songs, names, and what is there already."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bsrnn_core.errors import BadInput
from pipelines.infer_plan import InferConfig, find_songs, outputs_of, plan

CONFIG = InferConfig(checkpoint_fp="best", input=("song.wav",), out="out")


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def planned(config: InferConfig, *outputs: str) -> dict[str, list[str]]:
    """Song -> its files, below the output folder."""
    jobs, _ = plan(config, find_songs(config.input), outputs)
    return {
        job.song.name: [str(file.relative_to(config.out)) for file in job.files.values()]
        for job in jobs
    }


def test_songs_are_found_by_file_folder_and_glob_each_once(tmp_path: Path) -> None:
    songs = [tmp_path / name for name in ("b.MP3", "a.wav", "live/one/c.m4a", "live/d.flac")]
    hidden = (tmp_path / "._a.wav", tmp_path / "live" / ".d.wav")
    touch(*songs, *hidden, tmp_path / "cover.jpg", tmp_path / "live" / "notes.txt")
    (tmp_path / "a folder.wav").mkdir()
    assert find_songs([str(tmp_path)]) == [songs[1], songs[0]]
    assert find_songs([str(tmp_path / "live" / "**" / "*")]) == [songs[3], songs[2]]
    everything = [str(tmp_path / "**" / "*.flac"), str(songs[3]), str(tmp_path), str(songs[0])]
    assert find_songs(everything) == [songs[3], songs[1], songs[0]]


def test_a_song_whose_name_looks_like_a_glob_is_that_song(tmp_path: Path) -> None:
    odd = tmp_path / "song[1]*.wav"
    touch(odd, tmp_path / "song1.wav")
    assert find_songs([str(odd)]) == [odd]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.wav", "no such file or folder"),
        ("*.wav", "no song has a name like this; looked for .wav, .flac"),
        ("empty", "no songs in this folder; looked for .wav, .flac"),
        ("s3://bucket/song.wav", "--input takes a local file"),
    ],
)
def test_where_there_is_no_song_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=words):
        find_songs([name])


def test_files_are_named_by_song_stem_and_folder(tmp_path: Path) -> None:
    songs = [tmp_path / "one" / "mixture.wav", tmp_path / "two" / "mixture.wav"]
    touch(*songs)
    config = replace(CONFIG, input=(str(tmp_path / "*" / "*"),), out=str(tmp_path / "out"))
    with pytest.raises(BadInput, match=r"mixture-bass\.wav: .* would replace .*--name_template"):
        planned(config, "bass")
    jobs, _ = plan(
        replace(config, name_template="{folder}/{stem} of {song}", format="flac"), songs, ["bass"]
    )
    assert [job.files["bass"] for job in jobs] == [
        tmp_path / "out" / folder / "bass of mixture.flac" for folder in ("one", "two")
    ]


def test_an_output_never_takes_the_place_of_a_song_or_of_another_output(tmp_path: Path) -> None:
    touch(tmp_path / "a.wav", tmp_path / "a-bass.wav")
    config = replace(CONFIG, input=(str(tmp_path),), out=str(tmp_path))
    with pytest.raises(BadInput, match=r"a-bass\.wav: .* would replace"):
        planned(replace(config, overwrite=True), "bass")
    with pytest.raises(BadInput, match=r"let it hold \{stem\}"):
        planned(replace(config, name_template="{song}-x"), "bass", "drums")


def test_what_is_there_is_refused_replaced_or_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    touch(tmp_path / "a.wav", tmp_path / "b.wav")
    touch(out / "a-bass.wav", out / "a-drums.wav", out / "b-bass.wav")
    config = replace(CONFIG, input=(str(tmp_path),), out=str(out))
    with pytest.raises(BadInput, match=r"a-bass\.wav: is there already"):
        planned(config, "bass", "drums")
    assert set(planned(replace(config, overwrite=True), "bass", "drums")) == {"a.wav", "b.wav"}
    resumed = replace(config, resume=True)
    # A song is done when all its files are there.
    assert set(planned(resumed, "bass", "drums")) == {"b.wav"}
    _, done = plan(resumed, find_songs(resumed.input), ["bass", "drums"])
    assert done == [tmp_path / "a.wav"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"input": ()}, "no song"),
        ({"num_workers": 0}, "num_workers"),
        ({"overwrite": True, "resume": True}, "contradict"),
        ({"format": "mp3", "subtype": "PCM_16"}, "does not go with"),
        ({"format": "flac", "subtype": "FLOAT"}, "does not go with"),
        ({"name_template": "{stem"}, "name_template"),
        ({"name_template": "{artist}-{stem}"}, "stand in braces"),
        ({"name_template": "{stem.__class__}"}, "stand in braces"),
        ({"name_template": "../{stem}"}, "below --out"),
        ({"name_template": "/tmp/{stem}"}, "below --out"),
        ({"name_template": ""}, "below --out"),
    ],
)
def test_illegal_options_are_refused(wrong: dict[str, Any], words: str) -> None:
    options = {"checkpoint_fp": "c", "input": ("i",), "out": "o"} | wrong
    with pytest.raises(BadInput, match=words):
        InferConfig(**options)


def test_outputs_are_the_models_stems_and_what_is_left() -> None:
    stems = ("vocals", "drums")
    assert outputs_of(CONFIG, stems) == stems
    assert outputs_of(replace(CONFIG, stems=("drums", "drums")), stems) == ("drums",)
    both = replace(CONFIG, stems=("drums",), instrumental=True, residual=True)
    assert outputs_of(both, stems) == ("drums", "instrumental", "residual")
    with pytest.raises(BadInput, match="but not piano: choose"):
        outputs_of(replace(CONFIG, stems=("piano",)), stems)
    with pytest.raises(BadInput, match="instrumental needs the vocals"):
        outputs_of(replace(CONFIG, instrumental=True), ("drums",))
    with pytest.raises(BadInput, match="one name twice"):
        outputs_of(replace(CONFIG, residual=True), ("residual",))
