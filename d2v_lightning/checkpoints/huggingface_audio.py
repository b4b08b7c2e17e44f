"""Data2VecAudio of the `transformers` library, and Wav2Vec2 where it is the same network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from d2v_lightning.checkpoints.directory import read_json
from d2v_lightning.checkpoints.options import truth
from d2v_lightning.checkpoints.tables import Names, State, weight_and_bias
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.letters import BLANK, SEPARATOR, UNKNOWN
from d2v_lightning.nn.backbone import Backbone
from d2v_lightning.nn.encoders.audio import RATE, AudioEncoder
from d2v_lightning.nn.transformer import Transformer
from d2v_lightning.support.errors import NotFoundError, UserError

TYPES = {"data2vec-audio": "Data2VecAudioConfig", "wav2vec2": "Wav2Vec2Config"}
PREFIXES = ("data2vec_audio.", "wav2vec2.")
DERIVED = re.compile(r"$^")  # nothing is
HEAD = re.compile(r"^(masked_spec_embed|(lm_head|projector|classifier|quantizer|project_hid|project_q|dropout)\b.*)$")

NORM_EPS = 1e-5  # of the norm after the convolutions, which theirs shares with the trunk
_THEIRS = "encoder.layers.#."
NAMES: Names = {
    **weight_and_bias("encoder.convs.#", "feature_extractor.conv_layers.#.conv"),
    **weight_and_bias("encoder.conv_norms.#", "feature_extractor.conv_layers.#.layer_norm"),
    **weight_and_bias("encoder.norm", "feature_projection.layer_norm"),
    **weight_and_bias("encoder.proj", "feature_projection.projection"),
    **weight_and_bias("encoder.position.convs.#", "encoder.pos_conv_embed.layers.#.conv"),
    **weight_and_bias("transformer.input_norm", "encoder.layer_norm"),
    **weight_and_bias("transformer.norm", "encoder.layer_norm"),
    **weight_and_bias(
        "transformer.blocks.#.attn.qkv",
        *(f"{_THEIRS}attention.{part}_proj" for part in ("q", "k", "v")),
    ),
    **weight_and_bias("transformer.blocks.#.attn.proj", f"{_THEIRS}attention.out_proj"),
    **weight_and_bias("transformer.blocks.#.norm1", f"{_THEIRS}layer_norm"),
    **weight_and_bias("transformer.blocks.#.norm2", f"{_THEIRS}final_layer_norm"),
    **weight_and_bias("transformer.blocks.#.mlp.fc1", f"{_THEIRS}feed_forward.intermediate_dense"),
    **weight_and_bias("transformer.blocks.#.mlp.fc2", f"{_THEIRS}feed_forward.output_dense"),
}
_CONV = "encoder.pos_conv_embed.conv."
ONE_POSITION: Names = {
    "encoder.position.convs.0.bias": (f"{_CONV}bias",),
    "encoder.position.convs.0.parametrizations.weight.original0": (f"{_CONV}parametrizations.weight.original0",),
    "encoder.position.convs.0.parametrizations.weight.original1": (f"{_CONV}parametrizations.weight.original1",),
}


def names(backbone: Backbone) -> Names:
    """Our names and theirs."""
    several = backbone.encoder.config["init_args"]["position_depth"] > 1
    return NAMES if several else {**NAMES, **ONE_POSITION}


def is_head(weight: str, inside: bool, config: Any) -> bool:
    """Whether a weight, without the model's prefix, belongs to a head."""
    return bool(HEAD.match(weight))


def adjust(state: State, backbone: Backbone) -> State:
    """Older files spell the two halves of a weight-normed convolution g and v."""
    spelt = {f"{_CONV}weight_g": "original0", f"{_CONV}weight_v": "original1"}
    return {
        f"{_CONV}parametrizations.weight.{spelt[name]}" if name in spelt else name: tensor
        for name, tensor in state.items()
    }


def task(head: State, config: Any, directory: Path) -> tuple[str, dict[str, Any], Names] | None:
    """Class, arguments and names of our module for their head; None where there is none that ours knows.

    Raises:
        FileNotFoundError: the letters of a CTC head are not beside the weights.
        ValueError: they do not fit it.
    """
    if "lm_head.weight" not in head:
        return None
    letters, separator = _letters(directory, head["lm_head.weight"].shape[0])
    blank = config.pad_token_id
    if type(blank) is not int or not 0 <= blank < len(letters):
        raise UserError(
            f"{directory}/config.json: pad_token_id is {blank!r}, where the blank among its outputs is expected"
        )
    order = [blank, *(number for number in range(len(letters)) if number != blank)]
    for name in ("lm_head.weight", "lm_head.bias"):
        head[name] = head[name][order]
    spelt = [SEPARATOR if letters[number] == separator else letters[number] for number in order[1:]]
    token = next((name for name in head if name.endswith("masked_spec_embed")), None)
    if token is None:
        head[token := "masked_spec_embed"] = torch.zeros(config.hidden_size)
    extractor = _feature_extractor(directory)  # the library's own defaults where it says nothing
    arguments = {
        "vocabulary": [BLANK, *spelt],
        "normalize": truth(extractor.get("do_normalize", True), f"do_normalize of {directory}"),
        "sample_rate": int(extractor.get("sampling_rate", RATE)),
    }
    return "SpeechCTC", arguments, {**weight_and_bias("head", "lm_head"), "mask_token": (token,)}


