"""Exported policies: numbers worked out by hand, every operation against JAX, and files that must be refused."""

import importlib
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax import lax

from trimtab.nets.critic import Critic
from trimtab.policies.compose import BestOfN, SoftmaxOfN
from trimtab.policies.deterministic import Deterministic
from trimtab.policies.diffusion import Diffusion
from trimtab.policies.flow import DecoderVelocity, FlowPolicy, GatedVelocity, LearnedStd, MLPVelocity, Ode, OneStep
from trimtab.training import export
from trimtab.training.export import ExportError, check_parity, export_onnx, export_stablehlo, load_stablehlo

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Net(eqx.Module):
    """Linear, LayerNorm, activation, Linear; one example."""

    first: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    last: eqx.nn.Linear

    def __init__(self, n_in: int, width: int, n_out: int, key: jax.Array):
        k_first, k_last = jr.split(key)
        self.first, self.last = eqx.nn.Linear(n_in, width, key=k_first), eqx.nn.Linear(width, n_out, key=k_last)
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, x, activation=jax.nn.relu):
        return self.last(activation(self.norm(self.first(x))))


NET = Net(5, 16, 3, jr.key(0))
OBS = np.zeros(5, np.float32)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def parity(fn, example, tmp_path, **options):
    """Exports, checks the file with the library's own check, and with nothing of it at batch sizes 1, 2 and 7."""
    path = export_onnx(fn, example, tmp_path / "policy.onnx", **options)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    if not options.get("key_input"):
        rng = np.random.default_rng(1)
        obs = jax.tree.map(lambda x: rng.normal(size=(7, *x.shape)).astype(np.float32).astype(x.dtype), example)
        wanted = np.asarray(jax.jit(jax.vmap(fn))(obs))
        names = [value.name for value in session.get_inputs()]
        for n in (1, 2, 7):
            (got,) = session.run(None, dict(zip(names, [leaf[:n] for leaf in jax.tree.leaves(obs)], strict=True)))
            assert got.shape == wanted[:n].shape and got.dtype == wanted.dtype
            np.testing.assert_allclose(got, wanted[:n], atol=1e-5, rtol=1e-5)
    return check_parity(fn, path, example, samples=64, key_input=options.get("key_input", False))


# ------------------------------------------------------------------------------------------------------- by hand


def test_one_layer_by_hand(tmp_path):
    weight, bias = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([0.25, -1.0])
    path = export_onnx(lambda obs: jax.nn.relu(weight @ obs + bias), np.zeros(2), tmp_path / "deep" / "policy.onnx")
    action = run(path, obs=np.array([[1.0, 2.0], [2.0, 0.5]], np.float32))
    # row 0: 1 - 4 + 0.25 < 0, 0.5 + 6 - 1; row 1: 2 - 1 + 0.25, 1 + 1.5 - 1
    np.testing.assert_array_equal(action, np.array([[0.0, 5.5], [1.25, 1.5]], np.float32))


def test_names_metadata_and_free_batch_axis(tmp_path):
    example = {"robot": {"joints": np.zeros(3)}, "goal": np.zeros(2)}
    fn = lambda obs: jnp.concatenate([obs["goal"], obs["robot"]["joints"]])
    path = export_onnx(
        fn, example, tmp_path / "a.onnx", metadata={"agent": "sac", "env": "Hopper-v5", "trimtab": "0.1.0"}
    )
    model = onnx.load(path)
    assert {p.key: p.value for p in model.metadata_props} == {"agent": "sac", "env": "Hopper-v5", "trimtab": "0.1.0"}
    assert [value.name for value in model.graph.input] == ["goal", "robot.joints"]
    assert [value.name for value in model.graph.output] == ["action"]
    for value in [*model.graph.input, *model.graph.output]:
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"
    renamed = onnx.load(export_onnx(fn, example, tmp_path / "b.onnx", input_names=["target", "q"]))
    assert [value.name for value in renamed.graph.input] == ["target", "q"]
    assert not list(tmp_path.glob("*.partial"))
    with pytest.raises(ExportError, match="2 arrays"):
        export_onnx(fn, example, tmp_path / "c.onnx", input_names=["target"])


