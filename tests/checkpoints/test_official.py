"""Files of Meta's that passed through other hands: names of wrappers, options of before hydra, parts cut away."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_case import changed

from d2v_lightning.checkpoints.backbones import load_backbone, load_mask_token
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import unwrapped

CASES = ("vision_shared_relpos", "audio_unpadded", "text_unpadded_variant", "d2v2_image")
OF_PRE_TRAINING = ("mask_token", "mask_emb", "lm_head", "final_proj", "regression_head", ".decoder.")


def assert_same_backbone(path: Path, other: Path) -> None:
    for part in ("student", "teacher"):
        expected, found = load_backbone(path, part).state_dict(), load_backbone(other, part).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def named(prefix: str, weights: Any) -> Any:
    """Weights with a prefix before their names, at any depth."""
    return {f"{prefix}{name}": named(prefix, w) if isinstance(w, dict) else w for name, w in weights.items()}


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("name", CASES)
def test_the_names_of_a_wrapped_model(name: str, wrapper: str, tmp_path: Path) -> None:
    def wrap(file: dict[str, Any]) -> dict[str, Any]:
        return {part: named(wrapper, w) if part.startswith("model") else w for part, w in file.items()}

    assert_same_backbone(*changed(name, tmp_path, wrap))


def test_a_weight_that_is_there_twice_is_refused() -> None:
    weight = torch.zeros(2)
    with pytest.raises(UserError, match=r"the weight 'proj.bias' twice"):
        unwrapped({"proj.bias": weight, "proj._orig_mod.bias": weight, "norm.bias": weight})


@pytest.mark.parametrize("name", CASES[1:])
def test_options_as_fairseq_wrote_them_before_hydra(name: str, tmp_path: Path) -> None:
    assert_same_backbone(
        *changed(
            name, tmp_path, lambda file: {"model": file["model"], "args": argparse.Namespace(**file["cfg"]["model"])}
        )
    )


@pytest.mark.parametrize("name", CASES)
def test_a_backbone_needs_no_more_of_a_file_than_itself(name: str, tmp_path: Path) -> None:
    def cut(file: dict[str, Any]) -> dict[str, Any]:
        for part in (part for part in file if part.startswith("model")):
            for gone in [weight for weight in file[part] if any(piece in weight for piece in OF_PRE_TRAINING)]:
                del file[part][gone]
        return file

    path, other = changed(name, tmp_path, cut)
    assert_same_backbone(path, other)
    assert load_mask_token(other) is None
    with pytest.raises(UserError, match="weights missing"):
        FromPretrained.from_pretrained(other)
