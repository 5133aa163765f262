"""MePoly (arXiv:2602.17832): polynomial exponential families as policies, where several actions are equally good.

PPO throughout but for the flow, which is FPO; what differs is the distribution of actions. On bandits whose best
actions are a curve it is judged by 4,096 draws: their mean reward, and the share of the curve that they cover. In
SmoothWorld, between goals that are as good as each other, by 200 episodes from the middle: how many reach a goal, and
the shares of the goals that are reached most and second most. As imitation, without learning by reward, by the mean
negative log density of points of a curve that were not fitted, beside four normals by expectation maximisation.

Smoke: degree 14 and a normal on the lemniscate, one seed. Small: both curves, degrees 2 to 14, normal, mixture and
flow, two walls that are both goals, and imitation, two seeds; 150 iterations with a step size that falls from three
times the paper's to 0 (the flow's stays), 200 between the walls with one that stays. Paper: three seeds with the step
sizes, six minibatches and iterations of the paper's code; the flow with 2,000 pairs, the trapezoid with 256 points,
Legendre polynomials against monomials at degree 12, and four goals beside the two walls. What stays ours there: Gauss-
Legendre nodes with draws spread over their cells, rollouts of fixed length (1,020 bandits, or 33 worlds for 62 steps,
so that six minibatches are even), no weight decay, one optimiser for both networks. The paper's maps with one goal have
worlds, but are not in this comparison.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from trimtab import api
from trimtab.agents import fpo
from trimtab.agents.ppo import PPO, Config
from trimtab.envs.bandits import CurveBandit, coverage
from trimtab.envs.register import worlds
from trimtab.envs.smooth_world import SmoothWorld
from trimtab.ops.mixture import fit_mixture
from trimtab.papers.recipe import Job, Results, flags, folder, plot_curves, run_jobs, save_png
from trimtab.policies.polynomial import Family, Polynomial, most_likely

CURVES = {"lemniscate": "trimtab/Lemniscate-v0", "two_moons": "trimtab/TwoMoons-v0"}

SHARED: dict[str, Any] = dict(
    n_steps=1,
    batch_size=128,
    n_epochs=10,
    gamma=1.0,
    gae_lambda=0.98,
    target_kl=0.02,
    normalise_obs=False,
    normalise_reward=False,
    activation="relu",
)

PLANES = {"two_walls": "trimtab/SmoothWorldTwoWalls-v0", "four_walls": "trimtab/SmoothWorldFourWalls-v0"}

GOALS: dict[str, tuple[tuple[float, float], ...]] = {
    "two_walls": ((12.5, 0.0), (12.5, 25.0)),
    "four_walls": ((12.5, 23.5), (12.5, 1.5), (1.5, 12.5), (23.5, 12.5)),
}
"""Middles of the goals of each map: the nearest is the one that was reached."""

IN_THE_PLANE: dict[str, Any] = SHARED | dict(n_steps=64, batch_size=256, gamma=0.99)

SOURCE = "a prototype of ours, 100 iterations"

DEGREES = (2, 6, 10, 14)

NLL = "negative log density of other points"


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results, jobs = Results("mepoly", scale), plan(scale)
    run_jobs(jobs, out)
    for job in jobs:
        place = folder(job, out)
        if job.setting in PLANES:
            found = judge_plane(api.load(place).agent.explorer, job.setting)
        else:
            found = judge(place, job.setting)
        for name, value in found.items():
            results.add(job.setting, job.method, job.seed, name, value)
    plot_curves(jobs, out, out / "curves.png", f"MePoly, {scale} scale")
    _plot_densities(jobs, out)
    if scale != "smoke":
        for curve in CURVES:
            for method, value in imitation(curve).items():
                results.add(f"{curve}, imitation", method, None, NLL, value)
    _check(results)
    results.anchor("lemniscate", "degree 14", "reward", 0.997, SOURCE)
    results.anchor("lemniscate", "degree 14", "coverage", 1.0, SOURCE)
    results.anchor("lemniscate", "degree 2", "coverage", 0.175, SOURCE)
    results.anchor("lemniscate", "normal", "reward", 0.38, SOURCE)
    results.anchor("two_moons", "degree 14", "reward", 0.998, SOURCE)
    results.anchor("two_walls", "degree 5", "second goal", 0.24, "a prototype of ours, 200 iterations")
    results.anchor("four_walls", "degree 5", "second goal", 0.41, "a prototype of ours, 400 iterations")
    results.anchor("lemniscate, imitation", "degree 14", NLL, -0.531, "a prototype of ours")
    results.anchor("two_moons, imitation", "degree 14", NLL, -0.826, "a prototype of ours")
    return results


def _check(results: Results) -> None:
    """What must hold of all seeds. A number that there is not, NaN, holds nothing."""
    settings = {row["setting"] for row in results.rows}

    def bound(setting: str, method: str, metric: str, threshold: float, most: bool = False) -> None:
        found = results.values(setting, method, metric)
        if found:
            worst = float(np.max(found) if most else np.min(found))
            name = f"{setting}: {metric} of {method}" + (", at most" if most else "")
            results.check(name, worst <= threshold if most else worst >= threshold, worst, threshold)

    for curve in (name for name in CURVES if name in settings):
        bound(curve, "degree 14", "reward", 0.98)
        bound(curve, "degree 14", "coverage", 0.9)
        bound(curve, "normal", "reward", 0.5, most=True)
    bound("lemniscate", "degree 2", "coverage", 0.35, most=True)
    for plane in (name for name in PLANES if name in settings):
        bound(plane, "degree 5", "success", 0.95)
        bound(plane, "degree 5", "second goal", 0.1)
        bound(plane, "normal", "success", 0.95)
        bound(plane, "normal", "first goal", 0.9)
    bound("lemniscate, imitation", "degree 14", NLL, -0.45, most=True)
    bound("two_moons, imitation", "degree 14", NLL, -0.75, most=True)


def plan(scale: str) -> list[Job]:
    """The runs of a scale."""
    paper = scale == "paper"
    # Three times the code's step size, which falls to 0: without the fall the draws stay too wide (reward 0.96).
    flow: dict[str, Any] = SHARED | (dict(batch_size=170, learning_rate=1e-4) if paper else {})
    shared: dict[str, Any] = flow if paper else flow | dict(anneal_steps=153_600)
    methods: dict[str, Any] = {f"degree {n}": _polynomial(shared, n) for n in ((14,) if scale == "smoke" else DEGREES)}
    # The paper's code keeps the normal's variance at 0.5, and gives a mixture half of the entropy bonus.
    methods["normal"] = Config(**shared, ent_coef=0.2, log_std_init=-0.35, fixed_std=True)
    if scale != "smoke":
        methods["mixture"] = Config(**shared, ent_coef=0.1, distribution="mixture")
        methods["flow"] = fpo.Config(**flow, pairs=2000 if paper else 50)
    curves = {"lemniscate": CURVES["lemniscate"]} if scale == "smoke" else CURVES
    options: dict[str, Any] = dict(steps=153_600, num_envs=1024, eval_freq=20_480, checkpoint_freq=51_200)
    if paper:
        methods["degree 14, trapezoid"] = replace(_polynomial(shared, 14), points=256, quadrature="trapezoid")
        options = dict(steps=102_000, num_envs=1020, eval_freq=20_400, checkpoint_freq=51_000)
    places = [(curve, env, options, methods) for curve, env in curves.items()]
    if paper:
        bases = {f"degree 12, {b}": replace(_polynomial(shared, 12), ent_coef=0.6, basis=b) for b in BASES}
        places += [(curve, env, options | dict(steps=612_000), bases) for curve, env in curves.items()]
        options = dict(num_envs=33, eval_freq=204_600, checkpoint_freq=204_600)
        for plane, iterations in (("two_walls", 500), ("four_walls", 2000)):
            more, even = options | dict(steps=iterations * 2046), dict(n_steps=62, batch_size=341)
            places.append((plane, PLANES[plane], more, _walkers(IN_THE_PLANE | even)))
    elif scale == "small":
        options = dict(steps=409_600, num_envs=32, eval_freq=81_920, checkpoint_freq=204_800)
        places.append(("two_walls", PLANES["two_walls"], options, _walkers(IN_THE_PLANE)))
    return [
        Job(setting, method, seed, flags(_agent(config), env, config, **options))
        for setting, env, options, methods in places
        for method, config in methods.items()
        for seed in range({"smoke": 1, "small": 2, "paper": 3}[scale])
    ]


BASES = ("legendre", "standard")
"""Of the paper's ablation; the second is monomials."""


