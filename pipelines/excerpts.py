"""What a page lets one hear: which songs, which seconds of them, and each model's estimates there.

An excerpt begins on a whole second, so that its seconds are those that were scored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from bsrnn_core.checkpoint import load
from bsrnn_core.config import SeparationConfig
from bsrnn_core.errors import BadInput
from bsrnn_core.metrics import frame_sdr
from bsrnn_core.model import BSRNN
from bsrnn_core.separation import separate_blocks
from data_prep.config import SourceConfig
from data_prep.storage import location
from data_prep.tracks import Track, TrackAudio, find_tracks, read_track
from pipelines import display
from pipelines.remote_checkpoints import local_checkpoint
from pipelines.scoring import Evaluation

TOLERANCE_DB = 0.1
"""How far the scores of two machines, or of two number formats, may lie apart in the median of the
excerpt's seconds; further apart, what would be heard is not what was scored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExcerptConfig:
    """Which songs can be heard on the page, and how much of them."""

    song: tuple[str, ...] = ()
    """Songs to listen to, by name (when not given: the worst, the median and the best by uSDR)."""
    excerpt_seconds: int = 20
    """Length of what can be heard of a song."""
    start_seconds: int | None = None
    """Where it starts in the song (where all stems sound most, when not given)."""

    def __post_init__(self) -> None:
        if self.excerpt_seconds < 1:
            raise BadInput(f"excerpt_seconds must be at least 1, not {self.excerpt_seconds}")
        if self.start_seconds is not None and self.start_seconds < 0:
            raise BadInput(f"start_seconds must not be negative, not {self.start_seconds}")


class ListeningOptions(Protocol):
    """What a command's configuration says of the songs and how they are separated."""

    @property
    def excerpts(self) -> ExcerptConfig:
        """What can be heard."""
        ...

    @property
    def source(self) -> SourceConfig:
        """The songs."""
        ...

    @property
    def separation(self) -> SeparationConfig:
        """As they were separated for the scores."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """A model with its scores."""

    label: str
    """What the page calls it."""
    checkpoint: str
    model: BSRNN
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Excerpt:
    """A part of a song, and what the models make of it: samples [C, n]."""

    song: str
    reason: str
    """Why this song: ``worst``, ``median``, ``best``, or nothing when it was asked for."""
    first_second: int
    song_seconds: float
    sample_rate: int
    mixture: Float[Tensor, "C n"]
    references: Mapping[str, Float[Tensor, "C n"]]
    """By stem: the stems that any of the models estimates."""
    estimates: Mapping[str, Mapping[str, Float[Tensor, "C n"]]]
    """By model's label, then by stem."""


def load_scored(
    checkpoint: str, evaluation: Evaluation, device: str, label: str | None = None
) -> Scored:
    """A checkpoint's model with its scores, called ``label`` (when not given: by its run's name).

    ``device`` is that of the evaluation, and may be one that only other machines have.
    """
    there = device != "cpu" and torch.cuda.is_available()
    return Scored(
        label=label or location(checkpoint).parent.name or checkpoint,
        checkpoint=checkpoint,
        model=load(local_checkpoint(checkpoint), "cuda" if there else "cpu"),
        evaluation=evaluation,
    )


def make_excerpts(
    scored: Sequence[Scored], options: ListeningOptions, bars: Progress
) -> list[Excerpt]:
    """The excerpts of the chosen songs, separated anew by every model; progress is a bar in
    ``bars``.

    Raises BadInput when a song cannot be found or read, does not reach ``start_seconds``, or is
    not what was scored.
    """
    songs = choose_songs(scored[0].evaluation, options.excerpts.song)
    tracks = _tracks_of(list(songs), scored[0].evaluation.subset, options.source)
    excerpts = []
    with display.bar_among(bars, "excerpts to listen to", len(songs)) as bar:
        for song, reason in songs.items():
            excerpts.append(_excerpt(scored, tracks[song], reason, options))
            bars.update(bar, advance=1)
    return excerpts


