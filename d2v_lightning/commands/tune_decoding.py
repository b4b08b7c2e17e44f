"""Find the weight of the language model and the score of a word that make the fewest errors on the development set.

    python -m d2v_lightning.commands.tune_decoding best.ckpt --lm 4gram.arpa --data.root LibriSpeech --output decoder.yaml
    python cli.py test --config decoder.yaml --ckpt_path best.ckpt --data.root LibriSpeech

The network runs once over the validation split; the search reads what it said. Without --data the split is the one that the
checkpoint was trained with.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor
from torchmetrics.functional.text import word_error_rate
from tqdm import tqdm

from d2v_lightning.commands.resuming import StoredRun
from d2v_lightning.commands.running import run_command
from d2v_lightning.configurable import Tree, build
from d2v_lightning.finetune import SpeechCTC
from d2v_lightning.finetune.decoding import BeamSearch
from d2v_lightning.flavour import pl
from d2v_lightning.recipes import overridden
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import ExistsError, NotFoundError, UserError
from d2v_lightning.types import Batch

LM_WEIGHTS, WORD_SCORES = (0.0, 5.0), (-5.0, 5.0)  # searched; those of wav2vec 2.0
NEAR = 0.1  # spread of the second half of the trials around the best of the first, as a part of the ranges


class Trial(NamedTuple):
    """Weights, and the word error rate that they give; trials sort by it."""

    wer: float
    lm_weight: float
    word_score: float


class Emissions(pl.LightningModule):
    """Runs a model over validation data and keeps what it said.

    After `trainer.validate` `log_probs` has a float16 (N, V) for each clip, without padding, and `transcripts` its text.
    """

    def __init__(self, model: SpeechCTC) -> None:
        super().__init__()
        self.model = model
        # What a datamodule asks a model for.
        self.vocabulary, self.normalize, self.sample_rate = model.vocabulary, model.normalize, model.sample_rate
        self.log_probs: list[Tensor] = []
        self.transcripts: list[str] = []

    @property
    def encoder(self) -> Any:
        """The model's."""
        return self.model.encoder

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_probs, padding = self.model(batch["inputs"], batch.get("padding_mask"))
        lengths = [log_probs.shape[1]] * len(log_probs) if padding is None else (~padding).sum(dim=1).tolist()
        self.log_probs += [row[:length].half().cpu() for row, length in zip(log_probs, lengths, strict=True)]
        self.transcripts += self.model.transcripts(batch)


def tune(
    decoder: BeamSearch,
    log_probs: Sequence[Tensor],
    transcripts: Sequence[str],
    vocabulary: Sequence[str],
    trials: int = 32,
    seed: int = 0,
    jobs: int = 1,
) -> list[Trial]:
    """Random search: the decoder's own weights, others from the whole of both ranges, then as many near the best.

    Args:
        decoder: beam search with a language model.
        log_probs: (N, V) for each clip.
        transcripts: what is said in each.
        vocabulary: V tokens, the blank first.
        trials: in all.
        seed: of the search.
        jobs: processes.

    Returns:
        All trials, the best one first; of equals the one with the smaller weights.

    Raises:
        ValueError: fewer than 1 trial or job, or no clips.
    """
    if trials < 1 or jobs < 1:
        raise UserError(f"trials is {trials}, jobs {jobs}: both start at 1")
    if not log_probs:
        raise UserError("there are no clips to tune on")
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([LM_WEIGHTS[0], WORD_SCORES[0]])
    size = torch.tensor([LM_WEIGHTS[1], WORD_SCORES[1]]) - low
    first = low + size * torch.rand(trials // 2, 2, generator=generator)
    decoder(log_probs[0], vocabulary)  # reads its files, for all processes
    work = (decoder, list(log_probs), list(transcripts), list(vocabulary))
    done: list[Trial] = []
    with tqdm(total=trials, desc="trials") as bar:
        for chosen in (_pairs(first, (decoder.lm_weight, decoder.word_score)), None):
            if chosen is None:
                centre = torch.tensor(_best_first(done)[0][1:])
                near = centre + NEAR * size * torch.randn(trials - len(done), 2, generator=generator)
                chosen = _pairs(near.clamp(low, low + size))
            for trial in _run(chosen, work, jobs):
                done.append(trial)
                bar.update()
                bar.set_postfix_str(f"best WER {100 * min(done).wer:.2f} %")
    return _best_first(done)


def _pairs(weights: Tensor, *before: tuple[float, float]) -> list[tuple[float, float]]:
    return [*before, *((round(a, 2), round(b, 2)) for a, b in weights.tolist())]


def _best_first(trials: Sequence[Trial]) -> list[Trial]:
    return sorted(trials, key=lambda trial: (trial.wer, abs(trial.lm_weight) + abs(trial.word_score)))


def _run(weights: Sequence[tuple[float, float]], work: tuple[Any, ...], jobs: int) -> Any:
    if jobs == 1 or len(weights) < 2:
        _begin(*work)
        yield from map(_trial, weights)
        return
    # Forked: the language model, perhaps gigabytes, is read once and shared.
    with multiprocessing.get_context("fork").Pool(min(jobs, len(weights)), _begin, work) as pool:
        yield from pool.imap(_trial, weights)


_work: tuple[Any, ...] = ()


def _begin(*work: Any) -> None:
    global _work
    _work = work
    if multiprocessing.parent_process() is not None:  # a handler of the program that forked it would not end it
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _trial(weights: tuple[float, float]) -> Trial:
    decoder, log_probs, transcripts, vocabulary = _work
    search = decoder.reweighted(*weights)
    found = [search(row, vocabulary).text for row in log_probs]
    return Trial(float(word_error_rate(found, transcripts)), *weights)


def emissions_of(checkpoint: str, data: dict[str, Any]) -> Emissions:
    """Run a checkpoint over the validation split of its own data, or of what `data` says instead.

    Args:
        checkpoint: of a `SpeechCTC`.
        data: arguments of the datamodule that differ from those in the checkpoint.

    Raises:
        FileNotFoundError, ValueError: there is no such file or data.
    """
    stored = StoredRun(checkpoint).data or {"class_path": "datamodules.SpeechDataModule", "init_args": {}}
    tree: Tree = overridden(stored, {"task": "ctc", **data})
    emissions = Emissions(SpeechCTC.load_from_checkpoint(checkpoint))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False, devices=1)
    trainer.validate(emissions, datamodule=build(tree), verbose=False)
    return emissions


