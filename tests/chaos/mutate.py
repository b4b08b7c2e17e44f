"""Breaks good files by mutation, gives them to the project, and sorts what happens.

    python -m tests.chaos.mutate --runs 1000 [--seed 0] [--kinds pictures,sound,text,manifests,yaml,ours,directories,official]

Outcomes: fine; named (left out and named); line (refused in one line that names the file); vague (the line does not name
it); lines (several); traceback; hang; crash (a signal); memory (2 GB more than at rest); silent (wrong, and nothing said);
left (refused, but something half written stays). From "vague" on each case is printed and kept. Status 1 from "traceback" on.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from PIL import Image

from tests.chaos.child import Child, run, warm
from tests.chaos.world import ROOT, make_data, tasks

HANG, MEMORY = 30.0, 2 << 30
BAD = ("traceback", "hang", "crash", "memory", "silent", "left")
NAMING = ("unreadable", "skipped", "left out", "truncated", "could not be read", "not looked at")
FOREIGN = {"class_path": "os.system", "init_args": {"command": "touch owned"}}
JUNK: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**6, 10**12, 2**63, 0.0, -0.5, 1e30, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "\0", "\u00e9" * 300, [], [None], [[]], {}, {"a": 1}, ["a", 1, None]),
    *(FOREIGN, {"class_path": "d2v_lightning.Transformer", "init_args": {}}),
)
WORDS_OF_MACHINES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\1\0\0\0", b"\0\0\0\1")
ODD = "tab anchor twice tag bytes indent merge bom list colon null bomb latin utf16 zero"
BYTES = "truncate truncate short flip flip header header word word zero insert duplicate garbage random text swap empty tail"
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "nan": lambda old: old.float() * float("nan"),
    "inf": lambda old: old.float() + float("inf"),
    "half": lambda old: old.half(),
    "int": lambda old: old.long(),
    "bool": lambda old: old.bool(),
    "complex": lambda old: old.to(torch.complex64),
    "flat": lambda old: old.reshape(-1),
    "empty": lambda old: old[:0] if old.ndim else old,
    "big": lambda old: torch.zeros(1).expand(*[max(1, size) * 1000 for size in old.shape]) if old.ndim else old,
    "sparse": lambda old: old.to_sparse() if old.ndim else old,
    "strided": lambda old: torch.as_strided(old, old.shape, [0] * old.ndim),
    "meta": lambda old: old.to("meta"),
    "scalar": lambda old: torch.tensor(1.0),
}


# ---- mutations -------------------------------------------------------------------------------------------------------


def mutated(draw: random.Random, data: bytes) -> tuple[str, bytes]:
    """Other bytes, and what was done to them."""
    size = max(1, len(data))
    place, how = draw.randrange(size), draw.choice(BYTES.split())
    made = bytearray(data)
    if how == "truncate":
        made = made[:place]
    elif how == "short":
        made = made[: draw.randrange(min(64, size))]
    elif how in ("flip", "header") and data:
        for _ in range(draw.randint(1, 20 if how == "flip" else 4)):
            made[draw.randrange(size if how == "flip" else min(96, size))] ^= 1 << draw.randrange(8)
    elif how == "word":
        place = draw.randrange(min(128, size))
        made[place : place + 4] = draw.choice(WORDS_OF_MACHINES)
    elif how == "zero":
        length = min(draw.randint(1, 400), size - place)
        made[place : place + length] = bytes(length)
    elif how == "insert":
        made[place:place] = draw.randbytes(draw.randint(1, 200))
    elif how == "duplicate":
        made[place:place] = made[place : place + draw.randint(1, 500)]
    elif how == "garbage":
        made += draw.randbytes(draw.randint(1, 3000))
    elif how == "random":
        made = bytearray(draw.randbytes(draw.randint(1, 2000)))
    elif how == "text":
        made = bytearray(b"<html><body>404 Not Found</body></html>\n" * draw.randint(1, 20))
    elif how == "swap":
        made = made[size // 2 :] + made[: size // 2]
    elif how == "empty":
        made = bytearray()
    elif how == "tail":
        made = made[place:]
    return how, bytes(made)


def changed(draw: random.Random, tree: Any, times: int = 1) -> tuple[str, Any]:
    """A copy of nested data with a node replaced, removed or renamed, and what was done."""
    tree, said = copy.deepcopy(tree), []
    for _ in range(times):
        path = draw.choice(list(_paths(tree)))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, tuple):
            continue
        old, how = parent[path[-1]], draw.choice(("replace", "replace", "replace", "remove", "rename", "wrap"))
        if isinstance(old, torch.Tensor) and draw.random() < 0.8:
            how = draw.choice(list(TENSORS))
            parent[path[-1]] = TENSORS[how](old)
        elif how == "remove":
            del parent[path[-1]]
        elif how == "rename" and isinstance(parent, dict):
            parent[f"{path[-1]}x"] = parent.pop(path[-1])
        elif how == "wrap":
            parent[path[-1]] = [old]
        else:
            parent[path[-1]] = draw.choice(JUNK)
            how = f"= {str(parent[path[-1]])[:50]!r}"
        said.append(f"{'.'.join(map(str, path))} {how}")
    return "; ".join(said), tree


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: Sequence[Any] = ()
    if isinstance(tree, dict):
        keys = list(tree)
    elif isinstance(tree, (list, tuple)) and len(tree) < 40:
        keys = range(len(tree))
    for key in keys:
        yield (*path, key)
        yield from _paths(tree[key], (*path, key))


def _text_of(tree: Any) -> bytes:
    return json.dumps(tree, default=str).encode()


# ---- the Python interface, in a child --------------------------------------------------------------------------------


def speaking(function: Callable[..., None]) -> Callable[..., int]:
    """Say a refusal in one line, as commands do; anything else is a traceback."""
    from d2v_lightning.support.errors import UserError

    def wrapped(*args: Any) -> int:
        warnings.simplefilter("default")
        try:
            function(*args)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return wrapped


def _read(data: Any, predicts: bool = False) -> None:
    """Read every batch of an epoch."""
    data.setup("predict" if predicts else "fit")
    makers = [data.predict_dataloader] if predicts else [data.train_dataloader, data.val_dataloader]
    for maker in makers:
        made = maker()
        for loader in made if isinstance(made, list) else [made]:
            for batch in loader:
                inputs = batch["inputs"]
                if inputs.is_floating_point() and not torch.isfinite(inputs).all():
                    print("SILENT: a batch has values that are not finite")


@speaking
def pictures(root: str, task: Any, workers: int) -> None:
    from datamodules import ImageDataModule

    size = {"image_size": 16, "patch_size": 4, "num_channels": 3, "min_block": 2}
    _read(ImageDataModule(root, task=task, batch_size=8, num_workers=workers, rand_augment=None, **size))


@speaking
def sound(root: str, split: str, task: Any, workers: int) -> None:
    from datamodules import SpeechDataModule

    val = "dev" if split == "train" else None
    limits = {"batch_samples": 120_000, "min_seconds": 0.3, "max_seconds": 3.0, "num_workers": workers}
    _read(SpeechDataModule(root, split, val_split=val, task=task, **limits))
    _read(SpeechDataModule(root, test_split=split, task=task, num_workers=0), predicts=True)


@speaking
def text(files: Any, bpe: str, cache: str, documents: Any) -> None:
    from datamodules import TextDataModule

    blocks = {"block_size": 32, "batch_size": 2, "num_workers": 0, "packing": "blocks"}
    _read(TextDataModule(files=files, tokenizer=bpe, cache_dir=cache, documents=documents, **blocks))


@speaking
def weights(path: str, reference: str | None) -> None:
    """Every door to a checkpoint; where it opens, its weights must be the reference's."""
    from d2v_lightning import Data2Vec, load_backbone
    from d2v_lightning.checkpoints.pretrained import read_pretrained

    found = read_pretrained(path)
    if reference is not None:
        good = torch.load(reference, weights_only=True)["state_dict"]
        for name, tensor in found.state.items():
            if name not in good or not torch.equal(tensor, good[name]):
                print(f"SILENT: weight {name} is another")
                break
    load_backbone(path)
    if path.endswith(".ckpt"):
        Data2Vec.load_from_checkpoint(path)


