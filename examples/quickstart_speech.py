"""Speech in a few minutes on two CPU cores: speak, pre-train, fine-tune with CTC on two minutes, and see what it was worth.

    make quickstart-speech            (or: python examples/quickstart_speech.py --out outputs/quickstart_speech)
    VERSION=2 make quickstart-speech  (data2vec 2.0, --version 2)

The data are made on the spot by a speech synthesiser (see `speak.py`): twenty minutes without transcripts, two with, one to
test on. Every figure is measured in this run: word and character error rates of the fine-tuned network with and without
pre-training, same network, same labels, same steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from quickstart import mean, quieten, read_log, versioned
from speak import write_corpus
from torch import Tensor

from d2v_lightning import Backbone, CollapseMonitor, Data2Vec, Optimization, Progress, SpeechCTC
from datamodules import SpeechDataModule

NETWORKS = ("pre-trained", "from scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20.0, help="of speech without transcripts")
    parser.add_argument("--steps", type=int, default=600, help="of pre-training")
    parser.add_argument("--finetune-steps", type=int, default=400)
    parser.add_argument("--version", type=int, choices=(1, 2), default=1, help="of data2vec")
    parser.add_argument("--out", type=Path, default=None, help="default: outputs/quickstart_speech, ..._v2 for 2.0")
    args = parser.parse_args()
    recipe = versioned("speech", args.version)
    args.out = args.out or Path("outputs", versioned("quickstart_speech", args.version))
    args.out.mkdir(parents=True, exist_ok=True)
    quieten()
    torch.set_num_threads(1)  # the other core loads data
    started, rows = time.time(), []
    written = write_corpus(args.out / "data", args.minutes)
    print(f"synthetic speech by espeak-ng, minutes: {written}", flush=True)
    for seed in range(args.seeds):
        print(f"seed {seed}: pre-training", flush=True)
        model, data = pretrain(recipe, seed, args)
        row = {}
        for name in NETWORKS:
            print(f"seed {seed}: fine-tuning, {name}", flush=True)
            pl.seed_everything(seed, verbose=False)
            untrained = Data2Vec.from_recipe(recipe).backbone
            row[name] = finetune(model.backbone if name == "pre-trained" else untrained, seed, name, args)
            print(f"  WER {row[name]['wer']:.3f}  CER {row[name]['cer']:.3f}", flush=True)
        rows.append(row)
    (args.out / "scores.json").write_text(json.dumps(rows, indent=1))
    print(
        f"\nError rates on {written['dev']} minutes, mean of {len(rows)} seed(s), {written['train']} minutes of labels"
    )
    for name in NETWORKS:
        wer, cer = (mean(row[name][kind] for row in rows) for kind in ("wer", "cer"))
        print(f"{name:<14} WER {wer:.3f}   CER {cer:.3f}")
    draw(rows, data, args.out)
    print(
        f"\n{time.time() - started:.0f} s in all. Picture: {args.out}/quickstart.png, figures: {args.out}/scores.json"
    )


def pretrain(recipe: str, seed: int, args: argparse.Namespace) -> tuple[Data2Vec, SpeechDataModule]:
    """data2vec by the recipe `configs/quickstart/speech.yaml`, or `speech_v2.yaml`."""
    pl.seed_everything(seed, verbose=False)
    model = Data2Vec.from_recipe(recipe)
    data = SpeechDataModule.from_recipe(recipe, {"root": str(args.out / "data"), "seed": seed})
    monitor = CollapseMonitor(every_n_steps=50)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        gradient_clip_val=3.0,
        limit_val_batches=0,
        logger=CSVLogger(str(args.out), name="log", version=f"pretrain{seed}"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[monitor, Progress()],
    )
    trainer.fit(model, data)
    if monitor.verdict is not None:
        print(f"  the monitor says: {monitor.verdict.status} {monitor.verdict.cause}", flush=True)
    return model, data


def finetune(backbone: Backbone, seed: int, name: str, args: argparse.Namespace) -> dict[str, float]:
    """Word and character error rates on `dev` after training the whole network on `train`."""
    model = SpeechCTC(
        backbone=copy.deepcopy(backbone),
        vocabulary="data",
        freeze_trunk_steps=0,
        optimization=Optimization(
            lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, schedule="tri_stage", warmup=0.1, hold=0.4, final_lr=5e-5
        ),
    )
    data = SpeechDataModule(
        root=str(args.out / "data"),
        train_split="train",
        val_split="dev",
        task="ctc",
        batch_samples=200_000,
        time_mask_prob=0.2,
        channel_mask_prob=0.1,
        mask_share="expected",
        num_workers=1,
        seed=seed,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=args.finetune_steps,
        val_check_interval=100,
        check_val_every_n_epoch=None,
        gradient_clip_val=5.0,
        num_sanity_val_steps=0,
        logger=CSVLogger(str(args.out), name="log", version=f"{name.replace(' ', '_')}{seed}"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[Progress()],
    )
    trainer.fit(model, data)
    values = trainer.validate(model, data, verbose=False)[0]
    return {kind: float(values[f"val/{kind}"]) for kind in ("wer", "cer")}


def draw(rows: list[dict[str, dict[str, float]]], data: SpeechDataModule, out: Path) -> None:
    """A masked spectrogram, the loss, what the monitor saw, and error rates, as one picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7.5), constrained_layout=True)
    batch = next(iter(data.train_dataloader()))
    axes[0, 0].imshow(spectrogram(batch["inputs"][0]), origin="lower", aspect="auto", cmap="magma")
    mask = batch["mask"][0, 0]
    for frame in mask.nonzero()[:, 0].tolist():
        axes[0, 0].axvspan(frame - 0.5, frame + 0.5, color="0.75", alpha=0.8, lw=0)
    axes[0, 0].set(
        title=f"What the student hears: {100 * mask.float().mean():.0f} % hidden", xlabel="frame (20 ms)", yticks=[]
    )
    for seed in range(len(rows)):
        curves = read_log(out / "log" / f"pretrain{seed}" / "metrics.csv")
        axes[0, 1].plot(*curves["train/loss"], color=f"C{seed}", label=f"loss, seed {seed}")
        other = axes[0, 1].twinx()
        other.plot(*curves.get("collapse/target_input_share", ([], [])), "--", color=f"C{seed}")
        other.set(ylim=(0, 1), ylabel="dashed: share of the targets' variance from the input")
    axes[0, 1].set(title="Pre-training", xlabel="optimiser step")
    for seed in range(len(rows)):
        for place, name in enumerate(NETWORKS):
            curves = read_log(out / "log" / f"{name.replace(' ', '_')}{seed}" / "metrics.csv")
            axes[1, 0].plot(*curves["val/cer"], color=f"C{place}", label=name if seed == 0 else None)
    axes[1, 0].set(title="Fine-tuning: character error rate on dev", xlabel="optimiser step", ylim=(0, 1.1))
    axes[1, 0].legend()
    for place, name in enumerate(NETWORKS):
        values = [[row[name][kind] for row in rows] for kind in ("wer", "cer")]
        axes[1, 1].bar([group + 0.3 * place for group in range(2)], [mean(v) for v in values], width=0.28, label=name)
    axes[1, 1].set(title="Error rates at the end (lower is better)", xticks=[0.15, 1.15], ylim=(0, 1.1))
    axes[1, 1].set_xticklabels(["words", "characters"])
    axes[1, 1].legend()
    figure.savefig(out / "quickstart.png", dpi=110)


def spectrogram(waveform: Tensor) -> Any:
    """Log power (frequency, frame) up to 8 kHz, 50 frames a second."""
    power = torch.stft(waveform, 512, 320, 400, torch.hann_window(400), return_complex=True).abs().square()
    return (power[:200] + 1e-4).log()


if __name__ == "__main__":
    main()
