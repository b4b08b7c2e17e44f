"""SpeechCTC: fine-tuning of a speech backbone to write down what is said, letter by letter (published: LibriSpeech)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.text import CharErrorRate, WordErrorRate

from d2v_lightning.callbacks.guards import guards
from d2v_lightning.checkpoints.backbones import load_backbone, load_mask_token, load_normalize, regularised
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.finetune.ctc_checks import HypothesisStats, check_first_batch
from d2v_lightning.finetune.decoding import BeamSearch, Hypothesis, greedy
from d2v_lightning.flavour import pl, rank_zero_info
from d2v_lightning.letters import BLANK, LIBRISPEECH, SEPARATOR, read_vocabulary, spelt
from d2v_lightning.metrics import KeepsFigures, counted
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import AudioEncoder
from d2v_lightning.nn.encoders.audio import RATE
from d2v_lightning.nn.windows import Joined, exact_padding
from d2v_lightning.optim.optimization import Optimization, run_length
from d2v_lightning.optim.weighting import WeighsMicroBatches
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch, TakesPlainBatches, require

NOISE = 0.01  # standard deviation of what data2vec 2.0 writes to hidden frames
_NEEDS_LABELS = "fine-tuning needs recordings with transcripts: data.task 'ctc'"


class SpeechCTC(WeighsMicroBatches, TakesPlainBatches, KeepsFigures, FromPretrained, pl.LightningModule):  # type: ignore[misc]
    """A backbone and a linear map of its output to letters, trained with CTC.

    The defaults are the released fine-tuning of Base on 1 hour (configs/finetune/librispeech_1h.yaml).

    Args:
        backbone: a network to train from scratch; or
        checkpoint: a file or Hugging Face directory to start from, see `load_backbone`. A checkpoint of the fine-tuned model
            holds the network itself and never looks for this file again.
        part: which network of a pre-training file to start from; published: the student.
        modality: of a checkpoint that was pre-trained on several, which one.
        vocabulary: tokens by number, the blank first, "|" between words; the path of a file with one a line; or "data" for
            the letters of the training transcripts. Stored in checkpoints. By default LibriSpeech's.
        normalize: what the backbone was pre-trained on: clips with mean 0 and variance 1. Stored, and enforced on data.
        sample_rate: what the backbone was pre-trained on. Stored; all sound is read at 16 kHz, so that no other is accepted.
        freeze_trunk_steps: optimiser steps before the trunk is trained too.
        freeze_convolutions: never train the feature encoder, as published; a network from scratch needs it trained. Where
            it is trained from `checkpoint`, its gradient is whole, whatever pre-training multiplied it by.
        time_mask: what stands at masked frames in training: the "token" of pre-training, or "noise" of std .01 (2.0).
        dropout, attention_dropout, activation_dropout, layer_drop, drop_path: of the trunk while fine-tuning, for a backbone
            from `checkpoint`, whatever they were in pre-training. A trunk of 2.0 has `activation_dropout` in two places, see
            `Transformer`. The released `drop_path` of `wav2vec2_asr.py` is 0.
        optimization: optimiser and schedule.
        decoder: beam search for test and predict; greedy where it is None, and always at validation.
        compile: compile the trunk in place.

    Raises:
        ValueError: neither or both of `backbone` and `checkpoint`, or a bad file or argument.
    """

    on_progress_bar = ("wer", "cer")
    predicts = "lines"

    def __init__(
        self,
        backbone: Backbone | None = None,
        checkpoint: str | None = None,
        part: Literal["student", "teacher"] = "student",
        modality: str | None = None,
        vocabulary: list[str] | str | None = None,
        normalize: bool = True,
        sample_rate: int = RATE,
        freeze_trunk_steps: int = 10_000,
        freeze_convolutions: bool = True,
        time_mask: Literal["token", "noise"] = "token",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.1,
        layer_drop: float = 0.1,
        drop_path: float = 0.0,
        optimization: Optimization | None = None,
        decoder: BeamSearch | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if (backbone is None) == (checkpoint is None):
            raise UserError(
                "SpeechCTC needs exactly one of model.checkpoint (a pre-trained file to start from) and "
                "model.backbone (a network to train from scratch)"
            )
        if time_mask not in ("token", "noise"):
            raise UserError(f"time_mask is {time_mask!r}: choose 'token' or 'noise'")
        if sample_rate != RATE:
            raise UserError(
                f"sample_rate is {sample_rate}: recordings are read at {RATE} Hz, and a network that was trained at another "
                "rate would mishear them"
            )
        if freeze_trunk_steps < 0:
            raise UserError(f"freeze_trunk_steps is {freeze_trunk_steps}: it must not be negative")
        token: Tensor | None = None
        if checkpoint is not None:
            trunk = regularised(dropout, attention_dropout, activation_dropout, layer_drop)
            backbone = load_backbone(checkpoint, part, drop_path=drop_path, trunk=trunk, modality=modality)
            if not freeze_convolutions and isinstance(backbone.encoder, AudioEncoder):
                backbone.encoder.train_convolutions()
            token = load_mask_token(checkpoint, modality)
            heard = load_normalize(checkpoint, modality)
            if heard is not None and heard != normalize:
                raise UserError(
                    f"normalize is {normalize}, but {checkpoint} was trained with {heard}: set model.normalize and "
                    f"data.normalize to {str(heard).lower()}"
                )
        assert backbone is not None
        if not isinstance(backbone.encoder, AudioEncoder):
            raise UserError(f"SpeechCTC needs a speech backbone, this one has a {type(backbone.encoder).__name__}")
        self.backbone = backbone
        self.config["init_args"].update(backbone=backbone.config, checkpoint=None, modality=None)
        self.sample_rate = sample_rate
        self.normalize, self.freeze_trunk_steps, self.time_mask = normalize, freeze_trunk_steps, time_mask
        self.compile_parts, self.decoder = compile, decoder
        self.optimization = optimization or Optimization(
            lr=5e-5,
            betas=(0.9, 0.98),
            eps=1e-8,
            weight_decay=0.0,
            schedule="tri_stage",
            warmup=0.1,
            hold=0.4,
            final_lr=2.5e-6,
        )
        self.mask_token = nn.Parameter(torch.empty(backbone.dim).uniform_() if token is None else token.clone())
        if checkpoint is not None and token is None and time_mask == "token":
            rank_zero_info(
                f"{checkpoint} has no mask token: a new one is learned (data2vec 2.0 masks with time_mask: noise)"
            )
        for part_of_it in (backbone.encoder.convs, backbone.encoder.conv_norms):
            part_of_it.requires_grad_(not freeze_convolutions)
        if time_mask == "noise":
            self.mask_token.requires_grad_(False)
        self.vocabulary: list[str] | None = None
        self.head: nn.Linear | None = None
        if vocabulary != "data":
            self._set_vocabulary(LIBRISPEECH if vocabulary is None else vocabulary)
        self._hypotheses = HypothesisStats()
        self._joined = Joined()

    def _set_vocabulary(self, vocabulary: list[str] | str) -> None:
        self.vocabulary = read_vocabulary(vocabulary)
        self.config["init_args"]["vocabulary"] = self.vocabulary
        self.head = nn.Linear(self.backbone.dim, len(self.vocabulary)).to(self.mask_token.device)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def encoder(self) -> AudioEncoder:
        """The backbone's encoder, whose sizes a datamodule reads."""
        assert isinstance(self.backbone.encoder, AudioEncoder)
        return self.backbone.encoder

    # ---- the network -----------------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor,
        padding_mask: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Waveforms to letters.

        Args:
            inputs: (B, S) at 16 kHz, normalised as in pre-training.
            padding_mask: (B, S) bool, True = padding.
            mask: (B, 1, N) bool, True = frame hidden (training).
            channel_mask: (B, D) bool, True = channel set to 0 (training).

        Returns:
            Log probabilities (B, N, V) in float32, and the padding of the frames (B, N), True = padding, or None.
        """
        if self.head is None:
            raise UserError("vocabulary is 'data' and no data has been seen: fit first, or give the letters")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.trunk_is_frozen):
            tokens, padding = self.encoder.features(inputs, padding_mask)
            if mask is not None:
                token = self.mask_token.to(tokens.dtype)
                filler = token if self.time_mask == "token" else NOISE * torch.randn_like(tokens)
                tokens = torch.where(mask[:, 0, :, None], filler, tokens)
            elif self.training:  # plain DDP waits for a gradient of every parameter
                tokens = tokens + 0.0 * self.mask_token.to(tokens.dtype)
            if channel_mask is not None:
                tokens = tokens.masked_fill(channel_mask[:, None, :], 0.0)
            x, _ = self.backbone.contextualize(tokens, padding)
        if self.trunk_is_frozen:  # as above
            x = x + 0.0 * torch.stack([parameter.sum() for parameter in self._frozen_at_first()]).sum().to(x.dtype)
        return self.head(x).float().log_softmax(dim=-1), padding

    @property
    def trunk_is_frozen(self) -> bool:
        """Whether only the head is trained at this step."""
        return self.training and self.global_step < self.freeze_trunk_steps

    def _frozen_at_first(self) -> list[nn.Parameter]:
        """What is not trained while the trunk is frozen, and is afterwards."""
        return [parameter for parameter in (*self.backbone.parameters(), self.mask_token) if parameter.requires_grad]

    # ---- training --------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """CTC loss, averaged over sentences; those longer than their frames count 0 (zero infinity)."""
        require(batch, "inputs", "labels", "label_lengths", remedy=_NEEDS_LABELS)
        log_probs, padding = self(
            batch["inputs"], batch.get("padding_mask"), batch.get("mask"), batch.get("channel_mask")
        )
        loss = self._losses(log_probs, padding, batch).mean()
        self.units = len(batch["inputs"]) / 8
        self.log("train/loss", loss, batch_size=len(batch["inputs"]))
        return loss

    def _losses(self, log_probs: Tensor, padding: Tensor | None, batch: Batch) -> Tensor:
        """Loss of each sentence (B,)."""
        rows, frames, _ = log_probs.shape
        lengths = torch.full((rows,), frames, device=log_probs.device) if padding is None else (~padding).sum(dim=1)
        return F.ctc_loss(
            log_probs.transpose(0, 1),
            batch["labels"],
            lengths,
            batch["label_lengths"],
            reduction="none",
            zero_infinity=True,
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.trunk_is_frozen:  # gradients of 0 would still move AdamW's averages
            for parameter in self._frozen_at_first():
                parameter.grad = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """At the start of a run: say what usually goes wrong, before hours are spent."""
        if self.global_step or batch_idx or "label_lengths" not in batch:
            return
        check_first_batch(batch, self.encoder.conv_layers, self.sample_rate, self.normalize)

    # ---- evaluation ------------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """`val/loss`, the mean over sentences, `val/wer` and `val/cer`, errors of all by words and letters of all."""
        self._evaluate(batch, dataloader_idx, None)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As `validation_step`, with the decoder, logged as `test/loss` and so on."""
        self._evaluate(batch, dataloader_idx, self.decoder)

    def _evaluate(self, batch: Batch, dataloader_idx: int, decoder: BeamSearch | None) -> None:
        require(batch, "inputs", "labels", "label_lengths", remedy=_NEEDS_LABELS)
        log_probs, padding = self(batch["inputs"], batch.get("padding_mask"))
        rows, said = counted(batch), self.transcripts(batch)
        found = [hypothesis.text for hypothesis in self.decode(log_probs, padding, decoder)]
        figures = self.figures(dataloader_idx)
        figures["loss"].update(self._losses(log_probs, padding, batch), rows)
        if rows is not None:
            places = rows.nonzero()[:, 0].tolist()
            found, said = [found[place] for place in places], [said[place] for place in places]
            log_probs, padding = log_probs[rows], None if padding is None else padding[rows]
        for name in ("wer", "cer") if said else ():
            figures[name].update(found, said)
        self._hypotheses.add(said, found, log_probs, padding)

    def new_figures(self, label: str) -> dict[str, Metric]:
        """The loss, and error rates of words and letters."""
        return {"loss": self.mean_loss(), "wer": WordErrorRate(), "cer": CharErrorRate()}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._show("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._show("test")

    def _show(self, stage: str) -> None:
        if not self.trainer.sanity_checking:
            self._hypotheses.show(self.trainer, stage)
        self._hypotheses = HypothesisStats()

    def decode(self, log_probs: Tensor, padding: Tensor | None, decoder: BeamSearch | None = None) -> list[Hypothesis]:
        """Log probabilities (B, N, V) and the frames' padding (B, N), True = padding -> a hypothesis for each clip."""
        assert self.vocabulary is not None
        rows = log_probs.detach().cpu()
        clips = list(rows) if padding is None else [row[keep] for row, keep in zip(rows, ~padding.cpu(), strict=True)]
        return [(decoder or greedy)(clip, self.vocabulary) for clip in clips]

    def transcripts(self, batch: Batch) -> list[str]:
        """What is said in each clip, from its labels."""
        assert self.vocabulary is not None
        rows = zip(batch["labels"].tolist(), batch["label_lengths"].tolist(), strict=True)
        return [spelt(row[:length], self.vocabulary) for row, length in rows]

    # ---- transcription -----------------------------------------------------------------------------------------------

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Transcripts: {"index": (R,) where the batch has it, "lines": one dictionary a recording}.

        A recording that comes in windows (`keep`, `last`, see `datamodules.speech.windows`) has its line with the last of
        them. Padding changes nothing, in released networks neither.
        """
        require(batch, "inputs", remedy="transcribing needs recordings, alone or as the first of a tuple")
        with exact_padding(self.backbone):
            log_probs, padding = self(batch["inputs"], batch.get("padding_mask"))
        if "keep" not in batch:
            lines = [hypothesis.as_line() for hypothesis in self.decode(log_probs, padding, self.decoder)]
            return {"lines": lines, **({"index": batch["index"]} if "index" in batch else {})}
        assert self.vocabulary is not None
        whole = dict(self._joined.add(batch, list(log_probs.cpu())))
        how = self.decoder or greedy
        lines = [how(torch.cat(pieces), self.vocabulary).as_line() for pieces in whole.values()]
        return {"index": torch.tensor(list(whole), dtype=torch.int64), "lines": lines}

    def on_predict_start(self) -> None:
        self._joined.clear()

    # ---- Lightning -----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Compile where asked to; take the letters from the datamodule.

        Raises:
            ValueError: the datamodule has none.
        """
        if self.vocabulary is None:
            letters = getattr(getattr(self.trainer, "datamodule", None), "letters", None)
            if letters is None:
                raise UserError("vocabulary is 'data', but the data does not say its letters: give them as a list")
            self._set_vocabulary([BLANK, SEPARATOR, *letters()])
            rank_zero_info(f"vocabulary from the data: {' '.join(self.vocabulary or [])}")
        if self.compile_parts:
            self.backbone.transformer.compile()

    def run_through(self, batch: Batch) -> None:
        """Compute the outputs of a batch and forget them, for `HalfPrecisionCheck`."""
        self(batch["inputs"], batch.get("padding_mask"))

    def configure_optimizers(self) -> Any:
        return self.optimization.configure(self, run_length(self.trainer))

    def configure_callbacks(self) -> list[pl.Callback]:
        return guards(self.compile_parts)