def _walkers(shared: dict[str, Any]) -> dict[str, Any]:
    """The methods that walk to a goal, with the entropy bonuses of the paper's code."""
    family: dict[str, Any] = dict(distribution="polynomial", order=5, points=24, natural_bound=5.0)
    return {
        "degree 5": Config(**shared, ent_coef=0.1, **family),
        "normal": Config(**shared, ent_coef=0.001),
        "mixture": Config(**shared, ent_coef=0.001, distribution="mixture"),
        "flow": fpo.Config(**shared, pairs=50),
    }


def _agent(config: Any) -> str:
    return "fpo" if isinstance(config, fpo.Config) else "ppo"


def _polynomial(shared: dict[str, Any], order: int) -> Config:
    family: dict[str, Any] = dict(distribution="polynomial", order=order, points=48, natural_bound=10_000.0)
    return Config(**shared, ent_coef=0.2, **family)


def judge(run: Path, curve: str) -> dict[str, float]:
    """Mean reward, coverage and (of polynomials) entropy of a trained policy, by 4,096 draws."""
    agent, world = api.load(run).agent, worlds()[CURVES[curve]]()
    assert isinstance(world, CurveBandit)
    actions = agent.explorer(jnp.ones((4096, 1)), jr.key(0))
    step = jax.jit(jax.vmap(lambda a: world.step(jnp.ones(1), a, jr.key(0))[1].reward))
    found = {"reward": float(step(actions).mean()), "coverage": coverage(np.asarray(actions)[:1024], curve)}
    density = _density(agent)
    return found if density is None else found | {"entropy": float(density.entropy()[0])}


