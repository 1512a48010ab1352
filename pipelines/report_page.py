"""One HTML page, with nothing beside it, to see an evaluation's scores and hear its songs."""

import base64
import hashlib
import html
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsrnn_core.audio_files import resample, write_audio
from data_prep.config import SourceConfig
from data_prep.demo_songs import SETTINGS_FILE
from data_prep.storage import Location, RemotePath
from pipelines import display, plots
from pipelines.excerpts import Excerpt, ListeningOptions, Scored, make_excerpts, second_scores
from pipelines.run_storage import working_copy

MP3_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""The sample rates that mp3 has."""
WAVE_COLUMNS = 700
"""Points that a waveform is drawn from."""
FULL_SCALE = 0.99
PROTOCOLS = {
    "joint": "all stems together: a second in which a stem or an estimate is silent counts for "
    "none of them",
    "single": "each stem by itself",
}


def write_page(scored: Sequence[Scored], options: ListeningOptions, out: Location) -> Path:
    """Write the page of one model's evaluation, or of several models' of the same songs, to ``out``
    and say so; returns the file on this machine.

    Raises BadInput as ``make_excerpts`` does.
    """
    with display.progress(counted=True) as bars:
        excerpts = make_excerpts(scored, options, bars)
    file = working_copy(out.parent) / out.name
    display.write_text(file, page(scored, excerpts, options.source))
    if isinstance(out, RemotePath):
        out.send(file)
    print(f"page to listen written to {out} ({file.stat().st_size / 1e6:.1f} MB)")
    return file


def page(scored: Sequence[Scored], excerpts: Sequence[Excerpt], source: SourceConfig) -> str:
    """The HTML of these scores and excerpts; ``source`` is where the songs are from."""
    data = {
        "models": [each.label for each in scored],
        "songs": [_song(excerpt, scored) for excerpt in excerpts],
    }
    script = _part("js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    songs = {excerpt.song: f"#song-{k}" for k, excerpt in enumerate(excerpts)}
    names = " and ".join(each.label for each in scored)
    parts = {
        "title": html.escape(f"{names}: scores and songs"),
        "style": _part("css"),
        "script": script,
        "script_digest": digest,
        "data": _inside_script(data),
        "origin": _origin(scored, source),
        "summary": _summary(scored),
        "tracks": _tracks(scored, songs),
        "num_songs": str(len(scored[0].evaluation.tracks)),
        "left_out": _left_out(scored),
    }
    # In one go, so that no song's name can stand for another part.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("html"))


def _part(ending: str) -> str:
    return Path(__file__).with_name(f"report_page.{ending}").read_text(encoding="utf-8")


def _inside_script(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in, whatever its texts are."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _origin(scored: Sequence[Scored], source: SourceConfig) -> str:
    """Which numbers these are."""
    evaluation = scored[0].evaluation
    folder = str(source.musdbhq_location)
    songs = f"{len(evaluation.tracks)} song(s) of the subset {evaluation.subset} of {folder}"
    if (Path(folder).expanduser() / SETTINGS_FILE).is_file():
        songs += ", which were composed by a program: these are no scores on real music"
    lines = {
        "songs": songs,
        "protocol": f"{evaluation.protocol}, {PROTOCOLS[evaluation.protocol]}",
        "uSDR": "the signal-to-distortion ratio of a whole song; over songs, their mean",
        "cSDR": "the median of a song's seconds; over songs, the median of those",
        "mixture": "the floor: the song itself taken as every estimate",
        "oracle": "the ideal ratio mask, which knows the stems",
    }
    for each in scored:
        model = each.model
        size = f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.1f} M parameters"
        bands = f"band schema {model.config.model.band_schema}"
        name = each.label if len(scored) > 1 else "model"
        lines[name] = f"{each.checkpoint} ({bands}, {size}, estimates {', '.join(model.stems)})"
    rows = (f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in lines.items())
    return "\n".join(rows)


def _summary(scored: Sequence[Scored]) -> str:
    """The rows of the terminal's table; those of several models next to each other."""
    rows = [(each.label, row) for each in scored for row in display.summary_rows(each.evaluation)]
    order = list(dict.fromkeys((row[0], row[1]) for _, row in rows if row[0] != "mean"))
    order += [("mean", name) for name in display.DISPLAY.values()]
    rows.sort(key=lambda labelled: order.index((labelled[1][0], labelled[1][1])))
    return _labelled(len(scored), display.SUMMARY_HEADER, rows)


def _tracks(scored: Sequence[Scored], links: Mapping[str, str]) -> str:
    """A row per song, stem and model."""
    rows = [(each.label, row) for each in scored for row in display.track_rows(each.evaluation)]
    rows.sort(key=lambda labelled: str(labelled[1][0]))
    return _labelled(len(scored), display.TRACK_HEADER, rows, links)