def test_weights_are_stored_once_and_nothing_is_left_for_run_time(tmp_path):
    def loop(obs):
        return lax.fori_loop(0, 5, lambda i, x: jnp.tanh(SQUARE @ x), obs)

    model = onnx.load(export_onnx(loop, OBS, tmp_path / "policy.onnx"))
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Tanh"] * 5 + ["Identity"]
    (weight,) = model.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), np.asarray(SQUARE).T)


# ------------------------------------------------------------------------------------------------- against JAX

SQUARE = 0.3 * jr.normal(jr.key(1), (5, 5))
TABLE = jr.normal(jr.key(2), (6, 4))

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "mish": jax.nn.mish,
    "leaky_relu": jax.nn.leaky_relu,
    "log_sigmoid": jax.nn.log_sigmoid,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_network_with_each_activation(name, tmp_path):
    assert parity(lambda obs: jnp.tanh(NET(obs, ACTIVATIONS[name])), OBS, tmp_path) < 1e-6


def test_normaliser_and_action_scale_are_inside(tmp_path):
    mean, variance = jnp.arange(5.0), jnp.arange(1.0, 6.0)
    low, high = jnp.array([-1.0, 0.0, -2.0]), jnp.array([1.0, 5.0, 2.0])

    def fn(obs):
        x = jnp.clip((obs - mean) / jnp.sqrt(variance + 1e-8), -10.0, 10.0)
        return low + (jnp.tanh(NET(x)) + 1.0) / 2.0 * (high - low)

    assert parity(fn, OBS, tmp_path) < 1e-5


def test_dict_observation_with_a_mask_and_discrete_actions(tmp_path):
    example = {"mask": np.ones(3, bool), "obs": OBS}
    fn = lambda d: jnp.argmax(jnp.where(d["mask"], NET(d["obs"]), -jnp.inf))
    assert parity(fn, example, tmp_path) == 0.0


def test_ensemble_is_a_batched_product(tmp_path):
    nets = eqx.filter_vmap(lambda key: Net(8, 16, 1, key))(jr.split(jr.key(3), 4))

    def pessimistic(obs):
        x = jnp.concatenate([obs, jnp.tanh(NET(obs))])
        return eqx.filter_vmap(lambda net: net(x), in_axes=eqx.if_array(0))(nets).min(0)

    assert parity(pessimistic, OBS, tmp_path) < 1e-5


@pytest.mark.parametrize("how", ["index", "take_along_axis"])
def test_best_of_n(how, tmp_path):
    critic, offsets = Net(8, 16, 1, jr.key(4)), jnp.linspace(-0.5, 0.5, 6)

    def fn(obs):
        actions = jnp.tanh(NET(obs))[None] + offsets[:, None]
        q = jax.vmap(lambda a: critic(jnp.concatenate([obs, a]))[0])(actions)
        best = jnp.argmax(q)
        return actions[best] if how == "index" else jnp.take_along_axis(actions, best[None, None], 0)[0]

    assert parity(fn, OBS, tmp_path) < 1e-5


@pytest.mark.parametrize("how", ["python", "scan", "fori", "while"])
def test_euler_loop_of_a_flow(how, tmp_path):
    field = Net(9, 16, 3, jr.key(5))
    step = lambda obs, x, t: x + 0.25 * field(jnp.concatenate([obs, x, t[None]]))

    def fn(obs):
        x, t = obs[:3], 0.25 * jnp.arange(4.0)
        if how == "python":
            for i in range(4):
                x = step(obs, x, t[i])
            return x
        if how == "scan":
            return lax.scan(lambda x, t: (step(obs, x, t), None), x, t)[0]
        if how == "fori":
            return lax.fori_loop(0, 4, lambda i, x: step(obs, x, t[i]), x)
        return lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, step(obs, c[1], t[c[0]])), (0, x))[1]

    assert parity(fn, OBS, tmp_path) < 1e-5


