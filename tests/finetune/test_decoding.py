"""CTC decoding: greedy words and times, beam search against it, and a language model that changes a mind."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from d2v_lightning.finetune.decoding import BeamSearch, Hypothesis, greedy, read_lexicon
from d2v_lightning.support.errors import UserError

VOCABULARY = ["<blank>", "|", "A", "B", "C", "T"]


def frames(path: str, confidence: float = 0.9) -> Tensor:
    """Log probabilities whose best classes spell `path`; "_" is the blank."""
    classes = torch.tensor([0 if letter == "_" else VOCABULARY.index(letter) for letter in path])
    rest = (1 - confidence) / (len(VOCABULARY) - 1)
    probabilities = torch.full((len(path), len(VOCABULARY)), rest)
    return probabilities.scatter(1, classes[:, None], confidence).log()


def test_greedy_words_times_and_confidence() -> None:
    found = greedy(frames("__CCA_T||_BB_B_|A"), VOCABULARY)
    assert found.text == "CAT BB A"
    assert [(word.word, word.start, word.end) for word in found.words] == [
        ("CAT", 0.04, 0.14), ("BB", 0.2, 0.28), ("A", 0.32, 0.34),
    ]  # fmt: skip
    assert found.confidence == pytest.approx(0.9)
    assert found.score == pytest.approx(17 * math.log(0.9), rel=1e-5)


@pytest.mark.parametrize("path", ["____", "||||", "_|_"])
def test_silence_is_no_words(path: str) -> None:
    found = greedy(frames(path), VOCABULARY)
    assert (found.text, found.words, found.confidence) == ("", [], 0.0)
    assert greedy(torch.zeros(0, len(VOCABULARY)), VOCABULARY).text == ""


def test_read_lexicon(tmp_path: Path) -> None:
    file = tmp_path / "lexicon.txt"
    file.write_text("CAT C A T |\nTAB\nCAT C A B\n\n")
    assert read_lexicon(file) == {"CAT": [[*"CAT|"], [*"CAB|"]], "TAB": [[*"TAB|"]]}
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no words"):
        read_lexicon(file)


ARPA = """\\data\\
ngram 1=5
ngram 2=2

\\1-grams:
-1.0\t<unk>\t0
-99\t<s>\t-0.3
-1.0\t</s>\t0
-{cat}\tCAT\t-0.3
-{cab}\tCAB\t-0.3

\\2-grams:
-0.3\t<s> CAT
-0.3\t<s> CAB

