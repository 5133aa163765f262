"""ContinuousSeek with 10 numbers: environment steps per second of DDPG with hindsight, the world in the compiled loop
against the same world written in NumPy and stepped by a Gymnasium loop; and what ReenGAGE's update costs beside DDPG's.

Cases: `one` makes an update for each step, `many` steps 64 copies for each update, `wide` 256. Where there are as many
updates as steps they take the time, in either loop; the claim (5 times) is for `wide`. `update` counts updates alone,
on one batch of 256 that stays: the claim (3 times DDPG's time) is for it.
"""

import sys
import time

from pairs import arguments, rates, row, serve, show, write

STARTS, HORIZON, CASES = 640, 10, {"one": 1, "many": 64, "wide": 256, "update": 1}

DIMENSION = 10

CLAIMS = {"wide": 5.0, "update": 1 / 3}
"""The least ratio of speeds, where one is claimed."""


def numpy_world():
    """ContinuousSeek as one would write it for Gymnasium."""
    import gymnasium
    import numpy as np
    from gymnasium import spaces

    class Seek(gymnasium.Env):
        def __init__(self):
            box = lambda bound: spaces.Box(-bound, bound, (DIMENSION,), np.float32)
            names = ("achieved_goal", "desired_goal", "observation")
            self.observation_space = spaces.Dict({name: box(5.0) for name in names})
            self.action_space = box(1.0)

        def _obs(self):
            return {"achieved_goal": self.s, "desired_goal": self.goal, "observation": self.s}

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.s = np.zeros(DIMENSION, np.float32)
            self.goal = self.np_random.uniform(-5.0, 5.0, DIMENSION).astype(np.float32)
            return self._obs(), {}

        def compute_reward(self, achieved, goal, info):
            return -(np.abs(achieved - goal).max(-1) > 0.1).astype(np.float32)

        def step(self, action):
            self.s = np.clip(self.s + np.clip(action, -1.0, 1.0), -5.0, 5.0).astype(np.float32)
            reward = float(self.compute_reward(self.s, self.goal, {}))
            return self._obs(), reward, False, False, {"is_success": reward == 0.0}

    return gymnasium.wrappers.TimeLimit(Seek(), HORIZON)


def worker(name: str, case: str):
    """`device`: the compiled loop. `gymnasium`: NumPy on the host. `reengage`, `ddpg`: updates alone."""
    import jax
    import jax.random as jr

    from trimtab.agents import DDPG, ReenGAGE, config_class
    from trimtab.data.her import Hindsight, WorldReward
    from trimtab.data.sources import ReplaySource, WorldSource
    from trimtab.envs.gym import Collector
    from trimtab.envs.seek import ContinuousSeek
    from trimtab.run.logging import Progress
    from trimtab.training.compile import configure
    from trimtab.training.fit import Schedule, Training, fit

    configure("cpu")
    n, world = CASES[case], ContinuousSeek.create(DIMENSION)
    kind = ReenGAGE if name == "reengage" else DDPG
    shape = dict(batch_size=256 if case == "update" else 128, buffer_size=100_000, learning_rate=1e-3, gamma=0.95)
    config = config_class(kind)(learning_starts=STARTS, **shape)
    agent = kind.create(jr.key(0), world.spec, config)
    hindsight = Hindsight.create(world.spec, WorldReward(world), "future", 4, HORIZON)
    collector, sizes = None, (config.buffer_size, config.batch_size)
    if name == "gymnasium":
        source = ReplaySource.create(world.spec, *sizes, hindsight=hindsight, num_envs=n)
        collector = Collector(numpy_world, n, world.spec, 0, recorded=True)
    else:
        source = WorldSource.create(world, n, *sizes, hindsight=hindsight)
    training = Training(agent, jax.jit(lambda source, key: source.init(key))(source, jr.key(1)))
    progress = Progress(1, 0, "step", quiet=True)

    def steps(count: int) -> float:
        schedule = Schedule(
            training.step + count,
            learning_starts=STARTS,
            updates_per_step=1 / n,
            eval_every=0,
            checkpoint_every=0,
            log_every=max(1_000, 100 * n),
        )
        began = time.perf_counter()
        fit(training, source, [], schedule, jr.key(0), progress, collector=collector)
        jax.block_until_ready(training.agent)
        return time.perf_counter() - began

    steps(3 * STARTS)
    if case != "update":
        return steps
    batch, learnt = source.batch(training.state, jr.key(2)), training.agent

    def one(carry):
        done, agent, count = carry
        return done + 1, agent.update(batch, jr.key(0))[0], count

    many = jax.jit(lambda agent, count: jax.lax.while_loop(lambda c: c[0] < c[2], one, (0, agent, count))[1])

    def updates(count: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(many(learnt, count))
        return time.perf_counter() - began

    updates(2)
    return updates


def main() -> int:
    """Runs all cases in turns, prints the table, and ends with 1 if a claim does not hold."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(worker(flags.worker, flags.case))
        return 0
    rounds, scale = (3, 1) if flags.quick else (9, 4)
    table, samples = [], {}
    for case, n in CASES.items():
        ours, peer = ("reengage", "ddpg") if case == "update" else ("device", "gymnasium")
        units = {ours: 640 * n * scale, peer: 10 * max(64, n) * scale}
        found = samples[case] = rates(__file__, [ours, peer], case, units, rounds)
        copies = f"{n} {'copy' if n == 1 else 'copies'}"
        label = "update, 256 rows" if case == "update" else copies
        what = "updates/s" if case == "update" else "steps/s"
        table.append(row(f"ContinuousSeek10, {label}", found[ours], found[peer], peer, what))
    show(table)
    write(flags.json, table, samples=samples)
    found = {case: line["ratio"] for case, line in zip(CASES, table, strict=True) if case in CLAIMS}
    failed = [case for case, ratio in found.items() if ratio < CLAIMS[case]]
    for case, ratio in found.items():
        print(f"{'FAILED' if case in failed else 'holds':<7} {case}: {ratio:.2f}, claimed {CLAIMS[case]:.2f}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
