"""Every YAML in `configs/` builds at full size and runs two steps when made small."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import image_batch, tiny_image_model
from torch.utils.data import DataLoader

from d2v_lightning import (
    AudioEncoder,
    Data2Vec,
    GLUEClassifier,
    ImageClassifier,
    ImageEncoder,
    MultimodalData2Vec,
    SpeechCTC,
    VisibleStudent,
)
from d2v_lightning.configurable import build, own_class
from d2v_lightning.flavour import pl
from d2v_lightning.nn.encoders.audio import feature_lengths
from d2v_lightning.recipes import overridden, recipe_path
from datamodules import ImageDataModule

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = sorted(
    path for folder in ("pretrain", "finetune", "quickstart") for path in (CONFIGS / folder).glob("**/*.yaml")
)


def made_small(tree: Any) -> Any:
    """The tree of a pre-training recipe with depth and width cut down."""
    tree = copy.deepcopy(tree)
    student = tree["init_args"]["student"]["init_args"]
    encoder, trunk = (student["backbone"]["init_args"][name]["init_args"] for name in ("encoder", "transformer"))
    decoder = student["decoder"]["init_args"]
    for part in (encoder, trunk, decoder):
        part["dim"] = 32
    trunk |= {"depth": 3, "num_heads": 2}
    if trunk.get("position_bias"):
        trunk["position_bias"]["init_args"]["num_heads"] = 2
    if "width" in decoder:
        decoder |= {"width": 16, "groups": min(4, decoder["groups"])}
    if "conv_layers" in encoder or encoder.get("position_groups"):
        encoder |= {"conv_layers": [[8, 10, 5], [8, 8, 8], [8, 8, 8]], "position_groups": 4}
    if encoder.get("vocab_size"):
        encoder |= {"vocab_size": 50, "mask_id": 49}
    trunk.pop("prenet_depth", None)
    tree["init_args"]["targets"]["init_args"]["average_top_k_layers"] = 2
    return tree


def batch_for(module: Any, num_masks: int) -> dict[str, torch.Tensor]:
    """Two random samples, half of every row hidden."""
    encoder = module.encoder
    if isinstance(encoder, ImageEncoder):
        inputs, length = torch.randn(2, encoder.in_channels, *encoder.image_size), encoder.grid[0] * encoder.grid[1]
    elif isinstance(encoder, AudioEncoder):
        inputs, length = torch.randn(2, 16000), feature_lengths(16000, encoder.conv_layers)
    else:
        inputs, length = torch.randint(3, 40, (2, 24)), 24
    mask = torch.rand(2, num_masks, length).argsort(dim=-1) < length // 2
    return {"inputs": inputs, "mask": mask}


def steps(module: Any, batch: Any, count: int = 2) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=count,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([batch] * count, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == count


def not_called(module: torch.nn.Module) -> set[str]:
    """Parts of a module that own parameters; each leaves the set when it is called.

    What reads a part's parameters instead passes by the adapters, hooks and quantisation that others put there.
    """
    waiting = set()
    for name, part in module.named_modules():
        if name and list(part.parameters(recurse=False)) and not isinstance(part, torch.nn.ParameterList):
            waiting.add(name)
            part.register_forward_hook(lambda part, inputs, output, name=name: waiting.discard(name))  # type: ignore[misc]
    assert len(waiting) > 10
    return waiting


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_at_full_size_and_runs_two_steps_when_small(path: Path, tmp_path: Path) -> None:
    sections = yaml.safe_load(path.read_text())
    tree = sections["model"]
    folder = (
        {}
        if "dataset" in str(sections["data"])
        or sections["data"]["class_path"].endswith(("TextDataModule", "MultimodalDataModule"))
        else {"root": str(tmp_path)}
    )
    build(overridden(sections["data"], folder))
    if own_class(tree["class_path"]) is MultimodalData2Vec:
        with torch.device("meta"):
            build(tree)
        parts = {
            name: made_small({"init_args": part["init_args"]}) for name, part in tree["init_args"]["modalities"].items()
        }
        module = build(
            overridden(tree, {"modalities": {name: {"class_path": "Objective", **parts[name]} for name in parts}})
        )
        masks = {
            name: part["init_args"]["num_masks"] for name, part in sections["data"]["init_args"]["datamodules"].items()
        }
        waiting = not_called(module)
        for name, objective in module.modalities.items():
            steps(module, {**batch_for(objective, masks[name]), "modality": name})
        assert not waiting
        return
    if own_class(tree["class_path"]) is Data2Vec:
        with torch.device("meta"):
            build(tree)
        module = build(made_small(tree))
        num_masks = sections["data"]["init_args"].get("num_masks", 1)
        assert (num_masks > 1) == isinstance(module.student, VisibleStudent)
        waiting = not_called(module)
        steps(module, batch_for(module, num_masks))
        assert not waiting
        return
    kind, arguments = own_class(tree["class_path"]), tree["init_args"]
    size = next((size for size in ("large", "huge") if size in path.stem), "base")
    version = "_v2" if "_v2_" in path.stem else ""
    modality = {ImageClassifier: "image", SpeechCTC: "audio", GLUEClassifier: "text"}[kind]
    # GLUE's files serve 1.0 and 2.0, as their headers say.
    pretrained = (
        [f"text{serves}_base" for serves in ("", "_v2")] if modality == "text" else [f"{modality}{version}_{size}"]
    )
    with torch.device("meta"):
        if "backbone" in arguments:  # from scratch
            build(tree)
        for name in () if "backbone" in arguments else pretrained:
            build({**tree, "init_args": {**arguments, "backbone": build(from_file(name)).config}})
    pl.seed_everything(0)
    if kind is ImageClassifier:
        tiny = tiny_image_model().backbone
        colour = {"mean": None, "std": None}  # the recipe's may be for one channel
        classifier = build(overridden(tree, {"backbone": tiny.config, "num_classes": 10, **colour}))
        waiting = not_called(classifier)
        steps(classifier, {"inputs": image_batch(4, 9)["inputs"], "labels": torch.tensor([0, 1, 2, 9])})
        assert not waiting
        return
    if kind is GLUEClassifier:
        small = made_small(yaml.safe_load(recipe_path("text_base").read_text())["model"])
        tiny_text = small["init_args"]["student"]["init_args"]["backbone"]
        model = build({**tree, "init_args": {**arguments, "backbone": tiny_text}})
        labels = torch.tensor([0.5, 4.0]) if arguments["task"] == "stsb" else torch.tensor([0, 1])
        waiting = not_called(model)
        steps(model, {"inputs": torch.randint(3, 40, (2, 12)), "labels": labels})
        assert not waiting
        return
    small = made_small(yaml.safe_load(recipe_path(f"audio{version}_base").read_text())["model"])
    tiny_speech = small["init_args"]["student"]["init_args"]["backbone"]
    model = build({**tree, "init_args": {**arguments, "backbone": tiny_speech}})
    assert (model.time_mask == "noise") == (version == "_v2"), "2.0 has no mask token"
    labels = torch.randint(1, 20, (2, 5))
    waiting = not_called(model)
    steps(model, {"inputs": torch.randn(2, 16000), "labels": labels, "label_lengths": torch.tensor([5, 3])})
    assert not waiting


def from_file(name: str) -> Any:
    """The constructor tree of a recipe's backbone."""
    return yaml.safe_load(recipe_path(name).read_text())["model"]["init_args"]["student"]["init_args"]["backbone"]


