"""SAC Flow (arXiv:2509.25756): the gradient through a flow's rollout, and what its form does to learning.

1. Stress: random velocity networks whose last layer is multiplied by c; G_0 / G_{K-1} of each form.
2. From scratch: naive flow, Flow-G, Flow-T and a Gaussian SAC on Pendulum and MuJoCo tasks.
3. Offline to online (small and paper): behaviour cloning by a flow against SAC Flow on action chunks.

The paper's results are curves without a table: what stands beside ours are its statements.
"""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from trimtab.agents import sac, sac_flow, sac_flow_chunked
from trimtab.core import Spec
from trimtab.diagnostics.rollout_grad import rollout_grad_norms
from trimtab.nets.linear import Linear
from trimtab.nets.mlp import MLP
from trimtab.papers.recipe import Job, Results, curve, flags, make_data, plot_curves, run_jobs, save_png
from trimtab.policies.flow import ConstStd, DecoderVelocity, FlowPolicy, GatedVelocity, MLPVelocity
from trimtab.policies.velocity import AbstractVelocity

STRESS_SEEDS, STRESS_STEPS, STRESS_FACTORS, STRESS_WIDTH = 10, (4, 20), (1.0, 8.0, 16.0), 128

FORMS = ("naive", "Flow-G", "Flow-G, tanh candidate", "Flow-T, pre_ln", "Flow-T, post_ln")

CLONING = "flow BC (no RL)"

FLOWS = {"naive flow": "mlp", "Flow-G": "gated", "Flow-T": "decoder"}


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results = Results("sac-flow", scale)
    stress(results, out)
    offline = offline_to_online(scale, out / "data")
    jobs = from_scratch(scale) + offline
    for name in dict.fromkeys(data_name(job.setting) for job in offline):
        make_data(name, out / "data", episodes=100 if scale == "small" else None)
    run_jobs(jobs, out)
    for job in jobs:
        _, values = curve(job, out)
        results.add(job.setting, job.method, job.seed, f"{job.measure} at the end", float(values[-1]))
    plot_curves(jobs, out, out / "curves.png", f"SAC Flow, {scale} scale")
    _judge(results, scale)
    source = "arXiv:2509.25756, text and curves"
    results.anchor("Ant-v4", "naive flow", "gradient norm", "grows about 10x from step 3 to step 0", source)
    results.anchor("Ant-v4", "naive flow", "return", "collapses", source)
    results.anchor("5 of 6 MuJoCo tasks", "Flow-G, Flow-T", "return", "best or comparable; not on Humanoid", source)
    return results


def _judge(results: Results, scale: str) -> None:
    if scale == "paper":  # its claims are curves: they are read, not checked
        return
    median = lambda method: float(np.median(results.values("Pendulum-v1", method, "return at the end")))
    for method in ("Flow-G",) if scale == "smoke" else ("Flow-G", "Flow-T"):
        # At half the steps, as in smoke, the gated flow is only on its way.
        least, gap = (0.0 if scale == "smoke" else 500.0), median(method) - median("naive flow")
        results.check(f"Pendulum-v1: median of {method} minus naive", gap >= least, gap, least)
        if scale == "small":
            results.check(f"Pendulum-v1: median of {method}", median(method) >= -450, median(method), -450.0)
    for setting in dict.fromkeys(row["setting"] for row in results.rows if row["metric"] == "success at the end"):
        mean = lambda method, at=setting: float(np.mean(results.values(at, method, "success at the end")))
        for method in ("Flow-G", "Flow-T"):
            gain = mean(method) - mean(CLONING)
            results.check(f"{setting}: {method} above {CLONING}", gain >= 0.15, gain, 0.15)
        gap = mean("naive flow") - mean("Flow-T")
        results.check(f"{setting}: naive flow not above Flow-T", gap <= 0.0, gap, 0.0)


