"""Eleven agents on the same data, and online after it: success rates, and what becomes of them at the switch.

Two tasks with data made here: cube-single, of scripted manipulation, and a maze of medium size for a point mass. All
runs have the same numbers of updates and of steps. At scale small all networks have two hidden layers of 256 and all
batches 128 rows, Cal-QL samples four actions instead of ten and RLPD takes four critic steps an update instead of
twenty, so the figures are of a small budget and not the papers'; at scale paper all of this is each agent's own.
Hyper-parameters on the cube are those that a method's authors give for it or for tasks like it. The point mass's maze
is nobody's task: its weights of the actor's distance and of Cal-QL's penalty are ours, gamma is 0.995, observations are
standardised there, and at scale small steps are of 1e-3 and targets follow by 0.02.

Two more for the switch alone, where policies are learnt well enough for it to be seen by itself: a small world of our
own, TwoRoute, with FINO beside FQL and Cal-QL beside CQL; and the maze with data of aimless walks, which touch its
walls, for FINO and Cal-QL, with more updates and smaller steps. Smoke runs it all once, briefly, and holds it to
nothing.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.agents import bc, cal_ql, cql, fino, flow_ac, fql, ifql, iql, qc_fql, rebrac, rlpd, sac_flow_chunked
from trimtab.papers.recipe import Job, Results, curve, flags, folder, make_data, plot_curves, run_jobs, select
from trimtab.papers.sac_flow import data_name
from trimtab.run.results import read_run

CUBE, MAZE = "cube-single-play-singletask-task2-v0", "pointmaze-medium-navigate-singletask-task1-v0"
TWO_ROUTE, EXPLORE = "TwoRoute", "pointmaze-medium-explore-singletask-task1-v0"
TASKS = (CUBE, MAZE, TWO_ROUTE, EXPLORE)

ENVS = {TWO_ROUTE: "trimtab/TwoRoute-v0"}
"""Environments of tasks that are not called by their id."""

DATA = {CUBE: data_name(CUBE), MAZE: data_name(MAZE), TWO_ROUTE: "two-route", EXPLORE: data_name(EXPLORE)}
"""Task -> the name of its data set."""


@dataclass(frozen=True)
class Budget:
    """How long the runs of a comparison are."""

    offline: int = 30_000
    """updates on the data."""
    online: int = 6_000
    """environment steps after them, of agents that go online."""
    seeds: tuple[int, ...] = (0, 1, 2)
    episodes: int = 50
    """episodes of an evaluation; twice as many for agents of which the switch is watched. Each phase that a method has
    is evaluated about half-way and at its end."""
    data: tuple[int | None, ...] = (100, 200, None, 400)
    """episodes of data made for each of `TASKS`; None: as many as OGBench has, 400 of TwoRoute."""
    small: bool = True
    """whether networks and batches are small."""
    longer: int = 80_000
    """updates on the data in `EXPLORE`."""

    def often(self) -> int:
        """Steps between the evaluations of a run through both phases. At a small scale the second multiple is the
        middle of the steps online; the switch is evaluated whatever its number."""
        return max(1, (self.offline + self.online // 2) // 2) if self.small else 50_000


SMOKE = Budget(400, 200, longer=400, seeds=(0,), episodes=2, data=(4, 4, 4, 4))
PAPER = Budget(1_000_000, 500_000, seeds=(0, 1, 2, 3, 4), data=(None,) * 4, small=False, longer=1_000_000)

OFFLINE = ("BC", "IQL", "ReBRAC", "IFQL", "FAC")
"""Methods that stop where the data end."""

BOTH = ("FQL", "FINO", "Cal-QL", "QC-FQL", "SAC Flow")
"""Methods that go on online."""

WATCHED = ("FINO", "Cal-QL")
"""Methods whose papers promise that nothing is lost at the switch."""

AFTER_DATA, AT_END = "success after the data", "success at the end"
DROP, DIP = "largest drop of the return after the switch, as a share", "largest fall of the success after the switch"
FIRST = "drop of the return at the first evaluation online, as a share"
"""What of it is there at once, after the first updates online; the other two may come later."""

FIGURES = {"BC": 5, "IQL": 83, "ReBRAC": 91, "IFQL": 79, "FQL": 96}
"""Success in per cent on cube-single after 1,000,000 updates on OGBench's data, mean of five tasks (FQL's paper,
arXiv:2502.02538; quoted from memory, and not checked against it)."""

LEAST = 0.4
"""Success after the data, of every seed, below which there is too little to lose for the switch to be a test: twice
what may be lost."""


def reproduce(
    scale: str,
    out: Path,
    offline_steps: int | None = None,
    online_steps: int | None = None,
    only: tuple[str, ...] = (),
) -> Results:
    """Trains and compares the eleven agents at one scale below `out`; a PNG of the curves is written there. The numbers
    of steps replace those of the scale; `only` names the tasks, unless it is to be both."""
    results = Results("data-to-online", scale)
    compare(results, out, budget_of(scale, offline_steps, online_steps), only)
    return results


def configs(env: str, budget: Budget = Budget()) -> dict[str, tuple[str, Any]]:
    """Method -> agent and config for a task."""
    if env == TWO_ROUTE:
        return _small_world(budget)
    cube, small = env == CUBE, budget.small
    nets: dict[str, Any] = dict(hidden=(256, 256), batch_size=128) if small else {}
    # The maze is seen by two coordinates, of 0 to 20: nets that start near linear are slow to tell walls apart in them.
    nets |= {} if cube else dict(normalize_obs=True)
    rates: dict[str, Any] = dict(learning_rate=1e-3) if small and env == MAZE else {}
    shared: dict[str, Any] = nets | (dict(buffer_size=300_000) if small else {})
    shared |= rates | (dict(tau=0.02) if rates else {})
    # The goal is 220 steps away: 0.99^220 would leave a tenth of a step's worth at the start.
    shared |= dict(gamma=0.99 if cube else 0.995)
    # What walked aimlessly is little to stay near.
    alpha, agg = (300.0, "mean") if cube else (0.1 if env == EXPLORE else 1.0, "min")
    flow: dict[str, Any] = dict(alpha=alpha, q_agg=agg, **shared)
    # The distance is a mean over dimensions: of five actions in a row it weighs a fifth in each of them.
    chunks: dict[str, Any] = flow | ({} if cube else dict(alpha=5 * alpha))
    fac: dict[str, Any] = dict(alpha=0.5, lam=10.0) if cube else dict(alpha=0.5, lam=0.01, threshold="dataset")
    quick: dict[str, Any] = dict(proxy_steps=max(1, budget.offline // 2), probes=int(cube))
    whole: dict[str, Any] = dict(gamma=0.995, proxy_steps=61_000, proxy_batch_size=4_096)  # 250 passes through 1e6 rows
    fac = shared | fac | (quick if small else whole)
    tie, pull = (1.0, 0.0) if cube else (0.003, 0.01)
    # Steps cost until the goal is reached, so RLPD leaves entropy out of its targets, as its authors do for such tasks.
    mixed: dict[str, Any] = dict(backup_entropy=False, target_members=2 if cube else 1)
    starts: dict[str, Any] = dict(learning_starts=max(1, budget.online // 6)) if small else {}
    # A temperature of 1 takes more updates to fall than there are here, and until then the actor is nearly uniform.
    cool: dict[str, Any] = dict(init_ent_coef=0.1)
    mixed |= starts | (dict(utd=4) | cool if small else {})
    # A step is worth 1 in the maze, where the penalty would be all that values say. Its tuned weight for ant mazes,
    # whose rewards are ten times as large, rises without end here: no values come down to its gap.
    bounded: dict[str, Any] = starts | (dict(cql_actions=4) if small else {})
    bounded |= {} if cube else dict(cql_alpha=0.3) | (cool if small else dict(critic_hidden=(256,) * 4))
    apart: dict[str, Any] = dict(actor_lr=3e-4, critic_lr=1e-3) if rates else {}
    calibrated: dict[str, Any] = bounded | apart | {k: v for k, v in shared.items() if k != "learning_rate"}
    gated: dict[str, Any] = dict(d_model=64, learning_starts=1) if small else {}
    gated |= {} if cube else dict(beta=5 * alpha)
    found = {
        "BC": ("bc", bc.Config(**nets, **rates)),
        "IQL": ("iql", iql.Config(expectile=0.9, beta=1.0 if cube else 10.0, **shared)),
        "ReBRAC": ("rebrac", rebrac.Config(alpha_actor=tie, alpha_critic=pull, **shared)),
        "IFQL": ("ifql", ifql.Config(**shared)),
        "FAC": ("fac", flow_ac.Config(q_agg=agg, **fac)),
        "FQL": ("fql", fql.Config(**flow)),
        "FINO": ("fino", fino.Config(entropy_every=1_000 if small else 50_000, **flow)),
        "Cal-QL": ("cal-ql", cal_ql.Config(**calibrated)),
        "QC-FQL": ("qc-fql", qc_fql.Config(**chunks)),
        "SAC Flow": ("sac-flow-chunked", sac_flow_chunked.Config(**gated, **shared)),
        "RLPD": ("rlpd", rlpd.Config(**mixed, **shared)),
    }
    return {method: found[method] for method in WATCHED} if env == EXPLORE else found


def _small_world(budget: Budget) -> dict[str, tuple[str, Any]]:
    """What is compared on TwoRoute: FINO beside FQL, which is FINO without its noise and its choice, and Cal-QL beside
    CQL, which is Cal-QL without its bound."""
    shared: dict[str, Any] = dict(hidden=(128, 128), gamma=0.98)
    flow: dict[str, Any] = shared | dict(learning_rate=9e-4, alpha=3.0, normalize_q=True)
    starts = min(1_000, max(1, budget.online // 6))
    often: dict[str, Any] = dict(entropy_every=1_000) if budget.small else {}
    return {
        "FQL": ("fql", fql.Config(**flow)),
        "FINO": ("fino", fino.Config(candidates=4, **often, **flow)),
        "CQL": ("cql", cql.Config(learning_starts=starts, **shared)),
        "Cal-QL": ("cal-ql", cal_ql.Config(learning_starts=starts, **shared)),
    }


SLOWEST = ("Cal-QL", "CQL", "RLPD", "SAC Flow", "FAC", "QC-FQL", "FINO", "FQL", "IFQL", "ReBRAC", "IQL", "BC")


def jobs(data: Path, budget: Budget, methods: tuple[str, ...] = SLOWEST, tasks: tuple[str, ...] = TASKS) -> list[Job]:
    """The runs of `methods` on the data sets in `data`, in their order: by default all, the slowest ones first."""
    pairs = [(method, env) for method in methods for env in tasks if method in configs(env, budget)]
    return [_job(env, method, seed, data, budget) for method, env in pairs for seed in budget.seeds]


def _job(env: str, method: str, seed: int, data: Path, budget: Budget) -> Job:
    budget = replace(budget, offline=budget.longer) if env == EXPLORE else budget
    agent, config = configs(env, budget)[method]
    alone = method in OFFLINE
    often = max(1, budget.offline // 2) if alone else budget.often()
    if method == "RLPD":
        often = max(1, budget.online // 2)
    world = env == TWO_ROUTE
    if world:  # evaluations cost little there
        often = max(1, budget.online // 6)
    options: dict[str, Any] = dict(dataset=str(data / f"{DATA[env]}.npz"), eval_freq=often)
    options |= dict(eval_episodes=budget.episodes * (2 if method in WATCHED else 1))
    options |= dict(checkpoint_freq=max(1, budget.offline // 2), log=("csv",))
    if method != "RLPD":
        options["offline_steps"] = budget.offline
    if not alone:
        options["online_steps"] = budget.online
    if method in ("RLPD", "Cal-QL", "CQL"):
        options["sampling"] = "symmetric"
    # What only reads data trains all its seeds in one program, and so does what acts in an own world.
    together = budget.seeds if (alone or world) and len(budget.seeds) > 1 else ()
    return Job(env, method, seed, flags(agent, ENVS.get(env, env), config, **options), "success", together)


def compare(results: Results, out: Path, budget: Budget, only: tuple[str, ...] = ()) -> None:
    """Makes the data, trains all, and adds success rates, what was lost after the switch, and its checks."""
    plan = select(jobs(out / "data", budget), only)
    tasks = [env for env in TASKS if any(job.setting == env for job in plan)]
    for env, episodes in zip(TASKS, budget.data, strict=True):
        if env in tasks:
            make_data(DATA[env], out / "data", episodes)
    run_jobs(plan, out)
    for job in sorted(plan, key=lambda job: (job.setting, job.method, job.seed)):
        measure(results, job, out)
    for method, percent in FIGURES.items() if CUBE in tasks else ():
        source = "arXiv:2502.02538, five tasks, 1,000,000 updates; from memory"
        results.anchor(CUBE, method, AFTER_DATA, f"{percent} %", source)
    updates = f"{budget.offline:,}" + (f" ({budget.longer:,} in the last maze)" if EXPLORE in tasks else "")
    plot_curves(plan, out, out / "comparison.png", f"{updates} updates on data, {budget.online:,} steps online")
    if budget == SMOKE:
        return
    for env in tasks:
        for method in WATCHED:
            judge(results, env, method)
    if MAZE in tasks:
        least = min(results.values(MAZE, "RLPD", AT_END))
        results.check(f"{MAZE}: RLPD, {AT_END}, least", least >= 0.9, least, 0.9)


def judge(results: Results, env: str, method: str) -> None:
    """Holds every seed of a method to what it had before the switch, and to having had something."""
    had = results.values(env, method, AFTER_DATA)
    results.check(f"{env}: {method}, {AFTER_DATA}, least", min(had) >= LEAST, min(had), LEAST)
    for metric in (FIRST, DROP, DIP):
        worst = max(results.values(env, method, metric))
        results.check(f"{env}: {method}, {metric}", worst <= 0.2, worst, 0.2)


def measure(results: Results, job: Job, out: Path) -> None:
    """Adds what a run reached: at its last evaluation on data, at its end, and the worst between the two."""
    steps, success = curve(job, out)
    _, returns = curve(job, out, "return")
    run = read_run(folder(job, out))
    switch = run.switch
    before = np.full(steps.shape, "--offline-steps" in job.flags) if switch is None else steps <= switch
    after = ~before
    add = lambda metric, value: results.add(job.setting, job.method, job.seed, metric, float(value))
    if before.any():
        add(AFTER_DATA, success[before][-1])
    if after.any():
        add(AT_END, success[-1])
    if before.any() and after.any():
        around = run.around_switch(run.returns)
        assert around is not None, f"{job.method} was not evaluated after it learnt online"
        had, first = around
        add(FIRST, (had - first) / max(abs(had), 1e-6))
        add(DROP, (had - returns[after].min()) / max(abs(had), 1e-6))
        add(DIP, success[before][-1] - success[after].min())


def budget_of(scale: str, offline: int | None, online: int | None) -> Budget:
    """The budget of a scale, with the numbers of steps that were asked for; None leaves the scale's."""
    budget = {"smoke": SMOKE, "small": Budget(), "paper": PAPER}[scale]
    longer = offline or budget.longer
    return replace(budget, offline=offline or budget.offline, online=online or budget.online, longer=longer)
