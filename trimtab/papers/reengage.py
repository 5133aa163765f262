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
from trimtab.papers.recipe import Job, Results, curve, flags, plot_curves, run_jobs, select
from trimtab.run.statistics import aggregate

SHARED: dict[str, Any] = dict(gamma=0.95, learning_starts=1_000)

LATE = 3
"""Evaluations at the end of a run that its late figure is the mean of."""

SOURCE = "arXiv:2208.13298, read off its plots"


SETTINGS: dict[int, dict[str, tuple[int, float]]] = {
    5: {"DDPG": (512, 1e-3), "ReenGAGE": (512, 1.5e-3), "SAC": (8192, 2.5e-3), "ReenGAGE on SAC": (2048, 2.5e-3)},
    10: {"DDPG": (256, 5e-4), "ReenGAGE": (512, 1e-3), "SAC": (1024, 1.5e-3), "ReenGAGE on SAC": (512, 2.5e-3)},
    20: {"DDPG": (256, 5e-4), "ReenGAGE": (128, 5e-4), "SAC": (4096, 5e-4), "ReenGAGE on SAC": (8192, 2.5e-3)},
}
"""Batch size and step size of each method at scale paper: the best that the paper found for it."""


def reproduce(scale: str, out: Path, only: tuple[str, ...] = ()) -> Results:
    """Runs the comparison at one scale below `out`, in the settings `only` if given; PNGs are written there."""
    results, jobs = Results("reengage", scale), select(plan(scale), only)
    train(results, jobs, out)
    plot_curves(jobs, out, out / "curves.png", f"ReenGAGE, {scale} scale")
    if scale == "small":
        for world in dict.fromkeys(job.setting for job in jobs):
            judge(results, world)
    for setting, settings, ours, base, at in (
        ("5", "batch 256, 1.5e-3", 0.96, 0.79, "12k"),
        ("10", "batch 128, 1e-3", 0.62, 0.34, "20k"),
        ("20", "batch 128, 5e-4", 0.92, 0.50, "200k"),
    ):
        for method, value in (("DDPG", base), ("ReenGAGE", ours)):
            results.anchor(f"ContinuousSeek{setting}", method, f"success at {at}, {settings}", value, SOURCE)
    results.anchor("DriveSeek", "DDPG, ReenGAGE", "return at 40k", "14, 19.7", SOURCE)
    results.anchor("NoisySeek", "DDPG, ReenGAGE", "return at 40k", "12.7, 14.1", SOURCE)
    return results


def train(results: Results, jobs: list[Job], out: Path) -> None:
    """Runs the jobs; what each was worth at its last evaluation, at its last three and at all of them."""
    run_jobs(jobs, out)
    for job in jobs:
        _, values = curve(job, out)
        results.add(job.setting, job.method, job.seed, f"{job.measure}, last", float(values[-1]))
        results.add(job.setting, job.method, job.seed, f"{job.measure}, late", float(np.mean(values[-LATE:])))
        results.add(job.setting, job.method, job.seed, f"{job.measure}, all evaluations", float(np.mean(values)))


def judge(results: Results, world: str) -> None:
    """Holds what was found in one world of scale small against what the paper, or our measurements, let expect."""
    late, all_of_them = "success, late", "success, all evaluations"
    if world in LEARNT:
        metric, least, most, gain = LEARNT[world]
        ours, base = (float(np.mean(results.values(world, method, metric))) for method in ("ReenGAGE", "DDPG"))
        results.check(f"{world}: ReenGAGE", ours >= least, ours, least)
        if most is not None:
            results.check(f"{world}: DDPG at most", base <= most, base, most)
        results.check(f"{world}: ReenGAGE minus DDPG", ours - base >= gain, ours - base, gain)
    for where, ours, base, metric in (
        ("ContinuousSeek10", "ReenGAGE", "DDPG", late),
        ("ContinuousSeek20", "ReenGAGE", "DDPG", late),
        ("ContinuousSeek10", "ReenGAGE on SAC", "SAC", all_of_them),
    ):
        if where == world:
            above, below = (np.array(results.values(world, method, metric)) for method in (ours, base))
            gap = aggregate(above, level=0.8).iqm.low - aggregate(below, level=0.8).iqm.high
            results.check(f"{world}: gap of 80 % intervals, {ours} above {base}", gap > 0, gap, 0)
    if world in PAID:
        ours, base = (np.mean(results.values(world, m, "return, all evaluations")) for m in ("ReenGAGE", "DDPG"))
        least = float(PAID[world] * base)
        results.check(f"{world}: return, {PAID[world]:g} times DDPG's", bool(ours >= least), float(ours), least)