# ---- judging ---------------------------------------------------------------------------------------------------------


class Campaign:
    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.draw = work, random.Random(seed)
        self.data = make_data(work / "data")
        self.tasks = tasks(work / "tasks", self.data)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.by_kind: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.number = 0
        self.at_rest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def folder(self, kind: str) -> Path:
        self.number += 1
        folder = self.work / f"{self.number:04d}_{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def made(
        self, name: str, arguments: list[Any], command: str = "cli", flag: str = "--trainer.default_root_dir"
    ) -> Path:
        """The output of a command, made once."""
        out = self.work / name
        if not out.exists():
            done = run(command, [*arguments, flag, out], self.work, self.work / f"{name}.log")
            assert done.code == 0, done.text[-1500:]
        return out

    def judge(
        self,
        kind: str,
        said: str,
        folder: Path,
        names: Sequence[str],
        call: Any,
        arguments: list[Any],
        output: Path | None = None,
        lines: int = 1,
    ) -> None:
        """Run one case; `names` are those that a message may name, `lines` how many it may have."""
        log = self.work / f"{folder.name}.log"
        log.unlink(missing_ok=True)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        child = Child(call, arguments, self.work, log, before=limit).finish(HANG)
        outcome = self._outcome(child, names, output, lines)
        self.outcomes[outcome] += 1
        self.by_kind[kind][outcome] += 1
        if outcome in ("fine", "named", "line"):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            last = child.text.strip().replace("\n", " | ")[-260:]
            print(f"{outcome:9} {kind:11} {said[:110]} :: {last} [{folder.name}] {child.memory >> 20} MB", flush=True)

    def _outcome(self, child: Child, names: Sequence[str], output: Path | None, lines: int) -> str:
        said = child.text
        errors = said[said.find("error:") :] if said.startswith("error:") else said[said.find("\nerror:") + 1 :]
        refused = errors.startswith("error:")
        named = any(name in said or repr(name)[1:-1] in said for name in names if name)
        if child.code is None:
            return "hang"
        if child.code < 0 and child.code != -signal.SIGPIPE:
            return "crash"
        if child.memory - self.at_rest > MEMORY:
            return "memory"
        if child.traceback or (child.code and "Error" in said and not refused):
            return "traceback"
        if "SILENT" in said or (self.work / "owned").exists():
            return "silent"
        if child.code == 0:
            return "named" if named and any(word in said for word in NAMING) else "fine"
        if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
            return "left"
        if not refused or (names and not named):
            return "vague"
        return "line" if len([line for line in errors.splitlines() if line.strip()]) <= lines else "lines"


