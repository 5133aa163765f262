"""The share of the machine's float32 matrix-product peak that the SAC update reaches (256x2, batch 256, obs 17, act 6).

The peak is the best rate of a jitted 2048x2048x2048 product, measured in turns with the updates. Only the products of
the update count as useful work; activations, Adam and sampling are overhead.
"""

import sys
import time

from pairs import arguments, rates, row, serve, show, write
from updates import ACT, BATCH, OBS, SCAN, ours

SIZE, WIDTH = 2048, 256


def update_flops() -> int:
    """Floating-point operations of the matrix products in one SAC update: 2 for each multiply-add."""
    critic = [(OBS + ACT, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    actor = [(OBS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * ACT)]
    forward = lambda net: sum(2 * BATCH * i * o for i, o in net)
    # Backward: a product for each weight and one for each input that needs a gradient.
    backward = lambda net, first: 2 * forward(net) - (0 if first else 2 * BATCH * net[0][0] * net[0][1])
    inputs_only = forward([(ACT, WIDTH), *critic[1:]])  # dQ/da: the observation's columns are not needed
    target = forward(actor) + 2 * forward(critic)
    critics = 2 * (forward(critic) + backward(critic, False))
    actors = forward(actor) + backward(actor, False) + 2 * (forward(critic) + inputs_only)
    return target + critics + actors


def matmul():
    """A jitted product of two 2048x2048 matrices."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    product = jax.jit(lambda a, b: a @ b)
    a = jnp.ones((SIZE, SIZE), jnp.float32)

    def work(n: int) -> float:
        began = time.perf_counter()
        for _ in range(n):
            product(a, a).block_until_ready()
        return time.perf_counter() - began

    return work


def main() -> int:
    """Measures both and prints the share."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(matmul() if flags.worker == "matmul" else ours("sac", SCAN if flags.worker == "scanned" else 1))
        return 0
    rounds, n = (5, 128) if flags.quick else (15, 512)
    names = ["matmul", "scanned", "single"]
    found = rates(__file__, names, "sac", {"matmul": 12, "scanned": n, "single": n}, rounds)
    gigaflops = {
        "matmul": [rate * 2 * SIZE**3 / 1e9 for rate in found["matmul"]],
        "scanned": [rate * update_flops() / 1e9 for rate in found["scanned"]],
        "single": [rate * update_flops() / 1e9 for rate in found["single"]],
    }
    table = [
        row(f"sac {mode}", gigaflops[mode], gigaflops["matmul"], "matmul 2048^3", "GFLOP/s")
        for mode in ("scanned", "single")
    ]
    show(table)
    print(f"one update: {update_flops() / 1e9:.3f} GFLOP in matrix products")
    best = {name: max(values) for name, values in gigaflops.items()}
    share = best["scanned"] / best["matmul"]
    print(f"best of all rounds: {best['scanned']:.0f} of {best['matmul']:.0f} GFLOP/s ({share:.0%})")
    write(flags.json, table, samples=gigaflops, flops=update_flops())
    return 0


if __name__ == "__main__":
    sys.exit(main())
