"""Policies as files that other programs run: ONNX (any runtime, weights inside) and StableHLO (JAX without the code).

    export_onnx(lambda obs: scale(policy(normalise(obs), key)), spec.zero_obs(), "policy.onnx")
    check_parity(the_same_function, "policy.onnx", spec.zero_obs())     # raises unless the file does what it does

The function takes one example. The model takes a batch: each input and output has a leading axis of any length. A
function of `(obs, key)` is exported with `key_input=True`: what it draws with `jax.random.normal` becomes the inputs
`noise`, `noise_1`, … (to be filled with standard normal numbers), with `uniform` the inputs `uniform`, … (in [0, 1)).
ONNX and its runtime are imported in this file only, when they are needed.

jax2onnx (0.17.1) was tried first: it brings flax, orbax, tensorstore, netron and 27 more packages, leaves jitted
functions that use `eqx.nn.Linear` broken after an export, and gave `candidates[argmax(q)]` a wrong shape, silently.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from trimtab.training.onnx_graph import OPSET, ExportError, Graph, build, element_type, straighten, trace_batched

__all__ = ["ExportError", "check_parity", "export_onnx", "export_stablehlo", "load_stablehlo"]

PLATFORMS = ("cpu", "cuda", "tpu")


def export_onnx(
    fn: Callable[..., PyTree[Array]],
    example_obs: PyTree,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    key_input: bool = False,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes `fn(obs) -> action` (or `fn(obs, key)` with `key_input`) as an ONNX model and returns its path.

    `example_obs` gives the shapes of one observation, as arrays or `jax.ShapeDtypeStruct`. An input is named `obs` if
    the observation is one array, else by its place in the PyTree (`goal`, `robot.joints`), unless `input_names` gives
    the names in leaf order. The output is `action`. `metadata` is stored in the model's `metadata_props`.
    Raises `ExportError` naming the operation that has no ONNX counterpart, or the extra to install.
    """
    onnx = _import("onnx")
    with jax.default_matmul_precision("highest"):  # constants are folded at full precision on every device
        program = _Program.of(fn, example_obs, key_input)
        names = list(program.names if input_names is None else input_names)
        if len(set(names)) != len(program.specs):
            raise ExportError(
                f"the observation has {len(program.specs)} arrays, so give as many input names; got {names}"
            )
        specs = [*program.specs, *program.noise.values()]
        closed = trace_batched(program.run, specs)
        outputs = _leaf_names(program.out, "action", "action.")
        graph = build(closed, [*names, *program.noise], outputs)

    model = _model(onnx, graph, [*names, *program.noise], specs, outputs, jax.tree.leaves(program.out), len(names))
    onnx.helper.set_model_props(model, {name: str(value) for name, value in (metadata or {}).items()})
    onnx.checker.check_model(model, full_check=True)
    return _write(path, model.SerializeToString())


def export_stablehlo(
    fn: Callable[..., PyTree[Array]], example_obs: PyTree, path: str | Path, *, key_input: bool = False
) -> Path:
    """Writes `fn` as serialised StableHLO for CPU, CUDA and TPU, with a batch axis of any length; returns the path.

    Everything that JAX can compile can be exported. Stays readable by JAX for at least six months after its release.
    """
    program = _Program.of(fn, example_obs, key_input)
    (batch,) = jax.export.symbolic_shape("batch")
    wide = lambda spec: jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype)
    obs = program.tree.unflatten([wide(spec) for spec in program.specs])
    if key_input:
        call = lambda obs, noise: program.call(jax.tree.leaves(obs), noise)
        args = (obs, {name: wide(spec) for name, spec in program.noise.items()})
    else:
        call, args = fn, (obs,)
    exported = jax.export.export(jax.jit(jax.vmap(call)), platforms=PLATFORMS)(*args)
    return _write(path, bytes(exported.serialize()))


def load_stablehlo(path: str | Path) -> Callable[..., PyTree[Array]]:
    """The function in a file of `export_stablehlo`: batched `obs -> action`, or `(obs, noise dict) -> action`.

    Raises `ExportError` if the file is not one.
    """
    return jax.jit(_read_stablehlo(path).call)


