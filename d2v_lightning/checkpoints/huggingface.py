"""Models of the `transformers` library, in and out: Data2VecVision, Data2VecAudio and Data2VecText, and BEiT, Wav2Vec2
and RoBERTa where they are the same network.

The file is read as it lies on disk, `config.json` beside `model.safetensors`: names there have stayed the same while
the library's classes were renamed inside. Nothing in the file is executed. Each modality has a file of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2v_lightning.checkpoints import huggingface_audio, huggingface_image, huggingface_text
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.directory import CONFIG, WEIGHTS, read_config, read_weights, write_safetensors
from d2v_lightning.checkpoints.image_processor import read_processor, write_processor
from d2v_lightning.checkpoints.tables import Row, State, drop, prefixed, to_ours, to_theirs
from d2v_lightning.configurable import build, plain
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.support.errors import UserError, flat, naming
from d2v_lightning.support.tensor_files import named_tensors

FORMATS: dict[type, ModuleType] = {
    ImageEncoder: huggingface_image,
    AudioEncoder: huggingface_audio,
    TextEncoder: huggingface_text,
}
# Options that count something.
SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"),
    *("num_channels", "image_size", "patch_size", "num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
)
PAIRS = ("image_size", "patch_size")  # one number, or height and width
NO_PART_OF_A_BACKBONE = "no part of a backbone"
LISTS = ("conv_dim", "conv_kernel", "conv_stride")


def huggingface_content(directory: Path, name: str, whole: bool = True) -> Content:
    """A directory as a `SpeechCTC`, `ImageClassifier` or `GLUEClassifier` where it has such a head, otherwise a `Backbone`.

    Where `whole` is False it is always a `Backbone`.

    Models are Data2VecVision, -Audio, -Text, BEiT, Wav2Vec2 and RoBERTa. The mask token of a backbone is kept beside it, as
    "mask_token". An image model with `use_mean_pooling` has no norm after the last block, and neither has the result.
    Speech models treat padding as theirs do (`AudioEncoder.padding` "released_1").

    Args:
        directory: with `config.json` and `model.safetensors` (or `pytorch_model.bin`).
        name: what messages call it.

    Raises:
        FileNotFoundError: the directory, or one of its files, does not exist.
        ValueError: the model is of another type or uses an option that our trunk does not have; or its file is damaged,
            or holds more or fewer weights than the configuration asks for.
    """
    found = _read(directory, name)
    licence = _licence(directory)
    kind = f"{found.config.model_type} of transformers"
    encoder = found.backbone.encoder
    data = read_processor(directory, encoder, name) if isinstance(encoder, ImageEncoder) else None
    task = found.layout.task(found.head, found.config, directory) if whole else None
    if task is None:
        state, rows = dict(found.state), found.rows
        token = next((weight for weight in found.head if weight.endswith("masked_spec_embed")), None)
        if token is not None:
            state["mask_token"] = found.head.pop(token)
            rows.append(Row(token, tuple(state["mask_token"].shape), "matched", "mask_token"))
        for weight in list(found.head):
            drop(found.head, weight, NO_PART_OF_A_BACKBONE, rows)
        normalize = huggingface_audio.normalize(directory) if found.layout is huggingface_audio else None
        return Content(found.backbone.config, state, kind, licence, rows, data, normalize=normalize)
    class_name, arguments, table = task
    tree = {"class_path": f"d2v_lightning.{class_name}"}
    with torch.device("meta"):
        module = build({**tree, "init_args": plain({**arguments, "backbone": found.backbone})})
    rows = [row._replace(ours=f"backbone.{row.ours}") if row.how != "dropped" else row for row in found.rows]
    own = {weight: t for weight, t in module.state_dict().items() if not weight.startswith("backbone.")}
    state = to_ours(own, found.head, table, name, rows)
    for weight in list(found.head):
        drop(found.head, weight, "no part of a fine-tuned network", rows)
    state |= {f"backbone.{weight}": tensor for weight, tensor in found.state.items()}
    return Content(module.config, state, f"{kind}, fine-tuned", licence, rows, data)


class _Found(NamedTuple):
    backbone: Backbone  # without weights
    state: State
    head: State
    config: Any
    layout: ModuleType
    rows: list[Row]


def _read(directory: Path, name: str) -> _Found:
    config, layout = _read_config(directory)
    rows: list[Row] = []
    weights = named_tensors(read_weights(directory), str(directory))
    network, head = _split(weights, config, layout, name, rows)
    with naming(directory / CONFIG):
        if config.num_hidden_layers > len(network):
            raise UserError(f"num_hidden_layers is {config.num_hidden_layers}, but there are {len(network)} weights")
        backbone = _untrained(config, layout, name)
    network = layout.adjust(network, backbone)
    state = to_ours(backbone.state_dict(), network, layout.names(backbone), name, rows)
    if network:
        raise UserError(f"{name}: weights missing [], not expected {sorted(network)[:3]}")
    return _Found(backbone, state, head, config, layout, rows)


def _licence(directory: Path) -> str | None:
    """What the model card beside the weights says."""
    path = directory / "README.md"
    header = path.read_text(encoding="utf-8", errors="replace").split("---")[1:2] if path.is_file() else []
    match = re.search(r"^license:\s*(\S+)", header[0], re.MULTILINE) if header else None
    return match[1] if match else None


def huggingface_state_dict(backbone: Backbone, state: Mapping[str, Tensor] | None = None) -> State:
    """Weights under the names of `Data2VecVisionModel`, `-AudioModel` (or `Wav2Vec2Model`) or `-TextModel`.

    Args:
        state: the weights, where the backbone lies on the meta device and has none itself.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    layout = _layout_of(backbone)
    layout.config(backbone)
    extra = layout.extra_weights(backbone) if hasattr(layout, "extra_weights") else {}
    return {**to_theirs(backbone.state_dict() if state is None else state, layout.names(backbone)), **extra}


