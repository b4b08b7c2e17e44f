"""Imports only point down: what each file may import, and what a training run does not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bottom to top: a file imports from lower rows, and from its own row only within the same folder.
LAYERS = [
    ["errors"],
    ["atomic", "ending"],
    ["commands", "lines", "locks", "yaml_files"],
    [
        "letters",
        "version",
        "types",
        "configurable",
        "schedules",
        "weighting",
        "tensor_files",
        "tokenizer",
        "convolution",
        "fixed",
    ],
    ["stored_form"],
    ["stored_optimizer"],
    ["training_state"],
    ["figures", "recipes", "masking", "position", "losses", "optim", "decoder", "decoding", "probing"],
    ["encoders", "transformer", "saving", "windows"],
    ["targets", "backbone"],
    ["teacher", "student", "callbacks", "extraction"],
    ["objective"],
    ["checkpoints"],
    ["pretrained"],
    ["pretraining", "finetune"],
    ["module", "multimodal"],
    ["atomic_io", "resuming", "cli_errors", "cli_help"],
    ["command_line", "tune_decoding", "convert", "features"],
]
COMMANDS = {"features"}  # read files, so they need both packages
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
DATA_MAY_IMPORT = {
    "atomic",
    "commands",
    "callbacks",
    "errors",
    "letters",
    "lines",
    "types",
    "masking",
    "configurable",
    "recipes",
    "encoders",
    "tokenizer",
}  # encoders: their length functions
FILES = [path for folder in ("d2v_lightning", "datamodules") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, at any depth of the file but not for type checking only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "d2v_lightning":
            yield from (f"d2v_lightning.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    package, own = path.relative_to(ROOT).parts[0], path.relative_to(ROOT).with_suffix("").parts
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] != "lightning", "import pytorch_lightning, never lightning"
        if parts[0] == "datamodules":
            assert package == "datamodules" or own[-1] in COMMANDS, f"{path.name}: the package never needs its data"
        if parts[0] != "d2v_lightning" or (len(own) == 2 and own[1] == "__init__") or own[-1] == "__main__":
            continue
        if package == "datamodules":
            assert parts[1] in DATA_MAY_IMPORT, f"{path.name} imports {module}"
        elif parts[1] != own[1]:
            assert RANK[parts[1]] < RANK[own[1]], f"{own[1]} may not import {module}"


def test_a_training_run_loads_no_logger_and_no_hub_library() -> None:
    def loaded_by(imports: str) -> set[str]:
        code = f"import sys, {imports}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
        command = [sys.executable, "-c", code]
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())

    # torchmetrics, which Lightning imports, loads transformers, and some of its releases load the others in turn.
    without_us, loaded = loaded_by("pytorch_lightning"), loaded_by("d2v_lightning, datamodules")
    assert {"torch", "pytorch_lightning"} <= loaded
    assert not {"wandb", "datasets", "sklearn", "timm", "lightning"} & (loaded - without_us)
