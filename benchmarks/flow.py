"""Updates per second of agents with flows, and the share of the matrix-product peak that they reach.

1. Gaussian SAC, Flow-G, Flow-T and the naive flow (K = 4, critics 256x2, batch 256, obs 17, act 6), 64 updates a call:
   ratio of each flow to Gaussian SAC in the same round; with the actor updated every time (our default) and every
   third time (the paper's).
2. The paper's sizes (CrossQ critics 1024x2, batch 512, an actor update every third): floating-point operations of the
   matrix products of an update, over the best rate of a 2048x2048x2048 product measured in turns.
3. FQL on data at its paper's sizes ((512)x4, batch 256, ten Euler steps; obs 17, act 6), over the same product; FAC and
   FINO over FQL in the same round. FAC's density takes ten steps, each with the exact divergence (six directional
   derivatives, one an action dimension) or estimated by one random direction. A ratio of 0.5 is twice the time of FQL.
"""

import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
from offline import fql_flops
from pairs import arguments, rates, row, serve, show, write
from roofline import SIZE, matmul
from updates import ACT, OBS, ROWS, SCAN, transitions

NAMES = {"gated": "Flow-G", "decoder": "Flow-T", "mlp": "naive flow"}

CONTENDERS = {
    "sac": "Gaussian SAC",
    **{name: f"{label}, actor every update" for name, label in NAMES.items()},
    **{f"{name}-3": f"{label}, actor every third update" for name, label in NAMES.items()},
}


