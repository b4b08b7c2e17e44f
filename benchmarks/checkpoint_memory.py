"""What import and export cost at full size: seconds and memory for a file of every kind, with random weights.

    python benchmarks/checkpoint_memory.py
    python benchmarks/checkpoint_memory.py image_base text_v2_base --folder /tmp/files

For each recipe it writes the file that Meta's trainer would have written (options of the golden cases at the recipe's size),
imports it, exports the teacher, and imports what was exported, each in a process of its own. Memory is the most that the
process held over what it held once everything was imported, pages of mapped files included, by the size of the file read.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from d2v_lightning import Data2Vec
from d2v_lightning.checkpoints import official_state_dict

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
CONVS = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"
TRUNK_2 = {"depth": 12, "embed_dim": 768, "num_heads": 12, "average_top_k_layers": 8}
# Per recipe: the golden case whose options its file carries, and those that the size changes.
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "image_base": ("vision_shared_relpos", {}),
    "audio_base": (
        "audio_padded",
        {
            "encoder_embed_dim": 768,
            "encoder_ffn_embed_dim": 3072,
            "encoder_layers": 12,
            "encoder_attention_heads": 12,
            "average_top_k_layers": 8,
            "conv_feature_layers": CONVS,
        },
    ),
    "text_base": (
        "text_padded",
        {
            "max_positions": 512,
            "average_top_k_layers": 10,
            "transformer": {
                "max_source_positions": 512,
                "encoder": {"embed_dim": 768, "ffn_embed_dim": 3072, "layers": 12, "attention_heads": 12},
            },
        },
    ),
    "image_v2_base": (
        "d2v2_image",
        TRUNK_2
        | {
            "depth": 10,
            "modalities": {
                "image": {
                    **{"input_size": 224, "patch_size": 16, "embed_dim": 768, "prenet_depth": 2},
                    "decoder": {"decoder_dim": 768, "decoder_groups": 16, "decoder_layers": 6},
                }
            },
        },
    ),
    "audio_v2_base": (
        "d2v2_audio_alibi_padded",
        TRUNK_2
        | {
            "modalities": {
                "audio": {"feature_encoder_spec": CONVS, "decoder": {"decoder_dim": 384, "decoder_layers": 4}},
            }
        },
    ),
    "text_v2_base": (
        "d2v2_text_padded",
        TRUNK_2 | {"modalities": {"text": {"decoder": {"decoder_dim": 768, "decoder_layers": 5}}}},
    ),
}
RUN = """
import resource, sys, time
from d2v_lightning.commands.checkpoint import main
import transformers.models.auto, safetensors.torch
held = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
start = time.perf_counter()
code = main(sys.argv[1:])
print(code, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held)
"""


def merged(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested options with some of them replaced."""
    result = copy.deepcopy(options)
    for name, value in changes.items():
        result[name] = merged(result[name], value) if isinstance(value, dict) else value
    return result


def write_file(recipe: str, folder: Path) -> Path:
    """The file of a recipe with random weights, in Meta's layout."""
    case, changes = FILES[recipe]
    facts = json.loads((GOLDEN / f"{case}.json").read_text())
    options = merged(facts["official_options_set"], changes)
    state = official_state_dict(Data2Vec.from_recipe(recipe))
    if facts["kind"] == "vision":
        engine = facts["engine_options"]
        given = {
            "target_layers": "[4, 5, 6, 7, 8, 9, 10, 11]",
            "layer_results": engine["layer_results"],
            "l1_beta": 2.0,
        }
        described: dict[str, Any] = {"args": argparse.Namespace(**given)}
    else:
        described = {"cfg": {"model": options, "task": {}}}
    path = folder / f"{recipe}.pt"
    torch.save(state | described, path)
    return path


def measure(*arguments: object) -> tuple[float, float]:
    """Seconds and bytes of a command."""
    done = subprocess.run([sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, check=True)
    code, seconds, held = done.stdout.split("\n")[-2].split()
    if code != "0":
        sys.exit(done.stderr.strip())
    return float(seconds), float(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", choices=[*FILES, []], help="by default all")
    parser.add_argument("--folder", type=Path, help="for the files; by default a temporary one")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    print("| file | MB | import | export | import of the export |\n|---|---|---|---|---|")
    try:
        for recipe in args.recipes or FILES:
            path = write_file(recipe, folder)
            steps = [
                (path, ("import", path, "--out", folder / "ours")),
                (path, ("export", path, "--out", folder / "exported", "--part", "teacher")),
                (folder / "exported" / "model.safetensors", ("import", folder / "exported", "--out", folder / "back")),
            ]
            cells = []
            for read, command in steps:
                seconds, held = measure(*command)
                cells.append(f"{seconds:.1f} s, {held / read.stat().st_size:.2f} x")
            print(f"| {recipe} | {path.stat().st_size / 1e6:.0f} | " + " | ".join(cells) + " |", flush=True)
            for name in ("ours", "exported", "back"):
                shutil.rmtree(folder / name)
            path.unlink()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
