"""On-policy and discrete agents: environment steps per second of PPO in a JAX world against one jitted function of a
whole run in PureJaxRL's style, written for this file; PPO on CartPole-v1 with eight environments, and DQN's updates,
against Stable-Baselines3 (extra `bench`); and what the action Jacobian costs an update.

Cases: `world` and `host` count environment steps; `dqn`, with what the peer learns, and `double`, our defaults, which
ask the network once more an update; `exact` (plain network) and `linear` updates against the same agent without the
penalty, so that 1 / ratio is its cost.
"""

import sys
import time
from dataclasses import asdict

from pairs import arguments, rates, row, serve, show, write

ENVS, STEPS, EPOCHS, BATCH = 64, 32, 4, 512
CASES = {
    "world": ("trimtab", "whole-run jit", "steps/s"),
    "host": ("trimtab", "stable-baselines3", "steps/s"),
    "dqn": ("trimtab", "stable-baselines3", "updates/s"),
    "double": ("trimtab", "stable-baselines3", "updates/s"),
    "exact": ("penalty", "plain", "updates/s"),
    "linear": ("penalty", "plain", "updates/s"),
}

NAMES = {"dqn": "DQN", "double": "DQN, our defaults"}


def trained(agent: str, env: str, num_envs: int, config):
    """`work(n)`: n environment steps of one of our agents, as `trimtab train` makes them."""
    import jax
    import jax.random as jr

    from trimtab.assemble import Setup, spec_to_json
    from trimtab.envs.gym import Collector
    from trimtab.envs.make import find
    from trimtab.run.logging import Progress
    from trimtab.training.compile import configure
    from trimtab.training.fit import Schedule, Training, fit

    configure("cpu")
    world = find(env)
    record = dict(agent=agent, agent_config=asdict(config), dataset=None, online_steps=0)
    record |= dict(updates_per_step=1.0, num_envs=num_envs)
    setup = Setup(record, world, None, world.spec, config)
    source = setup.source("online")
    training = Training(setup.agent(0), jax.jit(lambda source, key: source.init(key))(source, jr.key(1)))
    recorded = agent == "ppo"
    make = world.make
    collector = None
    if make is not None:
        collector = Collector(lambda: make(None), num_envs, world.spec, 0, recorded=recorded)
    progress, first = Progress(1, 0, "step", quiet=True), getattr(config, "learning_starts", 0)

    def work(steps: int) -> float:
        schedule = Schedule(training.step + steps, learning_starts=first, eval_every=0, checkpoint_every=0)
        began = time.perf_counter()
        fit(training, source, [], schedule, jr.key(0), progress, collector=collector)
        jax.block_until_ready(training.agent)
        return time.perf_counter() - began

    assert spec_to_json(world.spec)
    return work


