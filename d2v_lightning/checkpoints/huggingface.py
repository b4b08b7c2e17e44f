"""Models of the `transformers` library, in and out: Data2VecVision, Data2VecAudio and Data2VecText, and BEiT, Wav2Vec2
and RoBERTa where they are the same network.

The file is read as it lies on disk, `config.json` beside `model.safetensors`: names there have stayed the same while
the library's classes were renamed inside. Nothing in the file is executed. Each modality has a file of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from d2v_lightning.backbone import Backbone
from d2v_lightning.checkpoints import huggingface_audio, huggingface_image, huggingface_text
from d2v_lightning.checkpoints.tables import State, to_ours, to_theirs
from d2v_lightning.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.saving import read_tensors

FORMATS: dict[type, ModuleType] = {
    ImageEncoder: huggingface_image,
    AudioEncoder: huggingface_audio,
    TextEncoder: huggingface_text,
}


class HuggingFaceModel(NamedTuple):
    """A directory's content: the network as a `backbone`, the rest of its weights (`head`), its `config`."""

    backbone: Backbone
    head: State
    config: Any


def load_huggingface(path_or_name: str | Path) -> Backbone:
    """The network in a Hugging Face directory, see `read_huggingface`. What is left out is said."""
    model = read_huggingface(path_or_name)
    if model.head:
        rank_zero_info(f"{path_or_name}: not part of a backbone and left out: {', '.join(sorted(model.head))}")
    return model.backbone


def read_huggingface(path_or_name: str | Path) -> HuggingFaceModel:
    """A model of Data2VecVision, -Audio, -Text, BEiT, Wav2Vec2 or RoBERTa, with or without a task's head.

    Mask tokens and poolers (with the layer norm of mean pooling) count as part of the head. An image model with
    `use_mean_pooling` has no norm after the last block, and neither has the result. Speech models treat padding as theirs
    do (`AudioEncoder.padding` "released_1").

    Args:
        path_or_name: a directory with `config.json` and `model.safetensors` (or `pytorch_model.bin`), or a hub name.

    Returns:
        A backbone with the same hidden states, in training mode, and what is not part of it.

    Raises:
        FileNotFoundError: the directory, or one of its files, does not exist.
        ValueError: the model is of another type or uses an option that our trunk does not have; or its file is damaged,
            or holds more or fewer weights than the configuration asks for.
    """
    directory = _directory(path_or_name)
    name = str(path_or_name)
    config, layout = _read_config(directory)
    network, head = _split(_read_weights(directory), config, layout, name)
    backbone: Backbone = layout.untrained(config, name)
    network = layout.adjust(network, backbone)
    state = to_ours(backbone.state_dict(), network, layout.names(backbone), name)
    if network:
        raise ValueError(f"{name}: weights missing [], not expected {sorted(network)[:3]}")
    backbone.load_state_dict(state)
    return HuggingFaceModel(backbone, head, config)


def huggingface_state_dict(backbone: Backbone) -> State:
    """Weights under the names of `Data2VecVisionModel`, `-AudioModel` (or `Wav2Vec2Model`) or `-TextModel`.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    layout = _layout_of(backbone)
    layout.config(backbone)
    extra = layout.extra_weights(backbone) if hasattr(layout, "extra_weights") else {}
    return {**to_theirs(backbone.state_dict(), layout.names(backbone)), **extra}


def huggingface_config(backbone: Backbone) -> Any:
    """The configuration of a backbone, of theirs.

    Raises:
        ValueError: transformers has no such network; the message names the option.
    """
    return _layout_of(backbone).config(backbone)


def save_huggingface(backbone: Backbone, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors`: `AutoModel.from_pretrained(directory)` is this network.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    from safetensors.torch import save_file

    config, state = huggingface_config(backbone), huggingface_state_dict(backbone)
    Path(directory).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(state, Path(directory) / "model.safetensors", metadata={"format": "pt"})


def _layout_of(backbone: Backbone) -> ModuleType:
    layout = FORMATS.get(type(backbone.encoder))
    if layout is None:
        raise ValueError(f"transformers has no such network: the encoder is {type(backbone.encoder).__name__}")
    return layout


# ---- reading ---------------------------------------------------------------------------------------------------------


def _directory(path_or_name: str | Path) -> Path:
    """Where the files lie, fetched from the hub where a name and not a directory is given."""
    if Path(path_or_name).is_dir():
        return Path(path_or_name)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(path_or_name)):
        raise FileNotFoundError(f"no directory at {path_or_name}: give a directory that exists, or a name on the hub")
    from huggingface_hub import snapshot_download

    directory = Path(snapshot_download(str(path_or_name), allow_patterns=["config.json", "model.safetensors"]))
    if not (directory / "model.safetensors").is_file():
        directory = Path(snapshot_download(str(path_or_name), allow_patterns=["config.json", "pytorch_model.bin"]))
    return directory


def _read_config(directory: Path) -> tuple[Any, ModuleType]:
    """The configuration, with the library's defaults for what the file leaves out, and the layout of its weights."""
    import transformers

    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no config.json in {directory}: it says what the weights beside it are")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    model_type = options.get("model_type") if isinstance(options, dict) else None
    for layout in FORMATS.values():
        if model_type in layout.TYPES:
            return getattr(transformers, layout.TYPES[model_type]).from_dict(options), layout
    known = ", ".join(name for layout in FORMATS.values() for name in layout.TYPES)
    raise ValueError(f"{path} describes a model of type {model_type!r}: supported are {known}")


def _read_weights(directory: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    older = directory / "pytorch_model.bin"
    if not older.is_file():
        raise FileNotFoundError(f"neither model.safetensors nor pytorch_model.bin in {directory}")
    return dict(read_tensors(older))


def _split(state: Mapping[str, Tensor], config: Any, layout: ModuleType, name: str) -> tuple[State, State]:
    """The weights of the network itself, without its prefix, and those of its head; derived buffers are left out.

    Raises:
        ValueError: a weight outside the network belongs to no head that we know.
    """
    prefix = next((prefix for prefix in layout.PREFIXES if any(weight.startswith(prefix) for weight in state)), "")
    network, head = {}, {}
    for weight, tensor in state.items():
        inside, bare = weight.startswith(prefix), weight.removeprefix(prefix)
        if layout.DERIVED.search(bare):
            continue
        if layout.is_head(bare, inside, config):
            head[weight] = tensor
        elif inside:
            network[bare] = tensor
        else:
            raise ValueError(f"{name}: weight {weight!r} is not part of this model")
    return network, head
