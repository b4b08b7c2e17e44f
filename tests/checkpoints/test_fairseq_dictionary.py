"""From fairseq's numbers to a tokenizer's: every token keeps its vector, and positions count from the new padding on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from d2v_lightning import Backbone, TextEncoder, Transformer
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.fairseq_dictionary import EMBEDDING, POSITIONS, reorder_embedding
from d2v_lightning.support.errors import UserError

SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", "cat", "dog"]  # fairseq's; its <mask> is the last
IDS = {"dog": 0, "<mask>": 1, "<s>": 2, "</s>": 3, "cat": 4, "<pad>": 5, "<unk>": 6}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """The same tokens in another order."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(IDS, unk_token="<unk>")), pad_token="<pad>", mask_token="<mask>"
    )
    made.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def content() -> Content:
    torch.manual_seed(0)
    backbone = Backbone(TextEncoder(8, 7, 5, mask_id=6), Transformer(8, 1, 2))
    return Content(backbone.config, dict(backbone.state_dict()), "", None, [])


def test_every_token_keeps_its_vector_and_every_place_its_position(tokenizer: Path) -> None:
    before = content()
    after = reorder_embedding(before, SYMBOLS, tokenizer)
    for number, token in enumerate([*SYMBOLS, "<mask>"]):
        assert torch.equal(after.state[EMBEDDING][IDS[token]], before.state[EMBEDDING][number]), token
    assert torch.equal(after.state[POSITIONS][IDS["<pad>"] + 1 :], before.state[POSITIONS][2:])
    arguments = after.tree["init_args"]["encoder"]["init_args"]
    assert (arguments["pad_id"], arguments["mask_id"]) == (IDS["<pad>"], IDS["<mask>"])
    assert before.tree["init_args"]["encoder"]["init_args"]["mask_id"] == 6, "the given content stays"


def test_numbers_of_a_byte_level_encoder_are_looked_up(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "encoder.json").write_text(json.dumps({"cat": 17, "dog": 4}))
    by_number = [*SYMBOLS[:4], "17", "4"]
    found = reorder_embedding(content(), by_number, tokenizer, tmp_path / "encoder.json")
    assert torch.equal(found.state[EMBEDDING], reorder_embedding(content(), SYMBOLS, tokenizer).state[EMBEDDING])


def test_other_tokens_and_other_models_are_refused(tokenizer: Path) -> None:
    with pytest.raises(UserError, match="the embedding has 7 rows, the dictionary 5 symbols and '<mask>'"):
        reorder_embedding(content(), SYMBOLS[:-1], tokenizer)
    with pytest.raises(UserError, match=r"do not have the same tokens: \['bird', 'dog'\]\.\.\. \(2\) are in one only"):
        reorder_embedding(content(), [*SYMBOLS[:-1], "bird"], tokenizer)
    with pytest.raises(UserError, match="of a text model: this one has none"):
        reorder_embedding(content()._replace(state={}), SYMBOLS, tokenizer)
