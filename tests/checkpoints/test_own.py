"""What a stored tree may say, and what `load_from_checkpoint` takes besides a file."""

from __future__ import annotations

import argparse
import copy
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import cli
from d2v_lightning import Data2Vec, ImageClassifier, load_backbone
from d2v_lightning.commands import checkpoint as convert
from d2v_lightning.commands.resuming import StoredRun
from d2v_lightning.support.errors import UserError
from d2v_lightning.support.tensor_files import read_tensors


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    module = tiny.tiny_model()
    written: dict[str, Any] = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(written)
    return written


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = ImageClassifier(3, backbone=tiny.tiny_model().backbone)
    written: dict[str, Any] = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(written)
    path = tmp_path_factory.mktemp("classifier") / "last.ckpt"
    torch.save(written, path)
    return path


DOORS: dict[str, Callable[[Path], object]] = {
    "load_from_checkpoint": Data2Vec.load_from_checkpoint,
    "from_pretrained": Data2Vec.from_pretrained,
    "load_backbone": load_backbone,
    "fine-tuning": lambda path: ImageClassifier(num_classes=2, checkpoint=str(path)),
    "inspect": lambda path: convert._read(argparse.Namespace(path=str(path), dictionary=None, pretrained=None)),
}
TREES: dict[str, Callable[[Any, Path], object]] = {
    "itself": lambda tree, path: tree["init_args"].update(checkpoint=str(path)),
    "a hub name": lambda tree, path: tree["init_args"].update(checkpoint="someone/model"),
    "below": lambda tree, path: tree["init_args"]["student"]["init_args"].update(
        backbone={"class_path": "ImageClassifier", "init_args": {"num_classes": 2, "checkpoint": str(path)}}
    ),
}


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("door", DOORS)
def test_no_stored_tree_leads_to_another_file(door: str, kind: str, content: dict[str, Any], tmp_path: Path) -> None:
    path, odd = tmp_path / "loop.ckpt", copy.deepcopy(content)
    TREES[kind](odd["hyper_parameters"], path)
    torch.save(odd, path)
    with pytest.raises(UserError, match=r"loop\.ckpt: its stored settings name another file, checkpoint: "):
        DOORS[door](path)


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_no_command_follows_a_stored_tree_to_another_file(
    command: str, content: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, odd = tmp_path / "loop.ckpt", copy.deepcopy(content)
    odd["hyper_parameters"]["init_args"]["checkpoint"] = str(path)
    torch.save(odd, path)
    with pytest.raises(SystemExit):
        cli.main([command, "--ckpt_path", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path}: its stored settings name another file")


def deep() -> Any:
    """Stands for a list that is too deep for Python's own pickler: `put_deep` writes it."""
    return "DEEP"


def put_deep(path: Path) -> None:
    """3,000 lists, each in the next, in the place of the text DEEP in a torch file."""
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    (name,) = (name for name in parts if name.endswith("data.pkl"))
    text = pickle.BINUNICODE + struct.pack("<I", 4) + b"DEEP"
    assert parts[name].count(text) == 1
    parts[name] = parts[name].replace(text, pickle.EMPTY_LIST * 3000 + pickle.APPEND * 2999)
    with zipfile.ZipFile(path, "w") as written:
        for part, value in parts.items():
            written.writestr(part, value)


def bomb() -> Any:
    tree: Any = ["x"]
    for _ in range(40):
        tree = [tree, tree]
    return tree


def ring() -> Any:
    tree: Any = []
    tree.append(tree)
    return tree


def settings_150_deep() -> Any:
    tree: Any = {}
    for _ in range(150):
        tree = {"a": tree}
    return tree


@pytest.mark.parametrize("made", [deep, bomb, ring, settings_150_deep])
@pytest.mark.parametrize("entry", ["hyper_parameters", "cfg"])
def test_containers_without_end_are_refused(
    entry: str, made: Callable[[], Any], content: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "deep.ckpt"
    odd = {**content, "hyper_parameters": copy.deepcopy(content["hyper_parameters"])}
    if entry == "cfg":
        odd = {"model": content["state_dict"], "cfg": {"model": made()}}
    else:
        odd["hyper_parameters"]["init_args"]["class_loss"] = made()
    torch.save(odd, path)
    if made is deep:
        put_deep(path)
    with pytest.raises(UserError, match=r"deep\.ckpt.*(without end|holds itself)"):
        load_backbone(path)


def test_a_long_text_in_a_file_makes_no_long_message(content: dict[str, Any], tmp_path: Path) -> None:
    path, odd = tmp_path / "long.ckpt", copy.deepcopy(content)
    odd["hyper_parameters"]["class_path"] = "evil." + "x" * 10**6
    torch.save(odd, path)
    with pytest.raises(UserError, match="Nothing was run") as error:
        load_backbone(path)
    assert len(str(error.value)) < 2000


def test_constructor_arguments_are_overridden_by_name(classifier: Path) -> None:
    found = ImageClassifier.load_from_checkpoint(
        classifier, label_smoothing=0.3, strict=True, weights_only=True, **{"backbone.transformer.dropout": 0.25}
    )
    assert found.label_smoothing == 0.3
    assert found.config["init_args"]["label_smoothing"] == 0.3
    assert found.backbone.transformer.config["init_args"]["dropout"] == 0.25
    stored = torch.load(classifier, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights_only": False}, "weights_only is False"),
        ({"hparams_file": "hparams.yaml"}, "hparams_file is"),
        ({"smoothing": 0.3}, "takes no argument named smoothing"),
        ({"checkpoint": "other.ckpt"}, "name another file"),
        ({"num_classes": 5}, r"head.weight has shape \(3, 16\), expected \(5, 16\)"),
        ({"optimization.rate": 1}, "takes no argument named rate|there is no module 'optimization'"),
    ],
)
def test_other_arguments_say_what_is_wrong(given: dict[str, Any], said: str, classifier: Path) -> None:
    with pytest.raises(UserError, match=said):
        ImageClassifier.load_from_checkpoint(classifier, **given)


def test_strict_false_takes_over_what_both_have(classifier: Path, tmp_path: Path) -> None:
    content = torch.load(classifier, weights_only=True)
    del content["state_dict"]["head.bias"]
    torch.save(content, tmp_path / "part.ckpt")
    with pytest.raises(UserError, match=r"weights missing \['head.bias'\]"):
        ImageClassifier.load_from_checkpoint(tmp_path / "part.ckpt")
    with pytest.warns(UserWarning, match=r"stay as they are: \['head.bias'\]"):
        found = ImageClassifier.load_from_checkpoint(tmp_path / "part.ckpt", strict=False)
    assert torch.equal(found.state_dict()["head.weight"], content["state_dict"]["head.weight"])


def test_a_shared_container_is_no_ring(tmp_path: Path) -> None:
    shared = {"a": [1, 2]}
    torch.save({"one": shared, "two": [shared, shared]}, tmp_path / "good.pt")
    assert read_tensors(tmp_path / "good.pt")["two"][1] == {"a": [1, 2]}


def arguments(tree: Any, *names: str) -> Any:
    for name in names:
        tree = tree["init_args"][name]
    return tree["init_args"]


EDITS: dict[str, tuple[Callable[[Any], object], str]] = {
    "a list": (lambda tree: tree.update(init_args=[1]), "the settings stored for .*Data2Vec' are not of this project's form"),
    "nothing": (lambda tree: tree.update(init_args=None), "Data2Vec' are not of this project's form"),
    "nothing below": (lambda tree: tree["init_args"]["loss"].update(init_args=None), "RegressionLoss' are not of this"),
    "self": (lambda tree: arguments(tree).update(self=1), "Data2Vec takes no argument named self"),
    "a number as a name": (lambda tree: arguments(tree).update({3: 4}), "an argument named 3, which is no name"),
    "text for a trunk": (
        lambda tree: arguments(tree, "student", "backbone").update(transformer="x"),
        "transformer is 'x': Backbone needs Transformer",
    ),
    "text for settings": (
        lambda tree: arguments(tree).update(optimization="hi"), "optimization is 'hi': Data2Vec needs Optimization"
    ),
    "a part in another's place": (
        lambda tree: arguments(tree, "student").update(decoder=tree["init_args"]["targets"]),
        "decoder is a Targets: MaskTokenStudent needs LinearDecoder or MlpDecoder",
    ),
    "more memory than there is": (
        lambda tree: arguments(tree, "student", "backbone", "transformer").update(dim=30_000_000),
        "encoder.dim is 16, transformer.dim is 30000000: make them equal",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITS)
def test_every_door_refuses_settings_that_were_edited_by_hand_in_one_line(
    kind: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path, odd = tmp_path / "odd.ckpt", copy.deepcopy(content)
    EDITS[kind][0](odd["hyper_parameters"])
    torch.save(odd, path)
    doors = {**DOORS, "the command line": lambda path: StoredRun(str(path))}
    for door in doors.values():
        with pytest.raises(UserError, match=EDITS[kind][1]) as error:
            door(path)
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("without", ["teacher.", "student.decoder.", "student.mask_token"])
def test_a_backbone_needs_no_more_of_a_file_than_it_keeps(
    without: str, content: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "part.ckpt"
    state = {name: tensor for name, tensor in content["state_dict"].items() if not name.startswith(without)}
    torch.save({**content, "state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}}, path)
    weights = load_backbone(path).state_dict()
    assert all(
        torch.equal(tensor, content["state_dict"][f"student.backbone.{name}"]) for name, tensor in weights.items()
    )
    with pytest.raises(UserError, match="weights missing"):
        Data2Vec.from_pretrained(path)


def test_a_backbone_of_a_classifier_without_head(classifier: Path, tmp_path: Path) -> None:
    stored = torch.load(classifier, weights_only=True)
    state = {name: tensor for name, tensor in stored["state_dict"].items() if name.startswith("backbone.")}
    torch.save({**stored, "state_dict": state}, tmp_path / "headless.ckpt")
    weights = load_backbone(tmp_path / "headless.ckpt").state_dict()
    assert all(torch.equal(tensor, state[f"backbone.{name}"]) for name, tensor in weights.items())
