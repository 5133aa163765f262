"""What was tried on the SAC update: each form undone or added by itself, in turns with the update as it stands.

256x2, batch 256, obs 17, act 6, 64 updates a call. A ratio above 1: the other form is faster.
"""

import sys
from dataclasses import replace
from typing import Any

from pairs import arguments, rates, row, serve, show, write
from updates import SCAN, ours

FORMS = {
    "member": "a product for each member of the ensemble",
    "copied": "first layer: the input copied to each member",
    "last": "last layer of the critics as a matrix product",
    "narrow": "last layer of the actor: gradient as x' g",
    "turned": "x turned round before each x' g",
    "flat": "Adam on one flat array",
    "joint": "one pass of the actor for s and s'",
    "noise": "noise drawn anew in each of its uses",
}


def change(form: str) -> None:
    """Puts one other form in the library's place."""
    import jax
    import jax.numpy as jnp
    import optax

    from trimtab.agents.sac import SAC
    from trimtab.nets.linear import Linear

    ensemble: Any = Linear._ensemble

    def member(self: Linear, x: Any) -> Any:
        inputs = [x] * len(self.weight) if x.ndim == 2 else x
        return jnp.stack([one @ weight for one, weight in zip(inputs, self.weight, strict=True)])

    def copied(self: Linear, x: Any) -> Any:
        return ensemble(self, jnp.broadcast_to(x, (len(self.weight), *x.shape)) if x.ndim == 2 else x)

    def last(self: Linear, x: Any) -> Any:
        return x @ self.weight if self.weight.shape[-1] == 1 else ensemble(self, x)

    if form in ("member", "copied", "last"):
        Linear._ensemble = {"member": member, "copied": copied, "last": last}[form]
    elif form == "narrow":
        Linear._single = lambda self, x: x @ self.weight
    elif form == "turned":
        Linear._single = lambda self, x: _turned()(x, self.weight)
        Linear._ensemble = lambda self, x: _turned()(x, self.weight) if x.ndim == 3 else ensemble(self, x)
    elif form == "flat":
        adam = optax.adam
        optax.adam = lambda *args, **kwargs: optax.flatten(adam(*args, **kwargs))
    elif form == "joint":
        SAC.update = _joint
    elif form == "noise":
        jax.lax.optimization_barrier = lambda x: x


def _turned() -> Any:
    """x @ w whose gradient by w transposes x in a pass of its own."""
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def product(x: Any, w: Any) -> Any:
        return x @ w

    def back(kept: Any, g: Any) -> Any:
        x, w = kept
        turn = lambda a: jnp.swapaxes(a, -1, -2)
        return g @ turn(w), jax.lax.optimization_barrier(turn(x)) @ g

    product.defvjp(lambda x, w: (x @ w, (x, w)), back)
    return product


def _joint(self: Any, batch: Any, key: Any) -> Any:
    """SAC's update, in which the actor sees s and s' in one pass; the same arithmetic but for the noise."""
    import jax
    import jax.numpy as jnp
    import optax

    from trimtab.ops import descend, polyak
    from trimtab.ops.targets import td_target

    tx, opt, n = optax.adam(self.config.learning_rate), self.opt, len(batch.reward)
    both = jnp.concatenate([batch.obs, batch.next_obs])
    (action, log_prob), pull = jax.vjp(lambda pi: pi.sample_and_log_prob(both, key), self.actor)
    alpha = jnp.exp(self.log_alpha)
    value = self.target(batch.next_obs, action[n:]).min(0) - alpha * log_prob[n:]
    y = td_target(batch.reward, batch.discount, value, self.config.gamma)
    critic, opt_q, m_q = descend(tx, self.critic, opt["critic"], lambda q: self._critic_loss(q, y, batch), "critic")
    score = lambda a, p: (alpha * p - critic(batch.obs, a).min(0)).mean()
    loss, (by_action, by_log_prob) = jax.value_and_grad(score, (0, 1))(action[:n], log_prob[:n])
    padded = lambda g: jnp.concatenate([g, jnp.zeros_like(g)])
    (grads,) = pull((padded(by_action), padded(by_log_prob)))
    updates, opt_pi = tx.update(grads, opt["actor"], self.actor)
    entropy = -log_prob[:n].mean()
    log_alpha, opt_a, m_a = descend(
        tx, self.log_alpha, opt["log_alpha"], lambda a: self._ent_coef_loss(a, entropy), "ent_coef"
    )
    new = replace(
        self,
        actor=optax.apply_updates(self.actor, updates),
        critic=critic,
        target=polyak(critic, self.target, self.config.tau),
        log_alpha=log_alpha,
        opt=dict(actor=opt_pi, critic=opt_q, log_alpha=opt_a),
        step=self.step + 1,
    )
    m_pi = {"actor_loss": loss, "actor_grad_norm": optax.tree.norm(grads), "actor_entropy": entropy}
    return new, m_q | m_pi | m_a | {"ent_coef": jnp.exp(log_alpha)}


def main() -> int:
    """Measures all forms in turns and prints their ratios to the update as it stands."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        if flags.worker != "standing":
            change(flags.worker)
        serve(ours("sac", SCAN))
        return 0
    rounds, n = (5, 128) if flags.quick else (11, 512)
    names = ["standing", *FORMS]
    found = rates(__file__, names, "sac", dict.fromkeys(names, n), rounds)
    table = [row(label, found[name], found["standing"], "as it stands", "updates/s") for name, label in FORMS.items()]
    show(table)
    write(flags.json, table, samples=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
