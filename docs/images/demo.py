"""Makes demo.png from the runs of `make demo`: `python docs/images/demo.py RUN NAIVE`."""

import json
import sys
from pathlib import Path

import imageio.v3 as imageio
import matplotlib
import numpy as np

from trimtab.run.results import read_run

matplotlib.use("agg")
from matplotlib import pyplot


def main(gated: Path, naive: Path) -> None:
    """Return over steps and G_i of both flows, and four frames of the gated one's video."""
    figure = pyplot.figure(figsize=(11, 4.6))
    grid = figure.add_gridspec(2, 4, height_ratios=(1.25, 1.0))
    curve, norms = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:])
    for folder, label, colour in ((gated, "Flow-G", "#0072b2"), (naive, "naive flow", "#d55e00")):
        steps, returns = read_run(folder).returns
        curve.plot(steps, returns, "o-", ms=3, color=colour, label=label)
        found = json.loads((folder / "diagnose.json").read_text())["arrays"]["rollout_grad/step"]
        norms.semilogy(found, "o-", ms=4, color=colour, label=label)
    curve.set(xlabel="environment steps", ylabel="return", title="InvertedDoublePendulum-v5, 10 evaluation episodes")
    norms.set(xlabel="step i of the rollout", ylabel="gradient at step i", title="gradient through the flow's rollout")
    norms.set_xticks(range(len(found)))
    for axes in (curve, norms):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    frames = imageio.imread(next((gated / "videos").glob("*.mp4")), plugin="FFMPEG")
    for column, index in enumerate(np.linspace(0, min(len(frames) - 1, 60), 4).astype(int)):
        axes = figure.add_subplot(grid[1, column])
        height, width = frames.shape[1:3]
        cut = frames[index][int(0.12 * height) : int(0.58 * height), int(0.2 * width) : int(0.8 * width)]
        axes.imshow(np.clip(cut * 1.7, 0, 255).astype(np.uint8))
        axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
