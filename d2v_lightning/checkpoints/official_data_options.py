"""What Meta's files say of the data, batches and masks of the run that made them, as a datamodule's constructor tree."""

from __future__ import annotations

import re

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.official_run_options import (
    Batch,
    beit_batch,
    counted,
    fairseq_batch,
    needed,
    number,
    section,
)
from d2v_lightning.checkpoints.options import Options, option, refuse_unknown
from d2v_lightning.configurable import Tree, own_class
from d2v_lightning.method.student import VisibleStudent
from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.nn.encoders.image import patch_grid
from d2v_lightning.support.errors import UserError

GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
PACKINGS = {"complete_doc": "complete_documents", "none": "blocks"}


def data_of(content: Content, options: Options, fairseq: bool) -> Tree:
    """The datamodule of a file's run; where its data lies is left to `--data.root` or `--data.files`.

    Raises:
        ValueError: a needed option is missing, or one has no counterpart here.
    """
    arguments = content.tree["init_args"]
    pretrained = "student" in arguments
    backbone = (arguments["student"]["init_args"] if pretrained else arguments)["backbone"]["init_args"]
    encoder = backbone["encoder"]
    kind = own_class(encoder["class_path"])
    batch = fairseq_batch(options) if fairseq else beit_batch(options)
    own: Options | None = None  # 2.0's options of the modality
    if pretrained and issubclass(own_class(arguments["student"]["class_path"]), VisibleStudent):
        own = section(section(section(options, "model"), "modalities"), _MODALITIES[kind])
    if issubclass(kind, ImageEncoder):
        if not pretrained:
            return _tree("ImageDataModule", _classes(options, batch, fairseq))
        read = _images_1(options) if own is None else _images_2(options, own, encoder["init_args"])
        return _tree("ImageDataModule", {"task": "pretrain", **read, **_pictures(batch)})
    if issubclass(kind, AudioEncoder):
        return _tree("SpeechDataModule", _speech(options, own, batch, arguments))
    assert issubclass(kind, TextEncoder)
    if pretrained:
        return _tree("TextDataModule", _text(options, own, batch))
    return _tree("GLUEDataModule", _sentences(options, batch))


_MODALITIES: dict[type, str] = {ImageEncoder: "image", AudioEncoder: "audio", TextEncoder: "text"}


def _tree(name: str, arguments: Tree) -> Tree:
    return {"class_path": f"datamodules.{name}", "init_args": arguments}


# ---- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(batch: Batch) -> Tree:
    if batch.samples is None:
        raise UserError("its option dataset.batch_size is not set, so its batch of pictures is not known")
    return {"batch_size": batch.samples, "effective_batch": batch.samples * batch.batches}


def _images_1(options: Options) -> Tree:
    """BEiT's `run_cyclical.py` and `datasets.py`."""
    if (dropped := float(option(options, "mask_dropout_prob", default=-1.0))) > 0:
        raise UserError(f"its option mask_dropout_prob is {dropped:g}: masks have no dropout here")
    most = number(options, "max_mask_patches_per_block")
    return {
        "num_masked_patches": int(needed(options, "num_mask_patches")),
        "min_block": int(needed(options, "min_mask_patches_per_block")),
        **({} if most is None else {"max_block": int(most)}),
        "colour_jitter": float(option(options, "color_jitter", default=0.4)),
        "interpolation": str(option(options, "train_interpolation", default="bicubic")),
    }


def _images_2(options: Options, own: Options, encoder: Tree) -> Tree:
    """2.0's `mae_image_dataset.py`, and `compute_block_mask_2d` of `fairseq/data/data_utils.py`."""
    if not option(own, "inverse_mask", default=False):
        raise UserError(
            "its option model.modalities.image.inverse_mask is false: only inverse blocks have a counterpart here"
        )
    refuse_unknown(own, {"add_masks": False, "remove_masks": False})
    image, patch = (
        (size, size) if isinstance(size, int) else (size[0], size[1])
        for size in (encoder["image_size"], encoder["patch_size"])
    )
    down, across = patch_grid(image, patch)
    visible = int(down * across * (1 - float(option(own, "mask_prob", default=0.7))))
    return {
        "masking": "inverse_blocks",
        "num_masked_patches": down * across - visible,
        "visible_block": int(option(own, "mask_length", default=5)),
        "num_masks": int(option(options, "model.clone_batch", default=1)),
        "scale": [0.2, 1.0],
        "colour_jitter": 0.0,
    }


def _classes(options: Options, batch: Batch, fairseq: bool) -> Tree:
    """1.0's `run_class_finetuning.py` and 2.0's `mae_finetuning_image_dataset.py`."""
    if fairseq:
        augmented = {
            "rand_augment": str(option(options, "task.aa", default="rand-m9-mstd0.5-inc1")),
            "random_erasing": float(option(options, "task.reprob", default=0.25)),
        }
    else:
        augmented = {
            "rand_augment": str(option(options, "aa", default="rand-m9-mstd0.5-inc1")),
            "random_erasing": float(option(options, "reprob", default=0.25)),
            "interpolation": str(option(options, "train_interpolation", default="bicubic")),
        }
    return {"task": "classify", **_pictures(batch), **augmented}


# ---- speech ------------------------------------------------------------------------------------------------------------