# ---- kinds -----------------------------------------------------------------------------------------------------------


def _a_few(source: Path, folder: Path) -> None:
    """A copy with every third recording or picture."""
    kinds = (".png", ".jpg", ".webp", ".flac", ".wav", ".ogg")
    shutil.copytree(
        source, folder, ignore=lambda _, names: [n for i, n in enumerate(sorted(names)) if n.endswith(kinds) and i % 3]
    )


def picture_case(c: Campaign) -> None:
    formats = c.work / "formats"
    if not formats.exists():
        formats.mkdir()
        pixels = np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        for suffix in ("bmp", "gif", "jp2", "tif", "ppm", "webp", "jpg", "png"):
            Image.fromarray(pixels).save(formats / f"x.{suffix}")
    folder = c.folder("pictures")
    _a_few(c.data / "pictures", folder)
    names, said = [], []
    for _ in range(c.draw.choice((1, 1, 3))):
        source = c.draw.choice([*sorted((c.data / "pictures").rglob("*.*")), *sorted(formats.iterdir())])
        how, content = mutated(c.draw, source.read_bytes())
        suffix = c.draw.choice((source.suffix, source.suffix, ".png", ".jpg"))
        target = folder / c.draw.choice(("train/cat", "val/dog")) / f"broken{c.draw.randrange(10**6)}{suffix}"
        target.write_bytes(content)
        names.append(target.name)
        said.append(f"{how} {source.suffix}->{suffix}")
    arguments = [str(folder), c.draw.choice(("pretrain", "classify")), c.draw.choice((0, 0, 0, 2))]
    c.judge("pictures", ", ".join(said), folder, names, pictures, arguments)


