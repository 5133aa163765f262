"""JAX's random numbers on a CPU without a loop.

JAX draws with Threefry-2x32 (Salmon et al. 2011), twenty rounds of adding, rotating and exclusive or. On a CPU it
compiles them as a loop of five trips, some forty small operations each time; an action of a small network draws five
times, which took three times as long as the network. Written out, the rounds are one operation. The bits are the same.
"""

from functools import cache

import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir
from jaxtyping import Array, UInt32

from trimtab.batches import AnyArray

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)

Words = UInt32[AnyArray, "..."]


def threefry(key_1: Words, key_2: Words, word_1: Words, word_2: Words) -> tuple[Words, Words]:
    """Threefry-2x32 with twenty rounds: two random words for each key and counter of two words each."""
    keys = (key_1, key_2, key_1 ^ key_2 ^ _PARITY)
    a, b = word_1 + keys[0], word_2 + keys[1]
    for i in range(5):
        for r in _ROTATIONS[i % 2]:
            a = a + b
            b = a ^ _rotated(b, r)
        a, b = a + keys[(i + 1) % 3], b + keys[(i + 2) % 3] + np.uint32(i + 1)
    return a, b


def _rotated(x: Array, r: int) -> Array:
    return (x << np.uint32(r)) | (x >> np.uint32(32 - r))


@cache
def unroll() -> None:
    """From now on programs for the CPU draw by `threefry`: the same bits, faster."""
    rule = mlir.lower_fun(threefry, multiple_results=True)
    mlir.register_lowering(threefry2x32_p, rule, platform="cpu")
