"""CTC outputs to words: greedy, or a beam with lexicon and n-gram language model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2v_lightning.configurable import Configurable
from d2v_lightning.flavour import rank_zero_warn
from d2v_lightning.letters import SEPARATOR, UNKNOWN
from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import read_lines

SECONDS_PER_FRAME = 0.02


class Word(NamedTuple):
    """A word, when it is spoken (seconds) and the geometric mean of its letters' probabilities."""

    word: str
    start: float
    end: float
    confidence: float


class Hypothesis(NamedTuple):
    """What was understood: `text`, its `words`, and a `score` (log probability, with a language model plus its terms)."""

    text: str
    words: list[Word]
    score: float

    @property
    def confidence(self) -> float:
        """Geometric mean of the words' confidences; 0 where there are none."""
        if not self.words:
            return 0.0
        return math.exp(sum(math.log(max(word.confidence, 1e-9)) for word in self.words) / len(self.words))

    def as_line(self) -> dict[str, Any]:
        """As one line of JSON."""
        words = [{**word._asdict(), "confidence": round(word.confidence, 4)} for word in self.words]
        return {"transcript": self.text, "confidence": round(self.confidence, 4), "words": words}


def greedy(log_probs: Tensor, vocabulary: Sequence[str]) -> Hypothesis:
    """The most likely class of every frame, repetitions and blanks removed.

    Args:
        log_probs: (N, V), of one clip without padding.
        vocabulary: V tokens, the blank first.
    """
    best = log_probs.max(dim=-1)
    return _hypothesis(best.indices.tolist(), log_probs, vocabulary, float(best.values.sum()))


def _hypothesis(path: Sequence[int], log_probs: Tensor, vocabulary: Sequence[str], score: float) -> Hypothesis:
    """Words of an alignment, one class per frame."""
    chosen = (
        log_probs.gather(1, torch.tensor(path, device=log_probs.device).long()[:, None])[:, 0].tolist() if path else []
    )
    words: list[Word] = []
    letters: list[tuple[str, int, int, float]] = []  # letter, first frame, frame after the last, best log probability

    def finish() -> None:
        if letters:
            confidence = math.exp(sum(letter[3] for letter in letters) / len(letters))
            start, end = letters[0][1] * SECONDS_PER_FRAME, letters[-1][2] * SECONDS_PER_FRAME
            words.append(Word("".join(letter[0] for letter in letters), round(start, 2), round(end, 2), confidence))
            letters.clear()

    previous = 0
    for frame, (token, value) in enumerate(zip(path, chosen, strict=True)):
        if token == previous and token != 0 and vocabulary[token] != SEPARATOR and letters:
            letter, first, _, best = letters[-1]
            letters[-1] = (letter, first, frame + 1, max(best, value))
        elif token != 0 and vocabulary[token] == SEPARATOR:
            finish()
        elif token != 0:
            letters.append((vocabulary[token], frame, frame + 1, value))
        previous = token
    finish()
    return Hypothesis(" ".join(word.word for word in words), words, score)