def sound_case(c: Campaign) -> None:
    formats = c.work / "sounds"
    if not formats.exists():
        formats.mkdir()
        wave = 0.1 * np.random.default_rng(0).standard_normal(24000)
        for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "w64"):
            soundfile.write(formats / f"x.{suffix}", wave, 16000)
    folder = c.folder("sound")
    _a_few(c.data / "spoken", folder)
    names, said = [], []
    with open(folder / "train/t.trans.txt", "a") as transcripts:
        for _ in range(c.draw.choice((1, 1, 3))):
            source = c.draw.choice(sorted(formats.iterdir()))
            how, content = mutated(c.draw, source.read_bytes())
            suffix, stem = (
                c.draw.choice((source.suffix, source.suffix, ".wav", ".flac")),
                f"broken{c.draw.randrange(10**6)}",
            )
            (folder / "train" / f"{stem}{suffix}").write_bytes(content)
            names.append(stem)
            said.append(f"{how} {source.suffix}->{suffix}")
            transcripts.write(f"{stem} THE FOX\n")
    arguments = [str(folder), "train", c.draw.choice(("pretrain", "ctc")), c.draw.choice((0, 0, 0, 2))]
    c.judge("sound", ", ".join(said), folder, names, sound, arguments)


def text_case(c: Campaign) -> None:
    folder = c.folder("text")
    shutil.copytree(c.data / "text", folder)
    kind = c.draw.choice(("txt", "txt", "jsonl", "tokenizer"))
    files: Any = str(folder / "train.txt")
    if kind == "tokenizer":
        target = c.draw.choice(sorted((folder / "bpe").glob("*.json")))
        if c.draw.random() < 0.5:
            how, content = mutated(c.draw, target.read_bytes())
        else:
            how, tree = changed(c.draw, json.loads(target.read_text()))
            content = _text_of(tree)
        names = [target.name, str(folder / "bpe")]
    else:
        lines = (folder / "train.txt").read_text().splitlines()
        good = lines if kind == "txt" else [json.dumps({"text": line}) for line in lines]
        how, content = mutated(c.draw, "\n".join(good).encode())
        target = folder / f"broken.{kind}"
        files, names = [files, str(target)], [target.name]
    target.write_bytes(content)
    arguments = [files, str(folder / "bpe"), str(folder / "cache"), c.draw.choice(("lines", "blank_lines"))]
    c.judge("text", f"{kind} {how}", folder, names, text, arguments)


def manifest_case(c: Campaign) -> None:
    folder = c.folder("manifests")
    shutil.copytree(c.data / "spoken", folder)
    kind = c.draw.choice(("tsv", "jsonl", "ltr", "trans"))
    recordings = sorted(path for path in (folder / "train").iterdir() if path.suffix != ".txt")
    said = dict(line.split(" ", 1) for line in (folder / "train/t.trans.txt").read_text().splitlines())
    letters = [" ".join(said[path.stem].replace(" ", "|")) + " |\n" for path in recordings]
    (folder / "list.tsv").write_text(f"{folder / 'train'}\n" + "".join(f"{path.name}\t10000\n" for path in recordings))
    (folder / "list.ltr").write_text("".join(letters))
    rows = [{"audio": f"train/{path.name}", "text": said[path.stem], "duration": 1.0} for path in recordings]
    split, target = "list", folder / f"list.{kind}"
    if kind == "trans":
        split, target = "train", folder / "train/t.trans.txt"
    elif kind == "jsonl":
        (folder / "list.tsv").unlink()
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == "jsonl" and c.draw.random() < 0.5:
        how, rows = changed(c.draw, rows, times=2)
        content = b"\n".join(_text_of(row) for row in rows)
    else:
        how, content = mutated(c.draw, target.read_bytes())
    target.write_bytes(content)
    names = [target.name, "list.tsv", *(path.stem for path in recordings)]
    c.judge("manifests", f"{kind} {how}", folder, names, sound, [str(folder), split, "ctc", 0])


