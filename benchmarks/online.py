"""Environment steps per second in real training on HalfCheetah-v5, one update a step, against Stable-Baselines3 and
SBX.

Each library trains its SAC with its own training loop, logging off, past the random first steps.
"""

import sys
import tempfile
import time
from pathlib import Path

from pairs import arguments, rates, row, serve, show, write

ENV, STARTS = "HalfCheetah-v5", 500


def ours():
    """Trimtab: `fit`, the loop that `trimtab train` runs."""
    import jax
    import jax.random as jr

    from trimtab.agents import SAC, config_class
    from trimtab.data.sources import ReplaySource
    from trimtab.envs.gym import Collector
    from trimtab.envs.make import find
    from trimtab.run.logging import Progress
    from trimtab.training.compile import configure
    from trimtab.training.fit import Schedule, Training, fit

    configure("cpu")
    world = find(ENV)
    make = world.make
    assert make is not None
    config = config_class(SAC)(learning_starts=STARTS)
    agent = SAC.create(jr.key(0), world.spec, config)
    source = ReplaySource.create(world.spec, config.buffer_size, config.batch_size)
    training = Training(agent, source.init(jr.key(1)))
    collector = Collector(lambda: make(None), 1, world.spec, 0)
    progress = Progress(1, 0, "step", quiet=True)

    def work(n: int) -> float:
        schedule = Schedule(training.step + n, learning_starts=STARTS, eval_every=0, checkpoint_every=0)
        began = time.perf_counter()
        fit(training, source, [], schedule, jr.key(0), progress, collector=collector)
        jax.block_until_ready(training.agent)
        return time.perf_counter() - began

    work(2 * STARTS)
    return work


def peer(library: str):
    """Stable-Baselines3 or SBX: `model.learn`."""
    if library == "sb3":
        import stable_baselines3 as zoo
    else:
        import sbx as zoo
    with tempfile.TemporaryDirectory() as folder:
        from stable_baselines3.common.logger import configure

        model = zoo.SAC("MlpPolicy", ENV, learning_starts=STARTS, seed=0, device="cpu")
        model.set_logger(configure(str(Path(folder)), []))

    def work(n: int) -> float:
        began = time.perf_counter()
        model.learn(n, reset_num_timesteps=False, log_interval=None)
        return time.perf_counter() - began

    work(2 * STARTS)
    return work


def main() -> int:
    """Runs all libraries in turns and prints the table."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(ours() if flags.worker == "trimtab" else peer(flags.worker))
        return 0
    rounds, n = (3, 300) if flags.quick else (9, 1000)
    names = ["trimtab", "sb3", "sbx"]
    found = rates(__file__, names, ENV, {name: n for name in names}, rounds)
    table = [row(f"sac {ENV}", found["trimtab"], found[name], name, "steps/s") for name in ("sb3", "sbx")]
    show(table)
    write(flags.json, table, samples=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
