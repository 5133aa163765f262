"""FAC (arXiv:2602.18015): what the density of a flow is good for, and whether it keeps a critic from dreaming.

1. Density: eight Gaussians and a ring whose place depends on the state. Log densities of new actions of the data
   against those of uniform ones far from any, for the flow of FAC, for a VAE and for a Gaussian.
2. TwoRoute: FQL and FAC from a strong to a weak tie of the actor to the data. What the critic promises against what the
   policy gets, and the largest value over a grid of actions that are not the data's.
3. Cube (only if it is named): FAC against FQL on made data of cube-single.

The paper's tables are of OGBench and D4RL with a million updates: their figures stand beside ours as anchors. FAC is
beside ten other agents in the recipe data-to-online.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from trimtab import api
from trimtab.agents import BC, FlowAC, bc, flow_ac, fql
from trimtab.batches import Transition
from trimtab.core import Spec
from trimtab.envs.two_route import TwoRoute
from trimtab.papers.comparison import AT_END, CUBE
from trimtab.papers.recipe import (
    COLOURS,
    Job,
    Results,
    curve,
    flags,
    folder,
    make_data,
    plot_curves,
    require_known,
    run_jobs,
    save_png,
    select,
)
from trimtab.papers.sac_flow import data_name
from trimtab.training.evaluate import WorldEvaluator

SOURCE = "arXiv:2602.18015"

GAMMA, EPISODES = 0.98, 200
"""Of the runs on TwoRoute, and of what they are judged by."""

BEST = -(1.0 - GAMMA**14) / (1.0 - GAMMA)
"""No policy is worth more at the start of TwoRoute: a step moves by 0.1 along either axis, so the goal is 15 away."""

HALF, WHOLE = 7_500, 15_000
"""Updates at which the agents on TwoRoute are looked at."""

TIES = (3.0, 0.3, 0.03)
"""Weights of the distance to the data, from strong to weak."""


PARTS = ("density", "two-route", "cube")
"""Experiments; the last is run only if it is named, for it alone takes more than an hour."""


def reproduce(scale: str, out: Path, only: tuple[str, ...] = ()) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there. `only` names the experiments, at scale
    paper the tasks."""
    results = Results("flow-ac", scale)
    for setting, method, metric, value in ANCHORS:
        results.anchor(setting, method, metric, value, SOURCE)
    if scale == "paper":
        paper(results, out, only)
        return results
    require_known(only, PARTS)
    parts, smoke = only or PARTS[:-1], scale == "smoke"
    seeds = (0,) if smoke else (0, 1, 2)
    if "density" in parts:
        density(results, seeds, 30_000)
    if "two-route" in parts:
        weak_ties(results, out, seeds, (HALF,) if smoke else (HALF, WHOLE))
    if "cube" in parts:
        cube(results, out, (0,) if smoke else CUBE_SEEDS, 400 if smoke else 100_000, 4 if smoke else 100)
    return results


ANCHORS = (
    ("OGBench, 50 tasks", "ReBRAC, FQL, FAC", "success", "31.0, 43.6, 60.3"),
    ("OGBench antmaze-large, 5 tasks", "ReBRAC, FQL, FAC", "success", "81, 78.6, 92.6"),
    ("OGBench puzzle-3x3, 5 tasks", "ReBRAC, FQL, FAC", "success", "21, 29.6, 100.0"),
    ("D4RL antmaze, 6 tasks", "FQL, FAC", "score", "83.5, 90.5"),
)
"""The paper's figures, of a million updates on its own data."""


# Densities

PLANE = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 2, False, (-1.0, -1.0), (1.0, 1.0))


def gaussians(key: PRNGKeyArray, obs: Float[Array, "n 1"]) -> Float[Array, "n 2"]:
    """Eight Gaussians of standard deviation `WIDTH` on a circle of radius 0.6, turned by up to a sixteenth of it."""
    k_which, k_noise = jr.split(key)
    which = jr.randint(k_which, obs.shape[:1], 0, 8).astype(jnp.float32)
    angle = (which + 0.5 * obs[:, 0]) * (np.pi / 4.0)
    return 0.6 * _direction(angle) + WIDTH * jr.normal(k_noise, (len(obs), 2))


