"""A recipe that is read off a file is the published one: options of released files against the YAML in `configs/`."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from golden_case import GoldenCase
from released_cfg import CLASSES, CTC, CYCLICAL, IMAGENET_V2, PRETRAINED, RTE

from d2v_lightning import EMATeacher
from d2v_lightning.checkpoints import official_state_dict
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.official_v1_audio_text_options import audio_tree, text_tree
from d2v_lightning.checkpoints.official_v1_image import image_tree
from d2v_lightning.checkpoints.official_v2_options import tree_of
from d2v_lightning.checkpoints.options import Options
from d2v_lightning.checkpoints.pretrained import FromPretrained, read_pretrained
from d2v_lightning.checkpoints.recipe_of import recipe_of
from d2v_lightning.configurable import Tree, build
from d2v_lightning.letters import LIBRISPEECH as LIBRISPEECH_LETTERS
from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.normalization import IMAGENET
from d2v_lightning.recipes import recipe_path
from d2v_lightning.support.tensor_files import Weights

# (written, published): what published rows do otherwise on purpose. Pictures have no padding, and no split has a name.
PADDING = {
    version: {"model.student.backbone.encoder.padding": (f"released_{version}", "exact")} for version in (1, 2)
}  # a clip or text alone and in a batch is the same: docs/method.md
LIBRISPEECH = ("train-clean-100", "train-clean-360", "train-other-500")
VOCABULARY = ("<blank>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
SPLITS = {
    "data.train_split": ("train", ("librispeech_finetuning/1h", "librispeech_finetuning/9h")),
    "data.val_split": ("dev_other", "dev-other"),
    "data.test_split": (None, "test-other"),
    "model.vocabulary": (
        VOCABULARY,
        tuple(LIBRISPEECH_LETTERS),
    ),  # with the symbols of fairseq's dictionaries that stand for nothing
}
EXPECTED: dict[str, dict[str, Any]] = {
    "audio_base": {**PADDING[1], "data.train_split": ("train", LIBRISPEECH)},  # the names of fairseq's manifests
    "audio_v2_base": {**PADDING[2], "data.train_split": ("train", LIBRISPEECH)},
    "audio_v2_large": {**PADDING[2], "data.train_split": ("train", "")},
    "text_base": PADDING[1],
    **{name: {"data.max_block": (196, None)} for name in CYCLICAL},  # all patches, which is no limit
    "librispeech_10h": {**SPLITS, "data.normalize": (False, True), "model.normalize": (False, True)},  # see its header
    "librispeech_v2_10h_large": SPLITS,
    "rte": {"trainer.max_steps": (2036, None)},  # after ten epochs in any case
    **dict.fromkeys(("text_v2_base", "text_v2_large", "text_v2_large_1m"), PADDING[2]),
}
MODALITIES = {ImageEncoder: "IMAGE", AudioEncoder: "AUDIO", TextEncoder: "TEXT"}


def published(name: str) -> Tree:
    sections: Tree = yaml.safe_load(recipe_path(name).read_text())
    return sections


@functools.lru_cache(maxsize=2)
def module_of(section: str) -> Any:
    """What a recipe's section "model" builds, without weights."""
    with torch.device("meta"):
        return build(yaml.safe_load(section))


def content_of(name: str, cfg: Tree) -> Content:
    """What a file with the shapes of a published row, and these options, is read as."""
    model = module_of(yaml.safe_dump(published(name)["model"]))
    state = Weights(official_state_dict(model)["model"])
    for teacher in ("_ema", "encoder._ema"):
        state.pop(teacher, None)
    options, encoder = Options(cfg), model.encoder
    if "_v2_" in name:
        tree = tree_of(state, MODALITIES[type(encoder)], options["model"], options, "file")
    elif isinstance(encoder, ImageEncoder):
        tree = image_tree(state, options, "file")
    else:
        read = audio_tree if isinstance(encoder, AudioEncoder) else text_tree
        tree = read(state, options["model"], options, "file")
    return Content(tree, {}, "pre-trained", None, [], path="file", options=options)


def flat(tree: Any, place: str = "") -> dict[str, Any]:
    """Leaves of a constructor tree by dotted names, "init_args" left out."""
    if isinstance(tree, dict):
        inside = {key: value for key, value in tree.items() if key != "init_args"} | (tree.get("init_args") or {})
        leaves: dict[str, Any] = {}
        for key, value in inside.items():
            leaves |= flat(value, f"{place}.{key}" if place else key)
        return leaves
    return {place: tuple(tree) if isinstance(tree, list) else tree}


