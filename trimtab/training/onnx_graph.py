"""From a JAX function to a list of ONNX nodes. Knows JAX and the operator set (opset 18); imports no ONNX.

Three passes, each of which leaves less for the next:
1. `straighten` (one example): calls are inlined, loops unrolled, whatever does not depend on an input is computed now,
   and random draws are handed to the caller. What stays is a straight line of array operations.
2. `trace_batched`: that line under `jax.vmap`, traced with a batch size that is a symbol. No number stands for the
   batch in any shape, so none can be baked in.
3. `build`: one small function a primitive (`OPS`, at the foot) writes the nodes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from trimtab.core import RunError

OPSET = 18
MAX_STEPS = 1000  # of one unrolled loop; beyond it the graph is of no use to anybody

BATCH = jax.export.symbolic_shape("batch")[0]

# ONNX TensorProto.DataType; written out so that this file needs no ONNX
ELEMENT = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip

Handler = Callable[..., str | Sequence[str]]
"""(graph, equation, names of its inputs) -> the name of its output, or the names of its outputs."""

Draw = Callable[[str, tuple[int, ...], Callable[[], Any]], Any]
"""(kind, shape, sample) -> the values to use: kind is "noise" (standard normal) or "uniform" ([0, 1)), `sample` draws
them with the function's own key."""


class ExportError(RunError):
    """A policy that cannot be exported, or an exported file that does not do what the policy does."""


def _refuse(what: str) -> ExportError:
    return ExportError(f"cannot export to ONNX: {what}; rewrite that part of the policy, or export to stablehlo")


def element_type(dtype: Any) -> int:
    """ONNX's number for an element type. Raises `ExportError` if it has none here."""
    name = np.dtype(dtype).name
    if name not in ELEMENT:
        raise _refuse(f"a value has the type {name}")
    return ELEMENT[name]


# ---------------------------------------------------------------------------------------------------- 1. straighten

# Primitives that only call another jaxpr, and the parameter that holds it.
CALLS = {
    "jit": "jaxpr", "closed_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
}  # fmt: skip


@dataclass(frozen=True)
class _Bits:
    """Random bits on their way to a uniform number in [0, 1): JAX shifts, ors and bitcasts them, then subtracts 1."""

    uniform: Any


def straighten(closed: Any, args: Sequence[Any], draw: Draw | None = None) -> list[Any]:
    """Evaluates a jaxpr with loops unrolled, calls inlined and known values computed; returns its flat outputs.

    With `draw`, each `jax.random.normal` and `uniform` takes its numbers from there. Raises `ExportError` for a loop
    whose trip count depends on an input and, with `draw`, for random bits that are used in any other way.
    """
    jaxpr, consts = (closed.jaxpr, closed.consts) if isinstance(closed, jex.ClosedJaxpr) else (closed, ())
    env: dict[Any, Any] = {
        **dict(zip(jaxpr.constvars, consts, strict=True)),
        **dict(zip(jaxpr.invars, args, strict=True)),
    }

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _evaluate(eqn, [read(atom) for atom in eqn.invars], draw), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _known(*values: Any) -> bool:
    return not any(isinstance(value, Tracer | _Bits) for value in values)


