"""Cuts long recordings into clips without silence: `python -m d2v_lightning.commands.cut_speech FOLDER --out DIR`."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from d2v_lightning.commands.running import run_command
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import NotFoundError, UserError, reason_of
from d2v_lightning.support.lines import listed
from d2v_lightning.support.locks import only_one_in
from datamodules.shared.files import RECORDINGS, expanded, files_below, refuse_gone
from datamodules.speech.waveform import TRUNCATED, UNREADABLE, Recording, Waveform, samples_at_16k

PUBLISHED_SECONDS = 60.0
SETTINGS, LEFT_OUT = "cut_speech.json", "left_out.txt"  # in the folder that is written


class Stretch(NamedTuple):
    """Speech without a pause: its first sample at 16 kHz, and the one after its last."""

    begin: int
    end: int


class Cut(NamedTuple):
    """What became of one recording: how many clips of how many seconds, or why there are none."""

    recording: str
    clips: int = 0
    seconds: float = 0.0
    left_out: str = ""


def voice_activity(path: Path) -> list[Stretch]:
    """Where there is speech, from the JSON file that Libri-light puts beside a recording: `{"voice_activity": [[0.4, 12.32],
    ...], ...}`, beginning and end in seconds.

    Raises:
        ValueError: it is no such file.
        FileNotFoundError: there is none.
    """
    try:
        content = json.loads(path.read_bytes())
        pairs = content["voice_activity"]
        stretches = [Stretch(round(float(begin) * RATE), round(float(end) * RATE)) for begin, end in pairs]
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {path.name} beside it, which says where there is speech") from error
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f'{path.name} has no list of speech like {{"voice_activity": [[0.4, 12.3], ...]}}, in seconds'
        ) from error
    if any(not 0 <= begin < end for begin, end in stretches):
        raise UserError(f"{path.name} has a stretch of voice_activity that begins before 0 or ends before it begins")
    return stretches


def joined(stretches: Sequence[Stretch], seconds: float) -> Iterator[list[Stretch]]:
    """The stretches of each clip: as many in a row as fit into `seconds`. One that is longer is a clip of its own, as in
    Libri-light's own data_preparation/cut_by_vad.py."""
    clip: list[Stretch] = []
    for stretch in stretches:
        length = sum(end - begin for begin, end in [*clip, stretch])
        if clip and length > seconds * RATE:
            yield clip
            clip = []
        clip.append(stretch)
    if clip:
        yield clip


def cut_recording(path: str, folder: Path, seconds: float) -> Cut:
    """Write the clips of one recording to a folder, which is whole or not there: `<name>_0000.flac` and so on, of one channel
    at 16 kHz and 16 bits. Samples of a recording that is such itself are the same.

    Raises:
        FolderGoneError: the folder of the recording has vanished.
        OSError: the clips cannot be written.
    """
    name, count, samples = Path(path).stem, 0, 0
    try:
        stretches = voice_activity(Path(path).with_suffix(".json"))
        if not stretches:
            raise UserError("its JSON file lists no speech")
        with Recording(path) as recording, atomic_write(folder) as unfinished:
            unfinished.mkdir()
            for count, clip in enumerate(joined(stretches, seconds), start=1):
                waveform = np.concatenate([np.zeros(0, np.float32), *(_read(recording, part) for part in clip)])
                (unfinished / f"{name}_{count - 1:04d}.flac").write_bytes(_flac(waveform))
                samples += len(waveform)
            promised = sum(end - begin for begin, end in stretches)
            if samples < TRUNCATED * promised:
                raise UserError(
                    f"{samples / RATE:.1f} of {promised / RATE:.1f} s of speech are there: it is truncated, or the JSON file "
                    "is another's"
                )
            recording.refuse_cancelled()
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno and str(folder) in str(error.filename):
            raise
        refuse_gone(path, error)
        return Cut(path, left_out=reason_of(error))
    return Cut(path, count, samples / RATE)


def _read(recording: Recording, part: Stretch) -> Waveform:
    """The samples of a stretch; none behind the end of the recording."""
    if recording.frames is not None and part.begin >= samples_at_16k(recording.frames, recording.rate):
        return np.zeros(0, np.float32)
    return recording.part(*part)


