"""ReenGAGE (arXiv:2208.13298): matching the gradient by the goal, on worlds with goals of many numbers.

1. ContinuousSeek with 5, 10 and 20 numbers: DDPG and SAC with hindsight against ReenGAGE on each.
2. DriveSeek and NoisySeek: many goals at once, DDPG on sets against Multi-ReenGAGE.
3. HandReach (paper only): DDPG with hindsight against ReenGAGE with goals in units of their standard deviation.

Single-goal runs are judged by their success rate, the others by their return.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.agents import ddpg, reengage, reengage_sac, reengage_sets, sac
from trimtab.papers.recipe import Job, Results, curve, flags, plot_curves, run_jobs

SHARED: dict[str, Any] = dict(gamma=0.95, learning_starts=1_000)

LATE = 3
"""Evaluations at the end of a run that its figure is the mean of."""

SOURCE = "arXiv:2208.13298, read off its plots"


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results, jobs = Results("reengage", scale), plan(scale)
    run_jobs(jobs, out)
    for job in jobs:
        _, values = curve(job, out)
        results.add(job.setting, job.method, job.seed, f"{job.measure}, late", float(np.mean(values[-LATE:])))
    plot_curves(jobs, out, out / "curves.png", f"ReenGAGE, {scale} scale")
    if scale == "small":
        _judge(results)
    for setting, ours, base, at in (("5", 0.96, 0.79, "12k"), ("10", 0.62, 0.34, "20k"), ("20", 0.92, 0.50, "200k")):
        results.anchor(f"ContinuousSeek{setting}", "DDPG", f"success at {at}", base, SOURCE)
        results.anchor(f"ContinuousSeek{setting}", "ReenGAGE", f"success at {at}", ours, SOURCE)
    results.anchor("DriveSeek", "DDPG, ReenGAGE", "return at 40k", "14, 19.7", SOURCE)
    results.anchor("NoisySeek", "DDPG, ReenGAGE", "return at 40k", "12.7, 14.1", SOURCE)
    return results


def _judge(results: Results) -> None:
    mean = lambda method: float(np.mean(results.values("ContinuousSeek10", method, "success, late")))
    ours, base = mean("ReenGAGE"), mean("DDPG")
    results.check("ContinuousSeek10: ReenGAGE", ours >= 0.42, ours, 0.42)
    results.check("ContinuousSeek10: ReenGAGE minus DDPG", ours - base >= 0.15, ours - base, 0.15)


def plan(scale: str) -> list[Job]:
    """The runs of a scale. Smoke: ContinuousSeek5 for 3,000 steps and DriveSeekSmall for 300, one seed. Small: five
    seeds, ContinuousSeek for 12,000, 16,000 and (far less than it needs) 30,000 steps, DriveSeekSmall and NoisySeek
    with small networks for 3,000. Paper: its steps and networks, twenty seeds (ten on SAC, five on sets and HandReach).
    """
    if scale == "smoke":
        return _seek(5, 3_000, 128, 1e-3, range(1), soft=False) + _sets("DriveSeekSmall", 300, range(1), _SMALL)
    if scale == "small":
        seek = [(5, 12_000, 256, 1.5e-3), (10, 16_000, 128, 1e-3), (20, 30_000, 128, 5e-4)]
        jobs = [job for setting in seek for job in _seek(*setting, range(5), soft=True)]
        return jobs + [j for name in ("DriveSeekSmall", "NoisySeek") for j in _sets(name, 3_000, range(5), _SMALL)]
    seek = [(5, 12_000, 512, 1.5e-3), (10, 50_000, 512, 1e-3), (20, 400_000, 128, 5e-4)]
    jobs = [job for setting in seek for job in _seek(*setting, range(20), soft=True)]
    jobs += _sets("DriveSeek", 160_000, range(5), reengage_sets.Config())
    jobs += _sets("NoisySeek", 160_000, range(5), reengage_sets.Config(exploration_noise=0.1))
    return jobs + _hand(range(5))


def _seek(d: int, steps: int, batch: int, rate: float, seeds: range, *, soft: bool) -> list[Job]:
    env, sizes = f"trimtab/ContinuousSeek{d}-v0", dict(batch_size=batch, learning_rate=rate, buffer_size=steps)
    shared: dict[str, Any] = SHARED | sizes
    configs: dict[str, tuple[str, Any]] = {
        "DDPG": ("ddpg", ddpg.Config(exploration_noise=0.03, **shared)),
        "ReenGAGE": ("reengage", reengage.Config(exploration_noise=0.03, **shared)),
    }
    if soft:
        configs["SAC"] = ("sac", sac.Config(**shared))
        configs["ReenGAGE on SAC"] = ("reengage-sac", reengage_sac.Config(**shared))
    options: dict[str, Any] = dict(steps=steps, her="future", **_often(steps), eval_episodes=50)
    jobs = []
    for method, (agent, config) in configs.items():
        chosen = seeds[:10] if method.endswith("SAC") else seeds
        words = flags(agent, env, config, **options)
        jobs += _together(f"ContinuousSeek{d}", method, chosen, words, "success")
    return jobs


def _together(setting: str, method: str, seeds: range, words: tuple[str, ...], measure: str) -> list[Job]:
    """Own worlds need no host: their seeds train side by side."""
    group = tuple(seeds) if len(seeds) > 1 else ()
    return [Job(setting, method, seed, words, measure, group) for seed in seeds]


_SMALL = reengage_sets.Config(encoder=(128, 128), hidden=(128,), batch_size=64, buffer_size=10_000)


def _sets(name: str, steps: int, seeds: range, config: reengage_sets.Config) -> list[Job]:
    """Multi-ReenGAGE, and itself without the match: DDPG on sets. There is nothing to relabel."""
    config = replace(config, learning_starts=min(config.learning_starts, steps // 3))
    methods = {"DDPG": replace(config, goal_match=0.0), "ReenGAGE": config}
    options = dict(steps=steps, **_often(steps), eval_episodes=100)
    words = {m: flags("reengage-sets", f"trimtab/{name}-v0", chosen, **options) for m, chosen in methods.items()}
    return [job for method in methods for job in _together(name, method, seeds, words[method], "return")]


def _hand(seeds: range) -> list[Job]:
    """HandReach for the steps of the paper's fifty epochs. Its nineteen workers average their gradients: one update on
    as many batches of 256, forty for every 1,900 steps."""
    env = "gymnasium_robotics:HandReach-v3"
    shared: dict[str, Any] = dict(gamma=0.98, tau=0.05, learning_rate=1e-3, batch_size=19 * 256)
    sizes: dict[str, Any] = dict(hidden=(256, 256, 256), exploration_noise=0.2, learning_starts=1_900, **shared)
    configs: dict[str, tuple[str, Any]] = {
        "DDPG": ("ddpg", ddpg.Config(**sizes)),
        "ReenGAGE": ("reengage", reengage.Config(goal_scale="std", goal_match=0.1, **sizes)),
    }
    steps = 50 * 50 * 2 * 50 * 19
    options: dict[str, Any] = dict(
        steps=steps, her="future", updates_per_step=40 / 1900, **_often(steps), eval_episodes=50
    )
    return [
        Job("HandReach", method, seed, flags(agent, env, config, **options), "success")
        for seed in seeds
        for method, (agent, config) in configs.items()
    ]


def _often(steps: int) -> dict[str, int]:
    """An eighth of a run between evaluations, a quarter between checkpoints."""
    return dict(eval_freq=max(1, steps // 8), checkpoint_freq=max(1, steps // 4))