def _letters(directory: Path, size: int) -> tuple[list[str], str]:
    """Tokens by number, and the one between words.

    `vocab.json` holds the letters, or those of several languages, each under its name. Tokens that were added later, as
    transformers' own script does with <s> and </s>, are in two other files. Outputs after the last letter get names of their
    own, which is said.
    """
    path = directory / "vocab.json"
    if not path.is_file():
        raise NotFoundError(f"no vocab.json in {directory}: it says which letters its {size} outputs are")
    options = _optional_json(directory / "tokenizer_config.json")
    numbers = _of_language(read_json(path), options, path)
    numbers |= _optional_json(directory / "added_tokens.json")
    added = options.get("added_tokens_decoder") or {}
    for number, token in added.items() if isinstance(added, dict) else ():
        numbers.setdefault(_text(token), int(number) if str(number).isdigit() else number)
    odd = [token for token, number in numbers.items() if type(number) is not int or number < 0]
    if odd:
        raise UserError(f"{path} or a file beside it: the token {odd[0]!r} has the number {numbers[odd[0]]!r}")
    letters = {number: token for token, number in numbers.items() if number < size}
    if len(letters) < len([number for number in numbers.values() if number < size]):
        raise UserError(f"{path} gives two letters the same number")
    # A tokenizer may have counted <s> and </s> for itself, which the network was not given outputs for.
    if not letters or max(numbers.values()) >= size + 2:
        raise UserError(f"{path} numbers {len(numbers)} letters, the network has {size} outputs")
    separator = _text(options.get("word_delimiter_token") or SEPARATOR)
    if separator not in letters.values():
        raise UserError(f"{path} has no {separator!r}, which stands between words")
    if sorted(letters) != list(range(len(letters))):
        gap = next(number for number in range(size) if number not in letters)
        raise UserError(f"{path} has no letter of number {gap}, but others after it: the network has {size} outputs")
    if len(letters) < size:
        rank_zero_info(
            f"{path} numbers {len(letters)} letters, the network has {size} outputs: the last ones are unused"
        )
    return [letters.get(number, f"<unused{number}>") for number in range(size)], separator


def _of_language(numbers: dict[str, Any], options: dict[str, Any], path: Path) -> dict[str, Any]:
    """The letters of the language that the tokenizer was saved for, where there are several."""
    if not numbers or not all(isinstance(letters, dict) for letters in numbers.values()):
        return dict(numbers)
    language = options.get("target_lang") or (next(iter(numbers)) if len(numbers) == 1 else None)
    if language not in numbers:
        raise UserError(
            f"{path} has letters of {', '.join(list(numbers)[:9])}, and tokenizer_config.json no target_lang that is one"
        )
    return dict(numbers[language])


def _text(token: Any) -> str:
    """A token of a tokenizer's settings: text, or its description."""
    return str(token.get("content")) if isinstance(token, dict) else str(token)


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def normalize(directory: Path) -> bool | None:
    """Whether recordings are given mean 0 and variance 1; None where nothing beside the weights says so."""
    return truth(_feature_extractor(directory).get("do_normalize"), f"do_normalize of {directory}")


def _feature_extractor(directory: Path) -> dict[str, Any]:
    """Options of the feature extractor, in either of the files that name it."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            options = read_json(directory / name)
            options = options.get("feature_extractor", options)
            if not isinstance(options, dict):
                raise UserError(f"{directory / name}: feature_extractor is {options!r}, where its options are expected")
            return options
    return {}


def to_task(module: Any, config: Any, prefix: str) -> tuple[Names, tuple[str, ...]]:
    """Make `config` that of a CTC model; names of its head, and the beginnings of those weights that theirs has not."""
    config.architectures = ["Wav2Vec2ForCTC" if prefix == "wav2vec2." else "Data2VecAudioForCTC"]
    config.vocab_size, config.pad_token_id = len(module.vocabulary), 0
    if module.time_mask == "noise":  # theirs masks with a token only, and has none where it never masks
        return weight_and_bias("head", "lm_head"), ("mask_token",)
    config.mask_time_prob = 0.05  # the library's own default: it has the token only where this is set
    return {**weight_and_bias("head", "lm_head"), "mask_token": (f"{prefix}masked_spec_embed",)}, ()


def write_processor(module: Any, directory: Path) -> None:
    """The letters as a tokenizer of theirs, in which the padding token is CTC's blank, and the feature extractor."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor

    vocab = directory / "vocab.json"
    vocab.write_text(
        json.dumps({letter: number for number, letter in enumerate(module.vocabulary)}, ensure_ascii=False)
    )
    unknown = UNKNOWN if UNKNOWN in module.vocabulary else BLANK
    tokenizer = Wav2Vec2CTCTokenizer(
        str(vocab), pad_token=BLANK, unk_token=unknown, bos_token=None, eos_token=None, word_delimiter_token=SEPARATOR
    )
    extractor = write_extractor(directory, module.normalize, module.sample_rate)
    Wav2Vec2Processor(feature_extractor=extractor, tokenizer=tokenizer).save_pretrained(directory)


