"""What usually goes wrong in fine-tuning with CTC, said before hours are spent, and what a model hears, shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2v_lightning.flavour import pl, rank_zero_info, rank_zero_warn
from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.types import Batch

NEARLY_ALL = 0.995  # of the frames blank: the model says nothing
SHOWN = 3  # hypotheses at each validation
SPEAKING_RATE = (2.0, 28.0)  # letters a second; read English has 14, which at half the sample rate would seem 28
LOUDNESS = (0.3, 3.0)  # standard deviation of a clip that was normalised to 1


def check_first_batch(batch: Batch, conv_layers: Sequence[Sequence[int]], sample_rate: int, normalised: bool) -> None:
    """Warn of transcripts that cannot be learned, and of recordings that are not what the model was pre-trained on.

    Args:
        batch: the first of a run, see `Batch`.
        conv_layers: of the encoder.
        sample_rate: samples a second.
        normalised: whether the model wants clips with variance 1.
    """
    inputs = batch["inputs"]
    padding = batch.get("padding_mask")
    samples = (torch.full((len(inputs),), inputs.shape[1]) if padding is None else (~padding).sum(dim=1)).cpu()
    labels, lengths = batch["labels"].cpu(), batch["label_lengths"].cpu()
    inside = torch.arange(labels.shape[1]) < lengths[:, None]
    twice = ((labels[:, 1:] == labels[:, :-1]) & inside[:, 1:]).sum(dim=1)  # a blank must stand between
    if too_long := int((lengths + twice > feature_lengths(samples, conv_layers)).sum()):
        rank_zero_warn(
            f"{too_long} of the first {len(labels)} transcripts are longer than their recordings have frames (50 a "
            "second), and teach nothing: do transcripts and recordings belong together?"
        )
    rate = float((lengths * sample_rate / samples).median())
    if not SPEAKING_RATE[0] <= rate <= SPEAKING_RATE[1]:
        rank_zero_warn(
            f"the first transcripts have {rate:.1f} letters a second, read speech has about 14: are the recordings at "
            f"{sample_rate} Hz, and do transcripts belong to them?"
        )
    if normalised:
        spread = float(_spread(inputs, padding).median())
        if not LOUDNESS[0] <= spread <= LOUDNESS[1]:
            rank_zero_warn(
                f"the first recordings have a standard deviation of {spread:.3g}, the model was trained with clips of mean 0 "
                "and variance 1: normalise them (data.normalize: true)"
            )


def _spread(inputs: Tensor, padding: Tensor | None) -> Tensor:
    """Standard deviation (B,) of waveforms (B, S), padding (B, S), True = padding, left out."""
    inside = torch.ones_like(inputs) if padding is None else (~padding).to(inputs.dtype)
    count = inside.sum(dim=1, keepdim=True)
    mean = (inputs * inside).sum(dim=1, keepdim=True) / count
    return (((inputs - mean) * inside).square().sum(dim=1) / count[:, 0]).sqrt().cpu()


class HypothesisStats:
    """A few hypotheses of one evaluation beside what was said, and how many frames were blank."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.frames = self.blanks = 0

    def add(self, said: Sequence[str], heard: Sequence[str], log_probs: Tensor, padding: Tensor | None) -> None:
        """Take in a batch: log probabilities (B, N, V), padding of the frames (B, N), True = padding."""
        self.pairs += list(zip(said, heard, strict=True))[: SHOWN - len(self.pairs)]
        best = log_probs.argmax(dim=-1)
        inside = best if padding is None else best[~padding]
        self.frames, self.blanks = self.frames + inside.numel(), self.blanks + int((inside == 0).sum())

    def show(self, trainer: pl.Trainer, stage: str) -> None:
        """Print the pairs and give them to loggers that take text; warn where nearly everything is blank."""
        for said, heard in self.pairs:
            rank_zero_info(f"said:  {said}\nheard: {heard or '(nothing)'}")
        if trainer.is_global_zero:
            self._log(trainer, f"{stage}/heard")
        if self.frames and self.blanks >= NEARLY_ALL * self.frames:
            rank_zero_warn(
                f"{100 * self.blanks / self.frames:.1f} % of all frames are decoded as blank. That is usual in the first "
                "thousand updates; if it stays, raise the learning rate, train longer, or start from a pre-trained network"
            )

    def _log(self, trainer: pl.Trainer, name: str) -> None:

        for logger in trainer.loggers:
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                text = "\n".join(f"    said:  {said}\n    heard: {heard}\n" for said, heard in self.pairs)
                logger.experiment.add_text(name, text, trainer.global_step)
            elif isinstance(logger, pl.loggers.WandbLogger):
                logger.log_text(name, ["said", "heard"], [list(pair) for pair in self.pairs], step=trainer.global_step)
