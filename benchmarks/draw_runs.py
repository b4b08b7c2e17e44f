"""One metric of several runs of the command line over their steps, from their CSV logs, as a picture.

    python benchmarks/draw_runs.py runs/scratch_0 runs/v1_0 runs/v1_1 --metric val/cer --out cer.png

Runs whose folders are called the same but for a number at the end, such as a seed, have one colour.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path


def curve(run: Path, metric: str) -> list[tuple[int, float]]:
    """(step, value), a later log of the run over an earlier one."""
    points: dict[int, float] = {}
    for path in sorted(run.glob("metrics/*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with open(path, newline="") as file:
            points |= {int(row["step"]) + 1: float(row[metric]) for row in csv.DictReader(file) if row.get(metric)}
    return sorted(points.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, which hold metrics/")
    parser.add_argument("--metric", required=True)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 3.6), constrained_layout=True)
    colours: dict[str, str] = {}
    for run in args.runs:
        points = curve(run, args.metric)
        if not points:
            sys.exit(
                f"{run}: no {args.metric} in metrics/*/metrics.csv; name a folder of a run and a metric that it logs"
            )
        kind = re.sub(r"[_-]?\d+$", "", run.name)
        label = None if kind in colours else kind
        axes.plot(
            *zip(*points, strict=True), color=colours.setdefault(kind, f"C{len(colours)}"), label=label, marker="."
        )
    axes.set(xlabel="step", ylabel=args.metric)
    axes.legend(frameon=False)
    figure.savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
