"""What data needs to know of a tokenizer: ids with a meaning of their own, and where words begin."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.checkpoints.stored_tokenizer import StoredTokenizer
from d2v_lightning.support.errors import UserError

PARALLELISM = "TOKENIZERS_PARALLELISM"
USERS_CHOICE = os.environ.get(PARALLELISM)


class Vocabulary(NamedTuple):
    """Ids of a tokenizer.

    first_id, last_id: what begins and ends a text: `<s>` and `</s>`, BERT's [CLS] and [SEP].
    pad_id, mask_id: padding, and what stands for a hidden token.
    special: (V,) bool, True = a token with a meaning of its own, such as `<s>`.
    word_starts: (V,) bool, True = a token that begins a word. Words are what spaces separate (or the tokenizer's own, for
        WordPiece).
    """

    first_id: int
    last_id: int
    pad_id: int
    mask_id: int
    special: Tensor
    word_starts: Tensor

    @property
    def size(self) -> int:
        """Number of ids."""
        return len(self.special)


def load_tokenizer(name: str) -> Any:
    """A fast tokenizer of `transformers`. Code that comes with it is never run.

    Args:
        name: on the Hugging Face hub, or a directory.

    Raises:
        ValueError: it cannot be loaded, or is not a fast one.
    """
    remedy = "give a name on the Hugging Face hub, or a directory made by python -m d2v_lightning.commands.tokenizer"
    if (name.startswith((".", "/")) or name.count("/") > 1) and not os.path.isdir(name):
        raise UserError(f"no tokenizer at {name!r}: {remedy}")
    try:
        return stored_tokenizer.load_fast(name)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from error


def agreed_tokenizer(name: str | None, backbone: Any) -> Any:
    """The tokenizer of data and model, which from now on is stored with the model.

    Args:
        name: see `load_tokenizer`; None takes the one that is stored with the model.
        backbone: the model's, or None.

    Raises:
        ValueError: it cannot be loaded, is another than the model's, or there is none.
    """
    models: StoredTokenizer | None = getattr(backbone, "tokenizer", None)
    if name is None:
        if models is None:
            raise UserError(
                "no tokenizer is given, and none is stored with the model: set data.tokenizer to the directory, or the "
                "name on the Hugging Face hub, of the one that the model was trained with"
            )
        return stored_tokenizer.load(models)
    tokenizer = load_tokenizer(name)
    if backbone is not None:
        mine = stored_tokenizer.to_dict(tokenizer)
        stored_tokenizer.refuse_another(repr(name), mine, models)
        backbone.tokenizer = mine
    return tokenizer


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The ids of a fast tokenizer.

    Raises:
        ValueError: it lacks `<mask>`, padding, or tokens that begin and end a text.
    """
    ids = {
        "first": _either(tokenizer.cls_token_id, tokenizer.bos_token_id),
        "last": _either(tokenizer.sep_token_id, tokenizer.eos_token_id),
        "padding": tokenizer.pad_token_id,
        "mask": tokenizer.mask_token_id,
    }
    names = {"first": "<s>", "last": "</s>", "padding": "<pad>", "mask": "<mask>"}
    if missing := [names[use] for use, number in ids.items() if number is None]:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no {', '.join(missing)}: take one made for masked models such as "
            "roberta-base, or train one with python -m d2v_lightning.commands.tokenizer"
        )
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = torch.zeros(len(tokens), dtype=torch.bool)
    special[list(tokenizer.all_special_ids)] = True
    word_starts = torch.tensor(_word_starts([token or "" for token in tokens]))
    return Vocabulary(ids["first"], ids["last"], ids["padding"], ids["mask"], special, word_starts)


def content_hash(tokenizer: Any) -> str:
    """The same for tokenizers that make the same ids of every text, whatever their names."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@contextmanager
def all_cores() -> Iterator[None]:
    """Tokenizers use every core inside. Outside they use one, so that loading processes may be forked."""
    os.environ[PARALLELISM] = USERS_CHOICE or "true"
    try:
        yield
    finally:
        os.environ[PARALLELISM] = USERS_CHOICE or "false"


def _either(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def _word_starts(tokens: list[str]) -> list[bool]:
    for space in ("\u0120", "\u2581"):  # how byte-level BPE and SentencePiece write a space
        if any(token.startswith(space) for token in tokens):
            return [token.startswith(space) for token in tokens]
    return [not token.startswith("##") for token in tokens]