def check_parity(
    fn: Callable[..., PyTree[Array]],
    path: str | Path,
    example_obs: PyTree,
    *,
    samples: int = 256,
    atol: float = 1e-5,
    seed: int = 0,
    key_input: bool = False,
    format: str | None = None,
) -> float:
    """The largest difference between `fn` and the exported file on random observations.

    `format` is "onnx" or "stablehlo"; None: ONNX where the file is named `.onnx`, else StableHLO.

    Observations are normal at scales 0.1, 1 and 10 (integers and booleans: 0 or 1), one by one and as one batch.
    Raises `ExportError` above `atol` times the largest action (at least 1), or if shapes, types or NaNs differ.
    """
    onnx = Path(path).suffix == ".onnx" if format is None else format == "onnx"
    with jax.default_matmul_precision("highest" if onnx else None):
        program = _Program.of(fn, example_obs, key_input)
        rng = np.random.default_rng(seed)
        leaves = [_random(rng, spec, max(samples, 3)) for spec in program.specs]
        obs = program.tree.unflatten(leaves)
        if key_input:
            keys = jax.random.split(jax.random.key(seed), max(samples, 3))
            wanted = jax.jit(jax.vmap(fn))(obs, keys)
            noise = jax.jit(jax.vmap(program.record))(leaves, keys)
        else:
            wanted, noise = jax.jit(jax.vmap(fn))(obs), {}
        run = _onnx_runner(path) if onnx else _stablehlo_runner(path, program, key_input)

        worst = 0.0
        scale = max([1.0, *(float(np.abs(_finite(leaf)).max()) for leaf in jax.tree.leaves(wanted) if leaf.size)])
        for rows in (slice(0, 1), slice(1, 2), slice(2, 3), slice(None)):
            got = run([leaf[rows] for leaf in leaves], {name: np.asarray(value)[rows] for name, value in noise.items()})
            for ours, theirs in zip(jax.tree.leaves(wanted), got, strict=True):
                worst = max(worst, _difference(np.asarray(ours)[rows], np.asarray(theirs), path))
    if worst > atol * scale:
        raise ExportError(
            f"{path} differs from the policy by {worst:.3g} where {atol * scale:.3g} is allowed: export it again, "
            "or raise atol if the policy itself amplifies rounding"
        )
    return worst


# ------------------------------------------------------------------------------------------------------------ helpers


@dataclass(frozen=True)
class _Program:
    """`fn` for one example as a jaxpr, with the names and shapes of what goes in and out."""

    closed: Any
    tree: Any
    specs: list[jax.ShapeDtypeStruct]
    names: list[str]
    out: PyTree
    noise: dict[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, fn: Callable[..., PyTree[Array]], example_obs: PyTree, key_input: bool) -> "_Program":
        obs = jax.tree.map(_spec, example_obs)
        specs, tree = jax.tree.flatten(obs)
        if not specs:
            raise ExportError("the observation holds no array")
        closed, out = jax.make_jaxpr(fn, return_shape=True)(obs, *([jax.random.key(0)] if key_input else []))
        program = cls(closed, tree, specs, _leaf_names(obs, "obs", ""), out, {})
        if not key_input:
            return program
        noise = jax.eval_shape(program.record, specs, jax.random.key(0))
        return cls(closed, tree, specs, program.names, out, noise)

    def run(self, *inputs: Any) -> list[Any]:
        """Output leaves from input leaves followed by the noise."""
        leaves, noise = inputs[: len(self.specs)], iter(inputs[len(self.specs) :])
        if not self._stochastic:
            return straighten(self.closed, leaves)
        # the key is a constant here: what is made of it is worked out now, what is drawn with it comes from the inputs
        return straighten(self.closed, [*leaves, jax.random.key(0)], lambda kind, shape, sample: next(noise))

    def call(self, leaves: Sequence[Array], noise: dict[str, Array]) -> PyTree[Array]:
        """The action, with the noise by name."""
        return jax.tree.unflatten(
            jax.tree.structure(self.out), self.run(*leaves, *[noise[name] for name in self.noise])
        )

    def record(self, leaves: Sequence[Array], key: Array) -> dict[str, Array]:
        """What `fn(obs, key)` draws, under the names of the noise inputs."""
        drawn: dict[str, Array] = {}

        def draw(kind: str, shape: tuple[int, ...], sample: Callable[[], Array]) -> Array:
            count = sum(name.split("_")[0] == kind for name in drawn)
            return drawn.setdefault(f"{kind}_{count}" if count else kind, sample())

        straighten(self.closed, [*leaves, key], draw)
        return drawn

    @property
    def _stochastic(self) -> bool:
        return len(self.closed.jaxpr.invars) > len(self.specs)