def agent_of(name: str) -> Any:
    """The agent of a contender: sac, a form of velocity (with the actor's delay), or "paper-FORM"."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.agents import SAC, SACFlow, sac, sac_flow
    from trimtab.core import Spec
    from trimtab.papers.sac_flow import paper_config

    spec = Spec(jax.ShapeDtypeStruct((OBS,), jnp.float32), ACT, False, (-1.0,) * ACT, (1.0,) * ACT)
    if name == "sac":
        return spec, SAC.create(jr.key(0), spec, sac.Config())
    if "paper" in name:
        config = paper_config(name.removeprefix("paper-"))
    else:
        velocity, _, delay = name.partition("-")
        config = sac_flow.Config(velocity=velocity, policy_delay=int(delay or 1))
    return spec, SACFlow.create(jr.key(0), spec, config)


def ours(name: str):
    """The compiled chunk of the training loop on a filled buffer."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.batches import Transition
    from trimtab.data.sources import ReplaySource
    from trimtab.training.compile import chunk, configure, no_totals

    configure("cpu")
    data, (spec, agent) = transitions(), agent_of(name)
    rows = Transition(data["obs"], data["action"], data["reward"], np.ones(ROWS, np.float32), data["next_obs"])
    source = ReplaySource.create(spec, 1_000_000, agent.config.batch_size, jax.tree.map(jnp.asarray, rows))
    state = source.init(jr.key(0))
    totals = no_totals(source, agent, state, None)

    def work(n: int) -> float:
        nonlocal agent, state, totals
        began = time.perf_counter()
        for _ in range(-(-n // SCAN)):
            agent, state, totals = chunk(source, agent, state, totals, jr.key(1), None, np.int32(min(n, SCAN)))
        jax.block_until_ready(agent)
        return time.perf_counter() - began

    return work


ON_DATA = {
    "fql": "FQL",
    "fac": "FAC, exact divergence",
    "fac-estimated": "FAC, one random direction",
    "fino": "FINO",
}
"""Agents that learn from a data set, all at the same sizes."""


def on_data(name: str):
    """The compiled chunk of the training loop on a data set, which FAC has scored."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.agents import AGENTS, config_class
    from trimtab.batches import Transition
    from trimtab.core import Spec
    from trimtab.data.sources import OfflineSource, ScoredSource
    from trimtab.training.compile import chunk, configure, no_totals, scores

    configure("cpu")
    data = transitions()
    spec = Spec(jax.ShapeDtypeStruct((OBS,), jnp.float32), ACT, False, (-1.0,) * ACT, (1.0,) * ACT)
    rows = Transition(data["obs"], data["action"], data["reward"], np.ones(ROWS, np.float32), data["next_obs"])
    rows = jax.tree.map(jnp.asarray, rows)
    kind = AGENTS[name.partition("-")[0]]
    fields = {"fac": {}, "fac-estimated": dict(probes=1), "fino": dict(phase="offline")}.get(name, {})
    agent: Any = kind.create(jr.key(0), spec, config_class(kind)(**fields))
    source: Any = (ScoredSource if name.startswith("fac") else OfflineSource)(rows, agent.config.batch_size)
    state = scores(source, agent, jr.key(2), None) if name.startswith("fac") else source.init(jr.key(0))
    totals = no_totals(source, agent, state, None)

    def work(n: int) -> float:
        nonlocal agent, state, totals
        began = time.perf_counter()
        agent, state, totals = chunk(source, agent, state, totals, jr.key(1), None, np.int32(n))
        jax.block_until_ready(agent)
        return time.perf_counter() - began

    return work


def products(fn: Any, *args: Any) -> float:
    """Floating-point operations of all matrix products that `fn` traces, 2 for each multiply-add."""
    import jax

    return _products(jax.make_jaxpr(fn)(*args).jaxpr)


def _products(jaxpr: Any) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2.0 * depth * np.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr"):
                    total += _products(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    total += _products(inner)
    return total


def update_flops(name: str) -> float:
    """Of one update, with the actor's share divided by `policy_delay`."""
    import jax
    import jax.random as jr

    from trimtab.batches import Transition

    _, agent = agent_of(name)
    n = agent.config.batch_size
    data = {key: value[:n] for key, value in transitions().items()}
    batch = jax.tree.map(
        jax.numpy.asarray,
        Transition(data["obs"], data["action"], data["reward"], np.ones(n, np.float32), data["next_obs"]),
    )
    always = replace(agent, config=replace(agent.config, policy_delay=1))
    whole = products(lambda a, k: a.update(batch, k), always, jr.key(0))
    critic = products(lambda a, k: a._update_critic(batch, k), always, jr.key(0))
    return critic + (whole - critic) / agent.config.policy_delay


def main() -> int:
    """Measures both and prints the tables."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        ready = matmul() if flags.worker == "matmul" else (on_data if flags.case == "data" else ours)(flags.worker)
        serve(ready)
        return 0
    rounds, n, large = (5, 64, 12) if flags.quick else (15, 256, 24)
    found = rates(__file__, list(CONTENDERS), "flow", dict.fromkeys(CONTENDERS, n), rounds)
    table = [
        row(label, found[name], found["sac"], "Gaussian SAC", "updates/s")
        for name, label in CONTENDERS.items()
        if name != "sac"
    ]
    paper = ("matmul", "paper-gated", "paper-decoder")
    sizes = {"matmul": 12, "paper-gated": large, "paper-decoder": large}
    at_scale = rates(__file__, list(paper), "paper", sizes, rounds)
    peak = [rate * 2 * SIZE**3 / 1e9 for rate in at_scale["matmul"]]
    flops = {name: update_flops(name) for name in paper[1:]}
    samples: dict[str, Any] = {"updates": found, "paper": at_scale, "flops": flops}
    for name, work in flops.items():
        reached = [rate * work / 1e9 for rate in at_scale[name]]
        label = f"{NAMES[name.removeprefix('paper-')]} at the paper's sizes"
        table.append(row(label, reached, peak, "matmul 2048^3", "GFLOP/s"))
        print(
            f"{label}: {work / 1e9:.1f} GFLOP an update, best of all rounds {max(reached) / max(peak):.0%} of the peak"
        )
    few = 8 if flags.quick else 32
    learnt = rates(__file__, ["matmul", *ON_DATA], "data", {"matmul": 12} | dict.fromkeys(ON_DATA, few), rounds)
    samples |= {"on data": learnt, "flops of FQL": fql_flops()}
    reached = [rate * fql_flops() / 1e9 for rate in learnt["fql"]]
    peak = [rate * 2 * SIZE**3 / 1e9 for rate in learnt["matmul"]]
    table.append(row("FQL at (512)x4", reached, peak, "matmul 2048^3", "GFLOP/s"))
    for name, label in ON_DATA.items():
        if name != "fql":
            table.append(row(f"{label}, at (512)x4", learnt[name], learnt["fql"], "FQL", "updates/s"))
    show(table)
    write(flags.json, table, samples=samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