class BeamSearch(Configurable):
    """Beam search by flashlight-text (`pip install -r requirements-lm.txt`).

    With `lm` the words are those of the lexicon, scored by a KenLM language model of words. With a lexicon alone the words
    are its own; with neither, letters are free.

    The released search (fairseq's examples/speech_recognition/new/decoders/flashlight_decoder.py, called by
    examples/data2vec/README.md with a 4-gram) is `beam=1500, log_add=False, max_seconds=None`; all else is its default.

    Args:
        lm: an ARPA file or KenLM binary.
        lexicon: a text file with a word and a spelling a line ("HELLO H E L L O |"), or with words alone; by default the
            words of the ARPA file. What is found is written as the word, whichever way it was spelt.
        beam: hypotheses that are kept. 500 takes a third of the time of the released 1,500.
        beam_threshold: hypotheses that are worse than the best by more than this are dropped.
        lm_weight: of the language model's log probability.
        word_score: added for each word.
        log_add: add up the probabilities of all alignments of a hypothesis, as CTC does in training; False takes the best
            alignment (released).
        max_seconds: longer recordings are cut at pauses, so that memory does not grow with them. The language model begins
            anew there. None cuts nothing (released).

    Raises:
        ImportError: flashlight-text is not installed.
        FileNotFoundError, ValueError: a file is missing, or an argument out of range. A file that is no language model is
            refused with the first clip.
    """

    def __init__(
        self,
        lm: str | None = None,
        lexicon: str | None = None,
        beam: int = 500,
        beam_threshold: float = 50.0,
        lm_weight: float = 2.0,
        word_score: float = 0.0,
        log_add: bool = True,
        max_seconds: float | None = 30.0,
    ) -> None:
        if beam < 1 or beam_threshold <= 0:
            raise UserError(f"beam is {beam}, beam_threshold {beam_threshold}: beam starts at 1, the threshold above 0")
        if max_seconds is not None and max_seconds < 0.1:
            raise UserError(f"max_seconds is {max_seconds}: choose .1 or more, or null for whole recordings")
        for name, path in (("lm", lm), ("lexicon", lexicon)):
            if path is not None and not Path(path).is_file():
                raise NotFoundError(f"{name}: no file at {path}")
        if lm is not None and lexicon is None and not _is_arpa(lm):
            raise UserError(f"{lm} is a KenLM binary, whose words cannot be listed: give a lexicon beside it")
        try:
            import flashlight.lib.text.decoder as _  # noqa: F401
        except ImportError as error:
            raise UserError(
                "beam search needs flashlight-text, which brings KenLM: pip install -r requirements-lm.txt"
            ) from error
        self.lm, self.lexicon, self.beam, self.beam_threshold = lm, lexicon, beam, beam_threshold
        self.lm_weight, self.word_score = lm_weight, word_score
        self.log_add, self.max_seconds = log_add, max_seconds
        self._decoders: dict[tuple[str, ...], Any] = {}
        self._files: dict[tuple[str, ...], tuple[Any, Any, Any]] = {}

    def reweighted(self, lm_weight: float, word_score: float) -> BeamSearch:
        """The same search with other weights; files that were read are not read again."""
        kept = self.log_add, self.max_seconds
        other = BeamSearch(self.lm, self.lexicon, self.beam, self.beam_threshold, lm_weight, word_score, *kept)
        other._files = self._files
        return other

    def __call__(self, log_probs: Tensor, vocabulary: Sequence[str]) -> Hypothesis:
        """The best hypothesis for one clip, see `greedy`."""
        decoder = self._decoders.get(tuple(vocabulary))
        if decoder is None:
            decoder = self._decoders[tuple(vocabulary)] = self._decoder(vocabulary)
        emissions = log_probs.detach().float().cpu()
        words: list[Word] = []
        score = 0.0
        for start, end in _stretches(emissions, vocabulary, self._most_frames()):
            found = self._search(decoder, emissions[start:end], vocabulary)
            shift = start * SECONDS_PER_FRAME
            words += [
                word._replace(start=round(word.start + shift, 2), end=round(word.end + shift, 2))
                for word in found.words
            ]
            score += found.score
        return Hypothesis(" ".join(word.word for word in words), words, score)

    def _most_frames(self) -> float:
        return math.inf if self.max_seconds is None else round(self.max_seconds / SECONDS_PER_FRAME)

    def _search(self, decoder: Any, emissions: Tensor, vocabulary: Sequence[str]) -> Hypothesis:
        """Emissions (N, V) of at most `max_seconds`."""
        # A word of the lexicon ends with the separator, which nobody says after the last word.
        ending = torch.full((1, len(vocabulary)), -1e4)
        ending[0, list(vocabulary).index(SEPARATOR)] = 0.0
        ended = torch.cat([emissions, ending])
        found = decoder.decode(ended.data_ptr(), *ended.shape)
        if not found:
            return Hypothesis("", [], -math.inf)
        # The alignment has a silence at both of its ends.
        spelt = _hypothesis(list(found[0].tokens)[1 : len(emissions) + 1], emissions, vocabulary, found[0].score)
        names = [number for number in found[0].words if number >= 0]
        if (self.lm is None and self.lexicon is None) or len(names) != len(spelt.words):
            return spelt
        entries = self._files[tuple(vocabulary)][0]
        words = [word._replace(word=entries.get_entry(name)) for word, name in zip(spelt.words, names, strict=True)]
        return Hypothesis(" ".join(word.word for word in words), words, spelt.score)

    def _decoder(self, vocabulary: Sequence[str]) -> Any:
        from flashlight.lib.text import decoder as flashlight

        size, separator, ctc = len(vocabulary), list(vocabulary).index(SEPARATOR), flashlight.CriterionType.CTC
        if self.lm is None and self.lexicon is None:
            free = flashlight.LexiconFreeDecoderOptions(
                self.beam, size, self.beam_threshold, 0.0, 0.0, self.log_add, ctc
            )
            return flashlight.LexiconFreeDecoder(free, flashlight.ZeroLM(), separator, 0, [])
        if tuple(vocabulary) not in self._files:
            self._files[tuple(vocabulary)] = self._read(vocabulary)
        words, lm, trie = self._files[tuple(vocabulary)]
        options = flashlight.LexiconDecoderOptions(
            self.beam, size, self.beam_threshold, self.lm_weight, self.word_score, -math.inf, 0.0, self.log_add, ctc
        )
        return flashlight.LexiconDecoder(options, trie, lm, separator, 0, words.get_index(UNKNOWN), [], False)

    def _read(self, vocabulary: Sequence[str]) -> tuple[Any, Any, Any]:
        """The words by number, the language model, and the lexicon as a trie of letters."""
        from flashlight.lib.text import decoder as flashlight
        from flashlight.lib.text.dictionary import create_word_dict

        tokens = {token: number for number, token in enumerate(vocabulary)}
        spellings = read_lexicon(self.lexicon) if self.lexicon is not None else _spelt(_arpa_words(str(self.lm)))
        known = {
            word: kept
            for word, ways in spellings.items()
            if (kept := [way for way in ways if all(letter in tokens for letter in way)])
        }
        if not known:
            raise UserError(
                f"no word of {self.lexicon or self.lm} is spelt with the letters {' '.join(vocabulary[1:])}: wrong case?"
            )
        if foreign := [word for word in spellings if word not in known]:
            rank_zero_warn(
                f"{len(foreign)} of {len(spellings)} words of {self.lexicon or self.lm} are left out, the model lacks "
                f"letters of theirs: {', '.join(foreign[:5])}"
            )
        words = create_word_dict(known | {UNKNOWN: [[UNKNOWN]]})
        lm = flashlight.ZeroLM()
        if self.lm is not None:
            from flashlight.lib.text.decoder.kenlm import KenLM

            try:
                lm = KenLM(str(self.lm), words)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1]
                raise UserError(
                    f"{self.lm} is no language model that KenLM reads (ARPA or its binary, of bigrams or more): {reason}"
                ) from error
        trie, start = flashlight.Trie(len(vocabulary), tokens[SEPARATOR]), lm.start(False)
        for word, ways in known.items():
            number = words.get_index(word)
            _, score = lm.score(start, number)
            for way in ways:
                trie.insert([tokens[letter] for letter in way], number, score)
        trie.smear(flashlight.SmearingMode.MAX)
        return words, lm, trie