def huggingface_config(backbone: Backbone) -> Any:
    """The configuration of a backbone, of theirs.

    Raises:
        ValueError: transformers has no such network; the message names the option.
    """
    return _layout_of(backbone).config(backbone)


def save_huggingface(
    module: nn.Module,
    directory: str | Path,
    state: Mapping[str, Tensor] | None = None,
    evaluation: Mapping[str, Any] = MappingProxyType({}),
    normalize: bool | None = None,
) -> str:
    """Write `config.json`, `model.safetensors`, and letters and feature extractor of speech or the image processor.

    Args:
        module: a `Backbone`, or a `SpeechCTC`, `ImageClassifier` or `GLUEClassifier`.
        directory: is made where it does not exist.
        state: its weights, where it lies on the meta device and has none itself.
        evaluation: how pictures are shown, see `write_processor`.
        normalize: of a speech backbone, which does not hold it itself: whether it heard clips of mean 0 and variance 1.

    Returns:
        The class of `transformers` whose `from_pretrained(directory)` is this network. Where `AudioEncoder.padding` is
        "exact" it is the same for clips without padding: theirs lets padding leak.

    Raises:
        ValueError: transformers has no such network, see `huggingface_config`.
    """
    state = module.state_dict() if state is None else state
    if isinstance(module, Backbone):
        config, theirs = huggingface_config(module), huggingface_state_dict(module, state)
    else:
        backbone: Any = module.backbone
        layout = _layout_of(backbone)
        config = layout.config(backbone)
        prefix = next(prefix for prefix in layout.PREFIXES if prefix[:-1].replace("_", "-") == config.model_type)
        head, left_out = layout.to_task(module, config, prefix)
        table = prefixed(layout.names(backbone), "backbone.", prefix) | head
        own = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
        theirs = to_theirs(own, table)
        if hasattr(layout, "extra_weights"):
            theirs |= {prefix + name: tensor for name, tensor in layout.extra_weights(backbone).items()}
    Path(directory).mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    write_safetensors(theirs, Path(directory) / WEIGHTS)
    if not isinstance(module, Backbone) and isinstance(module.encoder, AudioEncoder):
        huggingface_audio.write_processor(module, Path(directory))
    encoder = module.encoder
    if isinstance(encoder, ImageEncoder):
        write_processor(encoder, Path(directory), evaluation)
    if isinstance(module, Backbone) and isinstance(encoder, AudioEncoder) and normalize is not None:
        huggingface_audio.write_extractor(Path(directory), normalize)
    return str(config.architectures[0])


