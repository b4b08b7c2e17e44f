"""From the numbers of fairseq's dictionary to those of a tokenizer of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.stored_tokenizer import load_fast
from d2v_lightning.configurable import Tree
from d2v_lightning.support.errors import UserError

MASK = "<mask>"
EMBEDDING, POSITIONS = "encoder.embedding.weight", "encoder.position.embedding.weight"
PAD_OF_FAIRSEQ = 1


def reorder_embedding(
    content: Content, symbols: list[str], tokenizer: str | Path, bpe: str | Path | None = None
) -> Content:
    """The same network for the ids of a tokenizer.

    Args:
        content: a text model that counts as fairseq: `symbols` in order, `<mask>` last.
        symbols: see `read_dictionary`.
        tokenizer: directory of a `transformers` tokenizer with the same tokens.
        bpe: fairseq's `encoder.json`, where the symbols are its numbers.

    Raises:
        ValueError: the tokens are not the same, or the model is none of text.
    """
    names = [name for name in content.state if name.endswith(EMBEDDING)]
    if not names:
        raise UserError("--dictionary with --tokenizer reorders the embedding of a text model: this one has none")
    rows = content.state[names[0]].shape[0]
    tokens = [*symbols, MASK]
    if bpe is not None:
        numbers = {str(number): token for token, number in json.loads(Path(bpe).read_text(encoding="utf-8")).items()}
        tokens = [numbers.get(token, token) for token in tokens]
    if len(tokens) != rows:
        raise UserError(f"the embedding has {rows} rows, the dictionary {len(symbols)} symbols and {MASK!r}")
    ids = load_fast(str(tokenizer)).get_vocab()
    missing = sorted(set(tokens) ^ set(ids))
    if missing or len(set(tokens)) != rows:
        raise UserError(
            f"dictionary and tokenizer do not have the same tokens: {missing[:3]}... ({len(missing)}) are in one only"
        )
    theirs = {token: number for number, token in enumerate(tokens)}
    order = torch.tensor([theirs[token] for token in sorted(ids, key=ids.__getitem__)])
    state = dict(content.state)
    for name in names:
        state[name] = state[name][order]
    for name in [name for name in state if name.endswith(POSITIONS)]:  # positions are counted from the padding's id on
        unused = state[name].new_zeros(ids["<pad>"] + 1, state[name].shape[1])
        state[name] = torch.cat([unused, state[name][PAD_OF_FAIRSEQ + 1 :]])
    return content._replace(state=state, tree=_with_ids(content.tree, ids["<pad>"], ids[MASK]))


def _with_ids(tree: Tree, pad_id: int, mask_id: int) -> Tree:
    """The constructor tree with other special ids in its text encoder."""
    if not isinstance(tree, dict):
        return tree
    if str(tree.get("class_path", "")).endswith(".TextEncoder"):
        return {**tree, "init_args": {**tree["init_args"], "pad_id": pad_id, "mask_id": mask_id}}
    return {name: _with_ids(value, pad_id, mask_id) for name, value in tree.items()}
