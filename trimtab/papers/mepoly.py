"""MePoly (arXiv:2602.17832): polynomial exponential families as policies, where several actions are equally good.

PPO throughout but for the flow, which is FPO; what differs is the distribution of actions. On bandits whose best
actions are a curve it is judged by 4,096 draws: their mean reward, and the share of the curve that they cover. In
SmoothWorld between two walls that are both goals, by 200 episodes from the middle: how many reach a goal, and the share
of the wall that fewer of them reach. Smoke: degree 14 and a normal on the lemniscate, one seed. Small: both curves,
degrees 2 to 14, normal, mixture and flow, and the two walls, two seeds. Paper: three seeds, the flow with 2,000 pairs,
and the trapezoid with 256 points that the paper's code has.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab import api
from trimtab.agents import fpo
from trimtab.agents.ppo import PPO, Config
from trimtab.envs.bandits import CurveBandit, coverage
from trimtab.envs.register import worlds
from trimtab.envs.smooth_world import SmoothWorld
from trimtab.papers.recipe import Job, Results, flags, folder, plot_curves, run_jobs, save_png
from trimtab.policies.polynomial import Polynomial

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

WALLS = "two_walls"
WALLS_ENV = "trimtab/SmoothWorldTwoWalls-v0"

IN_THE_PLANE: dict[str, Any] = SHARED | dict(n_steps=64, batch_size=256, gamma=0.99)

SOURCE = "a prototype of ours, 100 iterations"


def reproduce(scale: str, out: Path) -> Results:
    """Runs the comparison at one scale below `out`; PNGs are written there."""
    results, jobs = Results("mepoly", scale), plan(scale)
    run_jobs(jobs, out)
    for job in jobs:
        found = judge_walls(folder(job, out)) if job.setting == WALLS else judge(folder(job, out), job.setting)
        for name, value in found.items():
            results.add(job.setting, job.method, job.seed, name, value)
    plot_curves(jobs, out, out / "curves.png", f"MePoly, {scale} scale")
    _plot_densities(jobs, out)
    settings = dict.fromkeys(job.setting for job in jobs)
    for curve in (name for name in settings if name in CURVES):
        best = "degree 14"
        reward, covered = (min(results.values(curve, best, name)) for name in ("reward", "coverage"))
        results.check(f"{curve}: reward of {best}", reward >= 0.98, reward, 0.98)
        results.check(f"{curve}: coverage of {best}", covered >= 0.9, covered, 0.9)
        normal = max(results.values(curve, "normal", "reward"))
        results.check(f"{curve}: reward of normal, at most", normal <= 0.5, normal, 0.5)
    if WALLS in settings:
        reached = min(results.values(WALLS, "degree 5", "success"))
        results.check("two_walls: success of degree 5", reached >= 0.95, reached, 0.95)
        lesser = min(results.values(WALLS, "degree 5", "lesser wall"))
        results.check("two_walls: lesser wall of degree 5", lesser >= 0.1, lesser, 0.1)
        lesser = max(results.values(WALLS, "normal", "lesser wall"))
        results.check("two_walls: lesser wall of normal, at most", lesser <= 0.1, lesser, 0.1)
        results.anchor(WALLS, "degree 5", "lesser wall", 0.24, "a prototype of ours, 200 iterations")
        results.anchor(WALLS, "normal", "lesser wall", 0.0, "a prototype of ours, 200 iterations")
    results.anchor("lemniscate", "degree 14", "reward", 0.997, SOURCE)
    results.anchor("lemniscate", "degree 14", "coverage", 1.0, SOURCE)
    results.anchor("lemniscate", "normal", "reward", 0.38, SOURCE)
    results.anchor("two_moons", "degree 14", "reward", 0.998, SOURCE)
    return results


def plan(scale: str) -> list[Job]:
    """The runs of a scale."""
    degrees = {"smoke": (14,), "small": (2, 6, 10, 14), "paper": (2, 6, 10, 14)}[scale]
    methods: dict[str, Any] = {f"degree {n}": _polynomial(n, points=48) for n in degrees}
    # The paper's code keeps the normal's variance at 0.5, and gives a mixture half of the entropy bonus.
    methods["normal"] = Config(**SHARED, ent_coef=0.2, log_std_init=-0.35, fixed_std=True)
    if scale != "smoke":
        methods["mixture"] = Config(**SHARED, ent_coef=0.1, distribution="mixture")
        methods["flow"] = fpo.Config(**SHARED, pairs=2000 if scale == "paper" else 50)
    if scale == "paper":
        methods["degree 14, trapezoid"] = _polynomial(14, points=256, quadrature="trapezoid")
    curves = {"lemniscate": CURVES["lemniscate"]} if scale == "smoke" else CURVES
    seeds = range({"smoke": 1, "small": 2, "paper": 3}[scale])
    options: dict[str, Any] = dict(steps=153_600, num_envs=1024, eval_freq=20_480, checkpoint_freq=51_200)
    places = [(curve, env, options, methods) for curve, env in curves.items()]
    if scale != "smoke":
        options = dict(steps=409_600, num_envs=32, eval_freq=81_920, checkpoint_freq=204_800)
        places.append((WALLS, WALLS_ENV, options, _walkers(50)))
    return [
        Job(setting, method, seed, flags(_agent(config), env, config, **options))
        for setting, env, options, methods in places
        for method, config in methods.items()
        for seed in seeds
    ]


def _walkers(pairs: int) -> dict[str, Any]:
    """The methods that walk to a wall, with the entropy bonuses of the paper's code."""
    family: dict[str, Any] = dict(distribution="polynomial", order=5, points=24, natural_bound=5.0)
    return {
        "degree 5": Config(**IN_THE_PLANE, ent_coef=0.1, **family),
        "normal": Config(**IN_THE_PLANE, ent_coef=0.001),
        "mixture": Config(**IN_THE_PLANE, ent_coef=0.001, distribution="mixture"),
        "flow": fpo.Config(**IN_THE_PLANE, pairs=pairs),
    }


