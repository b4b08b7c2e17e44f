"""Fine-tuned models of transformers, both ways to 1e-5, and directories of our own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from d2v_lightning import Data2Vec, GLUEClassifier, ImageClassifier, SpeechCTC, load_backbone
from d2v_lightning.checkpoints import save_huggingface
from d2v_lightning.support.errors import UserError

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SPEECH = SIZES | {
    **{"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3},
    **{"vocab_size": 8, "pad_token_id": 3, "num_conv_pos_embedding_groups": 4},
}
TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 40, "num_labels": 3}
IMAGES = SIZES | {"image_size": 32, "patch_size": 8, "num_labels": 12, "layer_norm_eps": 1e-6}
LETTERS = ["a", "b", "|", "<pad>", "<unk>", "c", "d", "e"]
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "Data2VecAudio": (SpeechCTC, SPEECH | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 5}),
    "Wav2Vec2": (SpeechCTC, SPEECH | {"num_conv_pos_embeddings": 16}),
    "Data2VecText": (GLUEClassifier, TEXT),
    "Roberta": (GLUEClassifier, TEXT),
    "Data2VecVision": (ImageClassifier, IMAGES | {"use_shared_relative_position_bias": True}),
    "Data2VecVision, class token": (ImageClassifier, IMAGES | {"use_mean_pooling": False}),
    "Beit": (ImageClassifier, IMAGES | {"use_relative_position_bias": True}),
}
HEADS = {SpeechCTC: "ForCTC", GLUEClassifier: "ForSequenceClassification", ImageClassifier: "ForImageClassification"}


def theirs(name: str, folder: Path) -> Any:
    ours, options = MODELS[name]
    base = name.partition(",")[0]
    torch.manual_seed(0)
    model = getattr(transformers, base + HEADS[ours])(getattr(transformers, base + "Config")(**options)).eval()
    for parameter in model.parameters():  # nothing may stay at a value that hides a mistake
        torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    if ours is SpeechCTC:
        (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    return model


def inputs_of(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ours, _ = MODELS[name]
    if ours is SpeechCTC:
        return torch.randn(2, 4000, generator=generator)
    if ours is GLUEClassifier:
        return torch.randint(4, 49, (2, 10), generator=generator)
    return torch.randn(2, 3, 32, 32, generator=generator)


def logits_of(model: Any, inputs: Tensor) -> Tensor:
    """Ours or theirs, log probabilities for letters with the blank first."""
    output = model(inputs)
    if isinstance(model, SpeechCTC):
        return output[0]
    if isinstance(output, Tensor):
        return output
    if output.logits.dim() < 3:
        return output.logits
    blank = model.config.pad_token_id
    order = [blank, *(number for number in range(output.logits.shape[-1]) if number != blank)]
    return output.logits[..., order].log_softmax(dim=-1)


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(name: str, tmp_path: Path) -> None:
    inputs = inputs_of(name)
    expected = logits_of(theirs(name, tmp_path / "theirs"), inputs)
    ours = MODELS[name][0].from_pretrained(tmp_path / "theirs").eval()
    torch.testing.assert_close(logits_of(ours, inputs), expected, atol=1e-5, rtol=1e-5)

    architecture = save_huggingface(ours, tmp_path / "back")
    back, said = getattr(transformers, architecture).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(back.eval(), inputs), expected, atol=1e-5, rtol=1e-5)

    ours.save_pretrained(tmp_path / "own")
    again = type(ours).from_pretrained(tmp_path / "own").eval()
    assert torch.equal(logits_of(again, inputs), logits_of(ours, inputs))
    assert again.config == ours.config
    backbone = load_backbone(tmp_path / "theirs").eval()
    assert torch.equal(backbone(inputs), ours.backbone(inputs))


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor", "processor"])
def test_what_a_clip_must_be_comes_with_the_model(nested: bool, tmp_path: Path) -> None:
    theirs("Wav2Vec2", tmp_path)
    options = {"do_normalize": False, "sampling_rate": 16000}
    file = tmp_path / ("processor_config.json" if nested else "preprocessor_config.json")
    file.write_text(json.dumps({"feature_extractor": options} if nested else options))
    model = SpeechCTC.from_pretrained(tmp_path)
    assert (model.normalize, model.sample_rate) == (False, 16000)
    options["sampling_rate"] = 8000
    file.write_text(json.dumps({"feature_extractor": options} if nested else options))
    with pytest.raises(ValueError, match="sample_rate is 8000: recordings are read at 16000 Hz"):
        SpeechCTC.from_pretrained(tmp_path)


def test_letters_come_with_the_model(tmp_path: Path) -> None:
    theirs("Data2VecAudio", tmp_path / "theirs")
    ours = SpeechCTC.from_pretrained(tmp_path / "theirs")
    assert ours.vocabulary == ["<blank>", "a", "b", "|", "<unk>", "c", "d", "e"]
    save_huggingface(ours, tmp_path / "out")
    code = (
        "import sys, torch; from transformers import AutoModelForCTC, AutoProcessor\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1]); model = AutoModelForCTC.from_pretrained(sys.argv[1])\n"
        "assert model(processor([0.0] * 4000, sampling_rate=16000, return_tensors='pt').input_values).logits.shape[-1] == 8\n"
        "print(processor.batch_decode(torch.tensor([[1, 1, 0, 1, 3, 2, 0]]))[0], 'd2v_lightning' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[-2] == "aa b False"
    (tmp_path / "theirs" / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no vocab.json in .*theirs: it says which letters its 8 outputs are"):
        SpeechCTC.from_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"problem_type": "multi_label_classification"},
            "problem_type is 'multi_label_classification': ours says one class",
        ),
        ({"id2label": {"1": "cat", "2": "dog"}}, r"id2label names \[1, 2\], where 0 to \d+ are expected"),
    ],
)
@pytest.mark.parametrize("name", ["Data2VecText", "Data2VecVision"])
def test_what_a_head_says_is_one_named_class(name: str, options: Any, said: str, tmp_path: Path) -> None:
    theirs(name, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **options}))
    with pytest.raises(UserError, match=f"{re.escape(str(config))}: {said}"):
        MODELS[name][0].from_pretrained(tmp_path)


def test_the_wrong_class_is_said(tmp_path: Path) -> None:
    theirs("Roberta", tmp_path / "theirs")
    with pytest.raises(
        ValueError, match=r"holds a GLUEClassifier, not a Data2Vec; Data2Vec\(checkpoint=...\) starts from"
    ):
        Data2Vec.from_pretrained(tmp_path / "theirs")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at nothing.ckpt: give the path of a file that exists"):
        Data2Vec.from_pretrained("nothing.ckpt")
