"""How long a training step takes, in whole and in parts, and how much of the device's arithmetic it uses.

    python benchmarks/step_time.py --config configs/pretrain/image_base.yaml --compile --peers transformers timm
    python benchmarks/step_time.py --config configs/quickstart/digits.yaml --device cpu --precision 32 --batch 64

Every row is a real `Trainer.fit` with the module's own optimiser, callbacks, precision and compilation, on one batch
that lies on the device already. The first steps warm up; the next ones are timed from start to start, with nothing in
between; the last ones are timed part by part. On a GPU the clock is CUDA events, which the host never waits for.
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import resource
import shlex
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
import yaml
from peers import CLASSES, PEERS
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from d2v_lightning import AudioEncoder, ImageEncoder, TextEncoder
from d2v_lightning.configurable import build
from d2v_lightning.method.masking import num_span_masked
from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.nn.encoders.audio import RATE, feature_lengths
from d2v_lightning.recipes import overridden

PRECISIONS = {"bf16": "bf16-mixed", "16": "16-mixed", "32": "32-true"}
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32}
LETTERS = 200  # of a clip's transcript: some 13 a second
FORWARD = "forward, else"  # features, targets, loss; all of it where there is no student and no teacher
Batch = dict[str, Tensor]


# ---- inputs: one function per encoder --------------------------------------------------------------------------------


def image_batch(encoder: ImageEncoder, args: argparse.Namespace, data: dict[str, Any]) -> Batch:
    """Random images and labels."""
    size, patches = args.batch or data["batch_size"], encoder.grid[0] * encoder.grid[1]
    share = 157 / 196 if data.get("masking") == "inverse_blocks" else 120 / 196
    hidden = data.get("num_masked_patches") or round(patches * (data.get("mask_ratio") or share))
    inputs = torch.randn(size, encoder.in_channels, *encoder.image_size)
    return {"inputs": inputs, **masks(size, patches, hidden, data), "labels": torch.randint(CLASSES, (size,))}


def audio_batch(encoder: AudioEncoder, args: argparse.Namespace, data: dict[str, Any]) -> Batch:
    """Noise as long as the recipe's longest clips, with letters; by default as many as the recipe's budget holds."""
    samples = int(RATE * (args.seconds or data.get("max_seconds") or 20.0))
    size, frames = args.batch or max(1, data["batch_samples"] // samples), feature_lengths(samples, encoder.conv_layers)
    ratio = data.get("mask_ratio")
    hidden = round(frames * ratio) if ratio else num_span_masked(frames, data["mask_prob"], data["mask_length"])
    letters = {"labels": torch.randint(1, 32, (size, LETTERS)), "label_lengths": torch.full((size,), LETTERS)}
    return {"inputs": torch.randn(size, samples), **masks(size, frames, hidden, data), **letters}


def text_batch(encoder: TextEncoder, args: argparse.Namespace, data: dict[str, Any]) -> Batch:
    """Random ids in full blocks, with labels of two classes; spans that overlap are not made up for."""
    size, length = args.batch or data["batch_size"], data["block_size"]
    hidden = round(length * data["mask_prob"])
    inputs, labels = torch.randint(4, encoder.vocab_size, (size, length)), torch.randint(2, (size,))
    return {"inputs": inputs, **masks(size, length, hidden, data), "labels": labels}


def masks(size: int, length: int, hidden: int, data: dict[str, Any]) -> Batch:
    """Masks that hide the recipe's number of tokens, each anywhere, with what our collators add to them."""
    mask = torch.rand(size, data.get("num_masks", 1), length).argsort(dim=2) < hidden
    return {"mask": mask, "hidden": hidden_positions(mask), "visible": visible_positions(mask)}


INPUTS: dict[type, Callable[[Any, argparse.Namespace, dict[str, Any]], Batch]] = {
    ImageEncoder: image_batch,
    AudioEncoder: audio_batch,
    TextEncoder: text_batch,
}


# ---- timing ----------------------------------------------------------------------------------------------------------


class Clock:
    """Marks in time: CUDA events on a GPU, which are put in the stream and read at the end; wall clock elsewhere."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Between two marks; on a GPU after `torch.cuda.synchronize()`."""
        return start.elapsed_time(end) if self.on_gpu else (end - start) * 1e3