\\end\\
"""


def test_a_beam_without_language_model_is_at_least_as_likely_as_greedy() -> None:
    pytest.importorskip("flashlight")
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        log_probs = (2 * torch.randn(20, len(VOCABULARY), generator=generator)).log_softmax(-1)
        found, best = BeamSearch(beam=200)(log_probs, VOCABULARY), greedy(log_probs, VOCABULARY)
        assert likelihood(log_probs, found.text) >= likelihood(log_probs, best.text) - 1e-4


def likelihood(log_probs: Tensor, text: str) -> float:
    """Log probability of a transcript over all its alignments, with or without separators at its ends."""
    options = [f"{start}{'|'.join(text.split())}{end}" for start in ("", "|") for end in ("", "|")]
    values = []
    for option in options:
        labels = torch.tensor([[VOCABULARY.index(letter) for letter in option]])
        loss = torch.nn.functional.ctc_loss(
            log_probs[:, None], labels, (len(log_probs),), (labels.shape[1],), reduction="none"
        )
        values.append(-loss)
    return float(torch.logsumexp(torch.cat(values), 0))


def test_a_language_model_flips_a_close_call(tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    sure, close = frames("C_A_"), torch.full((1, len(VOCABULARY)), math.log(0.02))
    close[0, VOCABULARY.index("B")], close[0, VOCABULARY.index("T")] = math.log(0.5), math.log(0.42)
    log_probs = torch.cat([sure, close, frames("|")])
    assert greedy(log_probs, VOCABULARY).text == "CAB"
    for cat, cab, expected in ((0.2, 3.0, "CAT"), (3.0, 0.2, "CAB")):
        arpa = tmp_path / f"{expected}.arpa"
        text = (
            ARPA.format(cat=cat, cab=cab)
            .replace("-0.3\t<s> CAT", f"-{cat}\t<s> CAT")
            .replace("-0.3\t<s> CAB", f"-{cab}\t<s> CAB")
        )
        arpa.write_text(text)
        found = BeamSearch(lm=str(arpa), beam=50, lm_weight=2.0)(log_probs, VOCABULARY)
        assert found.text == expected
        assert found.words[0].start == 0.0
    assert BeamSearch(lm=str(arpa), beam=50, lm_weight=0.0)(log_probs, VOCABULARY).text == "CAB"


def test_a_lexicon_allows_its_own_words_only(tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("CAT\nA\n")
    assert BeamSearch(lexicon=str(lexicon), beam=50)(frames("C_AB_|"), VOCABULARY).text in ("CAT", "A")
    lexicon.write_text("cat\n")
    with pytest.raises(ValueError, match="wrong case"):
        BeamSearch(lexicon=str(lexicon))(frames("C_AB_|"), VOCABULARY)


def test_a_word_of_several_spellings_is_written_as_the_word(tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("tab T A B\ntab B A T |\ncat C A T |\nxat X A T |\n")
    search = BeamSearch(lexicon=str(lexicon), beam=50)
    with pytest.warns(UserWarning, match="1 of 3 words of .* are left out, the model lacks letters of theirs: xat"):
        found = search(frames("T_AB__|_BA_T|C_AT"), VOCABULARY)
    assert [word.word for word in found.words] == ["tab", "tab", "cat"]
    assert found.text == "tab tab cat"


def test_without_flashlight_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    with pytest.raises(UserError, match=r"flashlight-text, .*: pip install -r requirements-lm.txt"):
        BeamSearch()


def test_missing_files_and_bad_arguments(tmp_path: Path) -> None:
    pytest.importorskip("flashlight")
    with pytest.raises(FileNotFoundError, match="lm: no file at"):
        BeamSearch(lm=str(tmp_path / "none.arpa"))
    with pytest.raises(ValueError, match="beam is 0"):
        BeamSearch(beam=0)
    with pytest.raises(ValueError, match="max_seconds is 0"):
        BeamSearch(max_seconds=0.0)
    (tmp_path / "lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n")
    with pytest.raises(ValueError, match="give a lexicon beside it"):
        BeamSearch(lm=str(tmp_path / "lm.bin"))
    unigrams = tmp_path / "lm.arpa"
    unigrams.write_text("\\data\\\nngram 1=1\n\n\\1-grams:\n-1.0\tCAT\n\n\\end\\\n")
    with pytest.raises(ValueError, match=r"lm\.arpa is no language model that KenLM reads .*bigram"):
        BeamSearch(lm=str(unigrams))(frames("C_A_T"), VOCABULARY)


@pytest.fixture
def lexicon(tmp_path: Path) -> str:
    file = tmp_path / "lexicon.txt"
    file.write_text("CAT\nBAT\nA\n")
    return str(file)


def test_the_last_word_needs_no_separator(lexicon: str) -> None:
    pytest.importorskip("flashlight")
    found = BeamSearch(lexicon=lexicon, beam=50)(frames("C_AT__|_BA_T", 0.9999), VOCABULARY)
    assert [(word.word, word.start, word.end) for word in found.words] == [("CAT", 0.0, 0.08), ("BAT", 0.16, 0.24)]


def test_an_hour_is_searched_in_pieces_that_begin_at_pauses(lexicon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flashlight")
    words = ["CAT", "A", "BAT", "BAT", "CAT", "A"] * 8
    spoken = frames("".join(f"_{'_'.join(word)}_{'_' * (number % 3)}|" for number, word in enumerate(words)))
    whole = BeamSearch(lexicon=lexicon, beam=50, max_seconds=None)(spoken, VOCABULARY)
    assert whole.text == " ".join(words)
    seen: list[int] = []
    search = BeamSearch._search

    def count(self: BeamSearch, decoder: object, emissions: Tensor, vocabulary: list[str]) -> Hypothesis:
        seen.append(len(emissions))
        return search(self, decoder, emissions, vocabulary)

    monkeypatch.setattr(BeamSearch, "_search", count)
    pieces = BeamSearch(lexicon=lexicon, beam=50, max_seconds=0.8)(spoken, VOCABULARY)
    assert (pieces.text, pieces.words) == (whole.text, whole.words)
    assert len(seen) > 5
    assert max(seen) <= 40
    assert sum(seen) == len(spoken)


def test_the_best_alignment_or_the_sum_of_all_decides(lexicon: str) -> None:
    pytest.importorskip("flashlight")
    log_probs = torch.full((4, len(VOCABULARY)), -30.0)
    for frame, letters in enumerate(({"_": 0.5, "C": 0.5}, {"C": 0.34, "_": 0.33, "A": 0.33}, {"A": 0.5, "_": 0.5})):
        for letter, share in letters.items():
            log_probs[frame, 0 if letter == "_" else VOCABULARY.index(letter)] = math.log(share)
    log_probs[3, VOCABULARY.index("T")] = 0.0
    best, summed = (
        BeamSearch(lexicon=lexicon, beam=50, log_add=log_add, max_seconds=None)(log_probs, VOCABULARY)
        for log_add in (False, True)
    )
    assert best.text == summed.text == "CAT"
    # alignments of C A T in four frames: C C A T, C _ A T, _ C A T, C A A T, C A _ T
    alignments = [0.5 * 0.34 * 0.5, 0.5 * 0.33 * 0.5, 0.5 * 0.34 * 0.5, 0.5 * 0.33 * 0.5, 0.5 * 0.33 * 0.5]
    assert best.score == pytest.approx(math.log(max(alignments)), abs=1e-4)
    assert summed.score == pytest.approx(math.log(sum(alignments)), abs=1e-4)


def test_weights_change_without_reading_files_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flashlight")
    arpa = tmp_path / "lm.arpa"
    arpa.write_text(ARPA.format(cat=0.2, cab=3.0).replace("-0.3\t<s> CAB", "-3.0\t<s> CAB"))
    log_probs = torch.cat([frames("C_A_"), frames("B", 0.5)])
    first = BeamSearch(lm=str(arpa), beam=50, lm_weight=0.0)
    assert first(log_probs, VOCABULARY).text == "CAB"
    monkeypatch.setattr(BeamSearch, "_read", None)
    second = first.reweighted(2.0, 0.5)
    assert second(log_probs, VOCABULARY).text == "CAT"
    assert second.config["init_args"]["lm_weight"] == 2.0