@pytest.mark.parametrize("name", ["image_v2_base", "image_v2_large", "image_v2_huge", "image_v2_huge16"])
def test_images_of_2_are_augmented_as_released_and_the_class_loss_names_its_batch(name: str) -> None:
    """MAE's augmentation: bicubic crops of a fifth or more, flips, nothing else (fairseq ac61741, `MaeImageDataset`)."""
    data = ImageDataModule.from_recipe(name, {"root": "/data/imagenet"})
    assert (data.scale, data.flip, data.colour_jitter, data.interpolation) == ((0.2, 1.0), 0.5, 0.0, "bicubic")
    header = recipe_path(name).read_text().partition("seed_everything")[0]
    assert f"class_loss .01 belongs to {data.batch_size} pictures a device" in header
    assert f".01 x {data.batch_size} / batch_size" in header


@pytest.mark.parametrize("name", ["image_base", "image_large"])
def test_the_published_networks_have_the_published_shape(name: str) -> None:
    with torch.device("meta"):
        backbone = Data2Vec.from_recipe(name).backbone
    trunk, dim = backbone.transformer, backbone.dim
    # qkv + proj + two FFN matrices, their biases without the key's, two norms, two LayerScales.
    block = 12 * dim * dim + (2 * dim + dim + 4 * dim + dim) + 4 * dim + 2 * dim
    expected = (
        trunk.depth * block + 2 * dim + (16 * 16 * 3 * dim + dim) + dim + (27 * 27 + 3) * trunk.blocks[0].attn.num_heads
    )
    assert sum(parameter.numel() for parameter in backbone.parameters()) == expected


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_header_names_what_the_file_reproduces_and_its_command(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config {path.relative_to(CONFIGS.parent)}" in line for line in header)


class Mine(Data2Vec):
    """A subclass with an argument of its own."""

    def __init__(self, colour: str = "red", **inherited: Any) -> None:
        super().__init__(**inherited)
        self.colour = colour


class MyData(ImageDataModule):
    """A subclass without arguments of its own."""


def test_a_subclass_takes_the_place_of_the_class_in_a_recipe() -> None:
    mine = Mine.from_recipe("digits", {"colour": "blue", "optimization.lr": 0.5})
    assert (type(mine), mine.colour, mine.optimization.lr) == (Mine, "blue", 0.5)
    assert mine.config["class_path"] == f"{__name__}.Mine"
    assert type(MyData.from_recipe("digits")) is MyData
    with pytest.raises(ValueError, match="recipe 'imagenet_base' is a ImageClassifier, not a Mine"):
        Mine.from_recipe("imagenet_base")


def test_from_recipe_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'image_bse': choose from .*image_base"):
        Data2Vec.from_recipe("image_bse")
    with pytest.raises(ValueError, match="is a Data2Vec, not a ImageClassifier"):
        ImageClassifier.from_recipe("digits")
    with pytest.raises(ValueError, match="there is no module 'studnt'"):
        Data2Vec.from_recipe("digits", {"studnt.backbone": 1})
    with pytest.raises(ValueError, match="takes no argument named dpth"):
        Data2Vec.from_recipe("digits", {"student.backbone.transformer.dpth": 1})
