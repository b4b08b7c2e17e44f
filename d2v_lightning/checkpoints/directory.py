"""Directories of ours: `config.json` says what the network is, `model.safetensors` holds it, `README.md` is for people."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v_lightning.checkpoints import stored_tokenizer
from d2v_lightning.checkpoints.card import card
from d2v_lightning.checkpoints.content import Content
from d2v_lightning.checkpoints.options import truth
from d2v_lightning.checkpoints.own import FORMAT_VERSION, refuse_other_format
from d2v_lightning.checkpoints.shareable import decoder_with_files, shareable
from d2v_lightning.checkpoints.tables import Row, State
from d2v_lightning.configurable import refuse_foreign
from d2v_lightning.flavour import rank_zero_info
from d2v_lightning.support.atomic import atomic_write
from d2v_lightning.support.errors import ExistsError, NotFoundError, UserError, naming
from d2v_lightning.support.tensor_files import named_tensors, read_tensors
from d2v_lightning.support.version import __version__

CONFIG, WEIGHTS, OLDER = "config.json", "model.safetensors", "pytorch_model.bin"
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "added_tokens.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
)
_OF_A_MODEL = (".json", ".safetensors", ".bin", ".txt", ".md", ".jinja", ".model")  # endings of the files that are read


def is_own(directory: Path) -> bool:
    """Whether a directory was written by `write_directory`."""
    return "d2v_lightning" in read_config(directory)


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    if not (directory / CONFIG).is_file():
        raise NotFoundError(f"no {CONFIG} in {directory}: it says what the weights beside it are")
    return read_json(directory / CONFIG)


def read_json(path: Path) -> dict[str, Any]:
    """Names and values of a JSON file.

    Raises:
        ValueError: it holds anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested without end") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is a {type(content).__name__}: names and values are expected")
    return content


