"""examples/ngram.py: probabilities that add up, in a file that KenLM reads."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "ngram.py"
TEXT = ["THE CAT SAT", "THE CAT RAN", "A DOG SAT ON THE CAT"]


@pytest.fixture
def ngram() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ngram", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_context_adds_up_to_one_and_kenlm_reads_the_same(ngram: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "train" / "1"
    folder.mkdir(parents=True)
    (folder / "1-1.trans.txt").write_text("".join(f"1-1-{n} {words}\n" for n, words in enumerate(TEXT)))
    text = ngram.sentences(tmp_path)
    assert text == [words.split() for words in TEXT]
    probabilities, backoff = ngram.train(text, 3)
    words = [gram[0] for gram in probabilities[0]]

    def probability(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in probabilities[len(context)]:
            return float(probabilities[len(context)][(*context, word)])
        return float(backoff.get(context, 1.0)) * probability(context[1:], word)

    for context in ((), ("<s>",), ("CAT",), ("THE", "CAT"), ("DOG", "CAT")):
        assert sum(probability(context, word) for word in words) == pytest.approx(1.0)
    assert probability(("THE",), "CAT") > probability((), "CAT")
    ngram.write_arpa(tmp_path / "words.arpa", probabilities, backoff)
    kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
    from flashlight.lib.text.dictionary import create_word_dict

    numbers = create_word_dict({word: [[word]] for word in words})
    model = kenlm.KenLM(str(tmp_path / "words.arpa"), numbers)
    state = model.start(False)
    for history, word in ((("<s>",), "THE"), (("<s>", "THE"), "CAT"), (("THE", "CAT"), "DOG")):
        state, score = model.score(state, numbers.get_index(word))
        assert score == pytest.approx(math.log10(probability(history, word)), abs=1e-4)


def test_nothing_to_count_is_said(ngram: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no transcripts"):
        ngram.sentences(tmp_path)
