"""From what the user names (an id, a factory, a path `module:function`) to something that can be trained in."""

import difflib
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gymnasium

from trimtab.core import AbstractEnv, Spec, UsageError
from trimtab.envs import motion as motion  # registers its environments with Gymnasium
from trimtab.envs import ogbench
from trimtab.envs.gym import spec_of
from trimtab.envs.register import worlds


@dataclass(frozen=True)
class World:
    """A place to act in: either `own`, a JAX world, or `make`, a maker of Gymnasium environments.

    `name` is the id, or `module:function` of a factory; None when a factory cannot be found again by name.
    """

    name: str | None
    label: str
    spec: Spec
    own: AbstractEnv | None
    make: Callable[[str | None], gymnasium.Env] | None


def find(env: str | Callable[..., Any] | AbstractEnv) -> World:
    """The world behind a registered id, `module:id` for a module whose import registers the id with Gymnasium,
    `module:function`, a factory of Gymnasium environments, or an own world.

    A factory is called without arguments, or with `render_mode=...` for videos when it takes that argument.
    Raises `UsageError`, naming the nearest id, if there is none or its spaces are not supported.
    """
    if isinstance(env, AbstractEnv):
        label = type(env).__name__
        return World(None, label, env.spec, env, None)
    if isinstance(env, str):
        if env in worlds():
            return _own(env, worlds()[env]())
        if ogbench.is_name(env):
            make = lambda render_mode=None: ogbench.make(env, render_mode)
            return _from_make(make, env, env, _make_one(make, env))
        if re.fullmatch(r"[\w.]+:[\w./-]+-v\d+", env):
            return _from_module_id(env)
        if ":" in env and env not in gymnasium.registry:
            return _from_factory(_import_factory(env), env)
        return _from_id(env)
    if callable(env):
        name = f"{env.__module__}:{env.__qualname__}"
        importable = env.__module__ != "__main__" and "<" not in env.__qualname__
        return _from_factory(env, name if importable else None)
    raise UsageError(f"env must be an id, a factory or an own world, got {type(env).__name__}")


def _own(name: str, env: Any) -> World:
    if not isinstance(env, AbstractEnv):
        raise UsageError(f"the world {name!r} was registered with a maker of {type(env).__name__}, no AbstractEnv")
    return World(name, name, env.spec, env, None)


def _from_id(name: str) -> World:
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error as error:
        near = difflib.get_close_matches(name, [*gymnasium.registry, *worlds()], n=1, cutoff=0.4)
        hint = (
            f"did you mean {near[0]!r}?"
            if near
            else "see `trimtab list envs`; register your own with --import my_package"
        )
        raise UsageError(f"unknown environment {name!r}: {hint}") from error

    def make(render_mode: str | None = None) -> gymnasium.Env:
        # Not every registered class takes `render_mode`, so it is passed only when it is wanted.
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        return gymnasium.make(name, disable_env_checker=True, **rendering)

    return _from_make(make, name, name, _make_one(make, name))


def _from_module_id(path: str) -> World:
    module, _, name = path.partition(":")
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"cannot import {module!r}, which should bring the environment {name!r}: {error}") from error
    return replace(_from_id(name), name=path)


def _import_factory(path: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import the environment factory {path!r}: {error}") from error
    if not callable(found):
        raise UsageError(f"{path!r} is {type(found).__name__}, not a function that makes an environment")
    return found


def _from_factory(factory: Callable[..., Any], name: str | None) -> World:
    def make(render_mode: str | None = None) -> Any:
        if render_mode is None:
            return factory()
        try:
            return factory(render_mode=render_mode)
        except TypeError as error:
            raise UsageError(f"the factory {label} takes no render_mode, which a video needs") from error

    # Short enough for a folder's name, and not the same for every project's `make`.
    function = getattr(factory, "__qualname__", type(factory).__name__).split(".")[-1].strip("<>")
    label = f"{factory.__module__.split('.')[-1]}.{function}"
    first = _make_one(make, label)
    if isinstance(first, AbstractEnv):
        return World(name, label, first.spec, first, None)
    return _from_make(make, name, label, first)


def _make_one(make: Callable[..., Any], label: str) -> Any:
    try:
        return make()
    except UsageError:
        raise
    except Exception as error:  # whatever a third party's constructor raises, the user gets its reason in one line
        raise UsageError(f"cannot make the environment {label!r}: {_one_line(error)}") from error


def _from_make(make: Callable[..., Any], name: str | None, label: str, first: Any) -> World:
    if not isinstance(first, gymnasium.Env):
        raise UsageError(f"the factory {label!r} returned {type(first).__name__}, not a gymnasium.Env")
    try:
        spec = spec_of(first)
    finally:
        first.close()
    return World(name, label, spec, None, make)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