def ring(key: PRNGKeyArray, obs: Float[Array, "n 1"]) -> Float[Array, "n 2"]:
    """A ring of width `WIDTH` whose radius is between 0.4 and 0.8."""
    k_angle, k_noise = jr.split(key)
    angle = jr.uniform(k_angle, obs.shape[:1], maxval=2.0 * np.pi)
    radius = 0.6 + 0.2 * obs[:, 0] + WIDTH * jr.normal(k_noise, obs.shape[:1])
    return jnp.broadcast_to(radius[:, None], (len(obs), 2)) * _direction(angle)


def _direction(angle: Float[Array, " n"]) -> Float[Array, "n 2"]:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)


def from_gaussians(obs: Float[Array, "n 1"], action: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Distance from the middle of the nearest of the eight."""
    angle = (jnp.arange(8, dtype=jnp.float32)[:, None] + 0.5 * obs[:, 0][None, :]) * (np.pi / 4.0)
    centres = 0.6 * jax.vmap(_direction)(angle)
    return jnp.linalg.norm(jnp.broadcast_to(action[None], centres.shape) - centres, axis=-1).min(0)


def from_ring(obs: Float[Array, "n 1"], action: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Distance from the middle of the ring."""
    return jnp.abs(jnp.linalg.norm(action, axis=-1) - (0.6 + 0.2 * obs[:, 0]))


WIDTH, NEAR, FAR = 0.06, 3.0, 4.0
"""Standard deviation of the data around their middles; how many of them away an action still counts as data; and where
a flow's tails end, too, which is shown beside and not judged."""

SHAPES = {"eight Gaussians": (gaussians, from_gaussians), "ring": (ring, from_ring)}
"""Name -> how actions are drawn, and their distance from where the data are."""


def density(results: Results, seeds: tuple[int, ...], updates: int) -> None:
    """Adds how well log densities tell the data's actions from uniform ones, after `updates` updates."""
    for name in SHAPES:
        for seed in seeds:
            for method in ("flow", PLAIN, "VAE", "Gaussian"):
                for metric, found in separation(name, method, seed, updates).items():
                    results.add(name, method, seed, metric, found)
        flow, gaussian = (results.values(name, method, AUROC) for method in ("flow", "Gaussian"))
        results.check(f"{name}: flow, least {AUROC}", min(flow) >= LEAST, min(flow), LEAST)
        gain = float(np.subtract(flow, gaussian).min())
        results.check(f"{name}: flow minus Gaussian, least", gain >= 0.05, gain, 0.05)


AUROC, FARTHER = "AUROC of data against actions far from them", "AUROC against actions four deviations away"

PLAIN = "flow, time as it is"
"""The official code's network, beside the one that sees time at six frequencies."""

LEAST = 0.98
"""What a flow must reach."""


def separation(name: str, method: str, seed: int, updates: int) -> dict[str, float]:
    """The share of pairs of a data action and a uniform one far from the data in which the first is the likelier; far
    by `NEAR`, which is judged, and by `FAR`."""
    key = jr.key(seed)
    agent: Any
    shape: dict[str, Any] = dict(hidden=(256, 256), learning_rate=1e-3)
    if method == "Gaussian":
        agent = BC.create(key, PLANE, bc.Config(**shape))
    else:
        shape |= dict(density="vae") if method == "VAE" else dict(time_waves=0 if method == PLAIN else 6)
        agent = FlowAC.create(key, PLANE, flow_ac.Config(density_method="heun", phase="proxy", **shape))
    inside, outside, away = (np.asarray(x) for x in _log_densities(name, agent, key, updates))
    return {metric: auroc(inside, outside[away > near * WIDTH]) for metric, near in ((AUROC, NEAR), (FARTHER, FAR))}


@partial(jax.jit, static_argnames=("name", "updates"))
def _log_densities(name: str, agent: Any, key: PRNGKeyArray, updates: int) -> tuple[Array, Array, Array]:
    """Log densities of 2,000 new actions of the data and of 2,000 uniform ones after training; how far these are."""
    sample, distance = SHAPES[name]

    def draw(key: PRNGKeyArray, n: int) -> tuple[Array, Array]:
        k_obs, k_action = jr.split(key)
        obs = jr.uniform(k_obs, (n, 1), minval=-1.0)
        return obs, sample(k_action, obs)

    def step(agent: Any, key: PRNGKeyArray) -> tuple[Any, None]:
        k_rows, k_update = jr.split(key)
        obs, action = draw(k_rows, 256)
        nothing = jnp.zeros(256)
        return agent.update(Transition(obs, action, nothing, nothing, obs), k_update)[0], None

    agent, _ = jax.lax.scan(step, agent, jr.split(jr.fold_in(key, 1), updates))
    obs, action = draw(jr.fold_in(key, 2), 2_000)
    uniform = jr.uniform(jr.fold_in(key, 3), action.shape, minval=-1.0)
    if isinstance(agent, FlowAC):
        of = lambda action: agent.log_density(obs, action, jr.fold_in(key, 4))
    else:
        of = lambda action: agent.actor.log_prob(obs, action)
    return of(action), of(uniform), distance(obs, uniform)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """How often a number of the first array is larger than one of the second; equal ones count half."""
    below = np.searchsorted(np.sort(outside), inside, side="left")
    upto = np.searchsorted(np.sort(outside), inside, side="right")
    return float((below + upto).mean() / (2 * len(outside)))


# TwoRoute

SUCCESS, RETURN, PROMISE, OVER, GRID = (
    "success",
    "discounted return",
    "Q at the start",
    "Q at the start minus return",
    "largest Q at the start over all actions, above any policy's",
)


def weak_ties(results: Results, out: Path, seeds: tuple[int, ...], looks: tuple[int, ...]) -> None:
    """Trains FQL and FAC with each tie on TwoRoute's data and adds what they promise and get to `results`."""
    make_data("two-route", out / "data", None)
    jobs = two_route_jobs(out / "data", seeds, looks)
    run_jobs(jobs, out)
    for job in jobs:
        for steps in looks:
            for metric, value in look(job, out, steps).items():
                results.add(job.setting, job.method, job.seed, at(metric, steps), value)
    judge(results, looks)
    _plot(results, looks[-1], out / "two-route.png")


def at(metric: str, steps: int) -> str:
    """The name of a metric after so many updates."""
    return f"{metric} at {steps:,}"


def two_route_jobs(data: Path, seeds: tuple[int, ...], looks: tuple[int, ...]) -> list[Job]:
    """FAC, the slower one, first. Seeds train together."""
    nets: dict[str, Any] = dict(hidden=(128, 128), learning_rate=9e-4, gamma=GAMMA)
    # The proxy's updates count among the steps: so many that evaluations fall on the same numbers of the rest.
    penalised = flow_ac.Config(proxy_steps=HALF, **nets)
    plans = [(tie, "FAC", "fac", replace(penalised, lam=tie)) for tie in TIES]
    last = max(looks)
    if last > HALF:
        plans.append((TIES[-1], "FAC, alpha 5", "fac", replace(penalised, lam=TIES[-1], alpha=5.0)))
    plans += [(tie, "FQL", "fql", fql.Config(alpha=tie, normalize_q=True, **nets)) for tie in TIES]
    options: dict[str, Any] = dict(dataset=str(data / "two-route.npz"), offline_steps=last, eval_freq=HALF)
    options |= dict(checkpoint_freq=last, log=("csv",))
    return [
        Job(
            f"TwoRoute, tie {tie:g}",
            method,
            seed,
            (*flags(agent, "trimtab/TwoRoute-v0", config, **options), "--keep-evaluated"),
            together=seeds if len(seeds) > 1 else (),
        )
        for tie, method, agent, config in plans
        for seed in seeds
    ]


def look(job: Job, out: Path, steps: int) -> dict[str, float]:
    """What the agent of a job promises and gets after `steps` updates of critic and actor."""
    before = HALF if job.flags[0] == "fac" else 0
    agent = api.load(folder(job, out), checkpoint_name=f"evaluated/step_{before + steps}").agent
    episodes = WorldEvaluator(TwoRoute.create(), 7, GAMMA)(agent.policy, EPISODES)
    mean = lambda name: float(np.mean([episode[name] for episode in episodes]))
    promise, largest = (float(x) for x in start_values(agent, jr.key(11)))
    return {
        SUCCESS: mean("success"),
        RETURN: mean("discounted"),
        PROMISE: promise,
        OVER: promise - mean("discounted"),
        GRID: largest - BEST,
    }


@jax.jit
def start_values(agent: Any, key: PRNGKeyArray) -> tuple[Array, Array]:
    """The mean Q of the policy's actions at 256 starts, and the mean over starts of the largest Q on a grid of 21 x 21
    actions; Q is the mean over the members."""
    k_reset, k_act = jr.split(key)
    obs = jax.vmap(TwoRoute.create().reset)(jr.split(k_reset, 256))[1]
    line = jnp.linspace(-1.0, 1.0, 21)
    grid = jnp.stack(jnp.meshgrid(line, line), axis=-1).reshape(-1, 1, 2)
    every = jnp.broadcast_to(grid, (len(grid), *obs.shape))
    return agent.critic(obs, agent.policy(obs, k_act)).mean(), agent.critic.many(obs, every).mean(0).max(0).mean()


def judge(results: Results, looks: tuple[int, ...]) -> None:
    """What the penalty must do, for every seed."""
    values = lambda tie, method, metric, steps: results.values(f"TwoRoute, tie {tie:g}", method, at(metric, steps))
    last = looks[-1]
    least = min(values(0.03, "FQL", OVER, last))
    results.check("tie 0.03: FQL promises too much, least", least >= 15.0, least, 15.0)
    most = max(values(0.03, "FAC", OVER, last))
    results.check("tie 0.03: FAC does not, most", most <= 3.0, most, 3.0)
    least = min(values(0.03, "FQL", GRID, last))
    results.check("tie 0.03: FQL's largest Q over all actions, above any policy's", least >= 1.0, least, 1.0)
    most = max(max(values(tie, "FAC", GRID, last)) for tie in TIES)
    results.check("every tie: FAC's largest Q over all actions, above any policy's, most", most <= 0.0, most, 0.0)
    gain = float(np.subtract(values(0.3, "FAC", SUCCESS, HALF), values(0.3, "FQL", SUCCESS, HALF)).min())
    results.check("tie 0.3 at 7,500: success of FAC minus FQL, least", gain >= 0.3, gain, 0.3)
    least = min(values(3.0, "FAC", SUCCESS, last))
    results.check("tie 3: FAC, least success", least >= 0.9, least, 0.9)
    least = min(values(0.3, "FAC", PROMISE, last))
    results.check("tie 0.3: FAC is no more pessimistic than this, least Q", least >= -60.0, least, -60.0)


def _plot(results: Results, steps: int, path: Path) -> None:
    """What each method promises and gets, by tie."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(5.2, 3.4))
    for method, colour in zip(("FQL", "FAC"), COLOURS, strict=False):
        for metric, style in ((PROMISE, "-"), (RETURN, "--")):
            means = [
                float(np.mean(results.values(f"TwoRoute, tie {tie:g}", method, at(metric, steps)))) for tie in TIES
            ]
            panel.plot(TIES, means, style, color=colour, marker="o", label=f"{method}, {metric}")
    panel.axhline(BEST, color="0.5", lw=0.8, ls=":")
    panel.set(xscale="log", xlabel="weight of the tie to the data", ylabel=f"after {steps:,} updates")
    panel.invert_xaxis()
    panel.legend(fontsize=7)
    figure.tight_layout()
    save_png(figure, path)
    pyplot.close(figure)


# The cube

CUBE_SEEDS = (0, 1)
"""Two, for a run takes half an hour and more."""


def cube_jobs(data: Path, seeds: tuple[int, ...], updates: int, episodes: int = 50) -> list[Job]:
    """FAC, the slower one, first. FAC's flow sees as many rows as in 250 passes through 100,000."""
    nets: dict[str, Any] = dict(hidden=(256, 256, 256), batch_size=128)
    proxy: dict[str, Any] = dict(proxy_steps=max(1, updates * 6 // 25), proxy_batch_size=1_024, probes=1)
    plans: dict[str, tuple[str, Any]] = {
        "FAC": ("fac", flow_ac.Config(alpha=0.5, lam=10.0, **proxy, **nets)),
        "FQL": ("fql", fql.Config(alpha=300.0, **nets)),
    }
    options: dict[str, Any] = dict(dataset=str(data / f"{data_name(CUBE)}.npz"), offline_steps=updates)
    options |= dict(eval_freq=max(1, updates // 2), eval_episodes=episodes, checkpoint_freq=max(1, updates // 2))
    return [
        Job(CUBE, method, seed, flags(agent, CUBE, config, log=("csv",), **options), "success")
        for method, (agent, config) in plans.items()
        for seed in seeds
    ]


def cube(results: Results, out: Path, seeds: tuple[int, ...], updates: int, episodes: int) -> None:
    """Adds the success of FAC and of FQL after so many updates on data of so many episodes; judged if they are all."""
    make_data(data_name(CUBE), out / "data", episodes)
    jobs = cube_jobs(out / "data", seeds, updates, min(50, episodes))
    run_jobs(jobs, out)
    for job in jobs:
        results.add(CUBE, job.method, job.seed, AT_END, float(curve(job, out)[1][-1]))
    plot_curves(jobs, out, out / "cube.png", f"{updates:,} updates on data")
    if updates < 100_000:
        return
    fac, plain = (results.values(CUBE, method, AT_END) for method in ("FAC", "FQL"))
    gain = float(np.subtract(fac, plain).min())
    results.check("cube: success of FAC minus FQL, least", gain >= -0.05, gain, -0.05)
    results.check("cube: FAC, least success", min(fac) >= 0.5, min(fac), 0.5)


# The paper's own runs

DOMAINS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "antmaze-large-navigate": (dict(alpha=0.5, lam=0.1, q_agg="min", threshold="dataset"), dict(alpha=10.0)),
    "antmaze-giant-navigate": (dict(alpha=1.0, lam=0.1, q_agg="min", threshold="dataset"), dict(alpha=10.0)),
    "cube-single-play": (dict(alpha=0.5, lam=10.0), dict(alpha=300.0)),
    "cube-double-play": (dict(alpha=1.0, lam=1.0), dict(alpha=300.0)),
    "scene-play": (dict(alpha=1.0, lam=1.0), dict(alpha=300.0)),
    "puzzle-3x3-play": (dict(alpha=1.0, lam=1.0), dict(alpha=1_000.0)),
    "puzzle-4x4-play": (dict(alpha=5.0, lam=0.3), dict(alpha=1_000.0)),
}
"""Domain of OGBench whose data can be made here -> FAC's fields and FQL's."""


def paper_jobs(data: Path) -> list[Job]:
    """FAC and FQL on five tasks of each domain: a million updates, five seeds, fifty episodes an evaluation."""
    found = []
    for domain, (penalised, plain) in DOMAINS.items():
        far = domain.startswith("antmaze")
        gamma = 0.995 if domain.startswith("antmaze-giant") else 0.99
        agg = "min" if far else "mean"
        configs: dict[str, tuple[str, Any]] = {
            "FAC": ("fac", flow_ac.Config(proxy_steps=61_000, proxy_batch_size=4_096, **penalised)),
            "FQL": ("fql", fql.Config(gamma=gamma, q_agg=agg, **plain)),
        }
        options: dict[str, Any] = dict(offline_steps=1_000_000, eval_freq=100_000, eval_episodes=50)
        for task in range(1, 6):
            env = f"{domain}-singletask-task{task}-v0"
            path = str(data / f"{data_name(env)}.npz")
            for seed in range(5):
                for method, (agent, config) in configs.items():
                    line = flags(agent, env, config, dataset=path, checkpoint_freq=100_000, **options)
                    found.append(Job(env, method, seed, line, "success"))
    return found


def paper(results: Results, out: Path, only: tuple[str, ...] = ()) -> None:
    """The paper's settings, on data made here."""
    jobs = select(paper_jobs(out / "data"), only)
    for name in dict.fromkeys(data_name(job.setting) for job in jobs):
        make_data(name, out / "data", None)
    run_jobs(jobs, out)
    for job in jobs:
        results.add(job.setting, job.method, job.seed, AT_END, float(curve(job, out)[1][-1]))
