"""Find multi-track songs on disk, split them, and read their stems.

Three layouts, told apart by what lies in ``train/``, ``valid/`` and ``test/``: folders with one
audio file per stem (MUSDB18-HQ, or anybody's own stems), and MUSDB18's ``.stem.mp4`` files.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from bsrnn_core.audio_files import AudioInfo, audio_info, read_audio, resample
from bsrnn_core.config import STEMS
from bsrnn_core.errors import BadInput
from data_prep.config import SourceConfig
from data_prep.storage import local_only
from data_prep.track_folders import ENDINGS, STEM_MP4, audio_files_in, is_stem_mp4, songs_in

Split = Literal["train", "valid", "test"]
Lengths = Literal["refuse", "pad", "trim"]

SPLITS: tuple[Split, ...] = ("train", "valid", "test")
MIXTURE = "mixture"
OTHER_MIXTURE_DB = -10.0
"""A mixture that differs by more from the sum of the stems, relative to its own level, is reported:
lossy coding alone makes up to -14 dB."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Track:
    """A song: a folder of stem files, or one ``.stem.mp4`` file."""

    name: str
    split: Split
    path: str


@dataclass(frozen=True, slots=True)
class TrackAudio:
    """A song in memory."""

    mixture: Float[Tensor, "C N"]
    references: Float[Tensor, "S C N"]
    sample_rate: int
    stems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What tells whether an input file has changed."""

    size: int
    mtime_ns: int
    sha256: str


def find_tracks(source: SourceConfig) -> list[Track]:
    """All tracks below ``source.musdbhq_location``, sorted by split and name.

    Validation: the folder ``valid/`` when it holds tracks; else those of musdb's own 14 validation
    tracks that are in train; else a seeded draw from train. The test split is left alone.
    ``source.portion`` then thins the training tracks. Only folders are listed, no file is opened.
    Raises BadInput when there is no such folder or no track in it.
    """
    if source.musdbhq_location is None:
        raise BadInput("no music named: give its folder with --musdbhq_location DIR")
    root = local_only(source.musdbhq_location, "musdbhq_location").expanduser().absolute()
    if not root.is_dir():
        raise BadInput(f"{root} is not a folder: give the folder of your songs")
    found: dict[Split, list[Track]] = {split: _tracks_in(root, split) for split in SPLITS}
    if not any(found.values()):
        raise BadInput(
            f"no tracks found in {root}: looked in train/, valid/ and test/ there for folders of "
            f"{'.wav, '.join(source.stem_names)}.wav (or {', '.join(ENDINGS[1:3])} ...) and for "
            f"*{STEM_MP4} files"
        )
    _warn_of_songs_in_two_splits(found)
    train, valid = found["train"], found["valid"]
    if not valid:
        names = _validation_names([track.name for track in train], source)
        valid = [Track(t.name, "valid", t.path) for t in train if t.name in names]
        train = [track for track in train if track.name not in names]
    if source.portion < 1 and train:
        count = max(1, round(source.portion * len(train)))
        kept = _draw([track.name for track in train], count, f"portion {source.split_seed}")
        train = [track for track in train if track.name in kept]
    return [*train, *valid, *found["test"]]


def inspect_track(track: Track, stem_names: Sequence[str], lengths: Lengths) -> AudioInfo:
    """Rate, channels and length of a track from its files' headers alone.

    Raises BadInput when a stem is missing or unreadable, when stems differ in rate or channels, or
    in length while ``lengths`` is "refuse".
    """
    if is_stem_mp4(track.path):
        infos = _stem_mp4_infos(track.path, stem_names)
    else:
        infos = {str(p): audio_info(p) for p in stem_files(track, stem_names)}
    (first_file, first), *_ = infos.items()
    for file, info in infos.items():
        if info.sample_rate != first.sample_rate:
            raise BadInput(
                f"{file} has {info.sample_rate} samples per second, {first_file} "
                f"{first.sample_rate}: bring a track's stems to one rate"
            )
        if info.channels != first.channels:
            raise BadInput(
                f"{file} has {info.channels} channels, {first_file} {first.channels}: "
                "bring a track's stems to one channel count"
            )
    num_samples = _common_length({file: i.num_samples for file, i in infos.items()}, lengths)
    return AudioInfo(first.sample_rate, first.channels, num_samples)


def read_references(
    track: Track, stem_names: Sequence[str], *, sample_rate: int | None, lengths: Lengths
) -> tuple[Float[Tensor, "S C N"], int]:
    """A track's stems in the order asked for, and their rate (``sample_rate`` unless None).

    Raises BadInput for whatever makes the track unfit: see ``inspect_track``; also NaN or Inf
    samples and empty files.
    """
    inspect_track(track, stem_names, lengths)
    stems, rate = _read_stems(track, stem_names)
    return _stack(stems, lengths, rate, sample_rate or rate), sample_rate or rate


def read_track(
    track: Track, stem_names: Sequence[str], *, sample_rate: int | None, lengths: Lengths
) -> TrackAudio:
    """A track's stems and mixture. The mixture is its own file (or ``.stem.mp4`` stream) when there
    is one, also when it is not the stems' sum, which is logged; else the stems' sum. Raises
    BadInput as ``read_references`` does."""
    has_mixture = is_stem_mp4(track.path) or MIXTURE in audio_files_in(Path(track.path))
    if not has_mixture:
        references, rate = read_references(
            track, stem_names, sample_rate=sample_rate, lengths=lengths
        )
        return TrackAudio(references.sum(0), references, rate, tuple(stem_names))
    everything, rate = read_references(
        track, (*stem_names, MIXTURE), sample_rate=sample_rate, lengths=lengths
    )
    audio = TrackAudio(everything[-1], everything[:-1], rate, tuple(stem_names))
    _report_other_mixture(track, audio)
    return audio


def _report_other_mixture(track: Track, audio: TrackAudio) -> None:
    """Log a mixture that is not the sum of all of the track's stems; it is kept as it is."""
    files = STEMS if is_stem_mp4(track.path) else audio_files_in(Path(track.path))
    if set(files) - {MIXTURE} != {name.lower() for name in audio.stems}:
        return
    difference = (audio.mixture - audio.references.sum(0)).square().mean()
    level_db = 10 * torch.log10(difference / audio.mixture.square().mean().clamp_min(1e-12))
    if level_db > OTHER_MIXTURE_DB:
        logger.warning(
            "%s: the mixture is not the sum of the stems (they differ at %.1f dB of its level); it "
            "is used as it is",
            *(track.path, float(level_db)),
        )


