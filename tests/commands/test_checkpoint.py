"""`python -m d2v_lightning.commands.checkpoint`: everything in, everything out, and one line for what is wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_case import GoldenCase, changed
from released_cfg import PRETRAINED, merged
from safetensors.torch import load_file

import cli
from d2v_lightning import Data2Vec, SpeechCTC, load_backbone
from d2v_lightning.checkpoints import official_state_dict
from d2v_lightning.checkpoints.backbones import load_normalize
from d2v_lightning.checkpoints.pretrained import FromPretrained
from d2v_lightning.commands.checkpoint import main
from d2v_lightning.flavour import pl
from d2v_lightning.support.errors import UserError

CASES = [path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.safetensors")]
NOT_IN_TRANSFORMERS = ["d2v2_image", "audio_variant_prenorm", "d2v2_audio_alibi_padded", "d2v2_audio_alibi_unpadded"]
UNUSED = ("model_ema/lm_head.", "model_ema/mask_token")  # the teacher's, which the official code never uses either


def flat(state: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of nested dictionaries by joined names."""
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            tensors |= flat(value, f"{prefix}{name}/")
        else:
            assert isinstance(value, torch.Tensor)
            tensors[prefix + name] = value
    return tensors


@pytest.mark.parametrize("name", CASES)
def test_official_to_ours_and_back_unchanged(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = GoldenCase(name).write_official_file(tmp_path)
    assert main(["import", str(path), "--out", str(tmp_path / "ours")]) == 0
    said = capsys.readouterr().out
    assert "pre-trained" in said
    assert " matched, " in said
    model = Data2Vec.from_pretrained(tmp_path / "ours")
    before = flat(
        {key: value for key, value in torch.load(path, weights_only=False).items() if key.startswith("model")}
    )
    after = flat(official_state_dict(model))
    assert set(after) == set(before)
    for key, tensor in before.items():
        if key.startswith(UNUSED):
            continue
        assert torch.equal(after[key].reshape(tensor.shape), tensor), key
    assert official_state_dict(FromPretrained.from_pretrained(path)).keys() == official_state_dict(model).keys()


@pytest.mark.parametrize("name", CASES)
def test_through_transformers_or_our_own_directory(name: str, tmp_path: Path) -> None:
    path = GoldenCase(name).write_official_file(tmp_path)
    assert main(["export", str(path), "--out", str(tmp_path / "out"), "--part", "teacher"]) == 0
    direct, through = load_backbone(path, "teacher"), load_backbone(tmp_path / "out")
    assert direct.state_dict().keys() == through.state_dict().keys()
    for weight, tensor in direct.state_dict().items():
        assert torch.equal(through.state_dict()[weight], tensor), weight
    theirs = "model_type" in json.loads((tmp_path / "out" / "config.json").read_text())
    assert theirs == (name not in NOT_IN_TRANSFORMERS)
    card = (tmp_path / "out" / "README.md").read_text()
    licence = "cc-by-nc-4.0" if name.startswith(("vision", "d2v2_image")) else "mit"
    assert f"license: {licence}" in card
    assert through.licence == licence


def test_inspect_writes_nothing_and_names_every_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = GoldenCase("text_padded").write_official_file(tmp_path)
    assert main(["inspect", str(path), "--weights"]) == 0
    said = capsys.readouterr().out
    for weight in GoldenCase("text_padded").group("model."):
        assert weight in said
    assert "average_top_k_layers" in said
    assert sorted(tmp_path.iterdir()) == [path]


def test_what_made_a_file_is_written_as_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = GoldenCase("d2v2_image")
    path, out = case.write_official_file(tmp_path), tmp_path / "out.yaml"
    file = torch.load(path)
    options = merged(PRETRAINED["image_v2_base"], {"model": case.json["official_options_set"]})
    torch.save({**file, "cfg": options}, path)
    assert main(["inspect", str(path), "--recipe", str(out)]) == 0
    header = out.read_text().partition("seed_everything")[0]
    assert f"python cli.py fit --config {out} --data.root" in header
    assert "#   model.modalities.image.mask_prob_adjust: 0.07" in header, "no counterpart"
    assert "model.clone_batch" in header.partition("Options read: ")[2]
    small = [
        "--data.dataset",
        "digits",
        "--data.batch_size",
        "4",
        "--data.effective_batch",
        "4",
        "--data.num_workers",
        "0",
    ]
    small += ["--trainer.max_steps", "1", "--model.optimization.warmup", "0", "--trainer.accelerator", "cpu"]
    small += ["--trainer.default_root_dir", str(tmp_path / "run"), "--trainer.logger", "false"]
    cli.main(["fit", "--config", str(out), *small])
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"

    again = tmp_path / "again.yaml"
    assert main(["inspect", str(checkpoint), "--recipe", str(again)]) == 0
    ours, theirs = (yaml.safe_load(written.read_text()) for written in (again, out))
    assert ours["model"]["init_args"]["targets"] == theirs["model"]["init_args"]["targets"]
    data = {**ours["data"]["init_args"], "batch_size": 16, "effective_batch": 256}
    assert theirs["data"]["init_args"].items() <= data.items()
    assert ours["trainer"]["max_steps"] == 1
    capsys.readouterr()
    assert "again.yaml exists" in refused(["inspect", str(checkpoint), "--recipe", str(again)], capsys)


def test_a_file_that_does_not_say_what_made_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = GoldenCase("audio_padded").write_official_file(tmp_path), tmp_path / "out.yaml"
    command = ["--recipe", str(out)]
    assert "audio_padded.pt: its cfg has no section optimization" in refused(["inspect", str(path), *command], capsys)
    assert main(["export", str(path), "--out", str(tmp_path / "hf")]) == 0
    capsys.readouterr()
    said = refused(["inspect", str(tmp_path / "hf"), *command], capsys)
    assert "it holds a network and not what made it (targets, masks, batch, optimiser)" in said
    assert not out.exists()


def test_a_picture_of_another_size(tmp_path: Path) -> None:
    path = GoldenCase("vision_shared_relpos").write_official_file(tmp_path)
    before = load_backbone(path).encoder.image_size[0]
    options = ["--out", str(tmp_path / "out"), "--part", "student", "--image-size", str(2 * before)]
    assert main(["import", str(path), *options]) == 0
    larger = load_backbone(tmp_path / "out")
    assert larger.encoder.image_size == (2 * before, 2 * before)
    assert torch.isfinite(larger(torch.randn(1, 3, 2 * before, 2 * before))).all()


def test_from_fairseqs_numbers_to_a_tokenizers(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    case = GoldenCase("text_padded")
    path = case.write_official_file(tmp_path)
    size = case.group("model.")["encoder.sentence_encoder.embed_tokens.weight"].shape[0]
    words = [f"word{number}" for number in range(size - 5)]
    (tmp_path / "dict.txt").write_text("".join(f"{number} 1\n" for number in range(len(words))))
    (tmp_path / "encoder.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    special = ["<mask>", "<unk>", "</s>", "<s>", "<pad>"]
    ids = {token: number for number, token in enumerate([*special, *reversed(words)])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="<unk>")), mask_token="<mask>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--dictionary", str(tmp_path / "dict.txt"), "--tokenizer", str(tmp_path / "tokenizer")]
    options += ["--bpe", str(tmp_path / "encoder.json")]
    assert main(["import", str(path), "--out", str(tmp_path / "out"), "--part", "student", *options]) == 0
    old, new = load_backbone(path).eval(), load_backbone(tmp_path / "out").eval()
    assert (new.encoder.pad_id, new.encoder.mask_id) == (ids["<pad>"], ids["<mask>"])
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    theirs = torch.tensor([[0, 7, 9, size - 1, 2]])  # <s> word3 word5 <mask> </s>
    ours = torch.tensor([[ids[token] for token in ("<s>", "word3", "word5", "<mask>", "</s>")]])
    torch.testing.assert_close(new(ours), old(theirs))
    (tmp_path / "dict.txt").write_text("0 1\n")
    assert main(["import", str(path), "--out", str(tmp_path / "no"), "--part", "student", *options]) == 2


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def test_bad_files_give_one_line_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = GoldenCase("audio_padded").write_official_file(tmp_path)
    file = torch.load(good, weights_only=False)
    bad, out = tmp_path / "bad.pt", tmp_path / "out"
    command = ["import", str(bad), "--out", str(out)]

    assert "no checkpoint at" in refused(command, capsys)
    bad.write_bytes(good.read_bytes()[:5000])
    assert "is damaged or no checkpoint" in refused(command, capsys)

    def saved(name: str, value: object, **entries: object) -> str:
        torch.save({**file, "model": {**file["model"], name: value}, **entries}, bad)
        return refused(command, capsys)

    weight = "encoder.layers.1.fc1.weight"
    assert f"weight '{weight}' holds NaN or infinity" in saved(weight, torch.full((96, 48), float("nan")))
    assert f"weight '{weight}' has shape (3, 3), which does not fit (96, 48)" in saved(weight, torch.zeros(3, 3))
    query = "encoder.layers.1.self_attn.q_proj.weight"
    assert "self_attn.k_proj.weight' has shape (48, 48)" in saved(query, torch.zeros(48))
    assert f"weight '{query}' holds torch.int64" in saved(query, torch.zeros(48, 48, dtype=torch.int64))
    assert "'mystery' is not part of data2vec 1.0" in saved("mystery", torch.zeros(1))
    assert "and fewer numbers than that" in saved(weight, torch.zeros(1).expand(2**20, 2**20))
    options = {**file["cfg"]["model"], "conv_feature_layers": "__import__('os').system('touch /tmp/run')"}
    assert "its convolutions are given as" in saved("mask_emb", file["model"]["mask_emb"], cfg={"model": options})
    options["conv_feature_layers"] = "[(16, 10, 5)] + [(16, 3, 2)] * 2"
    assert "its options say convolutions" in saved("mask_emb", file["model"]["mask_emb"], cfg={"model": options})

    for name, value in {
        "pos_conv_depth": 3,
        "conv_pos_groups": 4,
        "extractor_mode": "default",
        "encoder_layers": 4,
    }.items():
        contradictory = {"model": {**file["cfg"]["model"], name: value}}
        assert f"its option {name} is {value!r}" in saved("mask_emb", file["model"]["mask_emb"], cfg=contradictory)

    torch.save({"state_dict": file["model"]}, bad)
    assert "is of another project: it holds entries ['state_dict']" in refused(command, capsys)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
        packed.writestr("x/data/bomb", bytes(10**8))
    assert "unpacks to" in refused(command, capsys)

    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("run",)

    assert "holds more than tensors and plain data" in saved("mask_emb", Runs())
    assert "run\n" not in capsys.readouterr().out
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_directories_that_are_damaged_or_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = GoldenCase("text_padded").write_official_file(tmp_path)
    ours = tmp_path / "ours"
    assert main(["import", str(good), "--out", str(ours)]) == 0
    capsys.readouterr()
    assert "ours exists: remove it" in refused(["import", str(good), "--out", str(ours)], capsys)
    assert "exists: remove it" in refused(["export", str(good), "--out", str(good)], capsys)
    assert main(["export", str(good), "--out", str(tmp_path / "model.onnx")]) == 2
    assert "that would be a directory, give --onnx" in capsys.readouterr().err

    copy = tmp_path / "copy"

    def broken(**entries: object) -> str:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(ours, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **entries}))
        return refused(["inspect", str(copy)], capsys)

    assert "upgrade d2v_lightning" in broken(d2v_lightning={"format_version": 99})
    assert "is not a class of d2v_lightning" in broken(class_path="os.system")
    assert "lacks format version" in broken(init_args=None)
    (copy / "config.json").write_text("{")
    assert "is not JSON" in refused(["inspect", str(copy)], capsys)
    (copy / "config.json").write_text('{"model_type": "bert"}')
    assert "describes a model of type 'bert'" in refused(["inspect", str(copy)], capsys)
    (copy / "model.safetensors").write_bytes(b"short")
    shutil.copy(ours / "config.json", copy)
    assert "is damaged or no safetensors file" in refused(["inspect", str(copy)], capsys)
    assert load_file(ours / "model.safetensors")