def judge_plane(act: Callable[[Array, Array], Array], plane: str, episodes: int = 200) -> dict[str, float]:
    """Of episodes from the middle: how many reach a goal, their mean length, and of those that reach one the shares of
    the goals that are reached most and second most; NaN if none does."""
    world = SmoothWorld.create(plane)

    def episode(key: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            place, length, over = carry
            after, out = world.step(place, act((place - 12.5) / 12.5, key), key)
            return (jnp.where(over, place, after), jnp.where(over, length, length + 1), over | out.terminated), None

        start = (jnp.full(2, 12.5), jnp.int32(0), jnp.asarray(False))
        return jax.lax.scan(step, start, jr.split(key, world.max_steps))[0]

    places, length, over = map(np.asarray, jax.jit(jax.vmap(episode))(jr.split(jr.key(0), episodes)))
    apart = np.linalg.norm(places[over][:, None] - np.array(GOALS[plane])[None], axis=-1)
    counts = np.sort(np.bincount(apart.argmin(1), minlength=len(GOALS[plane])))[::-1]
    shares = counts / over.sum() if over.any() else np.full(len(counts), np.nan)
    found = {"success": float(over.mean()), "length": float(length.mean())}
    return found | {"first goal": float(shares[0]), "second goal": float(shares[1])}


def imitation(curve: str) -> dict[str, float]:
    """Mean negative log density of one half of a curve's points under what is most likely given the other half."""
    cloud = CurveBandit.create(curve).cloud
    split = np.random.default_rng(0).permutation(len(cloud))
    train, test = cloud[split[: len(cloud) // 2]], cloud[split[len(cloud) // 2 :]]
    fit, found = jax.jit(most_likely, static_argnums=0), {}
    for order in DEGREES:
        family = Family.create(order, 2, 64)
        density = Polynomial.create(family, fit(family, train))
        found[f"degree {order}"] = -float(jax.vmap(density.log_prob)(test).mean())
    for name, components in (("normal", 1), ("mixture of 4", 4)):
        mixture = fit_mixture(train, jr.key(0), components=components, iterations=200)
        found[name] = -float(jax.nn.logsumexp(mixture.log_joint(test), axis=1).mean())
    return found


def _density(agent: Any) -> Polynomial | None:
    if not isinstance(agent, PPO):
        return None
    found = agent.actor.step(jnp.ones((1, 1)), None, ())[0]
    return found if isinstance(found, Polynomial) else None


def _plot_densities(jobs: list[Job], out: Path) -> None:
    """A heat map of the density of each polynomial policy of seed 0."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    chosen = [job for job in jobs if job.seed == 0 and job.method.startswith("degree") and job.setting in CURVES]
    figure, panels = pyplot.subplots(1, len(chosen), figsize=(3.0 * len(chosen), 3.2), squeeze=False)
    side = np.linspace(-1.0, 1.0, 121)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), jnp.float32)
    for panel, job in zip(panels[0], chosen, strict=True):
        density = _density(api.load(folder(job, out)).agent)
        assert density is not None
        one = jax.tree.map(lambda x: x[0], density)
        height = np.asarray(jax.vmap(one.log_prob)(grid)).reshape(121, 121)
        panel.imshow(np.exp(height), origin="lower", extent=(-1, 1, -1, 1), cmap="magma")
        panel.set(title=f"{job.setting}\n{job.method}", xticks=[], yticks=[])
    figure.tight_layout()
    save_png(figure, out / "densities.png")
