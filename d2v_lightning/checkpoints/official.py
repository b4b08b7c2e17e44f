"""Meta's released data2vec files, in and out.

Shapes, heads and grids are read off the tensors, the method's options off the file's plain data; nothing in the file is
executed. Each layout has a file of its own: `official_v1_image` (1.0 images), `official_v1_audio_text` (1.0 speech
and text), `official_v2` (2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2v_lightning.checkpoints import official_finetuned, official_v1_audio_text, official_v1_image, official_v2
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.options import Options, option, plain_options, truth
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.method.objective import Objective
from d2v_lightning.method.student import VisibleStudent
from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.support.errors import NotFoundError, UserError
from d2v_lightning.support.lines import read_lines
from d2v_lightning.support.tensor_files import unwrapped


def is_official(file: Any) -> bool:
    """Whether a loaded file is in a layout that `convert_official` knows."""
    if not isinstance(file, dict):
        return False
    model = file.get("model", file.get("module"))  # DeepSpeed, which fine-tuned the images of 1.0, says "module"
    if not isinstance(model, Mapping):
        return False
    described = any(file.get(name) is not None for name in ("args", "cfg"))
    return described or ("head.weight" in model and "patch_embed.proj.weight" in model)


def convert_official(
    file: Any,
    path: str,
    dictionary: list[str] | None = None,
    pretrained: str | Path | None = None,
    whole: bool = True,
) -> Content:
    """An official file's content as ours.

    Of a pre-training file it is a `Data2Vec` that goes on where the file stands; of a fine-tuned one a `SpeechCTC`,
    `ImageClassifier` or `GLUEClassifier`. Student, teacher, targets, loss and EMA are as the file's options say. Padding is
    handled as in Meta's code (see `Encoder`), which is said. Without a teacher in the file it is a copy of the student, and
    that is said.

    Args:
        file: for which `is_official` is true, as `read_tensors` gives it. 1.0 images are `{"model": ..., "model_ema": ...,
            "args": Namespace}`, all others `{"model": {..., "_ema": {...}}, "cfg": {"model": {...}}}`.
        path: what messages call it.
        dictionary: symbols by number of a file that was fine-tuned with CTC, see `read_dictionary`; None for those that it
            stores, or LibriSpeech's.
        pretrained: the file that a fine-tuned one started from, see `read_pretrained`.
        whole: False where a backbone is all that is wanted: mask token and decoder of a pre-training file may be missing.

    Raises:
        ValueError: the file is damaged, of another layout, or its tensors or options do not fit together.
    """
    try:
        file = {**file, "model": unwrapped(file.get("model", file.get("module")))}
        for name in ("args", "cfg"):
            given = plain_options(file.get(name))
            file[name] = Options(given) if isinstance(given, dict) else given
        if file["cfg"] is None and file["args"] is not None and "patch_embed.proj.weight" not in file["model"]:
            sections = ("model", "task", "optimization")  # as fairseq wrote before hydra
            file["cfg"] = Options(dict.fromkeys(sections, file["args"]))
        if pretrained is not None:
            file["cfg"] = _started_from(file["cfg"], pretrained)
        content = _convert(file, path, dictionary, whole)
    except ValueError as error:  # of a constructor, or about one option or weight: say where
        raise UserError(str(error) if path in str(error) else f"{path}: {error}") from error
    made_with = next((given for given in (file["cfg"], file["args"]) if isinstance(given, Options)), None)
    content = content._replace(options=made_with)
    if (padding := _padding(content.tree)) is not None:
        rank_zero_info(
            f"{path}: padding is handled as in Meta's code (encoder.padding: {padding}), under which it was trained"
        )
    return content


def _convert(file: dict[str, Any], path: str, dictionary: list[str] | None, whole: bool) -> Content:
    if official_finetuned.is_finetuned(file):
        return official_finetuned.convert(file, path, dictionary, whole)
    if file["cfg"] is None:
        return official_v1_image.convert(file, path, whole)
    layout = official_v2 if official_v2.is_v2(file["model"]) else official_v1_audio_text
    content = layout.convert(file, path, whole)
    return content._replace(normalize=truth(option(file["cfg"], "task.normalize", default=None), "task.normalize"))


def _started_from(cfg: Any, pretrained: str | Path) -> Options:
    """Options of a fine-tuned file, with another place of the file that it started from."""
    model = cfg.get("model") if isinstance(cfg, Options) else None
    if not isinstance(model, Options):
        raise UserError(f"--pretrained {pretrained} goes with a file that fairseq fine-tuned")
    if not Path(pretrained).is_file():
        raise NotFoundError(f"no pre-trained file at {pretrained}: give the path of a file that exists")
    here = dict.fromkeys(official_finetuned.PRETRAINED_AT, str(pretrained))
    return cfg.changed(model=model.changed(**here, w2v_args=None, pretrained_model_args=None))


def _padding(tree: Any) -> str | None:
    """How the encoder in a constructor tree handles padding; None where it never has any."""
    if not isinstance(tree, dict):
        return None
    found = (tree.get("padding"), *(_padding(value) for value in tree.values()))
    return next((padding for padding in found if padding is not None), None)


def read_dictionary(path: str | Path) -> list[str]:
    """Symbols by number of fairseq's `dict.txt`: one and its count a line; the four special ones stand before them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form.
    """
    if not Path(path).is_file():
        raise NotFoundError(f"no dictionary at {path}: fairseq calls it dict.ltr.txt or dict.txt")
    symbols = ["<s>", "<pad>", "</s>", "<unk>"]
    for number, line in enumerate(read_lines(path), 1):
        symbol, _, count = line.removesuffix(" #fairseq:overwrite").rpartition(" ")
        if not symbol or not count.isdigit():
            raise UserError(f"{path}:{number} is {line!r}: a symbol and its count are expected")
        symbols.append(symbol)
    return symbols


def official_state_dict(model: Objective) -> dict[str, Any]:
    """Student and teacher under the official names: `{"model": ..., "model_ema": ...}` for 1.0 images, otherwise
    `{"model": {..., "_ema": {...}}}` ("encoder._ema" for 1.0 text).

    Raises:
        ValueError: the encoder is none of Meta's.
    """
    if type(model.encoder) not in (ImageEncoder, AudioEncoder, TextEncoder):
        raise UserError(f"Meta's code has no such network: the encoder is {type(model.encoder).__name__}")
    if isinstance(model.student, VisibleStudent):
        return official_v2.state_dict(model)
    return (official_v1_image if isinstance(model.encoder, ImageEncoder) else official_v1_audio_text).state_dict(model)