def yaml_case(c: Campaign) -> None:
    folder = c.folder("yaml")
    folder.mkdir()
    name = c.draw.choice(list(c.tasks))
    source = Path(c.tasks[name][2]).read_text()
    if c.draw.random() < 0.35:
        how, content = _odd_yaml(c.draw, source)
    else:
        how, tree = changed(c.draw, yaml.safe_load(source), times=c.draw.choice((1, 1, 2)))
        content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
    config = folder / "settings.yaml"
    config.write_bytes(content)
    more = f"--trainer.default_root_dir {folder / 'out'} --trainer.max_steps 1 --trainer.limit_val_batches 1"
    c.judge("yaml", f"{name}: {how}", folder, [], "cli", ["fit", "--config", str(config), *more.split()], lines=6)


def _odd_yaml(draw: random.Random, source: str) -> tuple[str, bytes]:
    lines = source.splitlines()
    place = draw.randrange(1, len(lines))
    how = draw.choice(ODD.split())
    if how == "anchor":
        lines.insert(0, "x: &a [*a]")
    elif how == "twice":
        lines.insert(place, lines[place - 1])
    elif how == "tag":
        lines.append("seed_everything: !!python/object/apply:os.system ['touch owned']")
    elif how in ("tab", "indent"):
        lines[place] = ("\t" if how == "tab" else " ") + lines[place]
    elif how == "merge":
        lines.insert(place, "<<: *nothing")
    elif how == "list":
        lines[0] = "- " + lines[0]
    elif how == "colon":
        lines[place] = lines[place].replace(":", "", 1)
    elif how == "null":
        lines[place] = lines[place].partition(":")[0] + ":"
    elif how == "bomb":
        aliases = [f"{chr(98 + i)}: &{chr(98 + i)} [" + ",".join([f"*{chr(97 + i)}"] * 9) + "]" for i in range(8)]
        lines = ["a: &a [x,x,x,x,x,x,x,x,x]", *aliases, *lines]
    content = "\n".join(lines).encode("utf-16" if how == "utf16" else "utf-8")
    if how == "bytes":
        _, content = mutated(draw, content)
    return how, {"bom": b"\xef\xbb\xbf", "latin": b"# caf\xe9\n", "zero": b"# \0\n"}.get(how, b"") + content


def own_checkpoint_case(c: Campaign) -> None:
    reference = c.made("reference", c.tasks["image"]) / "checkpoints/last.ckpt"
    folder = c.folder("ours")
    path, picture = folder / "checkpoints/last.ckpt", c.work / "eight.png"
    path.parent.mkdir(parents=True)
    bits = c.draw.random() < 0.35
    if bits:
        how, content = mutated(c.draw, reference.read_bytes())
        path.write_bytes(content)
    else:
        good = torch.load(reference, map_location="cpu", weights_only=True)
        part = c.draw.choice([*good, "any", "any", "state_dict", "hyper_parameters"])
        how, tree = changed(c.draw, good if part == "any" else {part: good[part]})
        torch.save(tree if part == "any" else {**{key: good[key] for key in good if key != part}, **tree}, path)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(picture)
    door = c.draw.choice(["python", "python", "inspect", "import", "export", "features", "fit", "predict", "warm"])
    out, names = folder / "out", [path.name]
    fit = [*c.tasks["image"], "--data.num_workers", "0", "--trainer.max_steps"]
    call, arguments, output = {
        "python": (weights, [str(path), str(reference) if bits else None], None),
        "inspect": ("checkpoints", ["inspect", path], None),
        "import": ("checkpoints", ["import", path, "--out", out], out),
        "export": ("checkpoints", ["export", path, "--out", out], out),
        "features": ("features", [picture, "--checkpoint", path, "--out", folder / "f.npy"], folder / "f.npy"),
        "fit": ("cli", [*fit, 26, "--ckpt_path", "last", "--trainer.default_root_dir", folder], None),
        "predict": (
            "cli",
            f"predict --ckpt_path {path} --data.num_workers 0 --trainer.default_root_dir {out} --trainer.accelerator cpu "
            "--trainer.limit_predict_batches 1".split(),
            out / "features.npy",
        ),
        "warm": ("cli", [*fit, 1, "--model.checkpoint", path, "--trainer.default_root_dir", out], None),
    }[door]
    c.judge("ours", f"{door}: {how}", folder, names, call, arguments, output)


