"""Random numbers without a loop: the published answers, JAX's own bits, and what is compiled."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from trimtab.training.threefry import threefry

ANSWERS = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
"""Key, counter, result: the known answers that Random123 is published with (twenty rounds)."""

DRAWS = """
import jax, jax.random as jr, numpy as np, sys
if sys.argv[1] == "ours":
    from trimtab.training.threefry import unroll
    unroll()
keys = jr.split(jr.fold_in(jr.key(7), 3), 5)
draw = jax.jit(lambda k: (jr.bits(k, (3, 7)), jr.randint(k, (9,), 0, 1000), jr.permutation(k, 11)))
print([np.asarray(x).tolist() for x in (*draw(keys[0]), *jax.vmap(draw)(keys))])
"""


@pytest.mark.parametrize(("key", "counter", "expected"), ANSWERS)
def test_known_answers(key, counter, expected):
    found = threefry(*(jnp.full((2, 1), x, jnp.uint32) for x in (*key, *counter)))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, np.full((2, 1), want, np.uint32))


def test_jax_draws_the_same():
    # Two processes, since the rule holds for all programs of one.
    run = lambda which: subprocess.run([sys.executable, "-c", DRAWS, which], capture_output=True, text=True, check=True)
    assert run("ours").stdout == run("jax").stdout


def test_no_loop_is_compiled():
    # The suite's settings have called `unroll`.
    compiled = jax.jit(lambda k: jr.normal(k, (4,))).lower(jr.key(0)).compile()
    assert "while" not in compiled.as_text()