def _labelled(
    num_models: int,
    header: Sequence[str],
    rows: Sequence[tuple[str, Sequence[display.Cell]]],
    links: Mapping[str, str] | None = None,
) -> str:
    """A table of rows with their models' labels, which a single model does without."""
    if num_models == 1:
        return _table(header, [row for _, row in rows], links)
    labelled = [[*row[:2], label, *row[2:]] for label, row in rows]
    return _table((*header[:2], "checkpoint", *header[2:]), labelled, links)


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[display.Cell]],
    links: Mapping[str, str] | None = None,
) -> str:
    """A table in HTML; a first cell that ``links`` names leads there."""

    def cell(value: display.Cell, first: bool) -> str:
        shown = html.escape(display.text(value))
        if first and links and value in links:
            shown = f'<a href="{links[str(value)]}">{shown}</a>'
        kind = ' class="number"' if not isinstance(value, str) else ""
        return f'<th scope="row">{shown}</th>' if first else f"<td{kind}>{shown}</td>"

    numbers = [any(not isinstance(row[k], str) for row in rows) for k in range(len(header))]
    head = "".join(
        f'<th scope="col"{" class=number" if number else ""}>{html.escape(name)}</th>'
        for name, number in zip(header, numbers, strict=True)
    )
    body = "\n".join(
        f"<tr>{''.join(cell(value, k == 0) for k, value in enumerate(row))}</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _left_out(scored: Sequence[Scored]) -> str:
    skipped = {name: why for each in scored for name, why in each.evaluation.skipped.items()}
    items = (f"<li>{html.escape(f'{name}: {why}')}</li>" for name, why in skipped.items())
    return f"<h3>Left out</h3><ul>{''.join(items)}</ul>" if skipped else ""


def _song(excerpt: Excerpt, scored: Sequence[Scored]) -> dict[str, Any]:
    """What the page's script needs of a song: audio, waveforms, spectrograms, scores by seconds."""
    signals = {"mixture": excerpt.mixture}
    errors: dict[str, Tensor] = {}
    stems: list[dict[str, Any]] = []
    for stem, reference in excerpt.references.items():
        signals[f"reference/{stem}"] = reference
        estimates = []
        for k, each in enumerate(scored):
            if stem not in each.model.stems:
                continue
            estimate = excerpt.estimates[each.label][stem]
            signals[f"estimate/{k}/{stem}"] = estimate
            errors[f"error/{k}/{stem}"] = reference - estimate
            estimates.append({"model": k, **_scores(each, excerpt.song, stem)})
        stems.append({"name": stem, "estimates": estimates})
    images, hz = plots.spectrogram_images({**signals, **errors}, excerpt.sample_rate)
    # One gain for all, so that what is louder stays louder.
    peak = max(samples.abs().max().item() for samples in signals.values())
    gain = min(1.0, FULL_SCALE / max(peak, 1e-9))
    return {
        "name": excerpt.song,
        "reason": excerpt.reason,
        "first": excerpt.first_second,
        "seconds": excerpt.mixture.shape[-1] / excerpt.sample_rate,
        "songSeconds": excerpt.song_seconds,
        "gainDb": 20 * math.log10(gain),
        "hz": hz,
        "stems": stems,
        "audio": {
            name: base64.b64encode(_mp3(gain * samples, excerpt.sample_rate)).decode()
            for name, samples in signals.items()
        },
        "peaks": {name: _peaks(samples / max(peak, 1e-9)) for name, samples in signals.items()},
        "images": {
            name: f"data:image/webp;base64,{base64.b64encode(image).decode()}"
            for name, image in images.items()
        },
    }


def _scores(scored: Scored, song: str, stem: str) -> dict[str, Any]:
    track = next(track for track in scored.evaluation.tracks if track.track == song)
    seconds = second_scores(scored.evaluation, song, stem)
    return {
        "usdr": display.text(track.scores["usdr"]["model"][stem]),
        "csdr": display.text(track.scores["csdr"]["model"][stem]),
        "seconds": [None if math.isnan(value) else round(value, 2) for value in seconds],
    }


def _mp3(samples: Tensor, sample_rate: int) -> bytes:
    """Samples [C, N] in the format that every browser decodes; more than two channels as their
    mean."""
    if samples.shape[0] > 2:
        samples = samples.mean(0, keepdim=True)
    rate = next((rate for rate in MP3_HZ if rate >= sample_rate), MP3_HZ[-1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "excerpt.mp3"
        write_audio(file, resample(samples, sample_rate, rate), rate)
        return file.read_bytes()


def _peaks(samples: Tensor) -> list[int]:
    """The largest of the samples [C, N] of each part of the time, in percent of full scale."""
    loudest = samples.abs().amax(0)
    columns = torch.nn.functional.adaptive_max_pool1d(
        loudest[None], min(WAVE_COLUMNS, len(loudest))
    )
    return (100 * columns[0]).round().int().tolist()