def refuse_links(directory: Path) -> None:
    """Refuse files of a model that are links out of its directory, but for those of the hub's cache.

    A directory of somebody else could otherwise have any file of its reader copied and uploaded. The cache keeps files in
    `blobs/` and links to them from `snapshots/<revision>/`.

    Raises:
        ValueError: there is such a link.
    """
    inside = [directory.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    for path in directory.iterdir():
        if path.is_symlink() and path.suffix in _OF_A_MODEL:
            target = path.resolve()
            if not any(target.is_relative_to(folder) for folder in inside):
                raise UserError(
                    f"{path} is a link out of the directory, to {target}, and was not followed: copy the file there"
                )


def read_directory(directory: Path) -> Content:
    """A directory of ours.

    Raises:
        FileNotFoundError: one of its files is missing.
        ValueError: it is damaged, of another format, or names a class that is not this project's.
    """
    config = read_config(directory)
    stamp, tree = config["d2v_lightning"], {name: config.get(name) for name in ("class_path", "init_args")}
    version = stamp.get("format_version") if isinstance(stamp, dict) else None
    if type(version) is not int or not isinstance(tree["init_args"], dict):
        raise UserError(f"{directory / CONFIG} is not whole: it lacks format version or the model's arguments")
    refuse_other_format(version, str(directory))
    with naming(directory / CONFIG):
        refuse_foreign(tree)
    state = read_weights(directory)
    rows = [Row(name, tuple(tensor.shape), "matched", name) for name, tensor in state.items()]
    kind = stamp.get("kind") or "directory of d2v_lightning"
    return Content(
        tree,
        state,
        kind,
        stamp.get("licence"),
        rows,
        stamp.get("data"),
        stamp.get("metrics") or {},
        stored_tokenizer.from_directory(directory),
        truth(stamp.get("normalize"), f"normalize of {directory}"),
    )


def read_safetensors(path: Path) -> State:
    """Named tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise NotFoundError(f"no weights at {path}: they belong beside {CONFIG}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}") from error


def read_weights(directory: Path) -> State:
    """Named tensors of a directory, from one file or several, as safetensors or as files of `torch.save`.

    Raises:
        FileNotFoundError: there are none, or one of the files is missing.
        ValueError: a file is damaged; or an index leads out of the directory, or names other weights than there are.
    """
    for name in (WEIGHTS, OLDER):
        if (directory / name).is_file():
            return _read_file(directory / name)
        if (directory / f"{name}.index.json").is_file():
            return _read_shards(directory / f"{name}.index.json")
    raise NotFoundError(
        f"no weights in {directory}: {WEIGHTS} or {OLDER} belongs beside {CONFIG}, or the several files that one of them "
        "with .index.json names"
    )


def _read_file(path: Path) -> State:
    return read_safetensors(path) if path.suffix == ".safetensors" else named_tensors(read_tensors(path), str(path))


def _read_shards(index: Path) -> State:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index} has no weight_map, which says which file each weight is in")
    state: State = {}
    for name in sorted(set(places.values())):
        path = index.with_name(name) if Path(name).name == name else None
        if path is None or path.suffix != index.with_suffix("").with_suffix("").suffix:
            raise UserError(f"{index} names {name!r}, which is no file of weights in its directory")
        if not path.is_file():
            raise NotFoundError(f"no {name} in {index.parent}, which {index.name} names: fetch all of its files")
        shard = _read_file(path)
        absent = [weight for weight, place in places.items() if place == name and weight not in shard]
        if absent or (twice := set(shard) & set(state)):
            said = f"has no weight {absent[0]!r}" if absent else f"has the weight {min(twice)!r} of another file again"
            raise UserError(f"{path} {said}: it does not belong to {index.name}")
        state |= shard
    return state


def write_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Named tensors, each with memory of its own, for `safetensors`.

    Raises:
        OSError: they cannot be written.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    separate: State = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        start = tensor.data_ptr()
        separate[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    with atomic_write(path) as unfinished:
        unfinished.touch()
        mode = stat.S_IMODE(unfinished.stat().st_mode)
        save_file(separate, unfinished, metadata={"format": "pt"})
        unfinished.chmod(mode)  # safetensors 0.8 leaves its file to its owner alone


def write_directory(content: Content, out: str | Path, beside: Path | None = None) -> None:
    """Write a directory of ours, as a whole or not at all. Where files lie on this computer is not written.

    Args:
        content: what it holds.
        out: directory, which must not exist or be empty.
        beside: directory whose tokenizer and feature extractor are copied; a tokenizer that `content` has is written.

    Raises:
        FileExistsError: something is there already.
    """

    def fill(folder: Path) -> None:
        stamp = {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "kind": content.kind,
            "licence": content.licence,
            "data": shareable(content.data),
            "metrics": dict(content.metrics),
            "normalize": content.takes_normalized,
        }
        tree = content.tree
        if decoder_with_files(tree) is not None:
            tree = {**tree, "init_args": {**tree["init_args"], "decoder": None}}
            rank_zero_info(
                f"{out}: the decoder's language model and lexicon are files beside the model, so it is written without its "
                "decoder: give model.decoder where it is used"
            )
        config = {"d2v_lightning": stamp, **tree}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        write_safetensors(content.state, folder / WEIGHTS)
        (folder / "README.md").write_text(card(content, transformers=None), encoding="utf-8")
        fill_beside(content, beside, folder)

    write_whole(out, fill)


def fill_beside(content: Content, source: Path | None, folder: Path) -> None:
    """Tokenizer and feature extractor of another directory, where it has them, or the tokenizer of `content`."""
    if source is not None:
        refuse_links(source)
    for name in BESIDE if source is not None else ():
        assert source is not None
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
    if content.tokenizer is not None and not (folder / "tokenizer.json").exists():
        stored_tokenizer.load(content.tokenizer).save_pretrained(folder)


def write_whole(out: str | Path, fill: Callable[[Path], None]) -> None:
    """Make a directory that is there with everything in it or not at all.

    Raises:
        FileExistsError: something is there already.
    """
    out = Path(out)
    refuse_existing(out)
    with atomic_write(out) as unfinished:
        unfinished.mkdir()
        fill(unfinished)


def refuse_existing(out: str | Path) -> None:
    """Raises `FileExistsError` where something would be written over."""
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise ExistsError(f"{out} exists: remove it, or choose another directory")
