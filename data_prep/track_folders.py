"""Which files of a music folder are songs and stems: folders as systems and people leave them.

Hidden files (.DS_Store, ._vocals.wav), strays (Thumbs.db, desktop.ini, pictures), names in capitals
and links are met with in every collection.
"""

from pathlib import Path

from bsrnn_core.errors import BadInput

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".w64", ".au", ".caf", ".opus")
"""Endings of stem files; where a stem has several files, the first of these is read."""
STEM_MP4 = ".stem.mp4"


def is_stem_mp4(path: str | Path) -> bool:
    """Whether it is named like one of MUSDB18's files."""
    return str(path).lower().endswith(STEM_MP4)


def songs_in(root: Path, split: str) -> dict[str, Path]:
    """The songs of ``root/split`` by name: folders, and ``.stem.mp4`` files. Links are followed.

    Raises BadInput when there are two folders or two songs of the same name.
    """
    folders = [path for path in root.iterdir() if path.name.lower() == split and path.is_dir()]
    if len(folders) > 1:
        names = " and ".join(sorted(path.name for path in folders))
        raise BadInput(f"{root} holds {names}: put the songs of both into one folder")
    songs: dict[str, Path] = {}
    for path in sorted(folders[0].iterdir()) if folders else ():
        is_file = is_stem_mp4(path.name) and path.is_file()
        if path.name.startswith((".", "__")) or not (path.is_dir() or is_file):
            continue
        name = path.name[: -len(STEM_MP4)] if is_file else path.name
        if name in songs:
            raise BadInput(
                f"{folders[0]} holds '{name}' both as a folder and as {STEM_MP4}: remove one"
            )
        songs[name] = path
    return songs


def audio_files_in(folder: Path) -> dict[str, Path]:
    """The audio files of a song's folder by stem, in lower case.

    Raises BadInput when two files differ in nothing but capitals.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending, stem = path.suffix.lower(), path.stem.lower()
        if ending not in ENDINGS or path.name.startswith(".") or path.is_dir():
            continue
        other = files.get(stem)
        if other is not None and other.suffix.lower() == ending:
            raise BadInput(f"{path} and {other.name} are the same stem: remove one")
        if other is None or ENDINGS.index(ending) < ENDINGS.index(other.suffix.lower()):
            files[stem] = path
    return files
