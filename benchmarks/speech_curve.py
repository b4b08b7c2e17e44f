"""Does a speech run learn, and does the monitor see when it does not? 59 minutes of voice prompts in five languages.

    python benchmarks/speech_curve.py --data audio.npz --setting A --seed 0 --out outputs/speech_curve

Meta's own code was measured on these data under two settings: A collapses while its loss and both variances look healthy,
B learns. At full size (256 wide, 6 blocks, 4 s crops, batch 32) that takes a GPU; `--width`, `--depth`, `--channels`,
`--seconds` and `--batch` make it smaller. Probes: the language of one-second crops of held-out clips (linear, chance .2),
and the character error rate of a linear CTC head trained 300 steps on frozen features of the English clips; those of log-mel
frames, alone and with four neighbours on either side, are printed at step 0. One JSON line at each probe; it goes on from the
last checkpoint when started again, and probes a finished run once more, for example with `--long-head`.

`audio.npz` holds `mu` (8 kHz, 8-bit mu-law), `lens`, `lang`, `langs`, `split` (0 pre-training, 1 held out), `texts`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torchmetrics.functional.text import char_error_rate

from d2v_lightning import (
    Alibi,
    AudioEncoder,
    Backbone,
    CollapseMonitor,
    ConvDecoder,
    Data2Vec,
    EMATeacher,
    LinearDecoder,
    LogMelEncoder,
    MaskTokenStudent,
    Optimization,
    RegressionLoss,
    Targets,
    Transformer,
    VisibleStudent,
)
from d2v_lightning.callbacks.collapse_monitor import POSITION_ONLY
from d2v_lightning.method.masking import num_span_masked, span_mask
from d2v_lightning.method.positions import hidden_positions, visible_positions
from d2v_lightning.method.probing import linear_accuracy
from d2v_lightning.nn.encoders.audio import CONV_LAYERS, RATE, feature_lengths
from d2v_lightning.nn.encoders.log_mel import mel_filters

LETTERS = "_ABCDEFGHIJKLMNOPQRSTUVWXYZ' "  # 0 is the CTC blank
# What differs: learning rate; EMA decay at its start, its end, and how much of the run lies between; norms of each layer;
# blocks averaged; `log_mel` in place of the convolutions; with `masks` above 1 it is 2.0, with exact counts in short spans,
# ALiBi and a convolutional decoder.
A: dict[str, Any] = {"lr": 5e-4, "decay": (0.99, 0.999), "anneal": 0.3}
B: dict[str, Any] = {"lr": 2e-4, "decay": (0.999, 0.9999), "anneal": 0.5}
B_HIGH: dict[str, Any] = {**B, "lr": 5e-4}
BLOCK: dict[str, Any] = {**B_HIGH, "norm_each": ["position", "instance"], "results": "block"}
SETTINGS: dict[str, dict[str, Any]] = {
    "A": A,
    "B": B,
    "layer": {**A, "norm_each": ["layer"]},
    "slow": {**A, "decay": (0.999, 0.9999), "norm_each": ["layer"]},
    # Small-data presets: what follows from the position is taken out of the targets.
    "centred": {**A, "norm_each": ["position", "instance"]},
    "centred_layer": {**A, "norm_each": ["position", "layer"]},
    "centred_slow": {**A, "decay": (0.999, 0.9999), "norm_each": ["position", "instance"]},
    "centred_high": {**A, "lr": 1e-3, "norm_each": ["position", "instance"]},
    "centred_block": {**A, "norm_each": ["position", "instance"], "results": "block"},
    "block": {**A, "results": "block"},
    "centred_lower": {**A, "norm_each": ["position", "instance"], "top": [0, 1]},
    "B_high": B_HIGH,
    "B_centred_high": {**B_HIGH, "norm_each": ["position", "instance"]},
    "B_block": BLOCK,
    "B_block_steady": {**BLOCK, "decay": (0.999, 0.999)},
    "B_block_high": {**BLOCK, "lr": 1e-3},
    "log_mel": {**BLOCK, "decay": (0.999, 0.999), "lr": 7e-4, "log_mel": True},
    "v2_block": {**BLOCK, "masks": 8},
    "v2_block_steady": {**BLOCK, "decay": (0.999, 0.999), "masks": 8},
    "v2_block_high": {**BLOCK, "masks": 8, "lr": 1e-3},
    "v2": {**B_HIGH, "masks": 8},
    "v2_centred": {**B_HIGH, "masks": 8, "norm_each": ["position", "instance"]},
}


class Clips:
    """The clips at 16 kHz; per language one stream of pre-training clips and one of held-out clips."""

    def __init__(self, path: str) -> None:
        file = np.load(path)
        levels = np.arange(256) / 127.5 - 1
        table = (np.sign(levels) * (256.0 ** np.abs(levels) - 1) / 255).astype(np.float32)
        pieces = np.split(table[file["mu"]], np.cumsum(file["lens"])[:-1])
        self.clips = [torch.from_numpy(soxr.resample(piece, RATE // 2, RATE)) for piece in pieces]
        self.language, self.held_out = file["lang"], file["split"].astype(bool)
        self.texts, self.languages = [str(text) for text in file["texts"]], [str(name) for name in file["langs"]]

    def stream(self, language: int, held_out: bool) -> Tensor:
        wanted = (self.language == language) & (self.held_out == held_out)
        return torch.cat([self.clips[i] for i in np.flatnonzero(wanted)])

    def transcribed(self, held_out: bool, longest: float = 4.0) -> list[int]:
        english = (self.language == self.languages.index("en")) & (self.held_out == held_out)
        usable = [i for i in np.flatnonzero(english) if self.texts[i]]
        return [int(i) for i in usable if 0.5 * RATE <= len(self.clips[i]) <= longest * RATE]


def normed(waveforms: Tensor) -> Tensor:
    return F.layer_norm(waveforms, waveforms.shape[-1:])


class Batches(IterableDataset[dict[str, Tensor]]):
    """Random crops of the streams, each language by its length; a pure function of (seed, step)."""

    def __init__(self, clips: Clips, args: argparse.Namespace, start: int) -> None:
        self.streams = [clips.stream(language, False) for language in range(len(clips.languages))]
        self.args, self.start, self.samples = args, start, int(args.seconds * RATE)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        frames = feature_lengths(self.samples)
        masks = SETTINGS[self.args.setting].get("masks", 1)
        count, span = (num_span_masked(frames, 0.65, 10), 10) if masks == 1 else (frames // 2, 5)
        weights = torch.tensor([float(max(0, len(stream) - self.samples)) for stream in self.streams])
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for step in range(self.start + number, self.args.steps, workers):
            generator = torch.Generator().manual_seed(1_000_003 * (self.args.seed + 1) + step)
            languages = torch.multinomial(weights, self.args.batch, replacement=True, generator=generator).tolist()
            crops = []
            for language, place in zip(
                languages, torch.rand(self.args.batch, generator=generator).tolist(), strict=True
            ):
                first = int(place * (len(self.streams[language]) - self.samples))
                crops.append(self.streams[language][first : first + self.samples])
            rows = [span_mask(frames, count, span, generator) for _ in range(self.args.batch * masks)]
            mask = torch.stack(rows).unflatten(0, (self.args.batch, masks))
            batch = {"inputs": normed(torch.stack(crops)), "mask": mask, "hidden": hidden_positions(mask)}
            yield batch if masks == 1 else {**batch, "visible": visible_positions(mask)}


def network(args: argparse.Namespace) -> Data2Vec:
    setting = SETTINGS[args.setting]
    two = setting.get("masks", 1) > 1
    convs = [(args.channels, kernel, stride) for _, kernel, stride in CONV_LAYERS]
    encoder = LogMelEncoder(args.width) if setting.get("log_mel") else AudioEncoder(args.width, convs)
    transformer = Transformer(
        dim=args.width,
        depth=args.depth,
        num_heads=4,
        norm="post",
        norm_eps=1e-5,
        final_norm=False,
        input_norm=True,
        qkv_bias="qkv",
        layer_scale=None,
        dropout=0.1,
        input_dropout=0.1,
        attention_dropout=0.1,
        layer_drop=0.05,
        init="normal",
        position_bias=Alibi(4) if two else None,
    )
    backbone = Backbone(encoder, transformer)
    student = (
        VisibleStudent(backbone, ConvDecoder(args.width, None, 3, 7, args.width, 16, input_dropout=0.1))
        if two
        else MaskTokenStudent(backbone, LinearDecoder(args.width, "default"), "uniform")
    )
    return Data2Vec(
        student=student,
        targets=Targets(
            setting.get("top", min(4, args.depth)),
            setting.get("results", "ffn"),
            setting.get("norm_each", ["instance"]),
            [],
        ),
        loss=RegressionLoss(0.0, "sum", "rsqrt_width"),
        ema_teacher=EMATeacher(*setting["decay"], int(setting["anneal"] * args.steps), 1),
        optimization=Optimization(
            lr=setting["lr"],
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay_all=True,
            schedule="tri_stage",
            warmup=setting.get("warmup", 0.03),
            hold=setting.get("hold", 0.9),
            final_lr=0.01 * setting["lr"],
        ),
        teacher_scope="context" if two else "transformer",
        compile=args.compile,
    )


class Probe(pl.Callback):
    """Language accuracy of mean features of the last block and CER of a linear CTC head, of the teacher's features."""

    def __init__(self, clips: Clips, args: argparse.Namespace) -> None:
        self.clips, self.args, self.started = clips, args, time.time()
        generator, crops = torch.Generator().manual_seed(777), []
        for held_out, per_language in ((False, 400), (True, 200)):
            for language in range(len(clips.languages)):
                stream = clips.stream(language, held_out)
                places = (torch.rand(per_language, generator=generator) * (len(stream) - RATE)).long().tolist()
                crops.append(normed(torch.stack([stream[place : place + RATE] for place in places])))
        languages = len(clips.languages)
        self.train, self.test = torch.cat(crops[:languages]), torch.cat(crops[languages:])
        self.labels = [torch.arange(languages).repeat_interleave(per) for per in (400, 200)]

    def tokens(self, model: Data2Vec, waveforms: Tensor, layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Outputs (B, N, D) of the teacher's `layers`, counted as a list's."""
        local, _ = model.encoder.features(waveforms.to(model.device))
        keep = [layer % model.backbone.transformer.depth for layer in layers]
        results = dict(
            zip(sorted(set(keep)), model.teacher(model.backbone, waveforms, local, None, keep=keep), strict=True)
        )
        return [results[layer].block.float() for layer in keep]

    @torch.no_grad()
    def probe(self, step: int, model: Data2Vec, loss: float | None) -> None:
        model.eval()
        features = [
            torch.cat([self.tokens(model, chunk)[0].mean(dim=1) for chunk in waveforms.split(50)]).cpu()
            for waveforms in (self.train, self.test)
        ]
        row: dict[str, Any] = {"step": step, "setting": self.args.setting, "seed": self.args.seed, "loss": loss}
        row["language"] = linear_accuracy(features[0], self.labels[0], features[1], self.labels[1])
        blocks = [-1, *self.args.blocks]
        errors = self.ctc(lambda clip: [x[0] for x in self.tokens(model, normed(clip)[None], blocks)])
        row["cer"], row["cer_blocks"] = errors[0], dict(zip(self.args.blocks, errors[1:], strict=True))
        if step == 0:
            row["cer_log_mel"], row["cer_log_mel_9"] = self.ctc(lambda clip: [log_mel(clip), beside(log_mel(clip), 4)])
        model.train()
        model.teacher.eval()
        row["seconds"] = round(time.time() - self.started)
        print(json.dumps(row), flush=True)
        with open(self.args.out / f"{self.args.setting}{self.args.seed}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def ctc(self, features: Callable[[Tensor], list[Tensor]]) -> list[float]:
        """Error of each of the kinds of frames (N, D) that `features` makes of a clip (S,)."""
        sets = [self.clips.transcribed(held_out) for held_out in (False, True)]
        train, test = ([features(self.clips.clips[i]) for i in chosen] for chosen in sets)
        texts = [[self.clips.texts[i] for i in chosen] for chosen in sets]
        kinds = zip(zip(*train, strict=True), zip(*test, strict=True), strict=True)
        long = self.args.long_head
        return [ctc_error(list(known), texts[0], list(unknown), texts[1], long) for known, unknown in kinds]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0 and self.args.baselines:
            self.probe(0, pl_module, None)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, total = trainer.global_step, self.args.steps
        if step % math.ceil(total / self.args.probes) == 0 or step == total:
            self.probe(step, pl_module, float(outputs["loss"]))


@torch.enable_grad()
def ctc_error(
    train: list[Tensor], train_texts: list[str], test: list[Tensor], test_texts: list[str], long: bool
) -> float:
    """CER of greedy decoding with a linear head over standardised frames (N, D).

    The head is trained by full-batch Adam: 300 steps at 1e-3, which is not its end; `long`: 1,200 from 1e-2 to 0.
    """
    everything = torch.cat(train)
    device = everything.device
    mean, std = everything.mean(0), everything.std(0).clamp_min(1e-6)

    def batch(frames: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence([(x - mean) / std for x in frames], batch_first=True)

    groups = []  # of like length: the same sum with less padding
    by_length = sorted(range(len(train)), key=lambda i: len(train[i]))
    for start in range(0, len(train), 64):
        chosen = by_length[start : start + 64]
        labels = [torch.tensor([LETTERS.index(letter) for letter in train_texts[i]]) for i in chosen]
        flat = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
        sizes, lengths = torch.tensor([len(x) for x in labels]), torch.tensor([len(train[i]) for i in chosen])
        groups.append((batch([train[i] for i in chosen]), flat.to(device), lengths, sizes))
    weight = torch.zeros(everything.shape[1], len(LETTERS), requires_grad=True, device=device)
    bias = torch.zeros(len(LETTERS), requires_grad=True, device=device)
    steps, rate = (1200, 1e-2) if long else (300, 1e-3)
    optimizer = torch.optim.Adam([weight, bias], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if long else None
    for _ in range(steps):
        optimizer.zero_grad()
        for inputs, flat, lengths, sizes in groups:
            log_probs = F.log_softmax(inputs @ weight + bias, dim=-1).transpose(0, 1)
            mean_loss = F.ctc_loss(log_probs, flat, lengths, sizes, blank=0, zero_infinity=True)
            (mean_loss * len(inputs) / len(train)).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    best = (batch(test) @ weight + bias).argmax(dim=-1).cpu()
    decoded = []
    for row, frames in zip(best, test, strict=True):
        classes = torch.unique_consecutive(row[: len(frames)]).tolist()
        decoded.append("".join(LETTERS[k] for k in classes if k))
    return float(char_error_rate(decoded, test_texts))


def beside(frames: Tensor, context: int) -> Tensor:
    """(N, D) -> (N, (2 context + 1) D): each frame with those before and after it, the outermost repeated at the ends."""
    padded = F.pad(frames.T[None], (context, context), mode="replicate")[0].T
    return torch.cat([padded[shift : shift + len(frames)] for shift in range(2 * context + 1)], dim=1)


def log_mel(waveform: Tensor, bands: int = 80) -> Tensor:
    """(S,) -> (frames, 80) at 50 Hz, windows of 25 ms."""
    spectrum = torch.stft(normed(waveform), 512, 320, 400, torch.hann_window(400), return_complex=True).abs().square()
    return (mel_filters(bands).T @ spectrum + 1e-6).log().T


def draw(runs: list[Path], picture: Path) -> None:
    """What the monitor measured in runs (folders of `--out` named by setting and seed), side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "train/loss": "loss",
        "collapse/target_variance": "variance of the targets",
        "collapse/target_input_share": "share of it that comes from the input",
        "collapse/prediction_error": "share of it that is not predicted",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(14, 3), constrained_layout=True)
    for run in runs:
        with open(run / "log" / "metrics.csv") as file:
            rows = list(csv.DictReader(file))
        for axis, (name, title) in zip(axes, panels.items(), strict=True):
            points = sorted((int(row["step"]), float(row[name])) for row in rows if row.get(name))
            axis.plot(*zip(*points, strict=True), label=run.name.rstrip("0123456789"))
            axis.set(title=title, xlabel="step")
    for axis in axes[2:]:
        axis.set_ylim(0, 1.05)
    axes[2].axhline(POSITION_ONLY, color="0.6", ls=":", lw=1)
    axes[2].legend(loc="center right", fontsize=8)
    figure.savefig(picture, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="audio.npz")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="B")
    parser.add_argument(
        "--draw", type=Path, help="train nothing; draw what the monitor saw in all runs of --out, as a PNG"
    )
    for name, default in (
        ("seed", 0),
        ("steps", 3000),
        ("batch", 32),
        ("width", 256),
        ("depth", 6),
        ("channels", 256),
        ("probes", 6),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction, default=True, help="untrained and log-mel"
    )
    parser.add_argument(
        "--blocks", type=int, nargs="*", default=[], help="further blocks of which the CTC probe is made"
    )
    parser.add_argument("--long-head", action="store_true", help="train the CTC head to its end")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; they are the same")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--out", type=Path, default=Path("outputs/speech_curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.draw:
        draw(sorted(path.parent for path in args.out.glob("*/log")), args.draw)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    pl.seed_everything(args.seed)
    clips = Clips(args.data)
    last = args.out / f"{args.setting}{args.seed}" / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    probe, model = Probe(clips, args), network(args)
    if start >= args.steps:
        model.load_state_dict(torch.load(last, weights_only=True)["state_dict"])
        probe.probe(start, model, None)
        return
    trainer = pl.Trainer(
        max_steps=args.steps,
        precision=args.precision,
        logger=pl.loggers.CSVLogger(args.out, name=f"{args.setting}{args.seed}", version="log"),
        log_every_n_steps=10,
        enable_progress_bar=False,
        callbacks=[
            CollapseMonitor(every_n_steps=max(1, args.steps // 60)),
            probe,
            pl.callbacks.ModelCheckpoint(last.parent, save_last=True, save_top_k=0, every_n_train_steps=50),
        ],
    )
    loader = DataLoader(Batches(clips, args, start), batch_size=None, num_workers=args.workers)
    trainer.fit(model, loader, ckpt_path=last if last.exists() else None, weights_only=True)


if __name__ == "__main__":
    main()
