"""Golden cases: numbers from Meta's own code, and files in its own layout made from them (see tests/golden/README.md)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


class GoldenCase:
    """One case: `facts` from its json, tensors by group, and an official-layout file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tensors: dict[str, Tensor] = load_file(GOLDEN / f"{name}.safetensors")
        self.json: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        self.facts = self.json["facts"]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """All tensors below a prefix, the prefix cut off."""
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}

    @property
    def teacher_key(self) -> str:
        """Where the official class keeps its teacher among its weights (`state_dict` of fairseq's models)."""
        return "encoder._ema" if self.json["kind"] == "text" else "_ema"

    def write_official_file(self, folder: Path) -> Path:
        """The file that the official trainer would have written."""
        if self.json["kind"] == "vision":
            return self._write_image_file(folder)
        path = folder / f"{self.name}.pt"
        state: dict[str, Any] = {**self.group("model."), self.teacher_key: self.group("teacher_init.")}
        torch.save({"model": state, "cfg": {"model": self.json["official_options_set"], "task": {}}}, path)
        return path

    def _write_image_file(self, folder: Path) -> Path:
        options, engine = self.json["official_options_set"], self.json["engine_options"]
        args = argparse.Namespace(
            layer_scale_init_value=options["init_values"],
            target_layers=str(engine["target_layers"]),
            layer_results=engine["layer_results"],
            l1_beta=engine["l1_beta"],
            l2_loss=engine["l2_loss"],
            loss_scale=engine["loss_scale"],
            no_target_layer_norm_last=not engine["target_layer_norm_last"],
            target_instance_norm=engine["target_instance_norm"],
            target_batch_norm=engine["target_batch_norm"],
            post_target_instance_norm=engine["post_target_instance_norm"],
            post_target_layer_norm=engine["post_target_layer_norm"],
            ema_decay_init=engine["decay_init"],
            ema_decay=engine["decay"],
            ema_start_at=engine["ema_start_at"],
            drop_path=options["drop_path_rate"],
            attn_drop_rate=options["attn_drop_rate"],
        )
        path = folder / f"{self.name}.pth"
        torch.save({"model": self.group("model."), "model_ema": self.group("teacher_init."), "args": args}, path)
        return path

    def batch(self) -> dict[str, Tensor]:
        """The case's inputs as a batch of ours."""
        tensors, kind = self.tensors, self.json["kind"]
        if kind == "vision":
            return {
                "inputs": tensors["in.samples"],
                "mask": tensors["in.bool_masked_pos"].bool().flatten(1).unsqueeze(1),
            }
        if kind == "multi":
            clean, count = tensors["in.source"], self.json["official_options_set"]["clone_batch"]
            mask = tensors["in.precomputed_mask"].bool()
            batch = {"inputs": clean, "mask": mask.reshape(len(clean), count, -1)}
            if "in.padding_mask" in tensors:
                batch["padding_mask"] = tensors["in.padding_mask"].bool()
        elif kind == "text":
            read, clean = tensors["in.src_tokens"], tensors["in.target_tokens"]
            batch = {"inputs": clean, "mask": (read == 119).unsqueeze(1), "padding_mask": clean == 1}
        else:
            batch = {"inputs": tensors["in.source"], "mask": tensors["in.mask_indices"].bool().unsqueeze(1)}
            if "in.padding_mask" in tensors:
                batch["padding_mask"] = tensors["in.padding_mask"].bool()
        if not batch.get("padding_mask", torch.zeros(1)).any():
            batch.pop("padding_mask", None)
        return batch


def changed(name: str, folder: Path, change: Any) -> tuple[Path, Path]:
    """An official file, and the same after `change`, which gets and gives the content."""
    path, other = GoldenCase(name).write_official_file(folder), folder / "changed.pt"
    torch.save(change(torch.load(path, weights_only=False)), other)
    return path, other