X = np.zeros((6, 4), np.float32)
PAIR = {"a": np.zeros((2, 3, 4), np.float32), "b": np.zeros((2, 4, 5), np.float32)}
first = lambda x: jnp.argmax(x[:, 0])
OPERATIONS = {
    "pair_batched": (lambda d: jnp.einsum("bij,bjk->bik", jnp.tanh(d["a"]), jnp.tanh(d["b"])), PAIR),
    "pair_two_axes": (lambda d: jnp.einsum("bij,bjk->ik", jnp.tanh(d["a"]), jnp.tanh(d["b"])), PAIR),
    "pair_outer": (lambda d: jnp.einsum("bij,bjk->bijk", jnp.tanh(d["a"]), jnp.tanh(d["b"])), PAIR),
    "pair_none_free": (lambda d: jnp.einsum("bij,bij->b", jnp.tanh(d["a"]), jnp.tanh(d["a"])), PAIR),
    "weights_left": (lambda x: jnp.einsum("ca,abd->bcd", TABLE.T, jnp.stack([jnp.tanh(x)] * 2, 1)), X),
    "weights_right": (lambda x: jnp.einsum("ab,cb->ca", jnp.tanh(x), TABLE), X),
    "weights_inner": (lambda x: jnp.einsum("ab,ab->", jnp.tanh(x), TABLE), X),
    "attention": (lambda x: jax.nn.softmax(x @ x.T / 2.0) @ x, X),
    "row": (lambda x: x[first(x)], X),
    "column": (lambda x: x[:, jnp.argmax(x[0])], X),
    "element": (lambda x: x[first(x), jnp.argmax(x[0])], X),
    "rows": (lambda x: jnp.take(x, jnp.argmax(x, 1), axis=0), X),
    "row_per_column": (lambda x: jnp.take_along_axis(x, jnp.argmax(x, 0)[None], 0)[0], X),
    "row_of_table": (lambda x: TABLE[first(x)], X),
    "window": (lambda x: lax.dynamic_slice(x, (first(x), jnp.argmax(x[0])), (2, 3)), X),
    "vmapped_row": (lambda d: jax.vmap(lambda y: y[first(y)])(d["a"]), {"a": PAIR["a"]}),
    "known_indices": (lambda x: x[jnp.array([0, 2]), :][:, jnp.array([3, -1, 0])], X),
    "set": (lambda x: x.at[1:3, 2].set(9.0).at[jnp.array([0, 4])].set(x[1:3]), X),
    "set_in_loop": (lambda x: lax.fori_loop(0, 6, lambda i, y: y.at[i].set(0.5 * y[i] + y[(i + 1) % 6]), x), X),
    "add": (lambda x: x.at[jnp.array([0, 4, 4])].add(x[1:4]), X),
    "update_slice": (lambda x: lax.dynamic_update_slice(x, x[:2, :2], (3, 1)), X),
    "scan_outputs": (lambda x: lax.scan(lambda c, r: (c + r, c * 0.5), jnp.zeros(4), x, reverse=True)[1], X),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, jnp.sin, lambda y: -y, x), X),
    "switch": (lambda x: lax.switch(jnp.argmax(x[0]), [jnp.sin, jnp.cos, jnp.tanh, lambda y: 2.0 * y], x), X),
    "gradient": (lambda x: jax.grad(lambda y: jnp.sum(jnp.sin(y[1:3]) * jnp.tanh(y[0])[None]))(x), X),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(x)), X),
    "pad_and_reverse": (lambda x: jnp.flip(jnp.pad(x, ((1, 2), (0, 1)), constant_values=3.0), 0)[::2], X),
    "cut_by_pad": (lambda x: lax.pad(x, jnp.float32(0), ((-1, 2, 0), (1, -2, 0))), X),
    "shapes": (lambda x: jnp.tile(jnp.roll(x, 2, 0).T.reshape(2, 12), (2, 1)) + jnp.repeat(x.reshape(2, 12), 2, 0), X),
    "split_and_stack": (lambda x: jnp.stack([a * b for a, b in zip(*jnp.split(x, 2), strict=True)], 1), X),
    "unstack": (lambda x: sum(jnp.unstack(x)), X),
    "reductions": (lambda x: jnp.stack([x.sum(1), x.max(1), x.min(1), x.mean(1), x.std(1), jnp.tanh(x).prod(1)]), X),
    "any_all": (lambda x: jnp.where(jnp.any(x > 1, 1) ^ jnp.all(x > -1, 1), x[:, 0], x[:, 1]), X),
    "cumsum": (lambda x: jnp.cumsum(x, 1), X),
    "top_k": (lambda x: lax.top_k(x, 2)[0] + lax.top_k(x, 2)[1].astype(jnp.float32), X),
    "one_hot": (lambda x: jax.nn.one_hot(jnp.argmin(x[0]), 4) @ jnp.tanh(x).T, X),
    "rounding": (lambda x: jnp.round(x) + jnp.floor(x) + jnp.ceil(x) + jnp.sign(x) + lax.round(x), X),
    "powers": (lambda x: (jnp.abs(x) + 0.1) ** -1.5 + jnp.tanh(x) ** 5 + lax.integer_pow(1.0 + x * x, -2) + x**0, X),
    "modulo": (lambda x: jnp.mod(x, 2.0) + jnp.fmod(x, 3.0), X),
    "trigonometry": (lambda x: jnp.sin(x) * jnp.cos(x) + jnp.arctan(x) + jnp.sinh(jnp.tanh(x)), X),
    "finite": (lambda x: jnp.where(jnp.isfinite(jnp.log(x)), jnp.exp2(-jnp.abs(x)), 0.0), X),
    "log_softmax": (lambda x: jax.nn.log_softmax(jnp.tanh(x)) + jax.nn.logsumexp(x, 1, keepdims=True), X),
    "identity": (lambda x: x, X),
    "constant": (lambda x: jnp.arange(3.0), X),
    "scalar": (lambda x: x[0, 0], X),
    "integers": (lambda x: (x * 3).astype(jnp.int32) // 2 - jnp.argmax(x), X),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name, tmp_path):
    fn, example = OPERATIONS[name]
    parity(fn, example, tmp_path)


def test_small_numbers_keep_their_digits(tmp_path):
    path = export_onnx(lambda x: jnp.stack([jnp.log1p(x), jnp.expm1(x)]), jnp.float32(0), tmp_path / "policy.onnx")
    x = np.array([1e-7, -3e-6, 2e-4, -0.3, 0.6, 80.0], np.float32)
    wanted = np.stack([np.log1p(x.astype(np.float64)), np.expm1(x.astype(np.float64))], 1)
    np.testing.assert_allclose(run(path, obs=x), wanted, rtol=2e-5)


# ------------------------------------------------------------------------------------------------------- noise


def test_noise_is_an_input(tmp_path):
    fn = lambda obs, key: obs + 0.5 * jr.normal(key, (3,))
    path = export_onnx(fn, np.zeros(3), tmp_path / "policy.onnx", key_input=True)
    obs, noise = np.ones((2, 3), np.float32), np.array([[0.0, 1.0, -2.0], [4.0, 0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(run(path, obs=obs, noise=noise), np.float32([[1.0, 1.5, 0.0], [3.0, 1.0, 1.0]]))
    assert check_parity(fn, path, np.zeros(3), key_input=True) < 1e-6


def test_uniform_noise_is_scaled_by_its_bounds(tmp_path):
    fn = lambda obs, key: obs + jr.uniform(key, (2,), minval=-1.0, maxval=3.0)
    path = export_onnx(fn, np.zeros(2), tmp_path / "policy.onnx", key_input=True)
    action = run(path, obs=np.zeros((1, 2), np.float32), uniform=np.array([[0.0, 0.75]], np.float32))
    np.testing.assert_allclose(action, [[-1.0, 2.0]], atol=1e-6)


STOCHASTIC = {
    "categorical": (lambda o, k: jr.categorical(k, o), ["obs", "uniform"]),
    "one_a_step": (
        lambda o, k: lax.scan(lambda x, k: (0.9 * x + 0.1 * jr.normal(k, (5,)), None), o, jr.split(k, 3))[0],
        ["obs", "noise", "noise_1", "noise_2"],
    ),
    "key_is_carried": (
        lambda o, k: lax.fori_loop(0, 2, lambda i, c: (c[0] + jr.normal(c[1], (5,)), jr.split(c[1])[0]), (o, k))[0],
        ["obs", "noise", "noise_1"],
    ),
    "best_of_n": (
        lambda o, k: (lambda a: a[jnp.argmax((a @ SQUARE).sum(-1))])(
            jax.vmap(lambda k: jnp.tanh(o + jr.normal(k, (5,))))(jr.split(k, 8))
        ),
        ["obs", "noise"],
    ),
    "not_used": (lambda o, k: (jr.normal(k, (5,)), o)[1], ["obs"]),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_policy(name, tmp_path):
    fn, inputs = STOCHASTIC[name]
    assert parity(fn, OBS, tmp_path, key_input=True) < 1e-5
    assert [value.name for value in onnx.load(tmp_path / "policy.onnx").graph.input] == inputs


def test_other_draws_are_refused(tmp_path):
    fn = lambda obs, key: obs + jr.randint(key, (5,), 0, 4).astype(jnp.float32)
    with pytest.raises(ExportError, match=r"jax\.random\.normal"):
        export_onnx(fn, OBS, tmp_path / "policy.onnx", key_input=True)


# ------------------------------------------------------------------------------------------------------ refusals

REFUSED = {
    "unknown": (lambda x: jnp.linalg.cholesky(x[:, None] * x[None] + jnp.eye(5)), "'cholesky'"),
    "data_dependent_loop": (lambda x: lax.while_loop(lambda y: y[0] < 1.0, lambda y: 2.0 * y, x), "while loop"),
    "endless_loop": (lambda x: lax.fori_loop(0, 10**6, lambda i, y: jnp.sin(y), x), "1000000 steps"),
    "half_precision": (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, tmp_path):
    fn, reason = REFUSED[name]
    with pytest.raises(ExportError, match=reason) as error:
        export_onnx(fn, OBS, tmp_path / "policy.onnx")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_what_is_not_needed_need_not_be_translatable(tmp_path):
    parity(lambda x: (jnp.linalg.cholesky(x[:, None] * x[None]), x)[1], OBS, tmp_path)


def test_empty_observation_is_refused(tmp_path):
    with pytest.raises(ExportError, match="no array"):
        export_onnx(lambda obs: jnp.zeros(2), {}, tmp_path / "policy.onnx")


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(export, "import_module", missing)
    with pytest.raises(ExportError, match=r"onnx is not installed: pip install 'trimtab\[export\]'"):
        export_onnx(lambda obs: obs, OBS, tmp_path / "policy.onnx")


def test_libraries_are_imported_only_when_needed():
    source = importlib.import_module("inspect").getsource(export)
    assert "import onnx" not in source


# -------------------------------------------------------------------------------------------------- check_parity


def change_one_weight(path, by):
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight.flat[0] += by
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    onnx.save(model, path)


def test_a_broken_weight_is_caught(tmp_path):
    fn = lambda obs: jnp.tanh(NET(obs))
    path = export_onnx(fn, OBS, tmp_path / "policy.onnx")
    check_parity(fn, path, OBS)
    change_one_weight(path, 0.01)
    with pytest.raises(ExportError, match="differs from the policy by"):
        check_parity(fn, path, OBS)


@pytest.mark.parametrize("other", [lambda obs: obs[:3], lambda obs: jnp.argmax(obs), lambda obs: jnp.log(obs)])
def test_other_shapes_types_and_nans_are_caught(other, tmp_path):
    path = export_onnx(lambda obs: obs, OBS, tmp_path / "policy.onnx")
    with pytest.raises(ExportError):
        check_parity(other, path, OBS)


def test_tolerance_is_relative_to_large_actions_only(tmp_path):
    path = export_onnx(lambda obs: 100.0 * jnp.tanh(obs), OBS, tmp_path / "policy.onnx")
    shifted = lambda by: lambda obs: 100.0 * jnp.tanh(obs) + by
    assert check_parity(shifted(5e-4), path, OBS) == pytest.approx(5e-4, abs=1e-4)  # of 100
    with pytest.raises(ExportError):
        check_parity(shifted(5e-3), path, OBS)


def test_files_that_are_no_models(tmp_path):
    for name in ("policy.onnx", "policy.stablehlo"):
        with pytest.raises(ExportError, match=name):
            check_parity(lambda obs: obs, tmp_path / name, OBS)
        (tmp_path / name).write_bytes(b"not a model")
        with pytest.raises(ExportError, match=name):
            check_parity(lambda obs: obs, tmp_path / name, OBS)


# ----------------------------------------------------------------------------------------------------- StableHLO


def test_stablehlo_round_trip(tmp_path):
    example = {"goal": np.zeros(2), "obs": np.zeros(3)}
    fn = lambda d: jnp.tanh(NET(jnp.concatenate([d["goal"], d["obs"]])))
    path = export_stablehlo(fn, example, tmp_path / "policy.stablehlo")
    policy = load_stablehlo(path)
    for n in (1, 2, 7):
        obs = {"goal": jr.normal(jr.key(n), (n, 2)), "obs": jr.normal(jr.key(-n), (n, 3))}
        np.testing.assert_allclose(policy(obs), jax.vmap(fn)(obs), atol=1e-6)
    assert check_parity(fn, path, example) < 1e-6
    with pytest.raises(ExportError, match="differs"):
        check_parity(lambda d: 1.001 * fn(d), path, example)
    assert set(jax.export.deserialize(bytearray(path.read_bytes())).platforms) == {"cpu", "cuda", "tpu"}


def test_stablehlo_with_noise(tmp_path):
    fn = lambda obs, key: obs + 0.5 * jr.normal(key, (5,))
    path = export_stablehlo(fn, OBS, tmp_path / "policy.stablehlo", key_input=True)
    action = load_stablehlo(path)(jnp.ones((2, 5)), {"noise": jnp.full((2, 5), 2.0)})
    np.testing.assert_array_equal(action, np.full((2, 5), 2.0))
    assert check_parity(fn, path, OBS, key_input=True) < 1e-6


# Flow policies


@pytest.mark.parametrize("velocity", [MLPVelocity, GatedVelocity, DecoderVelocity])
@pytest.mark.parametrize("noise", ["inside", "input"])
def test_a_flow_is_exported_with_its_start_inside_or_as_an_input(velocity, noise, spec, tmp_path):
    policy = FlowPolicy.create(spec, velocity.create(spec, jr.key(0)), LearnedStd(), 4)
    inside = lambda obs: Ode(policy)(obs, jr.key(0))
    given = lambda obs, key: Ode(policy)(obs, key)
    fn, key_input = (inside, False) if noise == "inside" else (given, True)
    path = export_onnx(fn, spec.zero_obs(), tmp_path / "policy.onnx", key_input=key_input)
    assert check_parity(fn, path, spec.zero_obs(), key_input=key_input) < 1e-5
    inputs = [node.name for node in onnxruntime.InferenceSession(path).get_inputs()]
    assert inputs == (["obs", "noise"] if noise == "input" else ["obs"])


OFFLINE = {
    "clipped flow": lambda spec: FlowPolicy.create(
        spec, MLPVelocity.create(spec, jr.key(0), std_head=False, input_norm=False), None, 10, clipped=True
    ),
    "one step": lambda spec: OneStep.create(spec, (8,), jr.key(0)),
    "standardised": lambda spec: Deterministic.create(
        replace(spec, obs_mean=np.arange(3, dtype=np.float32), obs_std=np.ones(3, np.float32)),
        (8,),
        jr.key(0),
        standardise=True,
    ),
    "best of a flow's": lambda spec: BestOfN(OFFLINE["clipped flow"](spec), Critic.create(spec, (8,), 2, jr.key(1)), 4),
    "diffusion": lambda spec: Diffusion.create(spec, (8,), jr.key(0), steps=21),
    "one of a diffusion's": lambda spec: SoftmaxOfN(
        Diffusion.create(spec, (8,), jr.key(0), steps=21, calls=3),
        Critic.create(spec, (8,), 2, jr.key(1), activation="mish", norm="layer"),
        4,
    ),
}
"""The policies of the offline agents."""


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.thorough
def test_policies_of_offline_agents_are_exported(name, spec, tmp_path):
    policy = OFFLINE[name](spec)
    fn = lambda obs, key: policy(obs, key)
    path = export_onnx(fn, spec.zero_obs(), tmp_path / "policy.onnx", key_input=True)
    assert check_parity(fn, path, spec.zero_obs(), key_input=True) < 1e-4
