"""Settings and fixtures of the whole suite. The settings must stand before Trimtab is imported for the first time."""

import gc
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Compiled functions are kept between runs. By environment, so that commands which the tests start share the cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import jax.numpy as jnp
import jax.random as jr
import jaxtyping
import pytest

assert "trimtab" not in sys.modules, "Trimtab was imported before the type-checking hook: its shapes would go unchecked"
# Shapes and types of every annotated function of ours are checked while it is traced; compiled code is not slowed.
jaxtyping.install_import_hook("trimtab", "beartype.beartype")

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Again for the case that a pytest plugin imported JAX before this file was read.
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# A first call compiles for seconds: no deadline. The same examples in each run, so that a red suite stays red.
hypothesis.settings.register_profile("trimtab", deadline=None, derandomize=True)
hypothesis.settings.load_profile("trimtab")

from trimtab.batches import Transition  # noqa: E402
from trimtab.core import Spec  # noqa: E402
from trimtab.training.threefry import unroll  # noqa: E402

unroll()  # as every command does, so that no test depends on one before it


@pytest.fixture(scope="module", autouse=True)
def no_programs_are_left() -> Iterator[None]:
    """Each compiled program holds some of the memory maps that Linux allows a process, 65,530 by default: beyond them
    the compiler crashes. So a worker lets go of a module's programs when it is through with it.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def getkey() -> Callable[[], jax.Array]:
    """A new key at each call; the same ones in each run of a test."""
    count = itertools.count()
    return lambda: jr.fold_in(jr.key(20), next(count))


@pytest.fixture(scope="session")
def spec() -> Spec:
    """Three observations, two continuous actions."""
    return Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2, action_low=(-1.0, -2.0), action_high=(1.0, 2.0))


@pytest.fixture(scope="session")
def dict_spec() -> Spec:
    """An observation of two named parts, five numbers in all."""
    parts = {"goal": jax.ShapeDtypeStruct((2,), jnp.float32), "position": jax.ShapeDtypeStruct((3,), jnp.float32)}
    return Spec(parts, 2, action_low=(-1.0, -2.0), action_high=(1.0, 2.0))


def random_obs(spec: Spec, key: jax.Array, lead: tuple[int, ...]):
    """Standard normal observations with leading axes `lead`."""
    leaves, structure = jax.tree.flatten(spec.obs)
    keys = jr.split(key, len(leaves))
    return jax.tree.unflatten(
        structure, [jr.normal(k, (*lead, *leaf.shape)) for k, leaf in zip(keys, leaves, strict=True)]
    )


def random_batch(spec: Spec, key: jax.Array, size: int = 16) -> Transition:
    """Random transitions, about a quarter of which end their episode."""
    k_obs, k_action, k_reward, k_discount, k_next = jr.split(key, 5)
    return Transition(
        obs=random_obs(spec, k_obs, (size,)),
        action=jr.randint(k_action, (size,), 0, spec.action_size)
        if spec.discrete
        else jr.uniform(k_action, (size, spec.action_size), minval=-1.0, maxval=1.0),
        reward=jr.normal(k_reward, (size,)),
        discount=jr.bernoulli(k_discount, 0.75, (size,)).astype(jnp.float32),
        next_obs=random_obs(spec, k_next, (size,)),
    )


@pytest.fixture(scope="session")
def make_obs() -> Callable:
    """`make_obs(spec, key, lead)`: see `random_obs`."""
    return random_obs


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Transition]:
    """`make_batch(spec, key, size=16)`: see `random_batch`."""
    return random_batch


@pytest.fixture
def batch(spec: Spec) -> Transition:
    """Sixteen random transitions of `spec`."""
    return random_batch(spec, jr.key(21))