class Stopwatch(pl.Callback):
    """Times `steps` whole steps after `warm_up`, then `steps` more in parts.

    A part lasts until the next one begins. What the module calls by itself (`student`, `teacher`) is told from the rest
    of the forward pass by forward hooks, which are there in the last phase only.
    """

    def __init__(self, clock: Clock, warm_up: int, steps: int) -> None:
        self.clock, self.warm_up, self.steps = clock, warm_up, steps
        self.starts: list[Any] = []
        self.parts: list[list[tuple[str, Any]]] = []  # of each step: what begins at which mark
        self.detailed = False
        self.peak_bytes = 0

    def begin(self, part: str) -> None:
        if self.detailed:
            self.parts[-1].append((part, self.clock.mark()))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.callbacks.append(_EndOfStep(self))  # behind the module's own callbacks, one of which moves the teacher

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm_up and self.clock.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        if self.warm_up <= batch_idx <= self.warm_up + self.steps:
            self.starts.append(self.clock.mark())
        if batch_idx == self.warm_up + self.steps:
            self.peak_bytes = peak_bytes(self.clock.on_gpu)
            self.detailed = True
            for name, child in pl_module.named_children():
                if name in ("student", "teacher"):
                    child.register_forward_pre_hook(lambda *_, name=name: self.begin(f"{name} forward"))
                    child.register_forward_hook(lambda *_: self.begin(FORWARD))
        if self.detailed:
            self.parts.append([])
            self.begin(FORWARD)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.begin("backward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.begin("optimiser, clipping")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.begin("EMA, callbacks")

    def whole_steps(self) -> list[float]:
        """Milliseconds of each step."""
        return [self.clock.milliseconds(*pair) for pair in pairwise(self.starts)]

    def part_medians(self) -> dict[str, float]:
        """Median milliseconds of each part, in the order in which they first come."""
        times: dict[str, list[float]] = {}
        for marks in self.parts:
            step: dict[str, float] = {}
            for (part, start), (_, end) in pairwise(marks):
                step[part] = step.get(part, 0.0) + self.clock.milliseconds(start, end)
            for part, duration in step.items():
                times.setdefault(part, []).append(duration)
        return {part: statistics.median(durations) for part, durations in times.items()}


class _EndOfStep(pl.Callback):
    """Marks the end of a step, behind all other callbacks."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch = stopwatch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.stopwatch.begin("end")


def peak_bytes(on_gpu: bool) -> int:
    """On a GPU the most that tensors held at once; on a CPU the most that the process ever held, all rows so far."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_ceiling(device: torch.device, dtype: torch.dtype, clock: Clock) -> tuple[int, float]:
    """Side of a large square matrix product, and the FLOP/s of the fastest of ten on this device, now."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    marks = []
    for _ in range(13):
        marks.append(clock.mark())
        a @ b
    marks.append(clock.mark())
    synchronize(device)
    best = min(clock.milliseconds(*pair) for pair in pairwise(marks[3:]))
    return side, 2 * side**3 / (best * 1e-3)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def step_flops(make: Callable[[], pl.LightningModule], batch: Batch) -> int:
    """FLOPs of matrix products, convolutions and attention in one forward and backward pass, counted on no device.

    `FlopCounterMode` on the meta device, so counted as executed: recomputed activations count too.
    """
    with torch.device("meta"):
        module = make()
    shapes = {name: tensor.to("meta") for name, tensor in batch.items()}
    # CTC has no kernel on the meta device, and no matrix product.
    no_ctc = patch.object(F, "ctc_loss", lambda log_probs, *_, **__: log_probs.mean())
    with FlopCounterMode(display=False) as counter, warnings.catch_warnings(), no_ctc:
        warnings.simplefilter("ignore")  # logging without a Trainer
        module.training_step(shapes, 0).backward()
    return counter.get_total_flops()


# ---- the program -----------------------------------------------------------------------------------------------------


def measure(
    name: str,
    make: Callable[[bool], pl.LightningModule],
    batch: Batch,
    args: argparse.Namespace,
    clip: float | None,
    ceiling: float,
) -> None:
    """Train for warm-up + 2 x steps and print the row."""
    device, size = torch.device(args.device), len(batch["inputs"])
    clock = Clock(device.type == "cuda")
    flops = step_flops(lambda: make(False), batch)
    stopwatch = Stopwatch(clock, args.warm_up, args.steps)
    # Masks come from the host in every step, as from a loader.
    made = ("mask", "hidden", "visible")
    resident = {name: tensor.to(device) for name, tensor in batch.items() if name not in made}
    resident |= {name: batch[name].pin_memory() if clock.on_gpu else batch[name] for name in made}
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[args.precision],
        max_steps=args.warm_up + 2 * args.steps,
        gradient_clip_val=clip,
        callbacks=[stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    module = make(args.compile)
    trainer.fit(module, DataLoader([resident] * (args.warm_up + 2 * args.steps), batch_size=None))
    synchronize(device)

    times = sorted(stopwatch.whole_steps())
    median = statistics.median(times)
    tenth, ninetieth = times[len(times) // 10], times[-1 - len(times) // 10]
    print(f"\n{name}: {sum(p.numel() for p in module.parameters() if p.requires_grad) / 1e6:.1f} M trained parameters")
    print(f"  step                  {median:9.2f} ms   (10-90 %: {tenth:.2f} to {ninetieth:.2f})")
    for part, duration in stopwatch.part_medians().items():
        print(f"    {part:<20}{duration:9.2f} ms")
    print(f"  samples/s             {size / median * 1e3:9.1f}")
    print(f"  peak memory           {stopwatch.peak_bytes / 2**30:9.2f} GiB")
    print(f"  GFLOP a sample        {flops / size / 1e9:9.2f}")
    print(f"  share of the ceiling  {flops / (median * 1e-3) / ceiling:9.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML of a pre-training run")
    parser.add_argument("--batch", type=int, help="samples a step; by default the config's data.batch_size")
    parser.add_argument("--seconds", type=float, help="length of the clips of speech; by default the config's longest")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="bf16")
    parser.add_argument("--compile", action="store_true", help="ours by its own `compile` argument, peers as a whole")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="timed as a whole, and as many again in parts")
    parser.add_argument(
        "--overrides", nargs="+", default=[], metavar="NAME=VALUE", help="student.backbone.transformer.depth=2 ..."
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=[],
        choices=sorted({peer for peers in PEERS.values() for peer in peers}),
        help="fine-tuning steps at the config's size: our module, transformers' Data2Vec, for images timm's ViT",
    )
    parser.add_argument("--only-peers", action="store_true", help="leave out the pre-training step")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.manual_seed(0)

    config = yaml.safe_load(args.config.read_text())
    overrides = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in args.overrides)}
    tree = overridden(config["model"], overrides)
    data = (config.get("data") or {}).get("init_args") or {}
    clip = (config.get("trainer") or {}).get("gradient_clip_val")

    def ours(compile: bool) -> Any:
        return build(overridden(tree, {"compile": compile}))

    with torch.device("meta"):
        recorded = ours(False)
    backbone, encoder = copy.deepcopy(recorded.backbone.config), recorded.backbone.encoder
    batch = INPUTS[type(encoder)](encoder, args, data)

    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, pytorch-lightning {pl.__version__}, python {platform.python_version()}"
    side, ceiling = matmul_ceiling(device, DTYPES[args.precision], Clock(on_gpu))
    print(f"python {shlex.join(sys.argv)}\n{name}, {versions}")
    print(f"batch {len(batch['inputs'])}, {PRECISIONS[args.precision]}{', compiled' if args.compile else ''}")
    print(f"matmul ceiling: {ceiling / 1e12:.3g} TFLOP/s ({DTYPES[args.precision]}, {side}^3); FLOPs: FlopCounterMode")
    if not args.only_peers:
        measure(str(args.config), ours, batch, args, clip, ceiling)
    for peer in args.peers:
        make = PEERS[type(encoder)][peer]
        measure(f"peer: {peer}", lambda compile, make=make: make(backbone, compile), batch, args, clip, ceiling)


if __name__ == "__main__":
    main()
