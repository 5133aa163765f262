"""Gradient updates per second of offline agents, and the share of the matrix-product peak that FQL reaches.

IQL, TD3+BC and CQL (256x2, batch 256, obs 17, act 6) against d3rlpy, each as its library trains from a data set:
drawing the batch is part of an update, Trimtab makes 64 updates a call. CQL does the same work in both: one next action
in the target, 3 x 10 actions in the penalty, whose weight is tuned. FQL ((512)x4, ten Euler steps) against a jitted
2048x2048x2048 product; only the products of the update count as useful work.
"""

import sys
import time

import numpy as np
from pairs import arguments, rates, row, serve, show, write
from roofline import SIZE, matmul
from updates import ACT, BATCH, OBS, ROWS, SCAN, transitions

WIDTH, EULER = 512, 10
CONFIGS = {"iql": {}, "td3-bc": {}, "cql": dict(max_target_backup=False, lagrange=True, target_gap=10.0), "fql": {}}
"""Fields in which ours differ from their defaults, so that both libraries do the same."""


def ours(agent_name: str):
    """Trimtab: the compiled chunk of the training loop on a data set."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.agents import AGENTS, config_class
    from trimtab.batches import Transition
    from trimtab.core import Spec
    from trimtab.data.sources import OfflineSource
    from trimtab.training.compile import chunk, configure, no_totals

    configure("cpu")
    data = transitions()
    spec = Spec(jax.ShapeDtypeStruct((OBS,), jnp.float32), ACT, False, (-1.0,) * ACT, (1.0,) * ACT)
    kind = AGENTS[agent_name]
    agent = kind.create(jr.key(0), spec, config_class(kind)(**CONFIGS[agent_name]))
    rows = Transition(data["obs"], data["action"], data["reward"], np.ones(ROWS, np.float32), data["next_obs"])
    source = OfflineSource(jax.tree.map(jnp.asarray, rows), BATCH)
    state = source.init(jr.key(0))
    totals = no_totals(source, agent, state, None)
    key = jr.key(1)

    def work(n: int) -> float:
        nonlocal agent, state, totals
        began = time.perf_counter()
        for _ in range(max(n // SCAN, 1)):
            agent, state, totals = chunk(source, agent, state, totals, key, None, np.int32(min(n, SCAN)))
        jax.block_until_ready(agent)
        return time.perf_counter() - began

    return work


def peer(agent_name: str):
    """d3rlpy: a batch from its replay buffer and `update`, as its `fit` does."""
    import d3rlpy

    data = transitions()
    ends = (np.arange(ROWS) % 1000 == 999).astype(np.float32)
    dataset = d3rlpy.dataset.MDPDataset(data["obs"], data["action"], data["reward"], 0.0 * ends, timeouts=ends)
    config = {
        "iql": d3rlpy.algos.IQLConfig(batch_size=BATCH),
        "td3-bc": d3rlpy.algos.TD3PlusBCConfig(
            batch_size=BATCH, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler()
        ),
        "cql": d3rlpy.algos.CQLConfig(batch_size=BATCH),
    }[agent_name]
    if config.observation_scaler is not None:  # `fit` does this before its first update
        config.observation_scaler.fit_with_transition_picker(dataset.episodes, dataset.transition_picker)
    agent = config.create(device="cpu")
    agent.build_with_dataset(dataset)

    def work(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            agent.update(dataset.sample_transition_batch(BATCH))
        return time.perf_counter() - began

    return work


def fql_flops() -> int:
    """Floating-point operations of the matrix products in one FQL update: 2 for each multiply-add."""
    net = lambda i, o: [(i, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, o)]
    critic, actor, velocity = net(OBS + ACT, 1), net(OBS + ACT, ACT), net(OBS + ACT + 1, ACT)
    forward = lambda net: sum(2 * BATCH * i * o for i, o in net)
    # Backward: a product for each weight, and one for each input but the network's own, which needs no gradient.
    backward = lambda net: 2 * forward(net) - 2 * BATCH * net[0][0] * net[0][1]
    inputs_only = forward([(ACT, WIDTH), *critic[1:]])  # dQ/da: the observation's columns are not needed
    target = forward(actor) + 2 * forward(critic)
    critics = 2 * (forward(critic) + backward(critic))
    cloning = forward(velocity) + backward(velocity)
    student = EULER * forward(velocity) + forward(actor) + backward(actor) + 2 * (forward(critic) + inputs_only)
    return target + critics + cloning + student


def main() -> int:
    """Runs all cases and prints the table."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        work = matmul() if flags.worker == "matmul" else (ours if flags.worker == "trimtab" else peer)(flags.case)
        serve(work)
        return 0
    rounds = 3 if flags.quick else 9
    table, samples = [], {}
    for agent, n in (("iql", 512), ("td3-bc", 512), ("cql", 64)):
        n = n // 4 if flags.quick and n > SCAN else n
        found = rates(__file__, ["trimtab", "d3rlpy"], agent, {"trimtab": n, "d3rlpy": n // 4}, rounds)
        samples[agent] = found
        table.append(row(agent, found["trimtab"], found["d3rlpy"], "d3rlpy", "updates/s"))
    found = rates(__file__, ["matmul", "trimtab"], "fql", {"matmul": 12, "trimtab": SCAN}, rounds)
    gigaflops = {
        "matmul": [rate * 2 * SIZE**3 / 1e9 for rate in found["matmul"]],
        "trimtab": [rate * fql_flops() / 1e9 for rate in found["trimtab"]],
    }
    samples["fql"] = gigaflops
    table.append(row("fql", gigaflops["trimtab"], gigaflops["matmul"], "matmul 2048^3", "GFLOP/s"))
    show(table)
    print(f"one update of FQL: {fql_flops() / 1e9:.3f} GFLOP in matrix products")
    write(flags.json, table, samples=samples, flops=fql_flops())
    return 0


if __name__ == "__main__":
    sys.exit(main())
