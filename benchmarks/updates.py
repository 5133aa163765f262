"""Gradient updates per second of SAC and TD3 (256x2, batch 256, obs 17, act 6) against Stable-Baselines3 and SBX.

`single` is one update a call, `scanned` 64 updates a call where the library offers it. Sampling from a buffer of 20,000
transitions is part of an update for all.
"""

import sys
import time

import numpy as np
from pairs import arguments, rates, row, serve, show, write

OBS, ACT, ROWS, BATCH, SCAN = 17, 6, 20_000, 256, 64


def transitions() -> dict[str, np.ndarray]:
    """The same random transitions for all."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return dict(
        obs=normal(ROWS, OBS), action=np.tanh(normal(ROWS, ACT)), reward=normal(ROWS), next_obs=normal(ROWS, OBS)
    )


def ours(agent_name: str, per_call: int):
    """Trimtab: the compiled chunk of the training loop."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.agents import AGENTS, config_class
    from trimtab.batches import Transition
    from trimtab.core import Spec
    from trimtab.data.sources import ReplaySource
    from trimtab.training.compile import chunk, configure, no_totals

    configure("cpu")
    data = transitions()
    spec = Spec(jax.ShapeDtypeStruct((OBS,), jnp.float32), ACT, False, (-1.0,) * ACT, (1.0,) * ACT)
    kind = AGENTS[agent_name]
    agent = kind.create(jr.key(0), spec, config_class(kind)())
    rows = Transition(data["obs"], data["action"], data["reward"], np.ones(ROWS, np.float32), data["next_obs"])
    source = ReplaySource.create(spec, 1_000_000, BATCH, jax.tree.map(jnp.asarray, rows))
    state = source.init(jr.key(0))
    totals = no_totals(source, agent, state, None)
    key = jr.key(1)

    def work(n: int) -> float:
        nonlocal agent, state, totals
        began = time.perf_counter()
        for _ in range(n // per_call):
            agent, state, totals = chunk(source, agent, state, totals, key, None, np.int32(per_call))
        jax.block_until_ready(agent)
        return time.perf_counter() - began

    return work


def peer(library: str, agent_name: str, per_call: int):
    """Stable-Baselines3 or SBX: `model.train(gradient_steps)` on a filled replay buffer."""
    import gymnasium
    from gymnasium import spaces

    class Still(gymnasium.Env):
        observation_space = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        action_space = spaces.Box(-1.0, 1.0, (ACT,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(OBS, np.float32), {}

        def step(self, action):
            return np.zeros(OBS, np.float32), 0.0, False, False, {}

    if library == "sb3":
        import stable_baselines3 as zoo
    else:
        import sbx as zoo
    from stable_baselines3.common.logger import configure

    model = getattr(zoo, agent_name.upper())(
        "MlpPolicy", Still(), learning_rate=3e-4, batch_size=BATCH, policy_kwargs=dict(net_arch=[256, 256]), seed=0,
        device="cpu",
    )  # fmt: skip
    model.set_logger(configure(None, []))
    data = transitions()
    for i in range(ROWS):
        done = np.zeros(1)
        obs, next_obs = data["obs"][i : i + 1], data["next_obs"][i : i + 1]
        model.replay_buffer.add(obs, next_obs, data["action"][i : i + 1], data["reward"][i : i + 1], done, [{}])

    def block() -> None:
        if library == "sbx":
            import jax

            jax.block_until_ready(model.policy.qf_state.params)

    def train(steps: int) -> None:
        if library == "sbx":
            model.train(BATCH, steps) if _batch_first(model) else model.train(steps, BATCH)
        else:
            model.train(gradient_steps=steps, batch_size=BATCH)

    def work(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n // per_call):
            train(per_call)
        block()
        return time.perf_counter() - began

    return work


def _batch_first(model) -> bool:
    import inspect

    return next(iter(inspect.signature(model.train).parameters)) == "batch_size"


def main() -> int:
    """Runs all cases and prints the table."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        library, mode = flags.worker.split("-")
        per_call = SCAN if mode == "scanned" else 1
        serve(ours(flags.case, per_call) if library == "trimtab" else peer(library, flags.case, per_call))
        return 0
    rounds, n = (3, 128) if flags.quick else (9, 512)
    table, samples = [], {}
    for agent in ("sac", "td3"):
        names = ["trimtab-single", "sb3-single", "sbx-single", "trimtab-scanned", "sbx-scanned"]
        found = rates(__file__, names, agent, {name: n for name in names}, rounds)
        samples[agent] = found
        for ours_name, peer_name in (
            ("trimtab-single", "sb3-single"),
            ("trimtab-single", "sbx-single"),
            ("trimtab-scanned", "sb3-single"),
            ("trimtab-scanned", "sbx-scanned"),
        ):
            case = f"{agent} {ours_name.split('-')[1]}"
            table.append(row(case, found[ours_name], found[peer_name], peer_name, "updates/s"))
    show(table)
    write(flags.json, table, samples=samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