def _refuse_output(output: Path) -> None:
    """Before the work, not after it.

    Raises:
        FileExistsError, FileNotFoundError: the file exists, or its folder does not.
    """
    if output.exists():
        raise ExistsError(f"{output} exists: choose another file with --output, or remove it")
    if not output.parent.is_dir():
        raise NotFoundError(f"no folder {output.parent} for --output {output}: make it first")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a mistake ends with one line and exit status 1."""
    parser = argparse.ArgumentParser(
        "python -m d2v_lightning.commands.tune_decoding", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", help="of a SpeechCTC")
    parser.add_argument("--lm", required=True, help="ARPA file or KenLM binary")
    parser.add_argument("--lexicon", help="words, see d2v_lightning.BeamSearch")
    parser.add_argument(
        "--beam", type=int, default=500, help="of the search and of the file that is written; released: 1500"
    )
    parser.add_argument("--log_add", choices=("true", "false"), default="true", help="see BeamSearch; released: false")
    parser.add_argument("--whole_clips", action="store_true", help="max_seconds null, see BeamSearch; as released")
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=min(8, os.cpu_count() or 1), help="processes")
    parser.add_argument("--output", default="decoder.yaml", help="default: %(default)s")
    parser.usage = "%(prog)s checkpoint --lm FILE [options] [--data.KEY VALUE ...]"
    known, rest = parser.parse_known_args(arguments)
    if len(rest) % 2 or not all(name.startswith("--data.") for name in rest[::2]):
        parser.error(f"unknown: {' '.join(rest)}. Settings of the data are given as --data.KEY VALUE")
    data = {}
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        try:
            data[name.removeprefix("--data.")] = yaml.safe_load(value)
        except yaml.YAMLError:
            parser.error(f"{name} {value}: the value is not valid YAML")
    status = run_command(lambda: _tune_file(known, data))
    if status:
        raise SystemExit(status)


def _tune_file(known: argparse.Namespace, data: dict[str, Any]) -> None:
    _refuse_output(Path(known.output))
    cut: dict[str, Any] = {"max_seconds": None} if known.whole_clips else {}
    decoder = BeamSearch(known.lm, known.lexicon, known.beam, log_add=known.log_add == "true", **cut)
    emissions = emissions_of(known.checkpoint, data)
    assert emissions.vocabulary is not None
    trials = tune(
        decoder,
        emissions.log_probs,
        emissions.transcripts,
        emissions.vocabulary,
        known.trials,
        known.seed,
        known.jobs,
    )
    best = trials[0]
    tuned = decoder.reweighted(best.lm_weight, best.word_score)
    tree = {"class_path": "d2v_lightning.BeamSearch", "init_args": tuned.config["init_args"]}
    clips = len(emissions.transcripts)
    header = f"# WER {100 * best.wer:.2f} % on {clips} clips with {known.checkpoint}, best of {len(trials)} trials.\n"
    with atomic_write(known.output) as unfinished:
        unfinished.write_text(header + yaml.safe_dump({"model": {"init_args": {"decoder": tree}}}, sort_keys=False))
    print(f"WER {100 * best.wer:.2f} % with lm_weight {best.lm_weight}, word_score {best.word_score}: {known.output}")


if __name__ == "__main__":
    main()