def _layout_of(backbone: Backbone) -> ModuleType:
    layout = FORMATS.get(type(backbone.encoder))
    if layout is None:
        raise UserError(f"transformers has no such network: the encoder is {type(backbone.encoder).__name__}")
    return layout


# ---- reading ---------------------------------------------------------------------------------------------------------


def _untrained(config: Any, layout: ModuleType, name: str) -> Backbone:
    """The network that a configuration describes, without weights.

    Raises:
        ValueError: it describes none.
    """
    try:
        with torch.device("meta"):
            backbone: Backbone = layout.untrained(config, name)
    except UserError:
        raise
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # of any constructor
        raise UserError(f"its options make no network: {str(error).partition(chr(10))[0]}") from error
    return backbone


def _read_config(directory: Path) -> tuple[Any, ModuleType]:
    """The configuration, with the library's defaults for what the file leaves out, and the layout of its weights.

    Raises:
        ValueError: it describes another kind of model, or holds values that none has.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    options = read_config(directory)
    model_type = options.get("model_type")
    for layout in FORMATS.values():
        if isinstance(model_type, str) and model_type in layout.TYPES:
            with naming(directory / CONFIG):
                _refuse_odd(options)
            try:
                return getattr(transformers, layout.TYPES[model_type]).from_dict(options), layout
            except (StrictDataclassError, TypeError, ValueError, AttributeError, LookupError) as error:
                raise UserError(f"{directory / CONFIG}: {flat(error)}") from error
    known = ", ".join(name for layout in FORMATS.values() for name in layout.TYPES)
    raise UserError(f"{directory / CONFIG} describes a model of type {model_type!r}: supported are {known}")


def _refuse_odd(options: dict[str, Any]) -> None:
    """Look at what is counted before anything is made of it.

    Raises:
        ValueError: an option is no such number.
    """
    for name in (name for name in (*SIZES, *LISTS) if options.get(name) is not None):
        value = options[name]
        pair = name in PAIRS and isinstance(value, list) and len(value) == 2
        numbers = value if pair or (name in LISTS and isinstance(value, list)) else [value]
        if (name in LISTS and numbers is not value) or not all(
            type(number) is int and number > 0 for number in numbers
        ):
            expected = "a list of numbers, each 1 or more," if name in LISTS else "1 or more"
            raise UserError(f"{name} is {value!r}, where {expected} is expected")
    labels = options.get("num_labels") or 0
    if not isinstance(labels, int) or not 0 <= labels <= 10**6:
        raise UserError(f"num_labels is {labels!r}, where up to a million classes are expected")
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name} is {value}, where a finite number is expected")


def _split(
    state: Mapping[str, Tensor], config: Any, layout: ModuleType, name: str, rows: list[Row]
) -> tuple[State, State]:
    """The weights of the network itself, without its prefix, and those of its head; derived buffers are dropped.

    Raises:
        ValueError: a weight outside the network belongs to no head that we know.
    """
    prefix = next((prefix for prefix in layout.PREFIXES if any(weight.startswith(prefix) for weight in state)), "")
    network, head = {}, {}
    for weight, tensor in state.items():
        inside, bare = weight.startswith(prefix), weight.removeprefix(prefix)
        if layout.DERIVED.search(bare):
            if not layout.follows(bare, tensor, config):
                raise UserError(f"{name}: {weight!r} is not what follows from {CONFIG}")
            rows.append(Row(weight, tuple(tensor.shape), "dropped", "follows from the sizes"))
            continue
        if layout.is_head(bare, inside, config):
            head[weight] = tensor
        elif inside:
            network[bare] = tensor
        else:
            raise UserError(f"{name}: weight {weight!r} is not part of this model")
    return network, head
