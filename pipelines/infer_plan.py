"""What `bsrnn infer` is to do: which songs, and which files of each; nothing is written here."""

import glob
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bsrnn_core.audio_files import SONG_ENDINGS
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from data_prep.storage import local_only

RESIDUAL = "residual"
"""What is left of the mixture when the stems that are written are taken away."""
INSTRUMENTAL = "instrumental"
"""What is left of the mixture when the vocals are taken away."""
VOCALS = "vocals"

Subtype = Literal["FLOAT", "PCM_24", "PCM_16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class InferConfig:
    """Options of `bsrnn infer`."""

    checkpoint_fp: str
    """Folder of the checkpoint, or s3://bucket/runs/NAME/best."""
    input: tuple[str, ...]
    """Songs (wav, flac, ogg, mp3, m4a, mp4), folders of songs, and globs like 'live/**/*.mp3'."""
    out: str
    """Folder for the stems."""
    stems: tuple[str, ...] = ()
    """Stems to write (all of the model's when not given)."""
    residual: bool = False
    """Write the mixture minus the stems that are written too: the files then sum to the song."""
    instrumental: bool = False
    """Write the mixture minus the vocals too."""
    format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    """Format of the stems."""
    subtype: Subtype | None = None
    """Sample format of wav and flac (FLOAT for wav, PCM_24 for flac when not given)."""
    clip: Literal["clamp", "rescale"] = "clamp"
    """Where a format ends at full scale and a song's stems do not: clamp the samples that exceed
    it, or rescale all files of the song alike. FLOAT keeps them as they are."""
    name_template: str = "{song}-{stem}"
    """Name of a file in the folder, without its ending; {folder} is the name of the song's."""
    overwrite: bool = False
    """Replace files that are there already."""
    resume: bool = False
    """Leave out songs whose files are all there already."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU when there is one."""
    num_workers: int | None = None
    """Songs separated at once, on Ray (one per core or GPU when not given; 1 does without Ray)."""
    separation: SeparationConfig = field(default_factory=SeparationConfig)

    def __post_init__(self) -> None:
        if not self.input:
            raise BadInput("there is no song: name files, folders or globs with --input")
        if self.num_workers is not None and self.num_workers < 1:
            raise BadInput(f"num_workers must be at least 1, not {self.num_workers}")
        if self.overwrite and self.resume:
            raise BadInput("--overwrite and --resume contradict each other: give one of them")
        wrong = {"wav": (), "flac": ("FLOAT",)}.get(self.format, ("FLOAT", "PCM_24", "PCM_16"))
        if self.subtype in wrong:
            raise BadInput(f"subtype {self.subtype} does not go with format {self.format}")
        _check_template(self.name_template)

    @property
    def written_subtype(self) -> str | None:
        """libsndfile's name of the sample format; None for the codec of ogg and mp3."""
        return self.subtype or {"wav": "FLOAT", "flac": "PCM_24"}.get(self.format)

    @property
    def ends_at_full_scale(self) -> bool:
        """Whether the files cannot hold samples beyond 1."""
        return self.written_subtype != "FLOAT"


@dataclass(frozen=True, kw_only=True, slots=True)
class SongJob:
    """A song and its files: output (a stem, residual or instrumental) -> file."""

    song: Path
    files: dict[str, Path]


def _check_template(template: str) -> None:
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        named = template.format(song="song", stem="stem", folder="folder")
    except (ValueError, LookupError, AttributeError):
        fields, named = {""}, template
    if not fields <= {"song", "stem", "folder"}:
        raise BadInput(
            f"name_template {template!r}: only {{song}}, {{stem}} and {{folder}} stand in braces"
        )
    if not named.strip() or Path(named).is_absolute() or ".." in Path(named).parts:
        raise BadInput(f"name_template {template!r}: must name a file below --out")


def outputs_of(config: InferConfig, model_stems: Sequence[str]) -> tuple[str, ...]:
    """What is written of each song, in order. Raises BadInput for what the model does not give."""
    unknown = [stem for stem in config.stems if stem not in model_stems]
    if unknown:
        raise BadInput(
            f"{config.checkpoint_fp} estimates {', '.join(model_stems)}, but not "
            f"{', '.join(unknown)}: choose among them with --stems"
        )
    if config.instrumental and VOCALS not in model_stems:
        raise BadInput(
            f"--instrumental needs the vocals, which {config.checkpoint_fp} does not estimate; "
            "--residual takes away what it does"
        )
    stems = tuple(dict.fromkeys(config.stems)) or tuple(model_stems)
    extra = [(INSTRUMENTAL, config.instrumental), (RESIDUAL, config.residual)]
    outputs = stems + tuple(name for name, wanted in extra if wanted)
    if len(set(outputs)) < len(outputs):
        raise BadInput(f"the outputs {', '.join(outputs)} have one name twice")
    return outputs


def find_songs(inputs: Sequence[str]) -> list[Path]:
    """The songs that are named, each once. Raises BadInput where there is none."""
    songs: dict[Path, Path] = {}
    for name in inputs:
        for song in _songs_of(local_only(name, "input")):
            songs.setdefault(song.resolve(), song)
    return list(songs.values())


def _songs_of(path: Path) -> list[Path]:
    endings = ", ".join(SONG_ENDINGS)
    if path.is_dir():
        songs = _audio_files(path.iterdir())
        if not songs:
            raise BadInput(f"{path}: no songs in this folder; looked for {endings}")
        return songs
    if path.exists() or not glob.has_magic(str(path)):
        if not path.exists():
            raise BadInput(f"{path}: there is no such file or folder")
        return [path]
    songs = _audio_files(map(Path, glob.glob(str(path), recursive=True)))
    if not songs:
        raise BadInput(f"{path}: no song has a name like this; looked for {endings}")
    return songs


def _audio_files(paths: Iterable[Path]) -> list[Path]:
    """Those with the ending of a song, by name; hidden ones (macOS' ._song.wav) are none."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SONG_ENDINGS and not path.name.startswith(".") and path.is_file()
    )


def out_folder(config: InferConfig) -> Path:
    """Where the files go. Raises BadInput for what cannot be a folder of this machine."""
    out = local_only(config.out, "out")
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out}: is a file; give a folder for the stems with --out")
    return out


def plan(
    config: InferConfig, songs: Sequence[Path], outputs: Sequence[str]
) -> tuple[list[SongJob], list[Path]]:
    """The songs to separate, and those that are done already (``resume``).

    Raises BadInput where an output would replace a song or another output, or, unless that is
    asked for, a file that is there.
    """
    out = out_folder(config)
    jobs, done = [], []
    taken = {song.resolve(): song for song in songs}
    for song in songs:
        files = {output: out / _name(config, song, output) for output in outputs}
        if len(set(files.values())) < len(files):
            raise BadInput(
                f"name_template {config.name_template!r} gives {', '.join(outputs)} one name: "
                "let it hold {stem}"
            )
        for file in files.values():
            other = taken.setdefault(_resolved(file), song)
            if other is not song or _resolved(file) == song.resolve():
                raise BadInput(
                    f"{file}: the output of {song.name} would replace {other.name} or its output; "
                    "choose another --out or --name_template, or rename a song"
                )
        there = [file for file in files.values() if file.exists()]
        if config.resume and len(there) == len(files):
            done.append(song)
            continue
        if there and not (config.overwrite or config.resume):
            raise BadInput(
                f"{there[0]}: is there already; --overwrite replaces such files, --resume leaves "
                "out the songs that are done"
            )
        jobs.append(SongJob(song=song, files=files))
    return jobs, done


def _resolved(file: Path) -> Path:
    """Raises BadInput for a name that the file system does not take."""
    try:
        file.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BadInput(
            f"{file}: cannot write there ({error.strerror}); choose another --out or "
            "--name_template"
        ) from error
    return file.resolve()


def _name(config: InferConfig, song: Path, output: str) -> str:
    folder = song.resolve().parent.name
    name = config.name_template.format(song=song.stem, stem=output, folder=folder)
    return f"{name}.{config.format}"