def test_checkpoints_of_runs_carry_licence_and_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny import Blobs, loader, tiny_model, trainer
    from torch.utils.data import DataLoader

    model = tiny_model()
    model.backbone.licence = "cc-by-nc-4.0"
    keeper = pl.callbacks.ModelCheckpoint(tmp_path / "run", monitor="val/loss", save_last=True)
    runner = trainer([keeper], 8, tmp_path)
    runner.fit(model, loader(64), DataLoader(Blobs(8), batch_size=4))
    path = tmp_path / "run" / "last.ckpt"
    assert main(["export", str(path), "--out", str(tmp_path / "out")]) == 0
    assert "Data2Vec of d2v_lightning at step 8" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-nc-4.0" in card
    assert f"- val/loss: {float(runner.callback_metrics['val/loss']):.4g}" in card
    assert Data2Vec.load_from_checkpoint(path).backbone.licence == "cc-by-nc-4.0"


@pytest.mark.parametrize("normalize", [True, False])
def test_what_clips_were_normalised_with_goes_along(normalize: bool, tmp_path: Path) -> None:
    def change(file: dict[str, Any]) -> dict[str, Any]:
        file["cfg"]["task"] = {"normalize": normalize}
        return file

    path = changed("audio_padded", tmp_path, change)[1]
    assert main(["import", str(path), "--out", str(tmp_path / "whole")]) == 0
    assert main(["import", str(path), "--out", str(tmp_path / "part"), "--part", "teacher"]) == 0
    assert main(["export", str(tmp_path / "whole"), "--out", str(tmp_path / "theirs")]) == 0
    places = [path, *(tmp_path / name for name in ("whole", "part", "theirs"))]
    assert [load_normalize(place) for place in places] == [normalize] * 4
    tuned = SpeechCTC(checkpoint=str(tmp_path / "theirs"), normalize=normalize)
    tuned.save_pretrained(tmp_path / "tuned")
    assert main(["export", str(tmp_path / "tuned"), "--part", "student", "--out", str(tmp_path / "again")]) == 0
    assert load_normalize(tmp_path / "again") is normalize
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    config["d2v_lightning"]["normalize"] = "x"
    (tmp_path / "whole" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"normalize of .*whole is 'x', where true or false is expected"):
        load_normalize(tmp_path / "whole")


def test_onnx_is_checked_and_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    path, out = GoldenCase("text_padded").write_official_file(tmp_path), tmp_path / "text.onnx"
    assert main(["export", str(path), "--onnx", str(out)]) == 0
    capsys.readouterr()
    inputs = torch.tensor([[0, 5, 6, 7, 2]] * 4)
    found = onnxruntime.InferenceSession(str(out)).run(None, {"inputs": inputs.numpy()})[0]
    expected = load_backbone(path).eval()(inputs)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)
    assert "exists: remove it" in refused(["export", str(path), "--onnx", str(out)], capsys)
    assert {file.name for file in tmp_path.iterdir()} == {path.name, out.name}