def _agent(config: Any) -> str:
    return "fpo" if isinstance(config, fpo.Config) else "ppo"


def _polynomial(order: int, points: int, quadrature: str = "gauss") -> Config:
    shape: dict[str, Any] = dict(distribution="polynomial", order=order, points=points, quadrature=quadrature)
    return Config(**SHARED, ent_coef=0.2, natural_bound=10_000.0, **shape)


def judge(run: Path, curve: str) -> dict[str, float]:
    """Mean reward, coverage and (of polynomials) entropy of a trained policy, by 4,096 draws."""
    agent, world = api.load(run).agent, worlds()[CURVES[curve]]()
    assert isinstance(world, CurveBandit)
    actions = agent.explorer(jnp.ones((4096, 1)), jr.key(0))
    step = jax.jit(jax.vmap(lambda a: world.step(jnp.ones(1), a, jr.key(0))[1].reward))
    found = {"reward": float(step(actions).mean()), "coverage": coverage(np.asarray(actions)[:1024], curve)}
    density = _density(agent)
    return found if density is None else found | {"entropy": float(density.entropy()[0])}


def judge_walls(run: Path, episodes: int = 200) -> dict[str, float]:
    """Of episodes from the middle with drawn actions: how many reach a wall, the share of those that reach the wall
    which fewer do, and their mean length."""
    agent, world = api.load(run).agent, SmoothWorld.create(WALLS)

    def episode(key: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            place, length, over = carry
            after, out = world.step(place, agent.explorer((place - 12.5) / 12.5, key), key)
            return (jnp.where(over, place, after), jnp.where(over, length, length + 1), over | out.terminated), None

        start = (jnp.full(2, 12.5), jnp.int32(0), jnp.asarray(False))
        return jax.lax.scan(step, start, jr.split(key, world.max_steps))[0]

    places, length, over = map(np.asarray, jax.jit(jax.vmap(episode))(jr.split(jr.key(0), episodes)))
    above = float((places[over, 1] > 12.5).mean()) if over.any() else 0.0
    return {"success": float(over.mean()), "lesser wall": min(above, 1.0 - above), "length": float(length.mean())}


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