LEARNT: dict[str, tuple[str, float, float | None, float]] = {
    "ContinuousSeek5": ("success, last", 0.9, None, 0.05),
    "ContinuousSeek10": ("success, late", 0.42, 0.38, 0.15),
}
"""Scale small: the least success of ReenGAGE, the most of DDPG, and the least difference."""

PAID = {"DriveSeekSmall": 1.15}
"""Scale small: ReenGAGE's return on sets, over all evaluations, is at least so many times DDPG's. NoisySeek's gain
shows after more steps than scale small has."""


def plan(scale: str) -> list[Job]:
    """The runs of a scale. Smoke: ContinuousSeek5 for 3,000 steps and DriveSeekSmall for 300, one seed. Small: five
    seeds, ContinuousSeek as `SMALL` has it, both methods of a pair with the same batch and step sizes; DriveSeekSmall
    for 15,000 and NoisySeek for 3,000 steps with small networks. Paper: its steps and networks, each method's best
    batch and step size, twenty seeds (ten on SAC, five on sets and HandReach), several weights on NoisySeek.
    """
    if scale == "smoke":
        return _seek(5, 3_000, {"DDPG": (128, 1e-3), "ReenGAGE": (128, 1e-3)}, range(1)) + _sets(
            "DriveSeekSmall", 300, range(1), _SMALL
        )
    if scale == "small":
        jobs, soft_jobs = [], []
        for d, steps, settings, steps_soft, soft in SMALL:
            jobs += _seek(d, steps, {"DDPG": settings, "ReenGAGE": settings}, range(5))
            soft_jobs += _seek(d, steps_soft, {"SAC": soft, "ReenGAGE on SAC": soft}, range(5))
        jobs += _sets("DriveSeekSmall", 15_000, range(5), _SMALL)
        jobs += _sets("NoisySeek", 3_000, range(5), replace(_SMALL, exploration_noise=0.1))
        return jobs + soft_jobs
    steps = {5: 12_000, 10: 50_000, 20: 400_000}
    jobs = [job for d in steps for job in _seek(d, steps[d], SETTINGS[d], range(20))]
    jobs += _sets("DriveSeek", 160_000, range(5), reengage_sets.Config())
    noisy = reengage_sets.Config(exploration_noise=0.1)
    jobs += _sets("NoisySeek", 160_000, range(5), noisy, weights=(10.0, 50.0, 100.0))
    return jobs + hand(range(5))


SMALL: tuple[tuple[int, int, tuple[int, float], int, tuple[int, float]], ...] = (
    (20, 200_000, (128, 5e-4), 20_000, (256, 2.5e-3)),
    (10, 16_000, (128, 1e-3), 16_000, (256, 2.5e-3)),
    (5, 12_000, (256, 1.5e-3), 12_000, (256, 1.5e-3)),
)
"""Scale small: numbers of ContinuousSeek, then steps, batch size and step size of the pair on DDPG and of that on SAC.
The longest come first, so that no core waits for them at the end. On SAC 20 numbers take batches of thousands and more
steps than two cores can do: these runs show only what they cost."""


