"""Seconds of one look of SEEM, and how much the structured kernel saves.

1. Kernels alone, N = 256 (obs 17, act 6): structured against dense features, critics of 256x2 and 512x2.
2. A whole look, kernels and eigenvalues, of a 256x2 critic: structured, dense and matrix-free (one look a call).
"""

import sys
import time
from typing import Any

from pairs import arguments, rates, row, serve, show, write

N, OBS, ACT = 256, 17, 6

METHODS = ("structured", "dense", "arnoldi")


def ours(name: str):
    """A method at a width, "structured-512", or with a whole look, "structured-256-look"."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr

    from trimtab.core import Spec
    from trimtab.diagnostics.seem import dense_kernels, member, mlp_kernels, q_value, rows_of, seem
    from trimtab.nets.critic import Critic
    from trimtab.training.compile import configure

    configure("cpu")
    method, width, *look = name.split("-")
    spec = Spec(jax.ShapeDtypeStruct((OBS,), jnp.float32), ACT, False, (-1.0,) * ACT, (1.0,) * ACT)
    critic = Critic.create(spec, (int(width),) * 2, 2, jr.key(0))
    k_obs, k_action, k_next = jr.split(jr.key(1), 3)
    obs, next_obs = jr.normal(k_obs, (N, OBS)), jr.normal(k_next, (N, OBS))
    action = jr.uniform(k_action, (N, ACT), minval=-1.0)
    data = (obs, action, next_obs, jnp.sign(action), jnp.ones(N))
    if look:
        once: Any = lambda: seem(critic, *data, 0.99, method=method)
    else:
        mlp = member(critic, 0)
        rows = (mlp, rows_of(critic, *data[:2]), rows_of(critic, *data[2:4]), data[4])
        compute = jax.jit(mlp_kernels if method == "structured" else lambda *rows: dense_kernels(q_value, *rows))
        once = lambda: jax.block_until_ready(compute(*rows))
    once()

    def work(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            once()
        return time.perf_counter() - began

    return work


def main() -> int:
    """Measures both and prints the tables."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(ours(flags.worker))
        return 0
    rounds = 5 if flags.quick else 15
    kernels = {f"{method}-{width}": 5 for width in (256, 512) for method in METHODS[:2]}
    looks = {f"{method}-256-look": 2 for method in METHODS}
    found = rates(__file__, list(kernels), "kernels", kernels, rounds)
    whole = rates(__file__, list(looks), "looks", looks, rounds)
    table = [
        row(f"kernels, {w}x2", found[f"structured-{w}"], found[f"dense-{w}"], "dense features", "kernels/s")
        for w in (256, 512)
    ]
    table += [
        row("a whole look, 256x2", whole["structured-256-look"], whole[f"{method}-256-look"], method, "looks/s")
        for method in METHODS[1:]
    ]
    show(table)
    slowest = 1.0 / min(whole["structured-256-look"])
    print(f"one look by the structured kernel, N = {N}, 256x2: at most {slowest:.2f} s")
    write(flags.json, table, samples={"kernels": found, "looks": whole})
    return 0


if __name__ == "__main__":
    sys.exit(main())
