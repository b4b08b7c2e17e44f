"""1.0 for speech and text: weights go in and out unchanged, older names and places of a teacher are known, no other is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_case import GoldenCase

from d2v_lightning.checkpoints.official_v1_audio_text import convert, is_audio, renamed, split_teacher, state_dict
from d2v_lightning.configurable import build
from d2v_lightning.support.errors import UserError

CASES = ("audio_unpadded", "audio_variant_prenorm", "text_unpadded_variant")


def file_of(name: str) -> dict[str, Any]:
    case = GoldenCase(name)
    state = {**case.group("model."), case.teacher_key: case.group("teacher_init.")}
    return {"model": state, "cfg": {"model": case.json["official_options_set"], "task": {}}}


@pytest.mark.parametrize("name", CASES)
def test_weights_go_in_and_out_unchanged(name: str) -> None:
    file = file_of(name)
    content = convert(file, "file")
    model = build(content.tree)
    model.load_state_dict(content.state)
    written = state_dict(model)["model"]
    ema = GoldenCase(name).teacher_key  # where the official load asserts it
    for part, weights in (("", file["model"]), (ema, file["model"][ema])):
        found: Any = written[part] if part else written
        for key in set(weights) - {ema}:
            assert torch.equal(found[key], weights[key]), (part, key)
        assert {key for key in found if key not in weights} <= {"encoder.sentence_encoder.version", "version"}
    assert all(row.how in ("matched", "converted", "dropped") for row in content.rows)
    assert is_audio(file["model"]) == name.startswith("audio")


def test_without_a_teacher_it_is_a_copy_of_the_student() -> None:
    file = file_of("text_unpadded_variant")
    del file["model"]["encoder._ema"]
    content = convert(file, "file")
    assert content.kind == "data2vec 1.0 for text, pre-trained, without teacher"
    teacher = content.part("teacher.")
    backbone = content.part("student.backbone.")
    assert teacher
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in teacher.items())


def test_a_teacher_is_found_where_older_files_have_it_and_there_is_one() -> None:
    one = torch.ones(1)
    for key in ("_ema", "encoder._ema"):
        rest, teacher = split_teacher({"w": one, key: {"a": one}}, "file")
        assert (list(rest), list(teacher)) == (["w"], ["a"])
    rest, teacher = split_teacher({"w": one, "encoder.target_model.a": one}, "file")
    assert (list(rest), list(teacher)) == (["w"], ["a"])
    assert split_teacher({"w": one}, "file")[1] is None
    with pytest.raises(UserError, match="file has 2 teachers"):
        split_teacher({"_ema": {}, "encoder.target_model.a": one}, "file")


def test_older_names_are_todays() -> None:
    older = ("decoder.sentence_encoder.emb_layer_norm.bias", "decoder.lm_head.0.bias", "encoder.lm_head.dense.bias")
    assert list(renamed(dict.fromkeys(older, torch.ones(1)))) == [
        "encoder.sentence_encoder.layernorm_embedding.bias", "encoder.regression_head.0.bias", "encoder.lm_head.dense.bias"
    ]  # fmt: skip


def test_a_weight_of_another_method_is_refused() -> None:
    file = file_of("audio_unpadded")
    file["model"]["quantizer.vars"] = torch.ones(1)
    with pytest.raises(UserError, match=r"file: weight 'quantizer\.vars' is not part of data2vec 1\.0 pre-training"):
        convert(file, "file")
    with pytest.raises(UserError, match="neither convolutions of waveforms nor a sentence encoder"):
        convert({"model": {"w": torch.ones(1)}, "cfg": {"model": {}}}, "file")