def _seek(d: int, steps: int, settings: dict[str, tuple[int, float]], seeds: range) -> list[Job]:
    """The methods of `settings`, each with its batch and step size."""
    env, options = f"trimtab/ContinuousSeek{d}-v0", dict(steps=steps, her="future", **_often(steps), eval_episodes=50)
    noise: dict[str, Any] = dict(exploration_noise=0.03)
    kinds: dict[str, tuple[str, Any]] = {
        "DDPG": ("ddpg", ddpg.Config(**noise)),
        "ReenGAGE": ("reengage", reengage.Config(**noise)),
        "SAC": ("sac", sac.Config()),
        "ReenGAGE on SAC": ("reengage-sac", reengage_sac.Config()),
    }
    jobs = []
    for method, (batch, rate) in settings.items():
        agent, config = kinds[method]
        config = replace(config, batch_size=batch, learning_rate=rate, buffer_size=steps, **SHARED)
        chosen = seeds[:10] if method.endswith("SAC") else seeds
        jobs += _together(f"ContinuousSeek{d}", method, chosen, flags(agent, env, config, **options), "success")
    return jobs


def _together(setting: str, method: str, seeds: range, words: tuple[str, ...], measure: str) -> list[Job]:
    """Own worlds need no host: their seeds train side by side."""
    group = tuple(seeds) if len(seeds) > 1 else ()
    return [Job(setting, method, seed, words, measure, group) for seed in seeds]


_SMALL = reengage_sets.Config(encoder=(128, 128), hidden=(128,), batch_size=64, buffer_size=10_000)


def _sets(
    name: str, steps: int, seeds: range, config: reengage_sets.Config, weights: tuple[float, ...] = (10.0,)
) -> list[Job]:
    """Multi-ReenGAGE with each of `weights`, and itself without the match: DDPG on sets. There is nothing to
    relabel."""
    config = replace(config, learning_starts=min(config.learning_starts, steps // 3))
    named = {"ReenGAGE" if weight == weights[0] else f"ReenGAGE, alpha {weight:g}": weight for weight in weights}
    methods = {m: replace(config, goal_match=weight) for m, weight in ({"DDPG": 0.0} | named).items()}
    options = dict(steps=steps, **_often(steps), eval_episodes=100)
    words = {m: flags("reengage-sets", f"trimtab/{name}-v0", chosen, **options) for m, chosen in methods.items()}
    return [job for method in methods for job in _together(name, method, seeds, words[method], "return")]


def hand(seeds: range, steps: int = 50 * 50 * 2 * 50 * 19) -> list[Job]:
    """HandReach, for the steps of the paper's fifty epochs. Its nineteen workers average their gradients: one update on
    as many batches of 256, forty for every 1,900 steps. There the targets move once after the forty, by 0.05; here at
    each, by as much in all. Not the paper's: inputs are not normalised, targets not clipped to [-50, 0], twenty
    evaluations and not fifty, and an episode is a success by any of its steps and not by its last."""
    env = "gymnasium_robotics:HandReach-v3"
    shared: dict[str, Any] = dict(gamma=0.98, tau=1.0 - 0.95 ** (1 / 40), learning_rate=1e-3, batch_size=19 * 256)
    noise: dict[str, Any] = dict(exploration_noise=0.2, random_actions=0.3, action_l2=1.0, learning_starts=1_900)
    sizes: dict[str, Any] = dict(hidden=(256, 256, 256), **noise, **shared)
    configs: dict[str, tuple[str, Any]] = {
        "DDPG": ("ddpg", ddpg.Config(**sizes)),
        "ReenGAGE": ("reengage", reengage.Config(goal_scale="std", goal_match=0.1, **sizes)),
    }
    options: dict[str, Any] = dict(
        steps=steps, her="future", updates_per_step=40 / 1900, **_often(steps), eval_episodes=50
    )
    return [
        Job("HandReach", method, seed, flags(agent, env, config, **options), "success")
        for seed in seeds
        for method, (agent, config) in configs.items()
    ]


def _often(steps: int) -> dict[str, int]:
    """2,000 steps between evaluations, or a twentieth of a long run and half of a short one; a quarter between
    checkpoints."""
    return dict(eval_freq=min(max(2_000, steps // 20), steps // 2), checkpoint_freq=max(1, steps // 4))
