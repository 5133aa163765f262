"""ContinuousSeek with 10 numbers: environment steps per second of DDPG with hindsight, the world in the compiled loop
against the same world through a Gymnasium loop; and what ReenGAGE's update costs beside DDPG's.

Cases: `one` makes an update for each step, `many` steps 64 copies for each update. `update` counts updates, of ReenGAGE
against DDPG's, both in the compiled loop.
"""

import sys
import time

from pairs import arguments, rates, row, serve, show, write

STARTS, HORIZON, CASES = 640, 10, {"one": 1, "many": 64, "update": 1}


def worker(name: str, case: str):
    """`device`: own world in the compiled loop. `gymnasium`: the same, stepped on the host. `reengage`: the agent."""
    import jax
    import jax.random as jr

    from trimtab.agents import DDPG, ReenGAGE, config_class
    from trimtab.data.her import Hindsight, WorldReward
    from trimtab.data.sources import ReplaySource, WorldSource
    from trimtab.envs.gym import Collector
    from trimtab.envs.hosted import Hosted
    from trimtab.envs.seek import ContinuousSeek
    from trimtab.run.logging import Progress
    from trimtab.training.compile import configure
    from trimtab.training.fit import Schedule, Training, fit

    configure("cpu")
    n, world = CASES[case], ContinuousSeek.create(10)
    kind = ReenGAGE if name == "reengage" else DDPG
    sizes = dict(batch_size=128, buffer_size=100_000, learning_starts=STARTS, learning_rate=1e-3, gamma=0.95)
    config = config_class(kind)(**sizes)
    agent = kind.create(jr.key(0), world.spec, config)
    hindsight = Hindsight.create(world.spec, WorldReward(world), "future", 4, HORIZON)
    collector, sizes = None, (config.buffer_size, config.batch_size)
    if name == "gymnasium":
        source = ReplaySource.create(world.spec, *sizes, hindsight=hindsight, num_envs=n)
        collector = Collector(lambda: Hosted(world), n, world.spec, 0, recorded=True)
    else:
        source = WorldSource.create(world, n, *sizes, hindsight=hindsight)
    training = Training(agent, jax.jit(lambda source, key: source.init(key))(source, jr.key(1)))
    progress = Progress(1, 0, "step", quiet=True)

    def work(steps: int) -> float:
        schedule = Schedule(
            training.step + steps, learning_starts=STARTS, updates_per_step=1 / n, eval_every=0, checkpoint_every=0
        )
        began = time.perf_counter()
        fit(training, source, [], schedule, jr.key(0), progress, collector=collector)
        jax.block_until_ready(training.agent)
        return time.perf_counter() - began

    work(3 * STARTS)
    return work


def main() -> int:
    """Runs all cases in turns and prints the table."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(worker(flags.worker, flags.case))
        return 0
    rounds, scale = (3, 1) if flags.quick else (9, 4)
    table, samples = [], {}
    for case, n in CASES.items():
        peer = "device" if case == "update" else "gymnasium"
        ours = "reengage" if case == "update" else "device"
        units = {ours: 640 * n * scale, peer: 640 * n * scale if peer == "device" else 640 * scale}
        found = samples[case] = rates(__file__, [ours, peer], case, units, rounds)
        label = {"one": "1 copy", "many": "64 copies", "update": "ReenGAGE's update"}[case]
        named = "ddpg" if case == "update" else peer
        table.append(row(f"ContinuousSeek10, {label}", found[ours], found[peer], named, "steps/s"))
    show(table)
    write(flags.json, table, samples=samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