def _apply(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, computed now if all of `args` are known, else traced."""
    if _known(*args):
        with jax.ensure_compile_time_eval():
            return fn(*args)
    return fn(*args)


def _bind(eqn: Any, ins: Sequence[Any], **changed: Any) -> list[Any]:
    outs = _apply(lambda *xs: eqn.primitive.bind(*xs, **{**eqn.params, **changed}), *ins)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _evaluate(eqn: Any, ins: list[Any], draw: Draw | None) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if draw is not None:
        if _is_normal(eqn):
            shape = eqn.outvars[0].aval.shape
            return [draw("noise", shape, lambda: _bind(eqn, ins)[0])]
        if name == "random_bits" or any(isinstance(x, _Bits) for x in ins):
            return [_follow_bits(eqn, ins, draw)]
    if name in CALLS:
        return straighten(params[CALLS[name]], ins, draw)
    if name in UNROLL and not (draw is None and _known(*ins)):
        return UNROLL[name](eqn, ins, draw)
    if name in MOVES and not _known(*ins):
        data, indices, rearrange = MOVES[name]
        if _known(*ins[indices]) and not _known(*ins[data]):
            return [rearrange(eqn, ins)]
    if name == "dot_general" and _known(ins[0]) and not _known(ins[1]):
        return [_weights_last(eqn, ins)]
    return _bind(eqn, ins)


def _weights_last(eqn: Any, ins: list[Any]) -> Any:
    """W x as x W': under `vmap` the batch then stays in front, and nothing is transposed at run time."""
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    out = _bind(eqn, ins[::-1], dimension_numbers=((contract_r, contract_l), (batch_r, batch_l)))[0]
    shared = len(batch_l)
    rows = np.ndim(ins[0]) - len(contract_l) - shared
    order = [*range(shared), *range(out.ndim - rows, out.ndim), *range(shared, out.ndim - rows)]
    return out if order == sorted(order) else lax.transpose(out, order)


def _is_normal(eqn: Any) -> bool:
    """Whether this is `jax.random.normal`, told by the names of its two jits: below is a uniform draw."""
    name = lambda e: e.params["name"] if e.primitive.name == "jit" else ""
    return name(eqn) == "_normal" and [name(inner) for inner in eqn.params["jaxpr"].eqns] == ["_normal_real"]


def _follow_bits(eqn: Any, ins: list[Any], draw: Draw) -> Any:
    name = eqn.primitive.name
    if name == "random_bits" and eqn.params["bit_width"] == 32:

        def sample() -> Any:
            mantissa = _bind(eqn, ins)[0] >> np.uint32(9) | np.uint32(0x3F800000)
            return lax.bitcast_convert_type(mantissa, jnp.float32) - np.float32(1)

        return _Bits(draw("uniform", eqn.outvars[0].aval.shape, sample))
    if name in ("shift_right_logical", "or", "bitcast_convert_type") and isinstance(ins[0], _Bits):
        return ins[0]
    if name == "sub" and isinstance(ins[0], _Bits):
        return ins[0].uniform
    raise ExportError(
        "only what jax.random.normal and uniform draw (also within categorical, gumbel, …) can become an input of the "
        "model: draw with these, or export the deterministic policy"
    )


def _scan(eqn: Any, ins: list[Any], draw: Draw | None) -> list[Any]:
    n_consts, n_carry, length = (eqn.params[name] for name in ("num_consts", "num_carry", "length"))
    if length > MAX_STEPS:
        raise _refuse(f"a loop of {length} steps is longer than the {MAX_STEPS} that are unrolled")
    consts, carry, xs = ins[:n_consts], ins[n_consts : n_consts + n_carry], ins[n_consts + n_carry :]
    rows: list[list[Any]] = [[]] * length
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        x = [_apply(lambda a, i=i: lax.index_in_dim(a, i, keepdims=False), a) for a in xs]
        outs = straighten(eqn.params["jaxpr"], [*consts, *carry, *x], draw)
        carry, rows[i] = outs[:n_carry], outs[n_carry:]
    if length == 0:
        return [*carry, *[np.zeros(var.aval.shape, var.aval.dtype) for var in eqn.outvars[n_carry:]]]
    stack = lambda *ys: lax.concatenate([lax.expand_dims(y, (0,)) for y in ys], 0)
    return [*carry, *[_apply(stack, *column) for column in zip(*rows, strict=True)]]


def _while(eqn: Any, ins: list[Any], draw: Draw | None) -> list[Any]:
    n_test, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test, body, carry = ins[:n_test], ins[n_test : n_test + n_body], ins[n_test + n_body :]
    for _ in range(MAX_STEPS):
        (proceed,) = straighten(eqn.params["cond_jaxpr"], [*test, *carry], draw)
        if not _known(proceed):
            raise _refuse("a while loop runs for as long as the observation says")
        if not proceed:
            return carry
        carry = straighten(eqn.params["body_jaxpr"], [*body, *carry], draw)
    raise _refuse(f"a loop is longer than the {MAX_STEPS} steps that are unrolled")


def _cond(eqn: Any, ins: list[Any], draw: Draw | None) -> list[Any]:
    which, args, branches = ins[0], ins[1:], eqn.params["branches"]
    if _known(which):
        return straighten(branches[min(max(int(which), 0), len(branches) - 1)], args, draw)
    cases = zip(*[straighten(branch, args, draw) for branch in branches], strict=True)
    which = lax.clamp(np.int32(0), which, np.int32(len(branches) - 1))
    which = which.astype(bool) if len(branches) == 2 else which
    return [lax.select_n(which, *case) for case in cases]


UNROLL = {"scan": _scan, "while": _while, "cond": _cond}

# Gathers, scatters and dynamic slices have a dozen parameters between them. Where the indices are known, running the
# very same primitive on the *numbers* of the elements tells where each output element comes from, whatever these are.


def _numbers(x: Any, first: int = 0) -> Any:
    return np.arange(first, first + np.size(x), dtype=np.int32).reshape(np.shape(x))


def _take(flat: Any, source: Any) -> Any:
    """`flat[source]` for known indices `source`: a slice where that will do, as in an unrolled loop."""
    source = np.asarray(source)
    if source.size and source.min() < 0:
        raise _refuse("an index lies outside of its array")
    if np.array_equal(source.ravel(), np.arange(source.size) + source.flat[0] if source.size else []):
        start = int(source.flat[0]) if source.size else 0
        return lax.reshape(lax.slice(flat, (start,), (start + source.size,)), source.shape)
    rows = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))
    return lax.gather(flat, source[..., None], rows, (1,), mode="promise_in_bounds")


