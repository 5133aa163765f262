"""ReenGAGE learns ContinuousSeek faster than DDPG, both with hindsight (slow)."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from trimtab.agents import ddpg, reengage

pytestmark = pytest.mark.slow

SHARED: dict[str, Any] = dict(gamma=0.95, exploration_noise=0.03, buffer_size=20_000, learning_starts=1_000)
SEEDS = (0, 1, 2, 3, 4)


def success(agent: str, dimension: int, steps: int, out: Path, config: Any) -> dict[int, np.ndarray]:
    """Success rates of fifty episodes by step, one number a seed."""
    runs = trimtab.train(
        agent,
        env=f"trimtab/ContinuousSeek{dimension}-v0",
        her="future",
        steps=steps,
        seeds=SEEDS,
        eval_freq=2_000,
        eval_episodes=50,
        log=("csv",),
        out=out,
        config=config,
        quiet=True,
    )
    found: dict[int, list[float]] = {}
    for run in runs:
        with (run.path / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                if row["name"] == "eval/success_rate":
                    found.setdefault(int(row["step"]), []).append(float(row["value"]))
    return {step: np.array(values) for step, values in found.items()}


def test_ten_dimensions(tmp_path):
    sizes: dict[str, Any] = dict(learning_rate=1e-3, batch_size=128)
    late = lambda found: np.mean([found[step] for step in (12_000, 14_000, 16_000)])
    ours = late(success("reengage", 10, 16_000, tmp_path, reengage.Config(**SHARED, **sizes, goal_match=0.2)))
    base = late(success("ddpg", 10, 16_000, tmp_path, ddpg.Config(**SHARED, **sizes)))
    # A broken sign, no mask, or a gradient through the wrong network fails here.
    assert ours >= 0.42 and base <= 0.38 and ours - base >= 0.15


def test_five_dimensions(tmp_path):
    sizes: dict[str, Any] = dict(learning_rate=1.5e-3, batch_size=256)
    ours = success("reengage", 5, 12_000, tmp_path, reengage.Config(**SHARED, **sizes, goal_match=0.2))[12_000].mean()
    base = success("ddpg", 5, 12_000, tmp_path, ddpg.Config(**SHARED, **sizes))[12_000].mean()
    assert ours >= 0.9 and base < ours - 0.05
