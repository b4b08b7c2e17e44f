"""Sentences spoken by espeak-ng, a speech synthesiser: speech with transcripts on any machine, offline.

    python examples/speak.py OUT [--minutes 20] [--seed 0]

Writes OUT in LibriSpeech's own layout: `unlabelled` (no transcripts), `train`, `dev`. It is synthetic speech, clean and
regular: enough to see a recogniser learn, no measure of how one would do on people. Needs `pip install espeakng-loader`,
which brings the synthesiser (GPL-3.0) as a library.
"""

from __future__ import annotations

import argparse
import ctypes
import random
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

VOICES = ("en-us", "en-us+f2", "en-us+m3", "en-gb-scotland", "en-us+f5", "en-029", "en-us+m4", "en-gb-x-rp")
NUMBERS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "twelve",
    "twenty",
    "thirty",
    "forty",
]
COLOURS = ["red", "green", "blue", "black", "white", "yellow", "brown"]
THINGS = [
    "foxes",
    "birds",
    "houses",
    "letters",
    "stones",
    "rivers",
    "horses",
    "apples",
    "windows",
    "garden",
    "clouds",
    "trees",
]
VERBS = ["run", "sing", "fall", "turn", "wait", "sleep", "jump", "stand", "burn", "grow"]
PLACES = ["home", "north", "again", "together", "slowly", "tonight", "outside"]
GRAMMAR = (NUMBERS, COLOURS, THINGS, VERBS, PLACES)
RATE = 16_000


class Synthesiser:
    """espeak-ng through its C interface; one a process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._pieces: list[NDArray[np.int16]] = []
        synchronous, milliseconds = 2, 500
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate = self._library.espeak_Initialize(synchronous, milliseconds, data, 0)
        if self.rate <= 0:
            raise RuntimeError(
                "espeak-ng does not start: reinstall it with pip install --force-reinstall espeakng-loader"
            )
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._receive)  # kept, or it would be freed while C holds it
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, _: int) -> int:
        if count > 0 and samples:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, words_a_minute: int = 170, pitch: int = 50) -> NDArray[np.float32]:
        """Speech at 16 kHz (S,)."""
        speed, pitch_parameter, utf8, start_at_character = 1, 3, 1, 1
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(speed, words_a_minute, 0)
        self._library.espeak_SetParameter(pitch_parameter, pitch, 0)
        self._pieces.clear()
        spoken = text.encode() + b"\0"
        self._library.espeak_Synth(spoken, len(spoken), 0, start_at_character, 0, utf8, None, None)
        self._library.espeak_Synchronize()
        waveform = np.concatenate(self._pieces).astype(np.float32) / 32768
        return np.asarray(soxr.resample(waveform, self.rate, RATE), dtype=np.float32)


def write_corpus(out: Path, minutes: float, seed: int = 0) -> dict[str, float]:
    """`unlabelled` of so many minutes, `train` of two, `dev` of one; returns the minutes of each."""
    speaker, draw, written = Synthesiser(), random.Random(seed), {}
    for number, (split, wanted) in enumerate((("unlabelled", minutes), ("train", 2.0), ("dev", 1.0)), start=1):
        chapter = out / split / str(number) / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        lines, seconds = [], 0.0
        while seconds < 60 * wanted:
            words = [draw.choice(part) for part in GRAMMAR]
            waveform = speaker.say(" ".join(words), draw.choice(VOICES), draw.randint(140, 200), draw.randint(35, 65))
            name = f"{number}-1-{len(lines):04d}"
            soundfile.write(chapter / f"{name}.flac", waveform, RATE)
            lines.append(f"{name} {' '.join(words).upper()}")
            seconds += len(waveform) / RATE
        if split != "unlabelled":
            (chapter / f"{number}-1.trans.txt").write_text("\n".join(lines) + "\n")
        written[split] = round(seconds / 60, 1)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(write_corpus(args.out, args.minutes, args.seed))


if __name__ == "__main__":
    main()
