"""What made a file, as a recipe: the run's model, data and Trainer, read off the options or settings that the file stores."""

from __future__ import annotations

import copy
import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import refuse_existing
from d2v_lightning.checkpoints.official_data_options import data_of, glue_task
from d2v_lightning.checkpoints.official_run_options import (
    PRECISION,
    beit_optimization,
    beit_trainer,
    fairseq_optimization,
    fairseq_trainer,
    section,
)
from d2v_lightning.checkpoints.options import Options, option, refuse_unknown
from d2v_lightning.configurable import Tree, plain, refuse_foreign
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import UserError, naming

WIDTH = 120
# Sections of fairseq that say where and how fast a run was computed, saved and logged, and nothing of what was computed.
MACHINE = (
    "common",
    "common_eval",
    "distributed_training",
    "checkpoint",
    "bmuf",
    "generation",
    "eval_lm",
    "interactive",
    "scoring",
    "bpe",
    "tokenizer",
    "ema",
    "simul_type",
    "job_logging_cfg",
)
# The same among other options: of fairseq's data and optimisers, and of BEiT's trainers.
_MACHINE = re.compile(
    r"dataset\.(num_workers|data_buffer_size|\w*valid\w*|gen_subset|num_shards|fixed_\w+)|.*\.(_name|tpu|user_dir)"
    r"|\w+_dir|save_ckpt\w*|device|resume|auto_resume|start_epoch|num_workers|pin_mem|local_rank|dist_\w+|rank|gpu|distributed"
    r"|enable_deepspeed|deepspeed\w*|log_\w+"
)
# Options of the pre-training that a fine-tuned file repeats.
_PRETRAINED = re.compile(r"model\.(w2v_args|pretrained_model_args)\.")
_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, -1)
BEST = {
    "SpeechCTC": {"monitor": "val/wer", "mode": "min", "filename": "best"},
    "ImageClassifier": {"monitor": "val/top1", "mode": "max", "filename": "best"},
    "GLUEClassifier": {"monitor": "val/score", "mode": "max", "filename": "best"},
}
_LIFTED = ("dropout", "attention_dropout", "activation_dropout", "layer_drop", "drop_path")


def write_recipe(content: Content, target: str) -> None:
    """Write the recipe of a file as YAML that `cli.py fit --config` reads, with a header that says what it is.

    Raises:
        FileExistsError: something is there already.
        ValueError: the file does not say what made it, or says something that has no counterpart here.
    """
    refuse_existing(target)
    with naming(content.path):
        sections, notes = recipe_of(content)
    text = "".join(f"# {line}".rstrip() + "\n" for line in _header(content, sections, notes, target))
    with atomic_write(target) as unfinished:
        unfinished.write_text(text + _dumped(sections), encoding="utf-8")


def _dumped(sections: Tree) -> str:
    """YAML in the form of `configs/`: what fits into a line is in one."""
    return str(yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, default_flow_style=None, width=WIDTH))


def recipe_of(content: Content) -> tuple[Tree, list[str]]:
    """The sections of a recipe, and what its header says besides.

    Raises:
        ValueError: see `write_recipe`.
    """
    if content.options is not None:
        return _official(content, content.options)
    if content.data is not None or content.trainer:
        return _own(content)
    raise UserError(
        "it holds a network and not what made it (targets, masks, batch, optimiser): a recipe needs a checkpoint that "
        "cli.py wrote, or a file of Meta's with 'cfg' or 'args'"
    )


# ---- ours --------------------------------------------------------------------------------------------------------------


def _own(content: Content) -> tuple[Tree, list[str]]:
    if content.data is None:
        raise UserError("it does not say what data it was trained with: a recipe needs a checkpoint that cli.py wrote")
    refuse_foreign(content.data)
    sections = {"seed_everything": 0, "model": content.tree, "data": content.data, "trainer": dict(content.trainer)}
    notes = ["The file stores no seed, no callbacks and no logger of its run."]
    if not content.trainer:
        notes.append("It stores nothing of the Trainer either: say how long, and with which precision, to train.")
    if "backbone" in content.tree["init_args"]:
        notes.append(
            "It does not say what weights it began with: as written here they are random. To begin with those of a file, "
            "take model.backbone out and give --model.checkpoint FILE."
        )
    return sections, notes


