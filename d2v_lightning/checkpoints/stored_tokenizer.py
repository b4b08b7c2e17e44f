"""The tokenizer of a text model as plain data, which checkpoints carry so that they need nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2v_lightning.support.errors import UserError

StoredTokenizer = dict[str, Any]  # {"json": of `tokenizers`, "special_tokens": {use: token}, "model_max_length": int}


def to_dict(tokenizer: Any) -> StoredTokenizer:
    """A fast tokenizer of `transformers` as plain data, without padding and truncation."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    special = {use: token for use, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return {
        "json": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": special,
        "model_max_length": int(tokenizer.model_max_length),
    }


def load_fast(name: str) -> Any:
    """A fast tokenizer of `transformers`, tried out once. Code that comes with it is never run.

    Args:
        name: on the Hugging Face hub, or a directory.

    Raises:
        ValueError: it cannot be loaded, or is not a fast one.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if tokenizer.is_fast:
            to_dict(tokenizer)
            tokenizer("a word", "another")
    except BaseException as error:  # `tokenizers` raises nothing narrower than Exception, and panics
        raise UserError(f"tokenizer {name!r} cannot be loaded ({_reason(error)})") from error
    if not tokenizer.is_fast:
        raise UserError(f"tokenizer {name!r} is not one of transformers' fast tokenizers")
    return tokenizer


def _reason(error: BaseException) -> str:
    """The first line of what a library says, without its own advice; Ctrl-C and exits are passed on."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    if "trust_remote_code" in str(error):
        return "it needs code that comes with it, which is not run"
    lines = [line.strip() for line in str(error).split("\n") if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def load(plain: StoredTokenizer) -> Any:
    """The tokenizer that `to_dict` stored, as a `PreTrainedTokenizerFast`.

    Raises:
        ValueError: the data is damaged.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        made = Tokenizer.from_str(plain["json"])
        length, special = (
            int(plain["model_max_length"]),
            {str(use): str(t) for use, t in plain["special_tokens"].items()},
        )
    except BaseException as error:  # as above
        raise UserError(
            f"the tokenizer stored with the model is damaged ({_reason(error)}): set one by its name"
        ) from error
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **special)


def from_directory(directory: Path) -> StoredTokenizer | None:
    """That of a directory of `transformers` or of ours; None where it has none.

    Raises:
        ValueError: it is damaged.
    """
    from transformers import PreTrainedTokenizerFast

    if not (directory / "tokenizer.json").is_file():
        return None
    try:
        return to_dict(PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False))
    except BaseException as error:  # as above
        raise UserError(f"the tokenizer in {directory} is damaged: {_reason(error)}") from error


def refuse_another(name: str, mine: StoredTokenizer, other: StoredTokenizer | None) -> None:
    """Compare the tokenizer of data, called `name`, with the one that a model was trained with, where that is known.

    Raises:
        ValueError: they make other ids of some texts.
    """
    if other is not None and (mine["json"], mine["special_tokens"]) != (other["json"], other["special_tokens"]):
        raise UserError(
            f"the tokenizer {name} is not the one stored with the model: set data.tokenizer to null to use that one, or to "
            "where the same is"
        )