def stem_files(track: Track, stem_names: Sequence[str]) -> list[Path]:
    """The files that a track's stems are read from. Raises BadInput for a missing stem."""
    if is_stem_mp4(track.path):
        return [Path(track.path)]
    files = audio_files_in(Path(track.path))
    for name in stem_names:
        if name.lower() not in files:
            there = ", ".join(sorted(path.name for path in files.values())) or "no audio file"
            raise BadInput(
                f"{track.path} has no file for the stem '{name}' ({name}.wav, {name}.flac ...), "
                f"only {there}: add it, or name your own stems with --stem_names"
            )
    return [files[name.lower()] for name in stem_names]


def fingerprint(track: Track, stem_names: Sequence[str]) -> dict[str, FileStamp]:
    """Size, modification time and SHA-256 of each of a track's input files, by file name."""
    stamps = {}
    for path in stem_files(track, stem_names):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        status = path.stat()
        stamps[path.name] = FileStamp(status.st_size, status.st_mtime_ns, digest)
    return stamps


def looks_unchanged(track: Track, stem_names: Sequence[str], stored: dict[str, FileStamp]) -> bool:
    """Whether names, sizes and modification times are the stored ones (no file is read)."""
    try:
        status = {path.name: path.stat() for path in stem_files(track, stem_names)}
    except (OSError, BadInput):
        return False
    return {n: (s.st_size, s.st_mtime_ns) for n, s in status.items()} == {
        name: (stamp.size, stamp.mtime_ns) for name, stamp in stored.items()
    }


def _tracks_in(root: Path, split: Split) -> list[Track]:
    songs = songs_in(root, split)
    return [Track(name, split, str(songs[name])) for name in sorted(songs)]


def _warn_of_songs_in_two_splits(found: dict[Split, list[Track]]) -> None:
    tested = {track.name for track in found["test"]}
    for track in (*found["train"], *found["valid"]):
        if track.name in tested:
            logger.warning(
                "'%s' is in %s and in test: if it is one song, its score says nothing",
                *(track.name, track.split),
            )


def _validation_names(train: list[str], source: SourceConfig) -> set[str]:
    known = set(_musdb_setup()["validation_tracks"]) & set(train)
    if known:
        return known
    if len(train) < 2 or source.valid_fraction == 0:
        return set()
    count = min(max(1, round(source.valid_fraction * len(train))), len(train) - 1)
    return _draw(train, count, f"valid {source.split_seed}")


