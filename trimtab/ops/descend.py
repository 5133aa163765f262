"""The only gradient step of the library."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from trimtab.core import Metrics


def copy(tree: Any) -> Any:
    """A copy of `tree` in buffers of its own: a target that aliases its network cannot be donated."""
    return jax.tree.map(jnp.copy, tree)


def descend(
    tx: optax.GradientTransformation,
    params: Any,
    opt_state: optax.OptState,
    loss_fn: Callable[[Any], tuple[Any, Metrics]],
    name: str,
) -> tuple[Any, optax.OptState, Metrics]:
    """One step of `tx` down `loss_fn`, differentiated by its argument alone; all else it uses is constant.

    Returns the new parameters, the new optimiser state, and the metrics of the loss prefixed with `name`, beside
    `{name}_loss` and `{name}_grad_norm` (the global Euclidean norm before any clipping in `tx`).
    """

    def with_params(params: Any) -> tuple[Any, tuple[Metrics, Any]]:
        loss, metrics = loss_fn(params)
        return loss, (metrics, params)

    return descend_stateful(tx, params, opt_state, with_params, name)


def descend_stateful(
    tx: optax.GradientTransformation,
    params: Any,
    opt_state: optax.OptState,
    loss_fn: Callable[[Any], tuple[Any, tuple[Metrics, Any]]],
    name: str,
) -> tuple[Any, optax.OptState, Metrics]:
    """`descend` for networks with running statistics: the loss also returns the parameters with the renewed ones.

    The step is taken from those. Statistics get no gradient in training, so `tx` leaves them as they are (true of Adam;
    weight decay would shrink them).
    """
    (loss, (metrics, renewed)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    # Optax mixes strong and weak types inside, which strict promotion (on in our tests) refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(renewed, updates)
    named = {f"{name}_{key}": value for key, value in metrics.items()}
    return params, opt_state, {f"{name}_loss": loss, f"{name}_grad_norm": optax.tree.norm(grads)} | named
