"""Smooth policies by a penalty on the action Jacobian, and linear policies (arXiv:2602.18312), on Arm-track.

PPO with a plain network, with the penalty, with a time-varying linear policy, and with both. Judged by twenty
deterministic episodes of ten seconds under noise and pushes: reward, power of the control above 10 Hz, changes of the
control, jerk of the joints. Smoke: plain and both, one seed. Small: all four, two seeds, and a trotting quadruped in
MuJoCo with the first and the last of them, judged by twenty episodes of five seconds, and by how many of these it does
not fall. Paper: also weights a decade below and above, and a full rank against ranks 2 and 4, three seeds.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.random as jr
import numpy as np

from trimtab import api
from trimtab.agents.ppo import Config
from trimtab.core import AbstractPolicy
from trimtab.diagnostics.smoothness import smoothness_report
from trimtab.envs.arm_track import RATE, ArmTrack
from trimtab.envs.make import find
from trimtab.papers.recipe import COLOURS, Job, Results, flags, folder, plot_curves, run_jobs, save_png

ENV = "trimtab/ArmTrack-v0"
EPISODES, STEPS = 20, 600

PLAIN = Config(
    n_steps=64,
    batch_size=512,
    n_epochs=5,
    gamma=0.97,
    activation="elu",
    log_std_init=-2.0,
    normalise_obs=False,
    normalise_reward=False,
)
WEIGHT = 0.2
"""w_J by the mean over actions: 0.1 of the squared norm for two joints."""

TROT, TROT_ENV, TROT_STEPS = "QuadrupedTrot", "trimtab/QuadrupedTrot-v0", 300

POWER = "power above 10 Hz, %"

SOURCE = "a prototype of ours, 614k steps"


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results, jobs = Results("action-jacobian", scale), plan(scale)
    run_jobs(jobs, out)
    controls: dict[str, np.ndarray] = {}
    for job in jobs:
        if job.setting == TROT:
            found = judge_trot(api.load(folder(job, out)))
        else:
            found, control = judge(api.load(folder(job, out)).agent.policy)
            controls.setdefault(job.method, control)
        for name, value in found.items():
            results.add(job.setting, job.method, job.seed, name, value)
    plot_curves(jobs, out, out / "curves.png", f"Action Jacobian, {scale} scale")
    _plot_spectra(controls, out / "spectra.png")
    values = lambda method, name: results.values("ArmTrack", method, name)
    least = min(values("linear, penalty", "reward"))
    results.check("linear with penalty: reward", least >= 0.993, least, 0.993)
    ours, plain = float(np.mean(values("linear, penalty", POWER))), float(np.mean(values("plain", POWER)))
    results.check("linear with penalty: power above 10 Hz, at most", ours <= 0.03, ours, 0.03)
    results.check("plain: power above 10 Hz", plain >= 0.1, plain, 0.1)
    results.check("plain over linear with penalty, power above 10 Hz", plain / ours >= 5.0, plain / ours, 5.0)
    for method, ratio in (("plain", 0.19), ("penalty", 0.02), ("linear", 0.09), ("linear, penalty", 0.01)):
        results.anchor("ArmTrack", method, POWER, ratio, SOURCE)
    if any(job.setting == TROT for job in jobs):
        values = lambda method, name: float(np.mean(results.values(TROT, method, name)))
        kept = values("linear, penalty", "does not fall")
        results.check("trot, linear with penalty: does not fall", kept >= 0.8, kept, 0.8)
        share = values("linear, penalty", POWER) / values("plain", POWER)
        results.check("trot, linear with penalty over plain, power above 10 Hz, at most", share <= 0.5, share, 0.5)
    return results


def plan(scale: str) -> list[Job]:
    """The runs of a scale."""
    linear = replace(PLAIN, network="linear")
    methods = {"plain": PLAIN, "linear, penalty": replace(linear, jacobian_weight=WEIGHT)}
    if scale != "smoke":
        methods |= {"penalty": replace(PLAIN, jacobian_weight=WEIGHT), "linear": linear}
    if scale == "paper":
        methods |= {f"linear, penalty {w}": replace(linear, jacobian_weight=w) for w in (0.02, 2.0)}
        methods |= {f"linear, penalty, rank {r}": replace(linear, jacobian_weight=WEIGHT, rank=r) for r in (2, 4)}
    options: dict[str, Any] = dict(steps=614_400, num_envs=64, eval_freq=122_880, checkpoint_freq=204_800)
    options |= dict(eval_episodes=20, log_freq=20_480)
    seeds = range({"smoke": 1, "small": 2, "paper": 3}[scale])
    arm = [
        Job("ArmTrack", method, seed, flags("ppo", ENV, config, **options))
        for method, config in methods.items()
        for seed in seeds
    ]
    if scale == "smoke":
        return arm
    options = dict(steps=491_520, num_envs=16, eval_freq=163_840, checkpoint_freq=163_840)
    sizes: dict[str, Any] = dict(n_steps=256, batch_size=512, hidden=(128, 128), normalise_obs=True)
    trot = [
        Job(TROT, method, seed, flags("ppo", TROT_ENV, replace(methods[method], **sizes), **options))
        for method in ("plain", "linear, penalty")
        for seed in seeds
    ]
    return arm + trot


def judge(policy: AbstractPolicy, noise: float = 1.0) -> tuple[dict[str, float], np.ndarray]:
    """Reward and smoothness of a policy, and the control of its first episode (steps, joints)."""
    world = ArmTrack.create(noise)

    def episode(key: Any) -> Any:
        state, obs = world.reset(key)

        def step(carry: Any, key: Any) -> Any:
            state, obs = carry
            state, out = world.step(state, policy(obs, key), key)
            return (state, out.obs), (out.reward, out.info["target"], out.info["position"])

        return jax.lax.scan(step, (state, obs), jr.split(key, STEPS))[1]

    reward, control, position = map(np.asarray, jax.jit(jax.vmap(episode))(jr.split(jr.key(0), EPISODES)))
    reports = [smoothness_report(u, q, 1.0 / RATE) for u, q in zip(control, position, strict=True)]
    mean = lambda name: float(np.mean([report[name] for report in reports]))
    return {
        "reward": float(reward.mean()),
        POWER: mean("high_frequency_ratio"),
        "changes of control": mean("action_smoothness"),
        "jerk": mean("jerk"),
    }, control[0]


def judge_trot(policy: api.Policy) -> dict[str, float]:
    """Reward a step and smoothness of a policy that follows the trot, and how many of its episodes it does not fall."""
    make = find(TROT_ENV).make
    assert make is not None
    env, rewards, lengths, reports = make(None), [], [], []
    for seed in range(EPISODES):
        (obs, _), controls, positions, over = env.reset(seed=seed), [], [], False
        while not over:
            action, _ = policy.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, info = env.step(action)
            rewards.append(float(reward))
            controls.append(info["target"])
            positions.append(info["position"])
            over = terminated or truncated
        lengths.append(len(controls))
        if len(controls) >= RATE:  # a second, or there is nothing to tell frequencies by
            reports.append(smoothness_report(np.array(controls), np.array(positions), 1.0 / RATE))
    env.close()
    mean = lambda name: float(np.mean([report[name] for report in reports])) if reports else float("nan")
    return {
        "reward": float(np.mean(rewards)),
        "does not fall": float(np.mean(np.array(lengths) == TROT_STEPS)),
        POWER: mean("high_frequency_ratio"),
        "changes of control": mean("action_smoothness"),
        "jerk": mean("jerk"),
    }


def _plot_spectra(controls: dict[str, np.ndarray], path: Path) -> None:
    """Power of the control by frequency, one line a method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(5.0, 3.4))
    for (method, control), colour in zip(controls.items(), COLOURS, strict=False):
        centred = (control - control.mean(0)) * np.hanning(len(control))[:, None]
        power = np.square(np.abs(np.fft.rfft(centred, axis=0))).sum(1)
        panel.semilogy(np.fft.rfftfreq(len(control), 1.0 / RATE), power, color=colour, lw=0.8, label=method)
    panel.axvline(10.0, color="grey", lw=0.5)
    panel.set(xlabel="Hz", ylabel="power of the control")
    panel.legend(fontsize=8)
    figure.tight_layout()
    save_png(figure, path)