# ---- Meta's ------------------------------------------------------------------------------------------------------------


def _official(content: Content, options: Options) -> tuple[Tree, list[str]]:
    fairseq = isinstance(options.get("model"), Options)  # BEiT's "model" is a name
    name = content.tree["class_path"].rpartition(".")[2]
    trainer = fairseq_trainer(options) if fairseq else beit_trainer(options)
    arguments = copy.deepcopy(content.tree["init_args"])
    if name == "Data2Vec":
        model = _pretraining(arguments, options, fairseq)
        trainer |= {"limit_val_batches": 0, "callbacks": [_monitor(section(options, "model")) if fairseq else MONITOR]}
    else:
        model = _finetuning(name, arguments, options, fairseq)
        if (interval := int(option(options, "dataset.validate_interval", default=1))) > 1:
            trainer["check_val_every_n_epoch"] = interval
    model = {name: value for name, value in model.items() if value is not None}
    seed = option(options, "common.seed", default=1) if fairseq else option(options, "seed", default=0)  # as theirs
    sections: Tree = {
        "seed_everything": int(seed),
        "model": {"class_path": content.tree["class_path"], "init_args": plain(model)},
        "data": data_of(content, options, fairseq),
        **({"model_checkpoint": BEST[name]} if name in BEST else {}),
        "trainer": trainer,
    }
    speech = sections["data"]["class_path"].endswith("SpeechDataModule")
    return sections, _notes(options, fairseq, speech, trainer)


MONITOR: Tree = {"class_path": "d2v_lightning.CollapseMonitor"}


def _monitor(model: Options) -> Tree:
    """`CollapseMonitor` with the bounds of a file; 1.0 for text has none. fairseq looks at them from update 5,000."""
    if "min_target_var" not in model:
        return MONITOR
    bounds = {
        ours: float(option(model, theirs, default=default))
        for ours, theirs, default in (
            ("min_target_std", "min_target_var", 0.1),
            ("min_prediction_std", "min_pred_var", 0.01),
        )
    }
    stops = {"on_collapse": "stop", "stop_after": 5000} if any(bounds.values()) else {}
    return {**MONITOR, "init_args": {**stops, **bounds}}


def _pretraining(arguments: Tree, options: Options, fairseq: bool) -> Tree:
    if not fairseq:
        seeded = option(options, "seed_model", default=None)  # whose student such a run begins with, as its teacher too
        teacher = {} if not seeded else {"teacher_from": "student"}
        return {**arguments, **teacher, "optimization": beit_optimization(options)}
    refuse_unknown(section(options, "model"), {"skip_ema": False})
    return {**arguments, "optimization": fairseq_optimization(options)}


def _finetuning(name: str, arguments: Tree, options: Options, fairseq: bool) -> Tree:
    """Arguments of a module that fine-tunes, without its network: that comes from the file which training begins with."""
    backbone = arguments.pop("backbone")["init_args"]
    trunk = backbone["transformer"]["init_args"]
    lifted = {part: trunk[part] for part in _LIFTED}
    own: Tree = {"part": "student", "checkpoint": None, **lifted}
    if not fairseq:
        return {**arguments, **own, **_beit_classes(options)}
    model = section(options, "model")
    if name == "ImageClassifier":
        return {**arguments, **own, **_classes(options, model)}
    if name == "SpeechCTC":
        refuse_unknown(model, {"final_dropout": 0.0, "blank_weight": 0.0})
        frozen = float(option(model, "feature_grad_mult", default=0.0)) == 0.0
        own |= {
            "freeze_convolutions": frozen,
            "part": "teacher" if option(model, "load_ema", default=False) else "student",
        }
        decay = float(option(model, "layer_decay", default=1.0))
        return {
            **arguments,
            **own,
            "optimization": fairseq_optimization(options, layer_decay=None if decay == 1 else decay),
        }
    if (task := glue_task(options)) is not None:
        arguments |= {"task": task, "num_classes": None}
    return {**arguments, **own, "optimization": fairseq_optimization(options)}