def _flat(x: Any) -> Any:
    return lax.reshape(x, (np.size(x),))


def _read_elements(eqn: Any, ins: list[Any]) -> Any:  # gather, dynamic_slice
    changed = {"fill_value": -1} if "fill_value" in eqn.params else {}
    return _take(_flat(ins[0]), _bind(eqn, [_numbers(ins[0]), *ins[1:]], **changed)[0])


def _write_elements(eqn: Any, ins: list[Any], update: int) -> Any:  # scatter, dynamic_update_slice
    old, new = ins[0], ins[update]
    numbered = [*ins]
    numbered[0], numbered[update] = _numbers(old), _numbers(new, np.size(old))
    return _take(lax.concatenate([_flat(old), _flat(new)], 0), _bind(eqn, numbered)[0])


def _add_elements(eqn: Any, ins: list[Any]) -> Any:  # scatter-add, which is linear in the updates
    old, indices, new = ins
    dtype = eqn.outvars[0].aval.dtype
    units = np.eye(np.size(new), dtype=dtype)
    with jax.ensure_compile_time_eval():
        put = lambda unit: _bind(eqn, [np.zeros(old.shape, dtype), indices, unit.reshape(np.shape(new))])[0].ravel()
        spread = np.stack([put(unit) for unit in units]) if len(units) else np.zeros((0, np.size(old)), dtype)
    return old + lax.reshape(lax.dot(_flat(new), spread), old.shape)


# primitive -> (its data among the inputs, its indices, what to do when the indices are known)
MOVES: dict[str, tuple[slice, slice, Callable[[Any, list[Any]], Any]]] = {
    "gather": (slice(0, 1), slice(1, 2), _read_elements),
    "dynamic_slice": (slice(0, 1), slice(1, None), _read_elements),
    "scatter": (slice(0, 3, 2), slice(1, 2), lambda eqn, ins: _write_elements(eqn, ins, 2)),
    "dynamic_update_slice": (slice(0, 2), slice(2, None), lambda eqn, ins: _write_elements(eqn, ins, 1)),
    "scatter-add": (slice(0, 3, 2), slice(1, 2), _add_elements),
}


# -------------------------------------------------------------------------------------------------- 2. trace_batched


def trace_batched(fn: Callable[..., list[Any]], specs: Sequence[jax.ShapeDtypeStruct]) -> Any:
    """The jaxpr of `jax.vmap(fn)` at a batch size that is a symbol. `specs` are the inputs of one example."""
    batched = [jax.ShapeDtypeStruct((BATCH, *spec.shape), spec.dtype) for spec in specs]
    return jax.make_jaxpr(jax.vmap(fn))(*batched)


# ---------------------------------------------------------------------------------------------------------- 3. build


