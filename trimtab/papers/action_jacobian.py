"""Smooth policies by a penalty on the action Jacobian, and linear policies (arXiv:2602.18312), on Arm-track.

PPO with a plain network, with the penalty, with a time-varying linear policy, and with both. Judged by twenty
deterministic episodes of ten seconds under noise and pushes: reward, power of the control above 10 Hz, changes of the
control, jerk of the joints; reward also after a third of the training. Smoke: plain and both, one seed. Small: all
four, and the plain network where the squared change of the control is taken off the reward, by three weights, two
seeds; and a trotting quadruped in MuJoCo with the first and the last of the four, judged by twenty episodes of five
seconds, and by how many of these it does not fall. Paper: also other weights of the penalty and ranks 2 and 4, three
seeds. Every seed is held to the bounds: what is compared is the worst of ours with the best of the plain network's.
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

TROT_WEIGHT = 100.0
"""The same for the trot: contacts with the ground are in the joints' rates, and a gain of any size passes them on. What
other weights give is on the page of the method."""

TROT, TROT_ENV, TROT_STEPS = "QuadrupedTrot", "trimtab/QuadrupedTrot-v0", 300

POWER, CHANGES, KEPT = "power above 10 Hz, %", "changes of control", "does not fall"

EARLY_STEPS = 204_800
EARLY = f"reward after {EARLY_STEPS:,} steps"

OURS = "linear, penalty"
MAIN = ("plain", "penalty", "linear", OURS, "change 0.01", "change 0.1", "change 1")
"""What is plotted."""

WEIGHTS = (0.02, 0.06, 2.0)
"""Other weights of the penalty, a decade down and up among them."""

CHANGE_WEIGHTS = ("0.01", "0.1", "1")
"""Of the squared change of the control, as worlds are named by them."""

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
            early = api.load(folder(job, out), checkpoint_name=f"evaluated/step_{EARLY_STEPS}").agent.policy
            found[EARLY] = judge(early)[0]["reward"]
            controls.setdefault(job.method, control)
        for name, value in found.items():
            results.add(job.setting, job.method, job.seed, name, value)
    shown = [job for job in jobs if job.method in MAIN]
    plot_curves(shown, out, out / "curves.png", f"Action Jacobian, {scale} scale")
    _plot_spectra({method: controls[method] for method in MAIN if method in controls}, out / "spectra.png")
    check(results)
    for method, ratio in (("plain", 0.19), ("penalty", 0.02), ("linear", 0.09), (OURS, 0.01), ("change 0.1", 0.08)):
        results.anchor("ArmTrack", method, POWER, ratio, SOURCE)
    return results


def check(results: Results) -> None:
    """Holds the worst seed to what was claimed, of the methods that have rows."""
    arm = lambda method, name: results.values("ArmTrack", method, name)

    def least(name: str, value: float, threshold: float) -> None:
        results.check(f"{name}, at least", value >= threshold, value, threshold)

    def most(name: str, value: float, threshold: float) -> None:
        results.check(f"{name}, at most", value <= threshold, value, threshold)

    plain = min(arm("plain", POWER))
    least("plain: reward", min(arm("plain", "reward")), 0.99)
    least(f"plain: {POWER}", plain, 0.1)
    most(f"{OURS}: {POWER}", max(arm(OURS, POWER)), 0.03)
    for method, reward, ratio in ((OURS, 0.993, 5.0), ("penalty", 0.99, 3.0)):
        if arm(method, "reward"):
            least(f"{method}: reward", min(arm(method, "reward")), reward)
            least(f"plain over {method}, {POWER}", plain / max(*arm(method, POWER), 1e-6), ratio)
            smoother = min(arm("plain", CHANGES)) / max(*arm(method, CHANGES), 1e-12)
            least(f"plain over {method}, {CHANGES}", smoother, 1.4)
    weights = [f"{OURS} {w}" for w in WEIGHTS]
    if all(arm(method, "reward") for method in weights):  # no tuning
        for method in (OURS, *weights):
            least(f"{method}: reward, any weight", min(arm(method, "reward")), 0.985)
        for method in (OURS, *weights[1:]):  # the decade down is too little for that
            most(f"{method} over plain, {POWER}, any weight", max(arm(method, POWER)) / plain, 0.35)
    changes = [f"change {w}" for w in CHANGE_WEIGHTS]
    if all(arm(method, "reward") for method in changes):  # its rival does need tuning
        powers = [float(np.mean(arm(method, POWER))) for method in changes]
        least(f"change: {POWER}, largest over smallest of the weights", max(powers) / max(min(powers), 1e-6), 3.0)
    trot = lambda method, name: results.values(TROT, method, name)
    if trot(OURS, KEPT):
        least(f"trot, {OURS}: {KEPT}", min(trot(OURS, KEPT)), 0.8)
        if trot(OURS, POWER) and trot("plain", POWER):
            most(f"trot, {OURS} over plain, {POWER}", max(trot(OURS, POWER)) / min(trot("plain", POWER)), 0.5)


def plan(scale: str) -> list[Job]:
    """The runs of a scale."""
    linear = replace(PLAIN, network="linear")
    methods = {"plain": PLAIN, OURS: replace(linear, jacobian_weight=WEIGHT)}
    if scale != "smoke":
        methods |= {"penalty": replace(PLAIN, jacobian_weight=WEIGHT), "linear": linear}
    if scale == "paper":
        methods |= {f"{OURS} {w}": replace(linear, jacobian_weight=w) for w in WEIGHTS}
        methods |= {f"{OURS}, rank {r}": replace(linear, jacobian_weight=WEIGHT, rank=r) for r in (2, 4)}
    tried = [(method, ENV, config) for method, config in methods.items()]
    if scale != "smoke":
        tried += [(f"change {w}", f"trimtab/ArmTrackChange{w}-v0", PLAIN) for w in CHANGE_WEIGHTS]
    options: dict[str, Any] = dict(steps=614_400, num_envs=64, eval_freq=EARLY_STEPS, checkpoint_freq=EARLY_STEPS)
    options |= dict(eval_episodes=20, log_freq=20_480)
    seeds = range({"smoke": 1, "small": 2, "paper": 3}[scale])
    arm = [
        Job("ArmTrack", method, seed, (*flags("ppo", env, config, **options), "--keep-evaluated"))
        for method, env, config in tried
        for seed in seeds
    ]
    if scale == "smoke":
        return arm
    options = dict(steps=491_520, num_envs=16, eval_freq=163_840, checkpoint_freq=163_840)
    sizes: dict[str, Any] = dict(n_steps=256, batch_size=512, hidden=(128, 128), normalise_obs=True)
    tracked = {"plain": PLAIN, OURS: replace(linear, jacobian_weight=TROT_WEIGHT)}
    trot = [
        Job(TROT, method, seed, flags("ppo", TROT_ENV, replace(config, **sizes), **options))
        for method, config in tracked.items()
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
        CHANGES: mean("action_smoothness"),
        "jerk": mean("jerk"),
    }, control[0]


def judge_trot(policy: api.Policy, episodes: int = EPISODES) -> dict[str, float]:
    """Reward a step and smoothness of a policy that follows the trot, and how many of its episodes it does not fall.

    Smoothness is of the episodes that last a second, below which there is nothing to tell frequencies by; if none does,
    it is left out.
    """
    make = find(TROT_ENV).make
    assert make is not None
    env, rewards, lengths, reports = make(None), [], [], []
    for seed in range(episodes):
        (obs, _), controls, positions, over = env.reset(seed=seed), [], [], False
        while not over:
            action, _ = policy.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, info = env.step(action)
            rewards.append(float(reward))
            controls.append(info["target"])
            positions.append(info["position"])
            over = terminated or truncated
        lengths.append(len(controls))
        if len(controls) >= RATE:
            reports.append(smoothness_report(np.array(controls), np.array(positions), 1.0 / RATE))
    env.close()
    found = {
        "reward": float(np.mean(rewards)),
        KEPT: float(np.mean(np.array(lengths) == TROT_STEPS)),
        "lasts a second": len(reports) / episodes,
    }
    names = {POWER: "high_frequency_ratio", CHANGES: "action_smoothness", "jerk": "jerk"}
    return found | {name: float(np.mean([report[of] for report in reports])) for name, of in names.items() if reports}


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