def resolved(sections: Tree) -> dict[str, Any]:
    """What sections come to: every argument with its default, schedules in steps, the EMA by its decays."""
    sections = yaml.safe_load(yaml.safe_dump(sections))
    model, data = module_of(yaml.safe_dump(sections["model"])), build(sections["data"])
    trainer = sections["trainer"]
    rate, ema = model.optimization, getattr(model, "ema_teacher", EMATeacher())
    updates = rate.schedule_steps or trainer.get("max_steps") or 100_000  # as many as that, where epochs say how many
    points = sorted({0, 1, 1000, updates // 100, updates // 10, updates // 2, updates - 2})
    monitors = [build(callback).config for callback in trainer.pop("callbacks", []) if "Collapse" in str(callback)]
    leaves = flat(
        {"model": model.config, "data": data.config, "trainer": trainer, "monitors": dict(enumerate(monitors))}
    )
    leaves = {
        name: value
        for name, value in leaves.items()
        if not name.startswith(("model.ema_teacher.", "model.optimization.warmup", "model.optimization.final_lr"))
    }
    for statistic, values in IMAGENET._asdict().items():  # what the datamodule takes where a network says nothing
        if leaves.get(key := f"model.student.backbone.encoder.{statistic}", 0) is None:
            leaves[key] = tuple(values)
    leaves["rates"] = tuple(round(rate.factor(updates)(step) * rate.lr, 12) for step in points)
    leaves["decays"] = tuple(round(ema.decay(step + 1), 9) for step in points)
    return leaves


def differences(written: Tree, wanted: Tree) -> dict[str, tuple[Any, Any]]:
    """What a written recipe says otherwise than the published one: (written, published)."""
    one, other = resolved(written), resolved(wanted)
    return {key: (one.get(key), other.get(key)) for key in sorted({*one, *other}) if one.get(key) != other.get(key)}


@pytest.mark.parametrize("name", [*PRETRAINED, *CYCLICAL])
def test_what_made_a_pretrained_file_is_the_published_recipe(name: str) -> None:
    content = content_of(name, (PRETRAINED | CYCLICAL)[name])
    sections, _ = recipe_of(content)
    read, made = (tree["init_args"]["optimization"]["init_args"] for tree in (content.tree, sections["model"]))
    assert read["lr"] == made["lr"]
    assert name in PRETRAINED or read == made
    assert differences(sections, published(name)) == EXPECTED.get(name, {})


# ---- fine-tuning -------------------------------------------------------------------------------------------------------


def write_finetuned(name: str, folder: Path) -> tuple[Path, Tree]:
    """A file in the layout of Meta's fine-tuning, with a small network and a published row's options; and the network."""
    case = GoldenCase(NETWORKS[name])
    base = FromPretrained.from_pretrained(case.write_official_file(folder)).backbone
    weights, options = case.group("model."), case.json["official_options_set"]
    gone = ("final_proj.", "lm_head.", "mask_token", "norm.")
    weights = {key: t for key, t in weights.items() if not key.startswith(gone) and ".decoder." not in key}
    below, inner, heads = "", "pretrained_model_args", {"fc_norm": None, "head": 1000}
    if name in CTC:
        below, inner, heads = "w2v_encoder.w2v_model.", "w2v_args", {"w2v_encoder.proj": 32}
    elif name == "rte":
        head = "classification_heads.sentence_classification_head."
        below, heads = "model.", {f"{head}dense": base.dim, f"{head}out_proj": 2}
    elif name == "imagenet_v2_base":
        below = "model."
    state = {below + key: tensor for key, tensor in weights.items()}
    for head, classes in heads.items():
        shape = (base.dim,) if classes is None else (classes, base.dim)
        state |= {f"{head}.weight": torch.zeros(shape), f"{head}.bias": torch.zeros(shape[0])}
    if name == "imagenet_base":
        sizes = {"num_heads": options["num_heads"], "input_size": base.encoder.image_size[0]}
        file = {"args": argparse.Namespace(**{**CLASSES, **sizes})}
    else:
        cfg = FINETUNED[name]
        options |= {"encoder_dropout": 0.1, "post_mlp_drop": 0.1, "attention_dropout": 0.1}  # all but speech keeps them
        file = {"cfg": {**cfg, "model": {**cfg["model"], inner: {"model": options}}}}
    torch.save({"model": state, **file}, folder / "tuned.pt")
    return folder / "tuned.pt", base.config


FINETUNED = {**CTC, "imagenet_v2_base": IMAGENET_V2, "rte": RTE}
NETWORKS = {
    "librispeech_10h": "audio_padded",
    "librispeech_v2_10h_large": "d2v2_audio_alibi_padded",
    "imagenet_base": "vision_shared_relpos",
    "imagenet_v2_base": "d2v2_image",
    "rte": "d2v2_text_padded",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_made_a_finetuned_file_is_the_published_recipe(name: str, tmp_path: Path) -> None:
    path, network = write_finetuned(name, tmp_path)
    written, _ = recipe_of(read_pretrained(path))
    wanted = published(name)
    for sections in (written, wanted):
        sections["model"]["init_args"]["backbone"] = network
    assert differences(written, wanted) == EXPECTED.get(name, {})


def test_a_weight_of_the_blank_has_no_counterpart_in_training(tmp_path: Path) -> None:
    path, _ = write_finetuned("librispeech_10h", tmp_path)
    file = torch.load(path)
    file["cfg"]["model"]["blank_weight"] = 1.5
    torch.save(file, path)
    with pytest.raises(ValueError, match=r"blank_weight is 1\.5"):
        recipe_of(read_pretrained(path))


def test_data_are_normalised_as_the_model_of_the_same_file_has_it(tmp_path: Path) -> None:
    path, _ = write_finetuned("librispeech_10h", tmp_path)
    file = torch.load(path)
    file["cfg"]["task"]["normalize"] = None
    file["cfg"]["model"]["normalize"] = True
    torch.save(file, path)
    sections, _ = recipe_of(read_pretrained(path))
    assert [sections[name]["init_args"]["normalize"] for name in ("model", "data")] == [True, True]


def test_a_network_beside_odd_options_has_no_recipe(tmp_path: Path) -> None:
    path, _ = write_finetuned("imagenet_base", tmp_path)
    torch.save({**torch.load(path, weights_only=False), "args": "text"}, path)
    with pytest.raises(ValueError, match="holds a network and not what made it"):
        recipe_of(read_pretrained(path))