def directory_case(c: Campaign) -> None:
    checkpoints = {
        name: c.made(f"reference_{name}", [*c.tasks[name], "--trainer.max_steps", 2]) / "checkpoints/last.ckpt"
        for name in ("image", "text", "ctc")
    }
    made = [
        c.made(f"{how}_{name}", [how, path], "checkpoints", "--out")
        for how, name, path in (
            ("import", "image", checkpoints["image"]),
            *(("export", name, path) for name, path in checkpoints.items()),
        )
    ]
    folder, source = c.folder("directories"), c.draw.choice(made)
    shutil.copytree(source, folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt"))
    target = c.draw.choice([*files, folder / "config.json", folder / "config.json"])
    raw = target.read_bytes()
    if target.suffix == ".json" and c.draw.random() < 0.6:
        how, tree = changed(c.draw, json.loads(raw))
        content = _text_of(tree)
    elif target.suffix == ".safetensors" and c.draw.random() < 0.5:
        length = int.from_bytes(raw[:8], "little")
        how, tree = changed(c.draw, json.loads(raw[8 : 8 + length]))
        head = _text_of(tree)
        content = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    else:
        how, content = mutated(c.draw, raw)
    target.write_bytes(content)
    _through_a_door(c, "directories", f"{source.name}/{target.name}: {how}", folder, folder, [target.name, str(folder)])


def official_case(c: Campaign) -> None:
    sys.path.append(str(ROOT / "tests"))
    from golden_case import GOLDEN, GoldenCase

    written = c.work / "official"
    if not written.exists():
        written.mkdir()
        for path in sorted(GOLDEN.glob("*.safetensors")):
            GoldenCase(path.stem).write_official_file(written)
    folder, source = c.folder("official"), c.draw.choice(sorted(written.iterdir()))
    folder.mkdir()
    path = folder / "model.pt"
    if c.draw.random() < 0.7:
        how, tree = changed(c.draw, torch.load(source, map_location="cpu", weights_only=False))
        torch.save(tree, path)
    else:
        how, content = mutated(c.draw, source.read_bytes())
        path.write_bytes(content)
    _through_a_door(c, "official", f"{source.name}: {how}", folder, path, [str(path)])


def _through_a_door(c: Campaign, kind: str, said: str, folder: Path, path: Path, names: list[str]) -> None:
    door, out = c.draw.choice(("python", "inspect", "import", "export")), c.work / f"{folder.name}_out"
    if door == "python":
        c.judge(kind, said, folder, names, weights, [str(path), None])
    elif door == "inspect":
        c.judge(kind, f"inspect {said}", folder, names, "checkpoints", [door, path])
    else:
        c.judge(kind, f"{door} {said}", folder, names, "checkpoints", [door, path, "--out", out], out)
        shutil.rmtree(out, ignore_errors=True)


KINDS: dict[str, tuple[Callable[[Campaign], None], float]] = {
    "pictures": (picture_case, 0.12),
    "sound": (sound_case, 0.18),
    "text": (text_case, 0.12),
    "manifests": (manifest_case, 0.12),
    "yaml": (yaml_case, 0.1),
    "ours": (own_checkpoint_case, 0.16),
    "directories": (directory_case, 0.1),
    "official": (official_case, 0.1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--keep", help="folder to work in, which is kept")
    args = parser.parse_args()
    began = time.monotonic()
    warm()
    work = Path(args.keep or tempfile.mkdtemp(prefix="chaos"))
    campaign, kinds = Campaign(work, args.seed), args.kinds.split(",")
    whole = sum(KINDS[kind][1] for kind in kinds)
    for kind in kinds:
        case, share = KINDS[kind]
        for _ in range(round(args.runs * share / whole)):
            case(campaign)
        print(f"== {kind}: {dict(campaign.by_kind[kind])} after {time.monotonic() - began:.0f} s", flush=True)
    bad = sum(campaign.outcomes[name] for name in BAD)
    print(f"{sum(campaign.outcomes.values())} broken inputs: {dict(campaign.outcomes)}; {bad} not handled")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