def _speech(options: Options, own: Options | None, batch: Batch, model_arguments: Tree) -> Tree:
    """`audio_{pretraining,finetuning}.py`, and the masks of `wav2vec2.py`, `wav2vec2_asr.py` and 2.0's `base.py`.

    A file of CTC may say only in its pre-training's options whether clips are normalised: `SpeechCTC` has read that.
    """
    pretrained = "student" in model_arguments
    normalize = model_arguments.get("normalize", False)
    if batch.tokens is None:
        raise UserError("its option dataset.max_tokens is not set, so its batch of samples is not known")
    rate = counted(section(options, "task"), "sample_rate", default=16_000)
    longest, shortest = (number(section(options, "task"), f"{side}_sample_size") for side in ("max", "min"))
    arguments: Tree = {
        "task": "pretrain" if pretrained else "ctc",
        "train_split": str(option(options, "dataset.train_subset", default="train")),
        "batch_samples": batch.tokens,
        "effective_batch": batch.tokens * batch.batches,
        **({} if shortest is None else {"min_seconds": shortest / rate}),
        "max_seconds": None if longest is None else longest / rate,
        "normalize": bool(option(options, "task.normalize", default=normalize)),
    }
    model = section(options, "model")
    if pretrained:
        padded = option(options, "task.enable_padding", default=False)
        masks = {"mask_prob": _share(model, 0.65), "mask_length": int(option(model, "mask_length", default=10))}
        if own is not None:
            masks = {
                "mask_ratio": _share(own, 0.7),
                "mask_length": int(option(own, "mask_length", default=5)),
                "num_masks": int(option(model, "clone_batch", default=1)),
            }
            refuse_unknown(own, {"inverse_mask": False})
        refuse_unknown(model, {"mask_channel_prob": 0.0})
        return {**arguments, "crop": "none" if padded else "shortest", **masks}
    hides = bool(option(model, "apply_mask", default=False))
    return {
        **arguments,
        "val_split": str(option(options, "dataset.valid_subset", default="valid")).partition(",")[0],
        "time_mask_prob": _share(model, 0.5) if hides else 0.0,
        "time_mask_length": int(option(model, "mask_length", default=10)),
        "channel_mask_prob": float(option(model, "mask_channel_prob", default=0.0)) if hides else 0.0,
        "channel_mask_length": int(option(model, "mask_channel_length", default=10)),
        "mask_share": "smallest" if option(model, "require_same_masks", default=True) else "expected",
    }


def _share(masks: Options, default: float) -> float:
    return float(option(masks, "mask_prob", default=default))


# ---- text --------------------------------------------------------------------------------------------------------------


def _text(options: Options, own: Options | None, batch: Batch) -> Tree:
    """`masked_lm.py`, and 2.0's masks, which the model makes."""
    task = section(options, "task")
    length = int(counted(task, "tokens_per_sample", default=1024))
    packing = str(option(task, "sample_break_mode", default="none"))
    if packing not in PACKINGS:
        raise UserError(
            f"its option task.sample_break_mode is {packing!r}: {' and '.join(PACKINGS)} have counterparts here"
        )
    blocks = (batch.tokens or 0) // length if batch.samples is None else batch.samples
    if blocks < 1:
        raise UserError(f"its option dataset.max_tokens is {batch.tokens}: that is no block of {length} tokens")
    arguments = {
        "packing": PACKINGS[packing],
        "block_size": length,
        "batch_size": blocks,
        "effective_batch": length * blocks * batch.batches,
    }
    if own is not None:
        refuse_unknown(own, {"inverse_mask": False})
        return {
            **arguments,
            "mask_prob": _share(own, 0.7),
            "mask_length": int(option(own, "mask_length", default=5)),
            "num_masks": int(option(options, "model.clone_batch", default=1)),
        }
    refuse_unknown(task, {"mask_stdev": 0.0, "freq_weighted_replacement": False})
    return {
        **arguments,
        "mask_prob": _share(task, 0.15),
        "mask_length": int(option(task, "mask_multiple_length", default=1)),
        "leave_unmasked_prob": float(option(task, "leave_unmasked_prob", default=0.1)),
        "random_token_prob": float(option(task, "random_token_prob", default=0.1)),
        "whole_words": bool(option(task, "mask_whole_words", default=False)),
    }


def _sentences(options: Options, batch: Batch) -> Tree:
    """`sentence_prediction.py`."""
    if batch.samples is None:
        raise UserError("its option dataset.batch_size is not set, so its batch of texts is not known")
    task = glue_task(options)
    return {
        "task": task or "custom",
        **({} if task else {"text_columns": ["sentence1", "sentence2"]}),
        "max_length": int(option(options, "task.max_positions", default=512)),
        "batch_size": batch.samples,
        "effective_batch": batch.samples * batch.batches,
        **({} if batch.tokens is None else {"max_tokens": batch.tokens}),
    }


def glue_task(options: Options) -> str | None:
    """The task of GLUE whose folder the data of a file was in, `.../RTE-bin`; None where it was in none's."""
    given = option(options, "task.data", default="")
    words = re.split(r"[/\\]", given.lower()) if isinstance(given, str) else []
    names = [re.sub(r"[^a-z0-9]", "", word.removesuffix("-bin").removesuffix("_bin")) for word in words]
    return next((name for name in reversed(names) if name in GLUE), None)
