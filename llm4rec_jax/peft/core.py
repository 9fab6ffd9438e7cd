"""The algebra of parameter-efficient methods: a method is a NamedTuple of pure functions, and methods compose.

The seam is `flax.linen.intercept_methods`: every call of a module inside `forward` becomes a site with a name
(`layer_3/attention/query`, `layer_3/attention.attend`, `.layers`), and the method's `tap` decides what it returns.
Nothing in `models` knows of this, and the interceptor creates no parameters: it closes over `delta`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from llm4rec_jax.peft.sites import Delta, Params
from llm4rec_jax.registry import unknown_name


class Call:
    """The intercepted call itself: `call(*args)` runs it, with the arguments given."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function = function
        self._module = module

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    @property
    def params(self) -> Params:
        """The module's own arrays, as `reparam` left them; a tap that reads them says so by `reads_weights`."""
        return self._module.variables["params"]

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


Optimizer = Callable[[optax.GradientTransformation, int], optax.GradientTransformation]


def _same_optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    return tx


class Peft(NamedTuple):
    """A parameter-efficient method.

    Attributes:
      init: (key, params) -> delta, what is trained.
      reparam: (params, delta) -> params, for methods in weight space.
      tap: (delta, site, call, *args) -> output, for methods in activation space; None taps nothing.
      penalty: (delta) -> scalar, added to the loss.
      optimizer: (tx, steps) -> tx over the delta, in a run of so many updates. Its updates are applied as they are.
      merge: (params, delta) -> params with the delta folded in; None where it cannot be.
      reads_weights: the tap reads the module's own arrays, so in a chain nothing nearer to the module may tap: it
        would change what the module computes and not what its arrays say.
      name, options: what the method was made from; a chain has the names only.
    """

    init: Callable[[jax.Array, Params], Delta]
    reparam: Callable[[Params, Delta], Params] = _as_is
    tap: Callable[..., Any] | None = None
    penalty: Callable[[Delta], jax.Array] = _no_penalty
    optimizer: Optimizer = _same_optimizer
    merge: Callable[[Params, Delta], Params] | None = None
    reads_weights: bool = False
    name: str = ""
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def changes_optimizer(self) -> bool:
        """Whether its delta is updated otherwise than what is trained beside it."""
        return self.optimizer is not _same_optimizer


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
    """Methods one inside the other: the first is nearest to the module.

    Raises:
      ValueError: one that reads the module's weights comes after one that taps.
    """
    for i, method in enumerate(methods):
        if method.reads_weights and any(m.tap is not None for m in methods[:i]):
            raise ValueError(
                f"{method.name or 'a method'} reads the weights that it adapts, so it stands first in a chain: write "
                f"{'+'.join(m.name or '…' for m in (method, *methods[:i], *methods[i + 1 :]))!r}"
            )

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
        # As in `forward`: first what is trained in place of weights, then what is added to them.
        for method, part in sorted(parts(delta), key=lambda pair: pair[0].tap is not None):
            assert method.merge is not None
            params = method.merge(params, part)
        return params

    def penalty(delta: Delta) -> jax.Array:
        return sum((method.penalty(part) for method, part in parts(delta)), jnp.zeros(()))

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return optimize_apart({str(i): method.optimizer(tx, steps) for i, method in enumerate(methods)})

    return Peft(
        init,
        reparam,
        tap if any(method.tap for method in methods) else None,
        penalty,
        optimizer if any(method.changes_optimizer for method in methods) else _same_optimizer,
        merge if all(method.merge for method in methods) else None,
        any(method.reads_weights for method in methods),
        "+".join(method.name for method in methods),
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
    """The method applied to the submodule `scope` of a larger module: its sites keep their own names, its delta is
    {scope: delta}."""
    tap, merge = method.tap, method.merge

    def scoped_tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        assert tap is not None
        if (inner := site.removeprefix(scope)) != site and inner[:1] in ("", "/", "."):
            return tap(delta[scope], inner.removeprefix("/"), call, *args)
        return call(*args)

    def optimizer(tx: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
        return optimize_apart({scope: method.optimizer(tx, steps)})

    return method._replace(
        init=lambda key, params: {scope: method.init(key, _part(params, scope))},
        reparam=lambda params, delta: {**params, scope: method.reparam(params[scope], delta[scope])},
        tap=scoped_tap if tap else None,
        penalty=lambda delta: method.penalty(delta[scope]),
        optimizer=optimizer if method.changes_optimizer else _same_optimizer,
        merge=(lambda params, delta: {**params, scope: merge(params[scope], delta[scope])}) if merge else None,
    )


def _part(params: Params, scope: str) -> Params:
    if scope not in params:
        raise ValueError(unknown_name("part of the model", scope, params))
    return params[scope]
