"""The algebra of parameter-efficient methods: a method is a NamedTuple of pure functions, and methods compose.

The seam is `flax.linen.intercept_methods`: every call of a module inside `forward` becomes a site with a name
(`layer_3/attention/query`, `layer_3/attention.attend`, `.layers`), and the method's `tap` decides what it returns.
Nothing in `models` knows of this, and the interceptor creates no parameters: it closes over `delta`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from llm4rec_jax.registry import Registry

Params = Mapping[str, Any]
Delta = dict[str, Any]
"""What a method trains: {site: {name: array}}; of a chain, {"0": delta of the first, "1": …}."""


class Call:
    """The intercepted call itself: `call(*args)` runs it, with the arguments given."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function = function
        self._module = module

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def rng(self) -> jax.Array | None:
        """A fresh dropout key, or None when the caller gave no `dropout` rng: no dropout then."""
        return self._module.make_rng("dropout") if self._module.has_rng("dropout") else None

    def around(self, function: Callable[..., Any]) -> "Call":
        """A call that runs `function` instead, at the same place."""
        return Call(function, self._module)


def _as_is(params: Params, delta: Delta) -> Params:
    return params


def _no_penalty(delta: Delta) -> jax.Array:
    return jnp.zeros(())


def _same_optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return tx


class Peft(NamedTuple):
    """A parameter-efficient method.

    Attributes:
      init: (key, params) -> delta, what is trained.
      reparam: (params, delta) -> params, for methods in weight space.
      tap: (delta, site, call, *args) -> output, for methods in activation space; None taps nothing.
      penalty: (delta) -> scalar, added to the loss.
      optimizer: (tx) -> tx over the delta.
      merge: (params, delta) -> params with the delta folded in; None where it cannot be.
    """

    init: Callable[[jax.Array, Params], Delta]
    reparam: Callable[[Params, Delta], Params] = _as_is
    tap: Callable[..., Any] | None = None
    penalty: Callable[[Delta], jax.Array] = _no_penalty
    optimizer: Callable[[optax.GradientTransformation], optax.GradientTransformation] = _same_optimizer
    merge: Callable[[Params, Delta], Params] | None = None


METHODS: Registry = Registry("parameter-efficient method")