def _flac(waveform: Waveform) -> bytes:
    file = io.BytesIO()
    whole = np.rint(waveform * 32768.0).clip(-32768, 32767).astype(np.int16)
    soundfile.write(file, whole, RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def cut_all(root: Path, out: Path, seconds: float, workers: int) -> None:
    """Cut all recordings below a folder that have not been cut yet, into the same tree below `out`.

    Raises:
        FileNotFoundError: there is no such folder, or no recording in it.
        ValueError: `out` lies in `root`, is in use or was made with another length, or nothing could be cut.
    """
    if not math.isfinite(seconds) or seconds <= 0 or workers < 1:
        raise UserError(
            f"seconds {seconds}, workers {workers}: permitted are more than 0 seconds, and 1 worker or more"
        )
    if not root.is_dir():
        raise NotFoundError(f"{root} is no folder: give one that holds recordings, each with a JSON file beside it")
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out} lies in {root}, whose recordings are cut: write to another folder")
    found = files_below(root, (*RECORDINGS, ".json"))
    recordings = [path for path in found if not path.lower().endswith(".json")]
    if not recordings:
        raise NotFoundError(f"{root} holds no recording: give a folder with files in one of {' '.join(RECORDINGS)}")
    with only_one_in(out):
        _cut_found(found, recordings, root, out, seconds, workers)


def _cut_found(found: list[str], recordings: list[str], root: Path, out: Path, seconds: float, workers: int) -> None:
    """Those of the recordings that have no folder yet, and a list of what else was found."""
    _agree(out / SETTINGS, {"seconds": seconds})
    folders: dict[Path, str] = {}
    unused: list[Cut] = []
    for path in recordings:
        first = folders.setdefault(_folder(path, root, out), path)
        if first != path:
            unused.append(Cut(path, left_out=f"{first} has the same name"))
    alone = [path for path in found if path.lower().endswith(".json") and _folder(path, root, out) not in folders]
    above = {parent for folder in folders for parent in folder.parents}
    for folder in sorted(above & folders.keys()):
        unused.append(Cut(folders.pop(folder), left_out="a folder with recordings has the same name"))
    unused += [Cut(path, left_out="there is no recording beside it") for path in alone]
    todo = {folder: path for folder, path in folders.items() if not folder.is_dir()}
    cuts = [*unused, *_cut(todo, seconds, workers)]
    bad = [f"{cut.recording}: {cut.left_out}" for cut in cuts if cut.left_out]
    with atomic_write(out / LEFT_OUT) as unfinished:
        unfinished.write_bytes(os.fsencode("".join(f"{line}\n" for line in bad)))
    done = [cut for cut in cuts if not cut.left_out]
    before = len(folders) - len(todo)
    if bad and not done and not before:
        raise UserError(
            f"none of {len(recordings)} recordings could be cut, the first of {len(bad)} reasons is {bad[0]}"
        )
    hours = sum(cut.seconds for cut in done) / 3600
    earlier = f", {before} had been cut before" if before else ""
    print(f"{len(done)} recordings cut into {sum(cut.clips for cut in done)} clips, {hours:.1f} hours{earlier}: {out}")
    if bad:
        print(f"{len(bad)} file(s) left out, all named in {out / LEFT_OUT}: {listed(bad)}", file=sys.stderr)


def _folder(path: str, root: Path, out: Path) -> Path:
    """Where the clips of a recording go: `speaker/book/recording` as Libri-light has `speaker/book/recording.flac`."""
    return out / Path(path).relative_to(root).with_suffix("")


def _cut(todo: dict[Path, str], seconds: float, workers: int) -> Iterator[Cut]:
    """Threads do it: decoding and encoding happen in libsndfile, side by side."""
    pool = ThreadPoolExecutor(workers)
    try:
        running = [pool.submit(cut_recording, path, folder, seconds) for folder, path in todo.items()]
        for finished in tqdm(as_completed(running), "recordings", len(running), disable=None):
            yield finished.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _agree(path: Path, settings: dict[str, float]) -> None:
    """Note the settings of a folder, or compare them with what it was begun with."""
    if not path.is_file():
        with atomic_write(path) as unfinished:
            unfinished.write_text(json.dumps(settings))
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: remove the folder, or write to another") from error
    if before != settings:
        raise UserError(
            f"{path.parent} was begun with {before}, not {settings}: give the same, or write to another folder"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m d2v_lightning.commands.cut_speech",
        description="Cuts recordings into clips without silence. Beside each is a JSON file with its voice_activity, as in "
        "Libri-light. The command goes on where it was stopped.",
    )
    parser.add_argument(
        "folder", type=expanded, help="holds recordings in any tree, such as small/<speaker>/<book>/*.flac"
    )
    parser.add_argument("--out", required=True, type=expanded, help="folder to write, for data.root; it keeps the tree")
    parser.add_argument(
        "--seconds", type=float, default=PUBLISHED_SECONDS,
        help="longest clip that is joined of several stretches of speech; 60 as Libri-light's own cut_by_vad.py",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="recordings cut at once; by default all cores"
    )
    given = parser.parse_args(arguments)
    return run_command(lambda: cut_all(given.folder, given.out, given.seconds, given.workers))


if __name__ == "__main__":
    sys.exit(main())