@dataclass(frozen=True)
class Node:
    """One ONNX operator: its name, the names of its inputs and outputs, its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """Nodes in order, with the constants they use. Equal constants and equal nodes are stored once."""

    inputs: list[str]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    _seen: dict[Hashable, tuple[str, ...]] = field(default_factory=dict)
    _moved: dict[str, tuple[str, list[int]]] = field(
        default_factory=dict
    )  # a transpose's output -> its input and order

    def nodes_of(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> tuple[str, ...]:
        """Adds an operator with several outputs and returns their names."""
        key = (op, inputs, outputs, tuple(sorted((k, str(v)) for k, v in attributes.items())))
        if key not in self._seen:
            names = tuple(f"_{len(self.nodes)}_{i}" for i in range(outputs))
            self.nodes.append(Node(op, inputs, names, attributes))
            self._seen[key] = names
        return self._seen[key]

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds an operator with one output and returns its name."""
        return self.nodes_of(op, *inputs, **attributes)[0]

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of an initialiser that holds `value`."""
        array = np.ascontiguousarray(np.asarray(value, dtype)).reshape(np.shape(value))
        element_type(array.dtype)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._seen:
            self._seen[key] = (f"c_{len(self.constants)}",)
            self.constants[self._seen[key][0]] = array
        return self._seen[key][0]

    def ints(self, values: Sequence[Any]) -> str:
        """A list of int64, as axes and shapes are given."""
        return self.constant(np.array([int(value) for value in values], np.int64))

    # Data movement, without a node where there is nothing to move and without one where a constant can be moved now.

    def transpose(self, x: str, order: Sequence[Any]) -> str:
        if x in self._moved:
            x, before = self._moved[x]
            order = [before[axis] for axis in order]
        if list(order) == sorted(order):
            return x
        if x in self.constants:
            return self.constant(self.constants[x].transpose(order))
        out = self.node("Transpose", x, perm=[int(axis) for axis in order])
        self._moved[out] = (x, list(order))
        return out

    def reshape(self, x: str, shape: Sequence[Any]) -> str:
        """To `shape`, of which one size may contain the batch."""
        sizes = [int(size) if _static(size) else -1 for size in shape]
        if sizes.count(-1) > 1:
            raise _refuse(f"a reshape to {tuple(shape)} holds the batch twice")
        if x in self.constants and -1 not in sizes:
            return self.constant(self.constants[x].reshape(sizes))
        return self.node("Reshape", x, self.ints(sizes))

    def unsqueeze(self, x: str, axes: Sequence[Any]) -> str:
        if not axes:
            return x
        if x in self.constants:
            return self.constant(np.expand_dims(self.constants[x], tuple(axes)))
        return self.node("Unsqueeze", x, self.ints(axes))

    def squeeze(self, x: str, axes: Sequence[Any]) -> str:
        return self.node("Squeeze", x, self.ints(axes)) if axes else x

    def cast(self, x: str, dtype: Any) -> str:
        if x in self.constants:
            return self.constant(self.constants[x].astype(dtype))
        return self.node("Cast", x, to=element_type(dtype))

    def expand(self, x: str, shape: Sequence[Any]) -> str:
        """Broadcasts to `shape`; 1 keeps the size that is there."""
        if all(_static(size) and size == 1 for size in shape):
            return x
        if all(_static(size) for size in shape):
            return self.node("Expand", x, self.ints(shape))
        if not all(_static(size) or size == BATCH for size in shape):
            raise _refuse(f"a broadcast to {tuple(shape)} makes a size out of the batch")
        batch = self.node("Shape", self.inputs[0], start=0, end=1)
        return self.node(
            "Expand", x, self.node("Concat", *[self.ints([s]) if _static(s) else batch for s in shape], axis=0)
        )


def _static(size: Any) -> bool:
    return isinstance(size, int | np.integer)


def build(closed: Any, input_names: Sequence[str], output_names: Sequence[str]) -> Graph:
    """The ONNX nodes of a traced jaxpr whose inputs and outputs get these names. Raises `ExportError`."""
    graph = Graph(list(input_names))
    outs = _emit(graph, closed.jaxpr, [graph.constant(c) for c in closed.consts], list(input_names))
    for name, out in zip(output_names, outs, strict=True):
        graph.nodes.append(Node("Identity", (out,), (name,), {}))  # also where an output is an input or a constant
    graph.nodes = _live(graph.nodes, output_names)  # transposes that cancelled are left over
    used = {name for node in graph.nodes for name in node.inputs}
    graph.constants = {name: value for name, value in graph.constants.items() if name in used}
    return graph


def _live(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            kept.append(node)
    return kept[::-1]


def _emit(graph: Graph, jaxpr: Any, consts: list[str], args: list[str]) -> list[str]:
    names: dict[Any, str] = {
        **dict(zip(jaxpr.constvars, consts, strict=True)),
        **dict(zip(jaxpr.invars, args, strict=True)),
    }

    def name_of(atom: Any) -> str:  # a literal is a Python number; its type stands in its aval
        return graph.constant(atom.val, _dtype_of(atom)) if isinstance(atom, jex.Literal) else names[atom]

    for eqn in _needed(jaxpr):
        ins, primitive = [name_of(atom) for atom in eqn.invars], eqn.primitive.name
        if primitive in CALLS:  # some batching rules wrap their work in a jit
            inner = eqn.params[CALLS[primitive]]
            outs = _emit(graph, inner.jaxpr, [graph.constant(c) for c in inner.consts], ins)
        elif primitive in OPS:
            out = OPS[primitive](graph, eqn, *ins)
            outs = [out] if isinstance(out, str) else list(out)
        else:
            raise _refuse(f"the JAX primitive '{primitive}' has no ONNX counterpart here")
        names.update(zip(eqn.outvars, outs, strict=True))
    return [name_of(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that an output depends on: what is not needed need not be translatable."""
    live: set[Any] = {atom for atom in jaxpr.outvars if not isinstance(atom, jex.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if live.intersection(eqn.outvars):
            live.update(atom for atom in eqn.invars if not isinstance(atom, jex.Literal))
            kept.append(eqn)
    return kept[::-1]


def _dtype_of(atom: Any) -> Any:
    return atom.aval.dtype


def _shape(eqn: Any, i: int = 0) -> tuple[Any, ...]:
    return eqn.invars[i].aval.shape


def _dtype(eqn: Any, i: int = 0) -> Any:
    return _dtype_of(eqn.invars[i])


def _like(g: Graph, eqn: Any, value: int | float) -> str:
    return g.constant(value, _dtype(eqn))


def _plain(op: str, **attributes: Any) -> Handler:
    return lambda g, eqn, *xs: g.node(op, *xs, **attributes)


def _same(g: Graph, eqn: Any, *xs: str) -> list[str]:
    return list(xs)


def _logical(on_bool: str, on_int: str) -> Handler:
    return lambda g, eqn, *xs: g.node(on_bool if _dtype(eqn) == np.bool_ else on_int, *xs)


def _expm1(g: Graph, eqn: Any, x: str) -> str:
    # tanh(x/2) (exp(x) + 1): no cancellation near 0
    half = g.node("Tanh", g.node("Mul", x, _like(g, eqn, 0.5)))
    return g.node("Mul", half, g.node("Add", g.node("Exp", x), _like(g, eqn, 1)))


def _log1p(g: Graph, eqn: Any, x: str) -> str:
    # 2 atanh(x / (x + 2)) near 0, where 1 + x would lose the digits of x
    small = g.node("Less", g.node("Abs", x), _like(g, eqn, 0.5))
    ratio = g.node("Div", x, g.node("Add", x, _like(g, eqn, 2)))
    near = g.node("Mul", g.node("Atanh", ratio), _like(g, eqn, 2))
    return g.node("Where", small, near, g.node("Log", g.node("Add", x, _like(g, eqn, 1))))


def _integer_pow(g: Graph, eqn: Any, x: str) -> str:
    y = eqn.params["y"]
    if y == 0:
        return g.node("Add", g.node("Mul", x, _like(g, eqn, 0)), _like(g, eqn, 1))
    power, square, n = "", x, abs(y)
    while n:  # by squaring, as XLA does
        if n & 1:
            power = g.node("Mul", power, square) if power else square
        n >>= 1
        square = g.node("Mul", square, square) if n else square
    return g.node("Reciprocal", power) if y < 0 else power


def _round(g: Graph, eqn: Any, x: str) -> str:
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return g.node("Round", x)
    away = g.node("Floor", g.node("Add", g.node("Abs", x), _like(g, eqn, 0.5)))
    return g.node("Mul", g.node("Sign", x), away)


def _clamp(g: Graph, eqn: Any, low: str, x: str, high: str) -> str:
    return g.node("Min", g.node("Max", x, low), high)


def _reduce_precision(g: Graph, eqn: Any, x: str) -> str:
    if (eqn.params["exponent_bits"], eqn.params["mantissa_bits"]) != (8, 23):
        raise _refuse("a value is rounded to less than float32")
    return x


def _where(g: Graph, eqn: Any, test: str, on_true: str, on_false: str) -> str:
    if eqn.outvars[0].aval.dtype != np.bool_:
        return g.node("Where", test, on_true, on_false)
    # onnxruntime has no Where on booleans
    return g.node("Or", g.node("And", test, on_true), g.node("And", g.node("Not", test), on_false))


def _select_n(g: Graph, eqn: Any, which: str, *cases: str) -> str:
    if _dtype(eqn) == np.bool_:
        return _where(g, eqn, which, cases[-1], cases[0])
    out = cases[0]
    for i, case in enumerate(cases[1:], 1):
        out = _where(g, eqn, g.node("Equal", which, _like(g, eqn, i)), case, out)
    return out


def _reduce(op: str) -> Handler:
    return lambda g, eqn, x: g.node(op, x, g.ints(eqn.params["axes"]), keepdims=0)


def _reduce_bool(op: str) -> Handler:
    def handler(g: Graph, eqn: Any, x: str) -> str:
        return g.cast(g.node(op, g.cast(x, np.int32), g.ints(eqn.params["axes"]), keepdims=0), np.bool_)

    return handler


def _arg(op: str) -> Handler:
    def handler(g: Graph, eqn: Any, x: str) -> str:
        (axis,) = eqn.params["axes"]
        return g.cast(g.node(op, x, axis=int(axis), keepdims=0), eqn.params["index_dtype"])

    return handler


def _top_k(g: Graph, eqn: Any, x: str) -> list[str]:
    axis = int(eqn.params.get("axis", -1))
    values, indices = g.nodes_of("TopK", x, g.ints([eqn.params["k"]]), outputs=2, axis=axis)
    return [values, g.cast(indices, eqn.outvars[1].aval.dtype)]


def _cumsum(g: Graph, eqn: Any, x: str) -> str:
    axis = g.constant(eqn.params["axis"], np.int64)
    return g.node("CumSum", x, axis, reverse=int(eqn.params["reverse"]))


def _broadcast_in_dim(g: Graph, eqn: Any, x: str) -> str:
    shape, dims = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    sizes = dict(zip(dims, _shape(eqn), strict=True))
    x = g.unsqueeze(x, [axis for axis in range(len(shape)) if axis not in sizes])
    return g.expand(x, [1 if axis in sizes and sizes[axis] == size else size for axis, size in enumerate(shape)])


def _slice(g: Graph, eqn: Any, x: str) -> str:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    step = eqn.params["strides"] or (1,) * len(start)
    axes = [i for i, n in enumerate(_shape(eqn)) if not (start[i] == 0 and limit[i] == n and step[i] == 1)]
    return _cut(g, x, axes, [start[i] for i in axes], [limit[i] for i in axes], [step[i] for i in axes])


def _cut(g: Graph, x: str, axes: Sequence[Any], start: Sequence[Any], limit: Sequence[Any], step: Sequence[Any]) -> str:
    if not axes:
        return x
    if not all(_static(n) for n in (*start, *limit)):
        raise _refuse("a slice is taken along the batch")
    return g.node("Slice", x, g.ints(start), g.ints(limit), g.ints(axes), g.ints(step))


def _rev(g: Graph, eqn: Any, x: str) -> str:
    axes = eqn.params["dimensions"]
    n = len(axes)
    return _cut(g, x, axes, [-1] * n, [np.iinfo(np.int64).min] * n, [-1] * n)


def _pad(g: Graph, eqn: Any, x: str, value: str) -> str:
    low, high, inner = zip(*eqn.params["padding_config"], strict=True)
    if any(inner):
        raise _refuse("a pad puts values between the elements")
    cut = [i for i in range(len(low)) if low[i] < 0 or high[i] < 0]
    limits = [_shape(eqn)[i] + min(high[i], 0) for i in cut]
    x = _cut(g, x, cut, [max(-low[i], 0) for i in cut], limits, [1] * len(cut))
    return g.node("Pad", x, g.ints([max(n, 0) for n in (*low, *high)]), value)


def _concatenate(g: Graph, eqn: Any, *xs: str) -> str:
    return g.node("Concat", *xs, axis=int(eqn.params["dimension"]))


def _stack(g: Graph, eqn: Any, *xs: str) -> str:
    axis = int(eqn.params["axis"])
    return g.node("Concat", *[g.unsqueeze(x, [axis]) for x in xs], axis=axis)


def _unstack(g: Graph, eqn: Any, x: str) -> list[str]:
    axis = int(eqn.params["axis"])
    rows = g.nodes_of("Split", x, g.ints([1] * len(eqn.outvars)), outputs=len(eqn.outvars), axis=axis)
    return [g.squeeze(row, [axis]) for row in rows]


def _split(g: Graph, eqn: Any, x: str) -> tuple[str, ...]:
    sizes = eqn.params["sizes"]
    return g.nodes_of("Split", x, g.ints(sizes), outputs=len(sizes), axis=int(eqn.params["axis"]))


def _dot_general(g: Graph, eqn: Any, lhs: str, rhs: str) -> str:
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    shape_l, shape_r = _shape(eqn, 0), _shape(eqn, 1)
    free_l = [i for i in range(len(shape_l)) if i not in (*contract_l, *batch_l)]
    free_r = [i for i in range(len(shape_r)) if i not in (*contract_r, *batch_r)]
    lhs = g.transpose(lhs, [*batch_l, *free_l, *contract_l])
    rhs = g.transpose(rhs, [*batch_r, *contract_r, *free_r])
    shared, inner = [shape_l[i] for i in batch_l], [shape_l[i] for i in contract_l]
    rows, columns = [shape_l[i] for i in free_l], [shape_r[i] for i in free_r]

    # MatMul contracts one axis of a stack of matrices: fold several free or contracted axes into one, and none into a 1
    plain = len(inner) == 1 and len(columns) == 1 and (len(rows) == 1 or (rows and not shared))
    if not plain:
        lhs = g.reshape(lhs, [*shared, _product(rows), _product(inner)])
        rhs = g.reshape(rhs, [*shared, _product(inner), _product(columns)])
    out = g.node("MatMul", lhs, rhs)
    if not plain:
        out = g.reshape(out, [*shared, *rows, *columns])
    dtype = eqn.outvars[0].aval.dtype
    return out if dtype == _dtype(eqn) else g.cast(out, dtype)


def _product(sizes: Sequence[Any]) -> Any:
    out: Any = 1
    for size in sizes:
        out = size * out
    return out


def _gather(g: Graph, eqn: Any, data: str, indices: str) -> str:
    """Element or window lookups at indices that depend on the input; out-of-range indices are clamped."""
    dims, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], _shape(eqn)
    indexed, batch_data = list(dims.start_index_map), list(dims.operand_batching_dims)
    batch_index = list(dims.start_indices_batching_dims)
    rest = [i for i in range(len(shape)) if i not in indexed and i not in batch_data]
    last = len(_shape(eqn, 1)) - 1
    others = [i for i in range(last) if i not in batch_index]
    windows = [i for i in indexed if i not in dims.collapsed_slice_dims]
    limits = [shape[i] - sizes[i] for i in indexed]
    if any(sizes[i] != shape[i] or i in dims.collapsed_slice_dims for i in rest) or not all(map(_static, limits)):
        raise _refuse("a gather takes part of an axis that it does not index")
    if indices in g.constants:
        indices = g.constant(np.clip(g.constants[indices], 0, limits), np.int64)
    else:
        at_least_0 = g.node("Max", g.cast(indices, np.int64), g.ints([0]))
        indices = g.node("Min", at_least_0, g.ints(limits))

    if len(indexed) == 1 and not batch_data and not windows:
        out = g.node("Gather", data, g.squeeze(indices, [last]), axis=int(indexed[0]))
        axes = [("data", i) for i in rest if i < indexed[0]]
        axes += [("index", i) for i in others] + [("data", i) for i in rest if i > indexed[0]]
    else:
        data = g.transpose(data, [*batch_data, *indexed, *rest])
        indices = g.transpose(indices, [*batch_index, *others, last])
        if windows:  # a window is the lookup of each of its elements
            window = np.zeros([*[sizes[i] for i in windows], len(indexed)], np.int64)
            for axis, i in enumerate(windows):
                window[..., indexed.index(i)] += np.indices(window.shape[:-1])[axis]
            indices = g.node("Add", g.unsqueeze(indices, range(last, last + len(windows))), g.constant(window))
        out = g.node("GatherND", data, indices, batch_dims=len(batch_data))
        axes = [("index", i) for i in (*batch_index, *others)] + [("data", i) for i in (*windows, *rest)]

    # `axes` says what each axis of `out` is; JAX wants the data's axes at offset_dims and the indices' in between
    of_data, of_index = (iter(sorted(a for a in axes if a[0] == kind)) for kind in ("data", "index"))
    wanted = [next(of_data if i in dims.offset_dims else of_index) for i in range(len(axes))]
    return g.transpose(out, [axes.index(axis) for axis in wanted])


# JAX primitive -> ONNX operator with the same operands and no attributes
PLAIN = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow",
    "neg": "Neg", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "exp": "Exp", "log": "Log",
    "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "erf": "Erf", "sin": "Sin", "cos": "Cos", "tan": "Tan",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh",
    "atanh": "Atanh", "eq": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
}  # fmt: skip