def whole_run():
    """PPO on CartPole as one function: acting with value and log probability, advantages, epochs and minibatches in
    nested scans. Separate networks of 64 and 64, no normalisation, the same sizes as ours."""
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import optax

    from trimtab.envs.classic import CartPole
    from trimtab.envs.wrappers import AutoReset

    env, tx = AutoReset.create(CartPole()), optax.chain(optax.clip_by_global_norm(0.5), optax.adam(3e-4, eps=1e-5))

    def net(params, x):
        for weight, bias in params[:-1]:
            x = jnp.tanh(x @ weight + bias)
        return x @ params[-1][0] + params[-1][1]

    def make(key, out, scale):
        sizes, keys = (4, 64, 64, out), jr.split(key, 3)
        gains = (2**0.5, 2**0.5, scale)
        init = lambda k, i, o, g: (jax.nn.initializers.orthogonal(g)(k, (i, o)), jnp.zeros(o))
        return [init(k, i, o, g) for k, i, o, g in zip(keys, sizes[:-1], sizes[1:], gains, strict=True)]

    def act(carry, key):
        params, state, obs = carry
        k_act, k_env = jr.split(key)
        logits, value = jax.nn.log_softmax(net(params["pi"], obs)), net(params["v"], obs)[:, 0]
        action = jr.categorical(k_act, logits)
        state, out, after = jax.vmap(env.step)(state, action, jr.split(k_env, ENVS))
        log_prob = jnp.take_along_axis(logits, action[:, None], 1)[:, 0]
        done = out.terminated | out.truncated
        return (params, state, after), (obs, action, log_prob, value, out.reward, done)

    def loss(params, rows):
        obs, action, old, value, advantage = rows
        logits = jax.nn.log_softmax(net(params["pi"], obs))
        ratio = jnp.exp(jnp.take_along_axis(logits, action[:, None], 1)[:, 0] - old)
        normal = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        policy = -jnp.minimum(ratio * normal, jnp.clip(ratio, 0.8, 1.2) * normal).mean()
        return policy + 0.25 * jnp.square(net(params["v"], obs)[:, 0] - value - advantage).mean()

    def iteration(carry, key):
        params, opt, state, obs = carry
        k_act, k_epochs = jr.split(key)
        (_, state, obs), rows = jax.lax.scan(act, (params, state, obs), jr.split(k_act, STEPS))
        seen, action, log_prob, value, reward, done = rows

        def back(after, row):
            advantage, next_value = after
            value, reward, goes_on = row
            advantage = reward + 0.99 * next_value * goes_on - value + 0.99 * 0.95 * goes_on * advantage
            return (advantage, value), advantage

        last = net(params["v"], obs)[:, 0]
        _, advantage = jax.lax.scan(back, (jnp.zeros(ENVS), last), (value, reward, 1.0 - done), reverse=True)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (seen, action, log_prob, value, advantage))

        def epoch(carry, key):
            order = jr.permutation(key, ENVS * STEPS).reshape(-1, BATCH)

            def step(carry, some):
                params, opt = carry
                grads = jax.grad(loss)(params, jax.tree.map(lambda x: x[some], flat))
                updates, opt = tx.update(grads, opt, params)
                return (optax.apply_updates(params, updates), opt), None

            return jax.lax.scan(step, carry, order)

        (params, opt), _ = jax.lax.scan(epoch, (params, opt), jr.split(k_epochs, EPOCHS))
        return (params, opt, state, obs), reward.mean()

    params = {"pi": make(jr.key(0), 2, 0.01), "v": make(jr.key(1), 1, 1.0)}
    carry = (params, tx.init(params), *jax.vmap(env.reset)(jr.split(jr.key(2), ENVS)))
    run = jax.jit(lambda carry, keys: jax.lax.scan(iteration, carry, keys))
    rounds = 0

    def work(steps: int) -> float:
        nonlocal carry, rounds
        rounds += 1
        keys = jr.split(jr.key(rounds), steps // (ENVS * STEPS))
        began = time.perf_counter()
        carry = jax.block_until_ready(run(carry, keys)[0])
        return time.perf_counter() - began

    return work


def peer(case: str):
    """Stable-Baselines3 with the same hyper-parameters."""
    import torch
    from stable_baselines3 import DQN, PPO
    from stable_baselines3.common.env_util import make_vec_env

    torch.manual_seed(0)
    if case == "host":
        model = PPO("MlpPolicy", make_vec_env("CartPole-v1", 8), n_steps=256, batch_size=256, n_epochs=4, device="cpu")
    else:
        shape = dict(policy_kwargs=dict(net_arch=[128, 128]), batch_size=128, train_freq=1, device="cpu")
        model = DQN("MlpPolicy", "CartPole-v1", learning_starts=1_000, target_update_interval=500, **shape)
        model.learn(1_000)

    def work(steps: int) -> float:
        began = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        return time.perf_counter() - began

    return work


def update(case: str, penalty: bool):
    """`work(n)`: n updates of PPO on one rollout of Arm-track, with or without the penalty."""
    import jax
    import jax.random as jr

    from trimtab.agents import PPO
    from trimtab.agents.ppo import Config
    from trimtab.data.rollouts import WorldRollouts
    from trimtab.envs.arm_track import ArmTrack
    from trimtab.training.compile import configure

    configure("cpu")
    network = "linear" if case == "linear" else "mlp"
    weight = 0.2 if penalty else 0.0
    config = Config(n_steps=64, batch_size=512, n_epochs=5, activation="elu", network=network, jacobian_weight=weight)
    world = ArmTrack.create()
    agent = PPO.create(jr.key(0), world.spec, config)
    source = WorldRollouts.create(world, agent.explorer.memory(()), config.gamma, 64, config.n_steps)
    rollout = jax.jit(lambda key: source.batch(source.advance(agent.explorer, source.init(key), key), key))(jr.key(1))
    step = jax.jit(lambda agent, key: agent.update(rollout, key)[0])

    def work(updates: int) -> float:
        nonlocal agent
        began = time.perf_counter()
        for i in range(updates):
            agent = step(agent, jr.key(i))
        jax.block_until_ready(agent)
        return time.perf_counter() - began

    return work


def worker(name: str, case: str):
    """One contender of a case."""
    if name == "stable-baselines3":
        return peer(case)
    if name == "whole-run jit":
        return whole_run()
    if case in ("exact", "linear"):
        return update(case, name == "penalty")
    from trimtab.agents import dqn, ppo

    plain = dict(normalise_obs=False, normalise_reward=False)
    if case == "world":
        config = ppo.Config(n_steps=STEPS, batch_size=BATCH, n_epochs=EPOCHS, **plain)
        return trained("ppo", "trimtab/CartPole-v1", ENVS, config)
    if case == "host":
        return trained("ppo", "CartPole-v1", 8, ppo.Config(n_steps=256, batch_size=256, n_epochs=4, **plain))
    same = {} if case == "double" else dict(double=False, target_every=500, tau=1.0)  # as the peer learns
    return trained("dqn", "CartPole-v1", 1, dqn.Config(**same))


def main() -> int:
    """Runs the cases in turns and prints the table; `--case` runs one of them."""
    flags = arguments(__doc__).parse_args()
    if flags.worker:
        serve(worker(flags.worker, flags.case))
        return 0
    rounds, scale = (3, 1) if flags.quick else (9, 4)
    units = {"world": 102_400, "host": 8_192, "dqn": 1_000, "double": 1_000, "exact": 10, "linear": 10}
    table, samples = [], {}
    for case in [flags.case] if flags.case else CASES:
        ours, other, unit = CASES[case]
        found = samples[case] = rates(
            __file__, [ours, other], case, dict.fromkeys((ours, other), scale * units[case]), rounds
        )
        table.append(row(NAMES.get(case, f"PPO, {case}"), found[ours], found[other], other, unit))
    show(table)
    write(flags.json, table, samples=samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
