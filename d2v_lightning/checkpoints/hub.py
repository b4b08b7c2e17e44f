"""Directories by name: local ones, and those on Hugging Face's model hub."""

from __future__ import annotations

import re
from pathlib import Path

from d2v_lightning.checkpoints.directory import BESIDE, CONFIG, OLDER, WEIGHTS, refuse_links
from d2v_lightning.support.errors import NotFoundError


def directory_of(path_or_name: str | Path) -> Path:
    """Where the files lie, fetched from the hub where a name and not a directory is given.

    Raises:
        FileNotFoundError: neither a directory nor a name.
        ValueError: a file in the directory is a link out of it.
    """
    if Path(path_or_name).is_dir():
        refuse_links(Path(path_or_name))
        return Path(path_or_name)
    if Path(path_or_name).suffix in (".ckpt", ".pt", ".pth"):
        raise NotFoundError(f"no checkpoint at {path_or_name}: give the path of a file that exists")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(path_or_name)):
        raise NotFoundError(
            f"no checkpoint at {path_or_name}: give the path of a file or directory that exists, or a name on the hub"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    small = [CONFIG, *BESIDE, "README.md"]  # the card names the licence
    shards = [f"{WEIGHTS}.index.json", "model-*-of-*.safetensors"]
    older = [OLDER, f"{OLDER}.index.json", "pytorch_model-*-of-*.bin"]
    try:
        directory = Path(snapshot_download(str(path_or_name), allow_patterns=[*small, WEIGHTS, *shards]))
        if not any((directory / name).is_file() for name in (WEIGHTS, shards[0])):
            directory = Path(snapshot_download(str(path_or_name), allow_patterns=[*small, *older]))
    except (OSError, HfHubHTTPError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotFoundError(f"nothing at {path_or_name}, and the model hub gives no such thing: {reason}") from error
    return directory