def _classes(options: Options, model: Options) -> Tree:
    """2.0's `mae_image_classification.py`."""
    refuse_unknown(model, {"mixup_mode": "batch"})
    decay = float(option(model, "layer_decay", default=0.65))
    return {
        "head_std": 0.02,
        "mixup": float(option(model, "mixup", default=0.8)),
        "cutmix": float(option(model, "cutmix", default=1.0)),
        "mixup_probability": float(option(model, "mixup_prob", default=1.0)),
        "label_smoothing": float(option(model, "label_smoothing", default=0.1)),
        "freeze_backbone": bool(option(model, "linear_classifier", default=False)),
        "optimization": fairseq_optimization(
            options,
            layer_decay=decay if decay > 0 else None,
            encoder_decays=not option(model, "no_decay_blocks", default=True),
        ),
    }


def _beit_classes(options: Options) -> Tree:
    """1.0's `run_class_finetuning.py`."""
    refuse_unknown(options, {"mixup_mode": "batch", "target_layer": -1, "learn_layer_weights": False})
    decay = float(option(options, "layer_decay", default=0.9))
    return {
        "head_std": 0.02 * float(option(options, "init_scale", default=0.001)),
        "mixup": float(option(options, "mixup", default=0.0)),
        "cutmix": float(option(options, "cutmix", default=0.0)),
        "mixup_probability": float(option(options, "mixup_prob", default=1.0)),
        "label_smoothing": float(option(options, "smoothing", default=0.1)),
        "freeze_backbone": bool(option(options, "linear_classifier", default=False)),
        "optimization": beit_optimization(options, layer_decay=decay if decay < 1 else None),
    }


# ---- the header --------------------------------------------------------------------------------------------------------


def _header(content: Content, sections: Tree, notes: list[str], target: str) -> list[str]:
    place = {
        "TextDataModule": "--data.files '/data/corpus/*.txt' --data.tokenizer roberta-base",
        "GLUEDataModule": "--data.root /data/glue --data.tokenizer roberta-base",
    }.get(sections["data"]["class_path"].rpartition(".")[2], "--data.root /data")
    if content.options is None:
        place = ""
    elif "part" in (made := sections["model"]["init_args"]) or made.get("teacher_from") == "student":
        place += " --model.checkpoint pretrained.pt"
    name = Path(content.path).name
    lines = [
        f"What made {name}: {content.kind}.",
        "",
        f"  python cli.py fit --config {target} {place}".rstrip(),
        "",
        f"Source: {name}, by `python -m d2v_lightning.commands.checkpoint inspect {name} --recipe`.",
    ]
    for note in notes:
        lines += [note] if note.startswith("  ") else textwrap.wrap(note, WIDTH - 2, break_on_hyphens=False)
    return lines


def _notes(options: Options, fairseq: bool, speech: bool, trainer: Tree) -> list[str]:
    """What a header says of the options of a file."""
    notes = []
    if trainer["precision"] == PRECISION:
        notes.append(f"The file's run computed in half precision with a loss scaler; {PRECISION} stands in its place.")
    if speech:
        notes.append("Splits of the data have the names of fairseq's manifests: --data.train_split names yours.")
    if fairseq:
        notes.append("What the data was is in task.data below, if anywhere.")
    left = [(dotted, value) for dotted, value in options.leaves() if _is_left(dotted, value, options)]
    if left:
        notes.append("Options that have no counterpart here, or that only agree with what is always done here:")
        notes += [f"  {dotted}: {_short(value)}" for dotted, value in left]
    known = sorted(dotted for dotted, _ in options.leaves() if dotted in options.read and not _PRETRAINED.match(dotted))
    notes.append(f"Options read: {', '.join(known)}.")
    notes.append(
        "Options that are off (null, false, 0, -1) are not listed, and neither are those of the machine, of saving and of "
        "logging" + (f" (sections {', '.join(part for part in MACHINE if part in options)})." if fairseq else ".")
    )
    return notes


def _is_left(dotted: str, value: Any, options: Options) -> bool:
    if dotted in options.read or any(value is off or (off is not None and value == off) for off in _OFF):
        return False
    if dotted.partition(".")[0] in MACHINE or _PRETRAINED.match(dotted) or _MACHINE.fullmatch(dotted):
        return False
    other = re.match(r"model\.modalities\.(\w+)\.", dotted)
    return other is None or any(name.startswith(other[0]) for name in options.read)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
