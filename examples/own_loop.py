"""Write the training loop yourself: an agent is a value with `create`, `update`, `policy` and `explorer`.

    python examples/own_loop.py

Half a minute on two cores. An agent never changes: `update` returns a new one. Keys are arguments, so the numbers
depend on the seed and the step and on nothing else.
"""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from trimtab.agents.sac import SAC, Config
from trimtab.batches import Transition
from trimtab.data import Buffer
from trimtab.envs.gym import ActionScale, spec_of, to_vector

STEPS, RANDOM = 7_000, 200


@jax.jit
def act(policy, obs, key):
    """An action in [-1, 1]; only the policy goes in, not the whole agent."""
    return policy(obs, key)


@partial(jax.jit, donate_argnums=(0, 1))
def learn(agent, buffer, row, run_key):
    """Stores one transition and makes one update. Agent and buffer are donated: rows are written in place."""
    buffer = buffer.extend(row)
    k_batch, k_update = jr.split(jr.fold_in(run_key, agent.step))
    agent, metrics = agent.update(buffer.sample(k_batch, 256), k_update)
    return agent, buffer, metrics


def main() -> None:
    env, rng = gymnasium.make("InvertedPendulum-v5"), np.random.default_rng(0)
    spec = spec_of(env)
    scale = ActionScale(spec, env.action_space.shape)  # from [-1, 1] to the environment's bounds
    agent = SAC.create(jr.key(0), spec, Config(learning_rate=1e-3, gamma=0.98, tau=0.02))
    none = jnp.zeros(())
    one_row = Transition(spec.zero_obs(), spec.zero_action(), none, none, spec.zero_obs())  # the shapes of a row
    buffer = Buffer.create(one_row, capacity=STEPS)

    obs, episode, returns = to_vector(env.reset(seed=0)[0]), 0.0, []
    for step in range(STEPS):
        if step < RANDOM:
            action = rng.uniform(-1.0, 1.0, spec.action_size).astype(np.float32)
        else:
            action = np.asarray(act(agent.explorer, obs, jr.fold_in(jr.key(1), step)))
        found, reward, terminated, truncated, _ = env.step(scale(action))
        next_obs, episode = to_vector(found), episode + float(reward)
        discount = 0.0 if terminated else 1.0  # a time limit leaves it at 1
        row = Transition(*(np.asarray(x, np.float32)[None] for x in (obs, action, reward, discount, next_obs)))
        agent, buffer, metrics = learn(agent, buffer, row, jr.key(2))
        obs = next_obs
        if terminated or truncated:
            obs, episode, returns = to_vector(env.reset()[0]), 0.0, [*returns, episode]
        if (step + 1) % 1_000 == 0:  # metrics stay on the device until they are looked at
            print(f"step {step + 1:,}  last return {returns[-1]:.0f}  critic loss {float(metrics['critic_loss']):.3f}")

    obs, over, total = to_vector(env.reset(seed=1)[0]), False, 0.0
    while not over:
        found, reward, terminated, truncated, _ = env.step(scale(np.asarray(act(agent.policy, obs, jr.key(0)))))
        obs, over, total = to_vector(found), terminated or truncated, total + float(reward)
    print(f"the policy balances for {total:.0f} of 1000 steps")


if __name__ == "__main__":
    main()