def write_extractor(directory: Path, normalize: bool, sample_rate: int = RATE) -> Any:
    """The feature extractor of theirs, which gives clips mean 0 and variance 1 or leaves them as they are."""
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(sampling_rate=sample_rate, do_normalize=normalize, return_attention_mask=True)
    extractor.save_pretrained(directory)
    return extractor


def untrained(config: Any, name: str) -> Backbone:
    """The network that a configuration of theirs describes."""
    if config.hidden_act != "gelu" or config.feat_extract_activation != "gelu":
        raise UserError(f"{name}: it has an activation other than 'gelu', which is all that ours knows")
    if config.layer_norm_eps != NORM_EPS:
        raise UserError(f"{name}: layer_norm_eps is {config.layer_norm_eps}, ours has {NORM_EPS} only")
    if config.add_adapter:
        raise UserError(f"{name}: it has an adapter (add_adapter), which ours does not know")
    wav2vec = config.model_type == "wav2vec2"
    pre_norm = wav2vec and config.do_stable_layer_norm
    depth = 1 if wav2vec else config.num_conv_pos_embeddings
    encoder = AudioEncoder(
        dim=config.hidden_size,
        conv_layers=list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)),
        conv_norm="group" if wav2vec and config.feat_extract_norm == "group" else "layer",
        conv_bias=config.conv_bias,
        position_depth=depth,
        position_width=config.num_conv_pos_embeddings if wav2vec else depth * config.conv_pos_kernel_size,
        position_groups=config.num_conv_pos_embedding_groups,
        padding="released_1",
    )
    transformer = Transformer(
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
        norm="pre" if pre_norm else "post",
        norm_eps=config.layer_norm_eps,
        final_norm=pre_norm,
        input_norm=not pre_norm,
        qkv_bias="qkv",
        layer_scale=None,
        dropout=float(config.hidden_dropout),
        attention_dropout=float(config.attention_dropout),
        activation_dropout=float(config.activation_dropout),
        input_dropout=float(config.hidden_dropout),
        layer_drop=float(config.layerdrop),
        init="normal",
    )
    return Backbone(encoder, transformer)


def config(backbone: Backbone) -> Any:
    """The `Data2VecAudioConfig` of a backbone, or the `Wav2Vec2Config` where its positions are a single convolution."""
    from transformers import Data2VecAudioConfig, Wav2Vec2Config

    encoder, options = backbone.encoder.config["init_args"], backbone.transformer.config["init_args"]
    wav2vec, pre_norm = encoder["position_depth"] == 1, options["norm"] == "pre"
    needed = {"qkv_bias": "qkv", "layer_scale": None, "position_bias": None, "drop_path": 0.0}
    needed |= {"final_norm": pre_norm, "input_norm": not pre_norm, "norm_eps": NORM_EPS}
    for option, value in needed.items():
        if options[option] != value:
            raise UserError(f"transformers has no such network: {option} is {options[option]!r}, not {value!r}")
    if not wav2vec and (pre_norm or encoder["conv_norm"] != "layer"):
        raise UserError(
            "transformers has no such network: with several convolutions for positions it knows layer-normed features and "
            "post-norm blocks only"
        )
    channels, kernels, strides = zip(*encoder["conv_layers"], strict=True)
    assert isinstance(backbone.encoder, AudioEncoder)
    sizes = {
        "hidden_size": backbone.dim,
        "num_hidden_layers": backbone.transformer.depth,
        "num_attention_heads": options["num_heads"],
        "intermediate_size": backbone.get_parameter("transformer.blocks.0.mlp.fc1.weight").shape[0],
        "hidden_dropout": options["dropout"],
        "attention_dropout": options["attention_dropout"],
        "activation_dropout": options["activation_dropout"],
        "layerdrop": options["layer_drop"],
        "layer_norm_eps": options["norm_eps"],
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "conv_bias": encoder["conv_bias"],
        "num_conv_pos_embedding_groups": encoder["position_groups"],
    }
    if wav2vec:
        return Wav2Vec2Config(
            architectures=["Wav2Vec2Model"],
            feat_extract_norm=encoder["conv_norm"],
            do_stable_layer_norm=pre_norm,
            num_conv_pos_embeddings=encoder["position_width"],
            mask_time_prob=0.0,
            **sizes,
        )
    kernel = max(3, encoder["position_width"] // encoder["position_depth"])
    return Data2VecAudioConfig(
        architectures=["Data2VecAudioModel"],
        num_conv_pos_embeddings=encoder["position_depth"],
        conv_pos_kernel_size=kernel,
        mask_time_prob=0.0,
        **sizes,
    )
