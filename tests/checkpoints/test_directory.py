"""Directories of others: weights in several files, links, and settings that make no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Data2VecTextConfig, Data2VecTextModel, Data2VecVisionConfig, Data2VecVisionModel

from d2v_lightning import Data2Vec, load_backbone
from d2v_lightning.checkpoints.directory import write_safetensors
from d2v_lightning.commands.checkpoint import main
from d2v_lightning.support.errors import NotFoundError, UserError

TEXT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    return Data2VecTextModel(Data2VecTextConfig(**TEXT, max_position_embeddings=20)).eval()


@pytest.fixture
def sharded(theirs: Any, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    return tmp_path


def older(folder: Path) -> Path:
    """The same as files of `torch.save`."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    from safetensors.torch import load_file

    shards = set(index["weight_map"].values())
    names = {name: name.replace("model", "pytorch_model").replace("safetensors", "bin") for name in shards}
    for name, new in names.items():
        torch.save(load_file(folder / name), folder / new)
        (folder / name).unlink()
    (folder / "model.safetensors.index.json").unlink()
    index["weight_map"] = {weight: names[name] for weight, name in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("form", ["safetensors", "torch.save"])
def test_weights_in_several_files_are_one_model(form: str, theirs: Any, sharded: Path) -> None:
    folder = older(sharded) if form == "torch.save" else sharded
    ids = torch.randint(5, 30, (2, 9))
    assert len(list(folder.glob("*-of-*"))) > 1
    with torch.no_grad():
        assert torch.allclose(load_backbone(folder).eval()(ids), theirs(ids).last_hidden_state, atol=1e-5)


def test_an_index_that_leads_elsewhere_is_refused(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    index = sharded / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    weight, shard = next(iter(whole["weight_map"].items()))
    other = next(name for name in whole["weight_map"].values() if name != shard)
    outside = tmp_path_factory.mktemp("secret") / "model.safetensors"
    outside.write_bytes((sharded / shard).read_bytes())
    for place, said in (
        (f"../{outside.parent.name}/{outside.name}", "which is no file of weights in its directory"),
        (str(outside), "which is no file of weights in its directory"),
        ("config.json", "which is no file of weights in its directory"),
        (other, f"has no weight '{weight}'"),
        ("model-9.safetensors", "no model-9.safetensors in"),
    ):
        index.write_text(json.dumps({"weight_map": {**whole["weight_map"], weight: place}}))
        with pytest.raises(UserError, match=said) as error:
            load_backbone(sharded)
        assert str(sharded) in str(error.value)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(UserError, match="has no weight_map"):
        load_backbone(sharded)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    Data2VecVisionModel(Data2VecVisionConfig(**IMAGE, image_size=8, patch_size=4)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["vocab.json", "config.json", "model.safetensors", "README.md", "tokenizer.json"])
def test_no_link_out_of_a_directory_is_followed(
    name: str, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes((image / name).read_bytes() if (image / name).exists() else b'{"token": "hidden"}')
    (image / name).unlink(missing_ok=True)
    (image / name).symlink_to(secret)
    assert main(["import", str(image), "--out", str(tmp_path / "out")]) == 2
    assert f"error: {image / name} is a link out of the directory" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="was not followed"):
        load_backbone(image)


def test_the_links_of_the_hubs_cache_are_followed(image: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x" / "blobs", tmp_path / "models--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(image.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(number)))
    assert load_backbone(snapshot).dim == 16
    (blobs / "9").symlink_to(tmp_path / "elsewhere")
    (snapshot / "vocab.json").symlink_to("../../blobs/9")
    with pytest.raises(UserError, match="was not followed"):
        load_backbone(snapshot)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("model_type", [], "describes a model of type"),
        ("patch_size", [2], "patch_size is"),
        ("image_size", [8, "x"], "image_size is"),
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000, but there are"),
        ("num_attention_heads", 0, "num_attention_heads is 0"),
        ("layer_norm_eps", float("nan"), "layer_norm_eps is nan"),
        ("num_labels", 10**12, "num_labels is"),
        ("hidden_size", True, "hidden_size is True"),
    ],
)
def test_odd_settings_are_named_with_their_file(option: str, value: Any, said: str, image: Path) -> None:
    config = json.loads((image / "config.json").read_text())
    (image / "config.json").write_text(json.dumps({**config, option: value}))
    with pytest.raises(UserError, match=said) as error:
        load_backbone(image)
    assert str(image / "config.json") in str(error.value)


def test_settings_nested_without_end_are_refused(image: Path) -> None:
    (image / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json is nested without end"):
        load_backbone(image)


def test_a_missing_weight_file_is_named(image: Path) -> None:
    (image / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match="no weights in"):
        load_backbone(image)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (("student", "backbone", "transformer", "position_bias"), "num_tables", 2**63),
        (("student", "backbone", "transformer"), "depth", 10**12),
        (("student", "backbone", "transformer"), "dropout", 10**6),
        (("targets",), "average_top_k_layers", 10**12),
    ],
)
def test_numbers_beyond_all_measure_are_refused_in_our_own(
    place: tuple[str, ...], name: str, value: int, tmp_path: Path
) -> None:
    """Before memory is taken for them, or a part is made as many times."""
    Data2Vec.from_recipe("digits").save_pretrained(tmp_path / "own")
    config = json.loads((tmp_path / "own/config.json").read_text())
    arguments = config["init_args"]
    for part in place:
        arguments = arguments[part]["init_args"]
    arguments[name] = value
    (tmp_path / "own/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="own"):
        load_backbone(tmp_path / "own")


def test_weights_are_as_readable_as_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_safetensors({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