def _draw(names: Iterable[str], count: int, salt: str) -> set[str]:
    """``count`` names in the order of their hashes: a song keeps its lot when others come or go."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{salt}/{name}".encode()).digest())
    return set(ranked[:count])


def _musdb_setup() -> dict[str, Any]:
    """musdb's own description of its data. Its file is read without importing the package, which
    fails where ffmpeg is not installed."""
    spec = importlib.util.find_spec("musdb")
    assert spec is not None and spec.origin is not None, "musdb is a dependency of this package"
    return yaml.safe_load((Path(spec.origin).parent / "configs" / "mus.yaml").read_text())


def _common_length(lengths_of: dict[str, int], lengths: Lengths) -> int:
    shortest, longest = (f(lengths_of, key=lengths_of.__getitem__) for f in (min, max))
    if lengths == "refuse" and lengths_of[shortest] != lengths_of[longest]:
        raise BadInput(
            f"{shortest} has {lengths_of[shortest]} samples, {longest} {lengths_of[longest]}: pass "
            "--lengths pad or --lengths trim to bring them to one length"
        )
    return lengths_of[shortest] if lengths == "trim" else lengths_of[longest]


def _read_stems(
    track: Track, stem_names: Sequence[str]
) -> tuple[dict[str, Float[Tensor, "C N"]], int]:
    """Samples by file (for a ``.stem.mp4``: by file and stream), and their rate."""
    if is_stem_mp4(track.path):
        return _read_stem_mp4(track.path, stem_names)
    files = stem_files(track, stem_names)
    return {str(p): read_audio(p) for p in files}, audio_info(files[0]).sample_rate


def _stack(
    stems: dict[str, Float[Tensor, "C N"]], lengths: Lengths, from_rate: int, to_rate: int
) -> Float[Tensor, "S C M"]:
    """Stems at one length and rate as one tensor; empties ``stems``, so that little more than the
    song's own memory is taken."""
    length = _common_length({file: s.shape[-1] for file, s in stems.items()}, lengths)
    stacked: Tensor | None = None
    for index, file in enumerate(list(stems)):
        stem = stems.pop(file)[:, :length]
        stem = torch.nn.functional.pad(stem, (0, length - stem.shape[-1]))
        stem = resample(stem, from_rate, to_rate)
        if stacked is None:
            stacked = torch.empty(len(stems) + 1, *stem.shape)
        stacked[index] = stem
    assert stacked is not None
    return stacked


def _stempeg(path: str) -> Any:
    """The stempeg package; musdb reads ``.stem.mp4`` through it too."""
    try:
        import stempeg
    except (ImportError, RuntimeError, OSError) as error:
        raise BadInput(
            f"{path} cannot be read without the programs ffmpeg and ffprobe: install ffmpeg"
        ) from error
    return stempeg


def _of_stem_mp4(path: str, action: Callable[[], Any]) -> Any:
    """``action``'s result; what ffmpeg says about an unreadable file becomes a BadInput."""
    try:
        return action()
    except (Exception, Warning) as error:
        raise BadInput(
            f"{path} cannot be decoded as {STEM_MP4} ({type(error).__name__}): replace the file"
        ) from error


def _stem_mp4_streams(path: str, stem_names: Sequence[str]) -> tuple[Any, dict[str, int]]:
    """ffprobe's description of a ``.stem.mp4``, and the position of each stem's audio stream."""
    stempeg = _stempeg(path)
    info = _of_stem_mp4(path, lambda: stempeg.Info(path))
    positions: dict[str, int] = _musdb_setup()["stem_ids"]
    for name in stem_names:
        if positions.get(name, info.nb_audio_streams) >= info.nb_audio_streams:
            raise BadInput(
                f"{path} has {info.nb_audio_streams} audio streams and none for the stem '{name}': "
                f"a {STEM_MP4} holds {', '.join(positions)}"
            )
    return info, {name: positions[name] for name in stem_names}


def _stem_mp4_infos(path: str, stem_names: Sequence[str]) -> dict[str, AudioInfo]:
    info, positions = _stem_mp4_streams(path, stem_names)
    return {
        f"{path}:{name}": AudioInfo(info.sample_rate(k), info.channels(k), info.samples(k))
        for name, k in positions.items()
    }


def _read_stem_mp4(path: str, stem_names: Sequence[str]) -> tuple[dict[str, Tensor], int]:
    """One stream after the other, as the 16-bit samples that musdb itself works on."""
    info, positions = _stem_mp4_streams(path, stem_names)
    stempeg, stems = _stempeg(path), {}
    for name, position in positions.items():
        stream = info.audio_stream_idx()[position]
        samples, _ = _of_stem_mp4(
            path,
            lambda stream=stream: stempeg.read_stems(
                path, stem_id=stream, info=info, dtype="float32", ffmpeg_format="s16le"
            ),
        )
        samples = torch.from_numpy(samples).reshape(-1, info.channels(position))
        if len(samples) == 0:
            raise BadInput(f"{path} holds no samples for the stem '{name}': replace the file")
        stems[f"{path}:{name}"] = samples.T.contiguous()
    return stems, info.sample_rate(0)
