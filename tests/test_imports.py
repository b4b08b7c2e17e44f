"""Imports only point down, everywhere in a file and for type checking too; and what a training run does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Bottom to top: a room or file of the top level imports from lower rows, and a room from itself.
FLOORS = [
    ["flavour"],
    ["support"],
    ["configurable", "letters", "types"],
    ["recipes", "metrics", "nn"],
    ["method", "optim"],
    ["callbacks"],
    ["checkpoints"],
    ["pretrain", "finetune"],
    ["datamodules.shared"],
    ["datamodules.image", "datamodules.speech", "datamodules.text", "datamodules.multimodal"],
    ["commands"],
]
FLOOR = {name: number for number, row in enumerate(FLOORS) for name in row}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("d2v_lightning", "datamodules")
    for path in sorted((ROOT / package).rglob("*.py"))
}
# Rooms each of whose files has its tests at the same place under `tests`.
TESTED = {
    "checkpoints",
    "commands",
    *("configurable", "flavour", "letters", "metrics", "recipes", "types"),
    *("support", "nn", "method", "optim", "callbacks", "pretrain"),
    "finetune",
    "datamodules.shared",
    "datamodules.image",
    "datamodules.speech",
    "datamodules.text",
    "datamodules.multimodal",
}
WITHOUT_TESTS = {  # and why
    "d2v_lightning.commands.cli_help": "texts, whose options test_parser tries",
    "d2v_lightning.finetune.glue_tasks": "a table, which test_glue of model and of data read",
    "d2v_lightning.letters": "names and a list",
    "d2v_lightning.support.version": "a number",
}
FACES = ("d2v_lightning", "datamodules")  # their `__init__`: the public names, from every room


def imports(name: str) -> Iterator[str]:
    """Files of ours that a file imports, at any depth and for any reason."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: say where it is from, not how far away"
            yield from (_file(f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (_file(alias.name) for alias in node.names)


def _file(name: str) -> str:
    while name and name not in FILES:
        name = name.rpartition(".")[0]
    return name


def _room(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "datamodules" else parts[1]


@pytest.mark.parametrize("name", [name for name in FILES if name not in FACES])
def test_imports_point_down(name: str) -> None:
    for imported in filter(None, imports(name)):
        above = _room(name) == "commands"
        assert imported not in FACES or above, f"{name} imports the face of {imported}: name the file"
        if imported in FACES or _room(imported) == _room(name):
            continue
        assert FLOOR[_room(imported)] < FLOOR[_room(name)], f"{name} may not import {imported}"


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join([*way[way.index(name) :], name])}"
        if name not in done:
            for imported in sorted(set(filter(None, imports(name))) - {name}):
                follow(imported, (*way, name))
            done.add(name)

    for name in FILES:
        follow(name, ())


def test_a_folder_shows_the_architecture() -> None:
    shown = {name for name in FILES if name.count(".") == 1}
    assert len(shown) <= 20, sorted(shown)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_long_file_says_why(name: str) -> None:
    lines = FILES[name].read_text().splitlines()
    assert len(lines) <= 350 or "Long because" in lines[0], f"{name} has {len(lines)} lines"


@pytest.mark.parametrize("name", [n for n, path in FILES.items() if path.stem != "__init__" and _room(n) in TESTED])
def test_a_file_has_its_tests(name: str) -> None:
    *folders, file = name.removeprefix("d2v_lightning.").split(".")
    tests = ROOT.joinpath("tests", *folders, f"test_{file}.py")
    assert tests.exists() != (name in WITHOUT_TESTS), f"{name}: {tests.relative_to(ROOT)}, or a word why there are none"
    assert not tests.exists() or ast.get_docstring(ast.parse(tests.read_text())), (
        f"{tests} does not say what it holds to"
    )


def test_a_training_run_loads_no_logger_and_no_hub_library() -> None:
    def loaded_by(imports: str) -> set[str]:
        code = f"import sys, {imports}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
        command = [sys.executable, "-c", code]
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())

    # torchmetrics, which Lightning imports, loads transformers, and some of its releases load the others in turn.
    without_us, loaded = loaded_by("pytorch_lightning"), loaded_by("d2v_lightning, datamodules")
    assert {"torch", "pytorch_lightning"} <= loaded
    assert not {"wandb", "datasets", "sklearn", "timm", "lightning"} & (loaded - without_us)
