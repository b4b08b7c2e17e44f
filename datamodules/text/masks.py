"""Which tokens of a text are hidden, and what the student reads in place of some of them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from d2v_lightning.method.masking import num_span_masked, random_mask, span_mask


def num_text_masked(length: int, mask_prob: float, mask_length: int, mask_special: bool = True) -> int:
    """How many of `length` tokens are hidden.

    Single tokens: `mask_prob` of them, what is visible rounded down (2.0 Base: 246 of 512). Spans: what fairseq's overlapping
    spans come to on average (1.0: .35 in spans of 4 hide 31 %). Those that spare special tokens end with the text.

    Raises:
        ValueError: an argument is out of its range.
    """
    expected = num_span_masked(length, mask_prob, mask_length, mask_special)  # refuses bad arguments
    if mask_length > 1:
        return expected
    return min(length - 1, length - int(length * (1 - mask_prob)))


def text_mask(
    maskable: Tensor,
    num_masked: int,
    mask_length: int,
    generator: torch.Generator | None = None,
    word_starts: Tensor | None = None,
    open_end: bool = False,
) -> Tensor:
    """Hides exactly `num_masked` of the maskable tokens, or all where there are fewer.

    Args:
        maskable: (T,) bool, False = padding, and special tokens where they are spared. A span leaps over these.
        num_masked: how many to hide, 0 or more.
        mask_length: of a span; 1 for single tokens.
        generator: source of all randomness; `None` is torch's global one.
        word_starts: (T,) bool, True = the token begins a word: spans are then of whole words, see `whole_word_mask`.
        open_end: see `span_mask`.

    Returns:
        (T,) bool, True = hidden.
    """
    places = maskable.nonzero()[:, 0]
    mask = torch.zeros_like(maskable)
    if num_masked >= len(places):
        mask[places] = True
    elif num_masked > 0:
        if word_starts is not None:
            chosen = whole_word_mask(word_starts[places], num_masked, mask_length, generator)
        elif mask_length == 1:
            chosen = random_mask(len(places), num_masked, generator)
        else:
            chosen = span_mask(len(places), num_masked, mask_length, generator, open_end=open_end)
        mask[places[chosen]] = True
    return mask


def whole_word_mask(
    word_starts: Tensor, num_masked: int, mask_length: int, generator: torch.Generator | None = None
) -> Tensor:
    """Hides exactly `num_masked` tokens in spans that begin and end with a word.

    A span has at least `mask_length` tokens and goes on to the end of a word. Spans that would hide too many are passed over,
    and only where no other is left, one is cut to fit: at most one word is then hidden in part.

    Args:
        word_starts: (N,) bool, True = the token begins a word; the first does in any case.
        num_masked: how many to hide, 1..N-1.
        mask_length: least tokens of a span; 1 hides words as they come.
        generator: source of all randomness; `None` is torch's global one.

    Returns:
        (N,) bool, True = hidden.
    """
    length = len(word_starts)
    begins = [0, *(word_starts[1:].nonzero()[:, 0] + 1).tolist(), length]
    end_of_word = [0] * (length + 1)  # where the word that holds place - 1 ends
    for begin, end in itertools.pairwise(begins):
        end_of_word[begin + 1 : end + 1] = [end] * (end - begin)
    hidden = [False] * length
    missing = num_masked
    too_many: list[list[int]] = []
    for word in torch.randperm(len(begins) - 1, generator=generator).tolist():
        begin = begins[word]
        end = end_of_word[min(begin + mask_length, length)]
        fresh = [place for place in range(begin, end) if not hidden[place]]
        if len(fresh) > missing:
            too_many.append(fresh)
            continue
        for place in fresh:
            hidden[place] = True
        missing -= len(fresh)
        if not missing:
            break
    for fresh in too_many:
        for place in [place for place in fresh if not hidden[place]][:missing]:
            hidden[place] = True
            missing -= 1
    return torch.tensor(hidden)


def corrupt(
    ids: Tensor,
    chosen: Tensor,
    mask_id: int,
    ordinary: Tensor,
    leave_unmasked_prob: float,
    random_token_prob: float,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """BERT's 80/10/10: of the chosen tokens some stay, some become random ones, the rest is hidden.

    How many of each follows from the number of chosen ones alone.

    Args:
        ids: (T,) int64.
        chosen: (T,) bool, True = chosen.
        mask_id: stands for a hidden token.
        ordinary: (W,) int64 ids that a random token may be.
        leave_unmasked_prob: share that stays as it is.
        random_token_prob: share that becomes random.
        generator: source of all randomness; `None` is torch's global one.

    Returns:
        mask (T,) bool, True = the student reads `mask_id`; and the ids (T,) that it reads.
    """
    places = chosen.nonzero()[:, 0]
    num_left = round(leave_unmasked_prob * len(places))
    num_random = round(random_token_prob * len(places))
    shuffled = places[torch.randperm(len(places), generator=generator)]
    replaced = shuffled[num_left : num_left + num_random]
    mask, corrupted = chosen.clone(), ids.clone()
    mask[shuffled[: num_left + num_random]] = False
    corrupted[mask] = mask_id
    corrupted[replaced] = ordinary[torch.randint(len(ordinary), (len(replaced),), generator=generator)]
    return mask, corrupted