def from_scratch(scale: str) -> list[Job]:
    """The training runs of a scale. Smoke: Pendulum, one seed, Flow-G and naive. Small: three tasks, three seeds, all
    four methods, shortened, on MuJoCo with batches of 128. Paper: six MuJoCo tasks, five seeds, the paper's sizes."""
    if scale == "smoke":
        sizes = {"Pendulum-v1": 10_000}
        methods, seeds = ("Flow-G", "naive flow"), (0,)
    elif scale == "small":
        sizes = {"Pendulum-v1": 12_000, "Hopper-v5": 9_000, "HalfCheetah-v5": 9_000}
        methods, seeds = ("Flow-G", "Flow-T", "naive flow", "Gaussian SAC"), (0, 1, 2)
    else:
        tasks = ("Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid", "HumanoidStandup")
        sizes = {f"{task}-v5": 1_000_000 for task in tasks}
        methods, seeds = ("Flow-G", "Flow-T", "naive flow", "Gaussian SAC"), (0, 1, 2, 3, 4)
    return [
        Job(env, method, seed, _flags(env, method, steps, scale))
        for env, steps in sizes.items()
        for seed in seeds
        for method in methods
    ]


def offline_to_online(scale: str, data: Path) -> list[Job]:
    """The runs from data to online of a scale, on data sets in `data`. Small: cube-single with 100 episodes, small
    networks and batches, one seed. Paper: cube-double and cube-triple at their official sizes, the paper's beta."""
    if scale == "smoke":
        return []
    if scale == "small":
        config = sac_flow_chunked.Config(d_model=64, batch_size=128, buffer_size=200_000, learning_starts=1_000)
        plans, seeds = [("cube-single-play-singletask-task2-v0", config)], (0,)
        offline, online, episodes = 20_000, 10_000, 25
    else:
        large = sac_flow_chunked.Config(hidden=(512,) * 4)
        betas = {"cube-double": 300.0, "cube-triple": 100.0}
        plans = [
            (f"{name}-play-singletask-task{task}-v0", replace(large, beta=beta))
            for name, beta in betas.items()
            for task in range(1, 6)
        ]
        seeds, offline, online, episodes = (0, 1, 2, 3, 4), 1_000_000, 1_000_000, 50
    jobs = []
    for env, config in plans:
        source = dict(dataset=str(data / f"{data_name(env)}.npz"), eval_episodes=episodes, eval_freq=offline // 4)
        for seed in seeds:
            cloning = flags("sac-flow-chunked", env, replace(config, rl=False), offline_steps=offline, **source)
            jobs.append(Job(env, CLONING, seed, cloning, "success"))
            for method, velocity in FLOWS.items():
                # The paper's naive flow takes 10 steps there.
                steps = 10 if velocity == "mlp" else 4
                chosen = replace(config, velocity=velocity, flow_steps=steps)
                both = dict(offline_steps=offline, online_steps=online)
                line = flags("sac-flow-chunked", env, chosen, **both, **source)
                jobs.append(Job(env, method, seed, line, "success"))
    return jobs


def data_name(env: str) -> str:
    """The data set of a task: "cube-single-play-singletask-task2-v0" is a task of "cube-single-play-v0"."""
    return re.sub(r"-singletask(-task\d)?", "", env)


def _flags(env: str, method: str, steps: int, scale: str) -> tuple[str, ...]:
    options = dict(steps=steps, eval_freq=steps // 10, checkpoint_freq=steps // 5)
    batch = 128 if scale == "small" and env != "Pendulum-v1" else 256
    if method == "Gaussian SAC":
        config = sac.Config(learning_starts=1_000, batch_size=batch)
        if scale == "paper":
            config = sac.Config(hidden=(512,) * 4, batch_size=512, learning_starts=50_000)
        return flags("sac", env, config, **options)
    config = sac_flow.Config(velocity=FLOWS[method], batch_size=batch)
    if scale == "paper":
        config = paper_config(FLOWS[method])
    return flags("sac-flow", env, config, **options)


def paper_config(velocity: str) -> sac_flow.Config:
    """The paper's sizes from scratch (widths of the actor as in its table, of the naive flow as in its text)."""
    return sac_flow.Config(
        velocity=velocity,
        width=256 if velocity == "mlp" else 128,
        hidden=(1024, 1024),
        batch_size=512,
        learning_starts=50_000,
        policy_delay=3,
    )


# The stress table


def stress(results: Results, out: Path, seeds: int = STRESS_SEEDS) -> None:
    """Adds G_0 / G_{K-1} for each form, K and c to `results`, with its checks and a picture."""
    for steps in STRESS_STEPS:
        for factor in STRESS_FACTORS:
            for form in FORMS:
                for seed in range(seeds):
                    norms = stress_norms(form, factor, steps, seed)
                    results.add(
                        f"stress K={steps} c={factor:g}", form, seed, "G_0/G_{K-1}", float(norms[0] / norms[-1])
                    )
    mean = lambda form, steps, c: float(np.mean(results.values(f"stress K={steps} c={c}", form, "G_0/G_{K-1}")))
    results.check("stress K=20 c=8: Flow-G", mean("Flow-G", 20, 8) <= 1.0, mean("Flow-G", 20, 8), 1.0)
    results.check("stress K=20 c=8: naive", mean("naive", 20, 8) >= 1.8, mean("naive", 20, 8), 1.8)
    bounded = max(mean("Flow-G, tanh candidate", steps, f"{c:g}") for steps in STRESS_STEPS for c in STRESS_FACTORS)
    results.check("stress: Flow-G with a tanh candidate, largest", bounded < 0.6, bounded, 0.6)
    _plot_stress(out / "stress.png")


def stress_norms(form: str, factor: float, steps: int, seed: int) -> np.ndarray:
    """G_0 .. G_{K-1} of a random network (obs 17, act 6), loss u . x_K along the ODE."""
    return np.asarray(_stress_norms(form, jnp.float32(factor), steps, jr.key(seed)))


@partial(jax.jit, static_argnames=("form", "steps"))
def _stress_norms(form: str, factor: Array, steps: int, key: Array) -> Array:
    k_net, k_obs, k_start, k_loss = jr.split(key, 4)
    spec = Spec(jax.ShapeDtypeStruct((17,), jnp.float32), 6, False, (-1.0,) * 6, (1.0,) * 6)
    # The smallest noise stands for none: rollout_grad_norms measures rollouts with noise.
    policy = FlowPolicy.create(spec, _stressed(form, factor, spec, k_net), ConstStd(1e-6, drift_corrected=False), steps)
    u = jr.normal(k_loss, (6,))
    return rollout_grad_norms(policy, lambda r: r.path[-1] @ u, jr.normal(k_obs, (256, 17)), k_start)


def _stressed(form: str, factor: Array, spec: Spec, key: Array) -> AbstractVelocity:
    width = STRESS_WIDTH
    if form == "naive":
        naive = MLPVelocity.create(spec, key, hidden=(width, width), input_norm=False, std_head=False)
        return replace(naive, net=_louder(naive.net, factor))
    if form.startswith("Flow-G"):
        bound = 1.0 if "tanh" in form else None
        gated = GatedVelocity.create(spec, key, hidden=(width,), input_norm=False, bound=bound, std_head=False)
        return replace(gated, candidate=_louder(gated.candidate, factor))
    decoder = DecoderVelocity.create(spec, key, d_model=width, norm=form.removeprefix("Flow-T, "), std_head=False)
    return replace(decoder, head=Linear(factor * decoder.head.weight, factor * decoder.head.bias))


def _louder(net: MLP, factor: Array) -> MLP:
    last = net.layers[-1]
    return replace(net, layers=(*net.layers[:-1], Linear(factor * last.weight, factor * last.bias)))


def _plot_stress(path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(STRESS_FACTORS), figsize=(11, 3.2), sharey=True)
    for panel, factor in zip(panels, STRESS_FACTORS, strict=True):
        for form in FORMS:
            norms = np.mean([stress_norms(form, factor, 20, seed) for seed in range(3)], axis=0)
            panel.semilogy(norms / norms[-1], label=form)
        panel.set(title=f"last layer x{factor:g}", xlabel="step i of K = 20")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("gradient at step i / at the last")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)
