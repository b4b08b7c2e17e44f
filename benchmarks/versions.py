"""What is data2vec 2.0 for? Probe accuracy against time of training, 1.0 and 2.0 on the same pictures and machine.

    python benchmarks/versions.py --data image.npz --seeds 0 1 2 --out outputs/versions
    python benchmarks/versions.py --data image.npz --seeds 0 --out outputs/versions -- --width 64 --depth 4 --batch 64

Runs `learning_curve.py` for each version and seed, one after the other on one thread; what follows `--` goes to it. Both see
the same pictures in the same order, each under its own settings (the reference's). It prints a table, draws OUT/versions.png
and, when started again, goes on where it was. Time is the processor's in training alone, without probes, so that other
work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROBES = ("k-NN", "linear probe", "10 labels a class")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=470)
    parser.add_argument("--probe-every", type=int, default=94)
    parser.add_argument("--out", type=Path, default=Path("outputs/versions"))
    parser.add_argument("passed", nargs="*", help="options of learning_curve.py, after --")
    args = parser.parse_args()
    rows: dict[int, list[list[Row]]] = {1: [], 2: []}
    for seed in args.seeds:
        for version, found in rows.items():
            folder = args.out / f"v{version}"
            curve = folder / f"seed{seed}.jsonl"
            if not curve.exists() or read(curve)[-1]["step"] < args.steps:
                options = ["--data", args.data, "--version", version, "--seed", seed, "--steps", args.steps]
                options += ["--probe-every", args.probe_every, "--threads", 1, "--out", folder, *args.passed]
                script = Path(__file__).with_name("learning_curve.py")
                subprocess.run([sys.executable, str(script), *map(str, options)], check=True)
            found.append(read(curve))
    table(rows)
    draw(rows, args.out / "versions.png")


def read(path: Path) -> list[Row]:
    """Rows of a curve by step; the last one counts where a resumed run repeated one."""
    rows = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
    return [rows[step] for step in sorted(rows)]


def table(rows: dict[int, list[list[Row]]]) -> None:
    """Mean over the seeds of the student's probes, and of the seconds until then."""
    print("| step | " + " | ".join(f"{v}.0: seconds | {' / '.join(PROBES)}" for v in rows) + " |")
    print("|---|" + "---|---|" * len(rows))
    for at, step in enumerate(row["step"] for row in rows[1][0]):
        cells = [f"{step:,}"]
        for runs in rows.values():
            seconds = np.mean([run[at]["cpu_seconds"] for run in runs])
            scores = np.mean([run[at]["student"] for run in runs], axis=0)
            cells += [f"{seconds:,.0f}", " / ".join(f"{score:.3f}" for score in scores)]
        print("| " + " | ".join(cells) + " |")


def draw(rows: dict[int, list[list[Row]]], path: Path) -> None:
    """One panel a probe, one line a seed."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(PROBES), figsize=(12, 3.6), layout="constrained")
    for number, (panel, probe) in enumerate(zip(panels, PROBES, strict=True)):
        for version, runs in rows.items():
            for seed, run in enumerate(runs):
                for part, style in (("student", "-"), ("teacher", ":")):
                    label = f"{version}.0, {part}" if seed == 0 else None
                    minutes = [row["cpu_seconds"] / 60 for row in run]
                    panel.plot(minutes, [row[part][number] for row in run], style, color=f"C{version - 1}", label=label)
        panel.set(title=probe, xlabel="minutes of training (one thread)", ylabel="accuracy" if number == 0 else "")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=110)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