def choose_songs(evaluation: Evaluation, names: Sequence[str]) -> dict[str, str]:
    """Names of songs, each with the reason why.

    Those that are asked for; else the worst, the median and the best by the mean uSDR of the stems
    that have one. Raises BadInput for a name that was not scored.
    """
    scored = {track.track: track.scores["usdr"]["model"] for track in evaluation.tracks}
    for name in names:
        if name not in scored:
            raise BadInput(
                f"--song {name}: no such song was scored in {evaluation.subset}, only "
                f"{_few(list(scored))}"
            )
    if names:
        return dict.fromkeys(names, "")
    means = {
        song: torch.tensor(list(by_stem.values()), dtype=torch.float64)
        for song, by_stem in scored.items()
    }
    order = [song for song, values in means.items() if not values.isnan().all()]
    order = sorted(order, key=lambda song: means[song].nanmean().item()) or list(scored)[:1]
    reasons: dict[str, str] = {}
    for reason, k in (("worst", 0), ("best", -1), ("median", (len(order) - 1) // 2)):
        reasons.setdefault(order[k], reason if len(order) > 1 else "")
    return {song: reasons[song] for song in order if song in reasons}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def choose_excerpt(
    references: Float[Tensor, "S C N"], sample_rate: int, config: ExcerptConfig
) -> tuple[int, int]:
    """First second and number of samples of the part to hear.

    Where no start is asked for, it is the part in which the quietest of the stems, each against its
    own mean level, sounds most. A stem that is silent throughout has no say. A song that is no
    longer than the excerpt is taken whole. Raises BadInput when it ends before the start.
    """
    num_samples = references.shape[-1]
    length = min(num_samples, config.excerpt_seconds * sample_rate)
    if config.start_seconds is not None:
        left = num_samples - config.start_seconds * sample_rate
        if left <= 0:
            raise BadInput(
                f"start_seconds = {config.start_seconds}, but the song lasts "
                f"{num_samples / sample_rate:.1f} s: choose less"
            )
        return config.start_seconds, min(left, length)
    starts = (num_samples - length) // sample_rate + 1
    if starts == 1:
        return 0, length
    seconds = references[..., : num_samples // sample_rate * sample_rate]
    energy = seconds.square().mean(1).unflatten(-1, (-1, sample_rate)).mean(-1)  # [S, seconds]
    energy = energy[energy.sum(1) > 0]
    if not len(energy):
        return 0, length
    # Loud seconds count no more than the mean: a window is to sound throughout.
    levels = (energy / energy.mean(1, keepdim=True)).clamp_max(1)
    windows = levels.unfold(-1, length // sample_rate, 1).mean(-1)[:, :starts]
    return int(windows.min(0).values.argmax()), length


def _tracks_of(songs: list[str], subset: str, source: SourceConfig) -> dict[str, Track]:
    tracks = {track.name: track for track in find_tracks(source) if track.split == subset}
    for song in songs:
        if song not in tracks:
            raise BadInput(
                f"{source.musdbhq_location} has no song {song} in {subset}, which was scored: name "
                "the folder of the scored songs with --musdbhq_location, or score these with "
                "--rescore true"
            )
    return tracks


def _excerpt(
    scored: Sequence[Scored], track: Track, reason: str, options: ListeningOptions
) -> Excerpt:
    source = options.source
    audio = read_track(track, source.stem_names, sample_rate=None, lengths=source.lengths)
    estimated = {stem for each in scored for stem in each.model.stems}
    stems = [stem for stem in source.stem_names if stem in estimated]
    chosen = audio.references[[audio.stems.index(stem) for stem in stems]]
    try:
        first_second, count = choose_excerpt(chosen, audio.sample_rate, options.excerpts)
    except BadInput as error:
        raise BadInput(f"{track.name}: {error}") from None
    first = first_second * audio.sample_rate
    references = dict(zip(stems, chosen[..., first : first + count].clone(), strict=True))
    estimates = {}
    for each in scored:
        found = _separate(each.model, audio, first, count, options.separation)
        _check_scored(each, track.name, references, found, first_second, audio.sample_rate)
        estimates[each.label] = found
    return Excerpt(
        song=track.name,
        reason=reason,
        first_second=first_second,
        song_seconds=audio.mixture.shape[-1] / audio.sample_rate,
        sample_rate=audio.sample_rate,
        mixture=audio.mixture[:, first : first + count].clone(),
        references=references,
        estimates=estimates,
    )


def _separate(
    model: BSRNN, audio: TrackAudio, first: int, count: int, separation: SeparationConfig
) -> dict[str, Tensor]:
    """The same samples as the whole song's, for only the windows over the excerpt's."""
    blocks = separate_blocks(
        model,
        lambda begin, length: audio.mixture[:, begin : begin + length],
        audio.mixture.shape[-1],
        audio.sample_rate,
        separation,
        first=first,
        count=count,
    )
    return dict(zip(model.stems, torch.cat(list(blocks), dim=-1), strict=True))


def second_scores(evaluation: Evaluation, song: str, stem: str) -> list[float]:
    """The model's SDR in dB of every second of a song, nan where there is none."""
    track = next(track for track in evaluation.tracks if track.track == song)
    target = next(target for target in track.museval["targets"] if target["name"] == stem)
    return [float(frame["metrics"]["SDR"]) for frame in target["frames"]]


def _check_scored(
    scored: Scored,
    song: str,
    references: Mapping[str, Tensor],
    estimates: Mapping[str, Tensor],
    first_second: int,
    sample_rate: int,
) -> None:
    """Raises BadInput when the excerpt's scores are not those of the evaluation: a checkpoint that
    was trained on since, or other songs of the same names."""
    stems = list(estimates)
    now = frame_sdr(
        torch.stack([references[stem] for stem in stems]),
        torch.stack([estimates[stem] for stem in stems]),
        sample_rate,
        scored.evaluation.protocol,
    )
    for seconds, stem in zip(now, stems, strict=True):
        then = second_scores(scored.evaluation, song, stem)[first_second:][: len(seconds)]
        apart = (seconds[: len(then)] - torch.tensor(then, dtype=seconds.dtype)).abs()
        apart = apart[apart.isfinite()]
        if len(apart) and apart.median() > TOLERANCE_DB:
            raise BadInput(
                f"{song}: what {scored.checkpoint} makes of its {stem} now is not what was scored "
                "(another model, song or window): score again with --rescore true"
            )
