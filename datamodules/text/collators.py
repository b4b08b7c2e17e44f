"""Lists of texts to batches: padding, masks for pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.support.errors import UserError
from d2v_lightning.types import Batch
from datamodules.shared.samplers import derived_seed
from datamodules.text.masks import corrupt, num_text_masked, text_mask
from datamodules.text.vocabulary import Vocabulary


class TextCollator:
    """Pads texts to the longest.

    A sample is a dict with "inputs" (T,) ids and perhaps "index", "key" (epoch, index) and "label", or the ids alone.

    Args:
        pad_id: of padding.
        multiple_of: batches are padded to a multiple of this many tokens.

    Raises:
        ValueError: `multiple_of` is not positive.
    """

    def __init__(self, pad_id: int = 1, multiple_of: int = 1) -> None:
        if multiple_of < 1:
            raise UserError(f"multiple_of {multiple_of}: permitted is 1 or more")
        self.pad_id, self.multiple_of = pad_id, multiple_of

    def __call__(self, samples: Sequence[Any]) -> Batch:
        """Samples -> {"inputs" (B, T) int64, "padding_mask" (B, T) where one is padded, "index" (B,), "labels"
        (B,)}."""
        rows = [sample if isinstance(sample, dict) else {"inputs": sample} for sample in samples]
        texts = [torch.as_tensor(row["inputs"], dtype=torch.int64) for row in rows]
        lengths = torch.tensor([len(text) for text in texts])
        length = -(-int(lengths.max()) // self.multiple_of) * self.multiple_of
        inputs = torch.full((len(texts), length), self.pad_id)
        for row, text in zip(inputs, texts, strict=True):
            row[: len(text)] = text
        batch: dict[str, Any] = {"inputs": inputs}
        if (lengths < length).any():
            batch["padding_mask"] = torch.arange(length) >= lengths[:, None]
        for name, field in (("index", "index"), ("label", "labels")):
            if all(row.get(name) is not None for row in rows):
                batch[field] = torch.tensor([row[name] for row in rows])
        return batch  # type: ignore[return-value]


class TextMaskCollator(TextCollator):
    """Pads texts and hides tokens of them.

    It adds "mask" (B, M, T) bool, True = hidden, and "hidden" (P,) where the loss is taken. With M > 1 it adds "visible"
    (B, M, V), and with kept or random tokens "corrupted" (B, M, T) int64.

    `<s>` and `</s>` are hidden like any token, as released. 1.0 (fairseq/data/mask_tokens_dataset.py) hides 9 % of the first
    tokens and 31 % of the last. 2.0 (`random_masking` of examples/data2vec/models/modalities/base.py) hides 48 % of either,
    Large 50 %.

    How many are hidden follows from a text's length alone, so it is the same in all rows without padding. A padded row hides
    the same share of its own tokens, and nothing of its padding. 2.0 (M > 1) is an exception, because it drops what is hidden
    and needs equal numbers. There a padded row also hides tokens of its padding, where no loss is taken, until it hides as
    many as rows of full length.

    The masks of a sample with a key (epoch, index) are a pure function of (seed, epoch, index); without a key they come from
    torch's global generator.

    Args:
        vocabulary: of the tokenizer, see `vocabulary_of`.
        mask_prob, mask_length: `mask_prob` / `mask_length` spans start per token (1.0 as released: .35, 4, which hides 31 %;
            BERT's, of the paper: .15, 1; 2.0: .48, 1, Large .5, 1).
        num_masks: M.
        leave_unmasked_prob, random_token_prob: shares of the chosen tokens that stay as they are or become random (BERT: .1
            each). They are read as such, are not in "mask", and no loss is taken there.
        whole_words: hide whole words only, see `whole_word_mask`. A special token is one.
        mask_special: False spares special tokens: as many tokens are hidden, of the others. A text of 2.0 that is
            nearly all special tokens is the exception: those inside it are hidden too.
        multiple_of: see `TextCollator`.
        seed: of the masks.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        mask_prob: float = 0.35,
        mask_length: int = 4,
        num_masks: int = 1,
        leave_unmasked_prob: float = 0.0,
        random_token_prob: float = 0.0,
        whole_words: bool = False,
        mask_special: bool = True,
        multiple_of: int = 1,
        seed: int = 0,
    ) -> None:
        check_masking(mask_prob, mask_length, num_masks, leave_unmasked_prob, random_token_prob)
        super().__init__(vocabulary.pad_id, multiple_of)
        self.vocabulary, self.seed = vocabulary, seed
        self.mask_prob, self.mask_length, self.num_masks = mask_prob, mask_length, num_masks
        self.leave_unmasked_prob, self.random_token_prob = leave_unmasked_prob, random_token_prob
        self.whole_words, self.mask_special = whole_words, mask_special
        self._ordinary = (~vocabulary.special).nonzero()[:, 0]

    def __call__(self, samples: Sequence[Any]) -> Batch:
        batch = super().__call__(samples)
        inputs, padding_mask = batch["inputs"], batch.get("padding_mask")
        length = inputs.shape[1]
        lengths = [length] * len(samples) if padding_mask is None else (~padding_mask).sum(dim=1).tolist()
        mask = torch.zeros(len(samples), self.num_masks, length, dtype=torch.bool)
        corrupted = inputs[:, None].repeat(1, self.num_masks, 1)
        shares = self.leave_unmasked_prob, self.random_token_prob
        for row, (sample, ids, own) in enumerate(zip(samples, inputs, lengths, strict=True)):
            generator = self._generator(sample)
            mask[row] = self._chosen(ids, own, generator)
            for number in range(self.num_masks if any(shares) else 0):
                mask[row, number], corrupted[row, number] = corrupt(
                    ids, mask[row, number], self.vocabulary.mask_id, self._ordinary, *shares, generator
                )
        batch["mask"] = mask
        if any(shares):
            batch["corrupted"] = corrupted
        batch["hidden"] = hidden_positions(batch["mask"], padding_mask)
        if self.num_masks > 1:
            batch["visible"] = visible_positions(batch["mask"])
        return batch

    def _chosen(self, ids: Tensor, own: int, generator: torch.Generator | None) -> Tensor:
        """(M, T) bool, True = chosen, for one row whose first `own` tokens are no padding."""
        length = len(ids)
        shape = self.mask_prob, self.mask_length, self.mask_special
        count = num_text_masked(own, *shape)
        special = self.vocabulary.special[ids]
        maskable = torch.ones_like(special) if self.mask_special else ~special
        maskable[own:] = False
        extra = 0  # hidden tokens of the padding
        if self.num_masks > 1:
            whole = num_text_masked(length, *shape)
            count = min(whole, max(count, whole - (length - own)))
            extra = whole - count
            if count > int(maskable.sum()):
                maskable[1:own] = True
        starts = self.vocabulary.word_starts[ids] if self.whole_words else None
        if starts is not None:  # a special token is a word by itself
            starts |= special
            starts[1:] |= special[:-1]
        chosen = torch.stack(
            [
                text_mask(maskable, count, self.mask_length, generator, starts, self.mask_special)
                for _ in range(self.num_masks)
            ]
        )
        chosen[:, own : own + extra] = True
        return chosen

    def _generator(self, sample: Any) -> torch.Generator | None:
        key = sample.get("key") if isinstance(sample, dict) else None
        return None if key is None else torch.Generator().manual_seed(derived_seed("mask", self.seed, *key))


def check_masking(
    mask_prob: float, mask_length: int, num_masks: int, leave_unmasked_prob: float, random_token_prob: float
) -> None:
    """Raises ValueError where an argument of `TextMaskCollator` is out of its range."""
    if num_masks < 1:
        raise UserError(f"num_masks {num_masks}: permitted is 1 or more")
    if leave_unmasked_prob < 0 or random_token_prob < 0 or leave_unmasked_prob + random_token_prob >= 1:
        raise UserError(
            f"leave_unmasked_prob {leave_unmasked_prob}, random_token_prob {random_token_prob}: permitted are shares that "
            "add up to less than 1"
        )
    if num_masks > 1 and (leave_unmasked_prob or random_token_prob):
        raise UserError(
            f"num_masks {num_masks} with leave_unmasked_prob {leave_unmasked_prob}, random_token_prob {random_token_prob}: "
            "data2vec 2.0 drops hidden tokens, set both to 0"
        )
    num_text_masked(512, mask_prob, mask_length)
