"""Returns and lengths of the episodes of own worlds, counted inside the compiled loop."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from trimtab.core import Spec, Step, stuck

RECENT = 100
"""Finished episodes that `rollout/ep_rew_mean` is taken over, as in Stable-Baselines3."""


class Episodes(eqx.Module):
    """Of `n` copies of a world: their episodes so far, and the last `RECENT` that ended."""

    episode_return: Float[Array, " n"]
    episode_length: Int[Array, " n"]
    episode_success: Float[Array, " n"]
    """1 if a step of the episode so far reported success, else 0; NaN where the world reports none."""
    recent_returns: Float[Array, " recent"]
    recent_lengths: Float[Array, " recent"]
    recent_successes: Float[Array, " recent"]
    finished: Int[Array, ""]
    steps: Int[Array, ""]
    """taken by each copy."""
    stuck: Int[Array, ""]
    """steps after which an action mask first allowed nothing; -1 if none ever did."""

    @classmethod
    def create(cls, obs: Any, spec: Spec) -> "Episodes":
        """None ended yet; `obs` are the first observations of the copies."""
        n, lost = jax.tree.leaves(obs)[0].shape[0], stuck(obs, spec)
        none = lambda: jnp.full((RECENT,), jnp.nan)  # arrays of their own: shared ones could not be donated
        return cls(
            episode_return=jnp.zeros(n),
            episode_length=jnp.zeros(n, jnp.int32),
            episode_success=jnp.full((n,), jnp.nan),
            recent_returns=none(),
            recent_lengths=none(),
            recent_successes=none(),
            finished=jnp.int32(0),
            steps=jnp.int32(0),
            stuck=jnp.int32(-1) if lost is None else jnp.where(lost.any(), jnp.int32(0), -1),
        )

    def after(self, out: Step, next_obs: Any, spec: Spec) -> "tuple[Episodes, Bool[Array, ' n']]":
        """With one step of each copy, and which of them ended their episode. `next_obs` is what is acted on next: that
        of a new episode where one ended."""
        done = out.terminated | out.truncated
        total, length, success = self.episode_return + out.reward, self.episode_length + 1, self.episode_success
        if "success" in out.info:
            success = jnp.fmax(success, out.info["success"].astype(jnp.float32))  # a number replaces the NaN
        steps, lost = self.steps + 1, stuck(next_obs, spec)
        now = jnp.asarray(False) if lost is None else lost.any()
        # The k-th episode to end takes the k-th slot of the ring; the others aim past its end and are dropped.
        slots = jnp.where(done, (self.finished + jnp.cumsum(done, dtype=jnp.int32) - 1) % RECENT, RECENT)
        new = Episodes(
            episode_return=jnp.where(done, 0.0, total),
            episode_length=jnp.where(done, 0, length),
            episode_success=jnp.where(done, jnp.nan, success),
            recent_returns=self.recent_returns.at[slots].set(total, mode="drop"),
            recent_lengths=self.recent_lengths.at[slots].set(length.astype(jnp.float32), mode="drop"),
            recent_successes=self.recent_successes.at[slots].set(success, mode="drop"),
            finished=self.finished + done.sum(dtype=jnp.int32),
            steps=steps,
            stuck=jnp.where(now & (self.stuck < 0), steps, self.stuck),
        )
        return new, done