def _spec(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return jax.ShapeDtypeStruct(np.shape(leaf), jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))


def _leaf_names(tree: PyTree, alone: str, prefix: str) -> list[str]:
    """`alone` for a single array, else the path of each leaf, joined by dots."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [prefix + jax.tree_util.keystr(path, simple=True, separator=".") if path else alone for path in paths]


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ExportError(f"{name} is not installed: pip install 'trimtab[export]'") from error


def _model(
    onnx: Any,
    graph: Graph,
    names: list[str],
    specs: Sequence[Any],
    outputs: list[str],
    out_specs: list[Any],
    observed: int,
) -> Any:
    """The protobuf. Noise that no output depends on is left out; observations stay, so that the interface does."""
    used = {name for node in graph.nodes for name in node.inputs}
    info = lambda name, s: onnx.helper.make_tensor_value_info(name, element_type(s.dtype), ["batch", *s.shape])
    kept = [
        (name, spec) for i, (name, spec) in enumerate(zip(names, specs, strict=True)) if i < observed or name in used
    ]
    body = onnx.helper.make_graph(
        [onnx.helper.make_node(node.op, node.inputs, node.outputs, **node.attributes) for node in graph.nodes],
        "policy",
        [info(name, spec) for name, spec in kept],
        [info(name, spec) for name, spec in zip(outputs, out_specs, strict=True)],
        [onnx.numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", OPSET)]
    # the lowest format that knows the operators, so that older runtimes read it too
    version = onnx.helper.find_min_ir_version_for(opset)
    return onnx.helper.make_model(body, opset_imports=opset, ir_version=version, producer_name="trimtab")


def _write(path: str | Path, data: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # a reader never sees half a model
    partial.write_bytes(data)
    return partial.replace(path)


def _random(rng: np.random.Generator, spec: jax.ShapeDtypeStruct, samples: int) -> np.ndarray:
    shape = (samples, *spec.shape)
    if not np.issubdtype(spec.dtype, np.floating):
        return rng.integers(0, 2, shape).astype(spec.dtype)
    scale = np.resize([0.1, 1.0, 10.0], samples).reshape(-1, *[1] * len(spec.shape))
    return (scale * rng.standard_normal(shape)).astype(spec.dtype)


def _finite(x: Any) -> np.ndarray:
    return np.nan_to_num(np.asarray(x, np.float64), posinf=0.0, neginf=0.0)


def _difference(ours: np.ndarray, theirs: np.ndarray, path: str | Path) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ExportError(f"{path} gives {theirs.dtype}{theirs.shape} where the policy gives {ours.dtype}{ours.shape}")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))  # an infinity less itself is no number
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, ours) - np.where(same, 0.0, theirs)))
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _onnx_runner(path: str | Path) -> Callable[[list[Any], dict[str, Any]], list[Any]]:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of error for each of its status codes
        raise ExportError(f"{path} cannot be run by onnxruntime: {str(error).splitlines()[0]}") from error
    names = [value.name for value in session.get_inputs()]

    def run(leaves: list[Any], noise: dict[str, Any]) -> list[Any]:
        feed = dict(zip(names, leaves, strict=False)) | {name: value for name, value in noise.items() if name in names}
        return list(session.run(None, feed))

    return run


def _read_stablehlo(path: str | Path) -> jax.export.Exported:
    try:
        return jax.export.deserialize(bytearray(Path(path).read_bytes()))
    except FileNotFoundError:
        raise ExportError(f"{path} does not exist") from None
    except Exception as error:  # flatbuffers raises whatever the bytes lead it to
        raise ExportError(f"{path} is not a policy exported to StableHLO: {error}") from error


def _stablehlo_runner(
    path: str | Path, program: _Program, key_input: bool
) -> Callable[[list[Any], dict[str, Any]], list[Any]]:
    call = load_stablehlo(path)

    def run(leaves: list[Any], noise: dict[str, Any]) -> list[Any]:
        obs = program.tree.unflatten(leaves)
        return jax.tree.leaves(call(obs, noise) if key_input else call(obs))

    return run