def _stretches(log_probs: Tensor, vocabulary: Sequence[str], most: float) -> Iterator[tuple[int, int]]:
    """First frame and frame after the last of pieces of at most so many frames, cut in the middle of the longest pause
    between words in their second half."""
    best = log_probs.argmax(dim=-1).tolist()
    separator, start = list(vocabulary).index(SEPARATOR), 0
    while len(best) - start > most:
        cut, longest, quiet, between_words = start + int(most), 0, 0, False
        for frame in range(start + int(most) // 2, start + int(most)):
            quiet = quiet + 1 if best[frame] in (0, separator) else 0
            between_words = quiet > 0 and (between_words or best[frame] == separator)
            if between_words and quiet > longest:
                cut, longest = frame + 1 - quiet // 2, quiet
        yield start, cut
        start = cut
    yield start, len(best)


def read_lexicon(path: str | Path) -> dict[str, list[list[str]]]:
    """Words and their spellings, from lines with both, or with words alone. A word may have several lines, and every
    spelling ends with the separator, written or not.

    Raises:
        ValueError: there are none.
    """
    spellings: dict[str, list[list[str]]] = {}
    for line in read_lines(path):
        if line.strip():
            word, *letters = line.split()
            letters = letters or list(word)
            way = letters if letters[-1] == SEPARATOR else [*letters, SEPARATOR]
            if way not in spellings.setdefault(word, []):
                spellings[word].append(way)
    if not spellings:
        raise UserError(f"{path} holds no words")
    return spellings


def _spelt(words: Iterable[str]) -> dict[str, list[list[str]]]:
    return {word: [[*word, SEPARATOR]] for word in words}


def _is_arpa(path: str) -> bool:
    with open(path, "rb") as file:
        return b"\\data\\" in file.read(4096)


def _arpa_words(path: str) -> list[str]:
    """The words of an ARPA file, without its marks for begin, end and unknown."""
    words, inside = [], False
    for line in read_lines(path):
        if line.startswith("\\"):
            inside = line.strip() == "\\1-grams:"
        elif inside and (fields := line.split("\t")) and len(fields) > 1:
            words.append(fields[1].strip())
    return [word for word in words if not word.startswith("<")]