def create(spec: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Peft:
    """A method by name, or a chain written `"lora+bitfit"`.

    Args:
      spec: names joined by `+`.
      options: keyword arguments by method name, `{"lora": {"rank": 4}}`.

    Raises:
      ValueError: an unknown name or option; the message names the nearest.
    """
    options = options or {}
    names = [name.strip() for name in spec.split("+")]
    for name in names:
        METHODS.lookup(name)
    if stray := sorted(set(options) - set(names)):
        raise ValueError(f"options for {', '.join(stray)}, but the method is {spec!r}")
    methods = [METHODS.build(name, **options.get(name, {})) for name in names]
    return methods[0] if len(methods) == 1 else chain(*methods)


def forward(
    module: nn.Module,
    method: Peft,
    params: Params,
    delta: Delta,
    *args: Any,
    apply: str | None = None,
    rngs: dict[str, jax.Array] | None = None,
) -> Any:
    """`module.apply({"params": params}, *args)` as the method with this delta would have it.

    Args:
      module: any Linen module: the encoder, or the whole recommender with a method brought `within` a part of it.
      method, delta: the method and what `method.init` made (perhaps trained since).
      params: the module's own parameters; nothing here changes them.
      apply: the method of the module to run, `__call__` by default.
      rngs: {"dropout": key} turns dropout on.
    """
    params = method.reparam(params, delta)

    def run() -> Any:
        return module.apply({"params": params}, *args, method=apply, rngs=rngs)

    if (tap := method.tap) is None:
        return run()

    def interceptor(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        suffix = "" if context.method_name == "__call__" else f".{context.method_name}"
        site = "/".join(context.module.path) + suffix
        # A tap sees positional arguments, the arrays; keywords are options of the call and stay with it.
        return tap(delta, site, Call(partial(function, **kwargs), context.module), *args)

    with nn.intercept_methods(interceptor):
        return run()


def chain(*methods: Peft) -> Peft:
    """Methods one inside the other: the first is nearest to the module."""

    def parts(delta: Delta) -> list[tuple[Peft, Delta]]:
        return [(method, delta[str(i)]) for i, method in enumerate(methods)]

    def init(key: jax.Array, params: Params) -> Delta:
        return {
            str(i): m.init(k, params)
            for i, (m, k) in enumerate(zip(methods, jax.random.split(key, len(methods)), strict=True))
        }

    def reparam(params: Params, delta: Delta) -> Params:
        for method, part in parts(delta):
            params = method.reparam(params, part)
        return params

    def tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        for method, part in parts(delta):
            if method.tap is not None:
                call = call.around(_bind(method.tap, part, site, call))
        return call(*args)

    def merge(params: Params, delta: Delta) -> Params:
        for method, part in parts(delta):
            assert method.merge is not None
            params = method.merge(params, part)
        return params

    def penalty(delta: Delta) -> jax.Array:
        return sum((method.penalty(part) for method, part in parts(delta)), jnp.zeros(()))

    def optimizer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
        if all(method.optimizer is _same_optimizer for method in methods):
            return tx
        return optimize_apart({str(i): method.optimizer(tx) for i, method in enumerate(methods)})

    return Peft(
        init,
        reparam,
        tap if any(method.tap for method in methods) else None,
        penalty,
        optimizer,
        merge if all(method.merge for method in methods) else None,
    )


def optimize_apart(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Each part of a tree {name: part} by its own transformation.

    Unlike under `optax.partition`, each sees its part as a tree of its own, not the whole with the rest masked: a
    method's `optimizer` may count on the structure of its delta.
    """

    def init(params: Any) -> Any:
        return {name: tx.init(params[name]) for name, tx in parts.items()}

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        done = {
            name: tx.update(updates[name], state[name], None if params is None else params[name])
            for name, tx in parts.items()
        }
        return {name: new for name, (new, _) in done.items()}, {name: state for name, (_, state) in done.items()}

    return optax.GradientTransformation(init, update)


def _bind(tap: Callable[..., Any], delta: Delta, site: str, call: Call) -> Callable[..., Any]:
    return lambda *args: tap(delta, site, call, *args)


def within(method: Peft, scope: str) -> Peft:
    """The method applied to the submodule `scope` of a larger module; its sites and delta keep their own names."""
    tap, merge = method.tap, method.merge

    def scoped_tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        assert tap is not None
        if (inner := site.removeprefix(scope)) != site and inner[:1] in ("", "/", "."):
            return tap(delta, inner.removeprefix("/"), call, *args)
        return call(*args)

    return method._replace(
        init=lambda key, params: method.init(key, params[scope]),
        reparam=lambda params, delta: {**params, scope: method.reparam(params[scope], delta)},
        tap=scoped_tap if tap else None,
        merge=(lambda params, delta: {**params, scope: merge(params[scope], delta)}) if merge else None,
    )


def sites(params: Params, leaf: str | None = None) -> dict[str, Params]:
    """Every module of a parameter tree by path, {"layer_0/ffn/up": {"kernel": …}}; with `leaf`, those that hold it."""
    found: dict[str, Params] = {}

    def visit(path: str, node: Params) -> None:
        if path and (leaf is None or (leaf in node and not isinstance(node[leaf], Mapping))):
            found[path] = node
        for name, child in node.items():
            if isinstance(child, Mapping):
                visit(f"{path}/{name}" if path else name, child)

    visit("", params)
    return found


def match(target: str, names: Iterable[str], what: str = "target") -> list[str]:
    """The names that the regular expression matches in full.

    Raises:
      ValueError: it matches none; the message lists what exists, with layer numbers folded.
    """
    names = list(names)
    try:
        matched = [name for name in names if re.fullmatch(target, name)]
    except re.error as error:
        raise ValueError(f"{what} {target!r} is not a regular expression: {error}") from error
    if not matched:
        folded = dict.fromkeys(re.sub(r"layer_\d+", "layer_N", name) for name in names)
        raise ValueError(f"{what} {target!r} matches nothing; there are: {', '.join(folded) or 'no sites at all'}")
    return matched


def replace(params: Params, delta: Delta) -> dict[str, Any]:
    """The parameters with the arrays of {site: {name: array}} in place of their own."""
    tree = dict(params)
    for site, arrays in delta.items():
        node = tree
        for name in site.split("/"):
            node[name] = dict(node[name])
            node = node[name]
        node.update(arrays)
    return tree


def lowest_layer(delta: Delta) -> int:
    """The lowest block of the encoder that a delta has a part in; 0 when a part of it stands outside the blocks."""

    def layers(tree: Any, path: str = "") -> list[int]:
        if (found := re.match(r"layer_(\d+)\b", path)) is not None:
            return [int(found[1])]
        if not isinstance(tree, Mapping):
            return [0]
        return [layer for name, part in tree.items() for layer in layers(part, name)]

    return min(layers(delta), default=0)


def count(delta: Any) -> int:
    """The number of trainable scalars."""
    return sum(a.size for a in jax.tree.leaves(delta))