OPS: dict[str, Handler] = {
    **{name: _plain(op) for name, op in PLAIN.items()},
    **dict.fromkeys(("stop_gradient", "copy", "name", "device_put", "optimization_barrier"), _same),
    "ne": lambda g, eqn, x, y: g.node("Not", g.node("Equal", x, y)),
    "and": _logical("And", "BitwiseAnd"),
    "or": _logical("Or", "BitwiseOr"),
    "xor": _logical("Xor", "BitwiseXor"),
    "not": _logical("Not", "BitwiseNot"),
    "rem": _plain("Mod", fmod=1),
    "square": lambda g, eqn, x: g.node("Mul", x, x),
    "integer_pow": _integer_pow,
    "rsqrt": lambda g, eqn, x: g.node("Reciprocal", g.node("Sqrt", x)),
    "exp2": lambda g, eqn, x: g.node("Pow", _like(g, eqn, 2), x),
    "expm1": _expm1,
    "log1p": _log1p,
    "erfc": lambda g, eqn, x: g.node("Sub", _like(g, eqn, 1), g.node("Erf", x)),
    "is_finite": lambda g, eqn, x: g.node("Less", g.node("Abs", x), _like(g, eqn, np.inf)),
    "round": _round,
    "clamp": _clamp,
    "reduce_precision": _reduce_precision,
    "convert_element_type": lambda g, eqn, x: g.cast(x, eqn.params["new_dtype"]),
    "select_n": _select_n,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_and": _reduce_bool("ReduceMin"),
    "reduce_or": _reduce_bool("ReduceMax"),
    "argmax": _arg("ArgMax"),
    "argmin": _arg("ArgMin"),
    "top_k": _top_k,
    "cumsum": _cumsum,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda g, eqn, x: g.reshape(x, eqn.params["new_sizes"]),
    "squeeze": lambda g, eqn, x: g.squeeze(x, eqn.params["dimensions"]),
    "transpose": lambda g, eqn, x: g.transpose(x, eqn.params["permutation"]),
    "tile": lambda g, eqn, x: g.node("Tile", x, g.ints(eqn.params["reps"])),
    "slice": _slice,
    "rev": _rev,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "split": _split,
    "dot_general": _dot_general,
    "gather": _gather,
}
