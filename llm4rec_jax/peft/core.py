"""The algebra of parameter-efficient methods: a method is a NamedTuple of pure functions, and methods compose.

The seam is `flax.linen.intercept_methods`: every call of a module inside `forward` becomes a site with a name
(`layer_3/attention/query`, `layer_3/attention.attend`, `.layers`), and the method's `tap` decides what the call
returns. The modules of `models` do not know of it, and the interceptor creates no parameters: it closes over `delta`.
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
    """An intercepted call of a module. `call(*args)` runs the module with these arguments."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        self._function = function
        self._module = module

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    @property
    def params(self) -> Params:
        """The module's own arrays, after `reparam`. A method whose tap reads them sets `reads_weights`.

        A matrix in few bits is no array: `jnp.asarray` dequantises it.
        """
        return self._module.variables["params"]

    @property
    def config(self) -> Any:
        """The configuration of the module, or of the nearest module around it that has one."""
        module: Any = self._module
        while not hasattr(module, "config"):
            module = module.parent
        return module.config

    def rng(self) -> jax.Array | None:
        """Returns a fresh dropout key, or None when the caller gave no `dropout` rng and dropout is off."""
        return self._module.make_rng("dropout") if self._module.has_rng("dropout") else None

    def around(self, function: Callable[..., Any]) -> "Call":
        """Returns a call that runs `function` instead, at the same place."""
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
      init: (key, params) -> delta, the arrays that are trained, in float32.
      reparam: (params, delta) -> params, for methods in weight space.
      tap: (delta, site, call, *args) -> output, for methods in activation space; None changes no call.
      penalty: (delta) -> scalar, added to the loss.
      optimizer: (tx, steps) -> tx, the optimizer of the delta in a run of `steps` updates.
      merge: (params, delta) -> params with the delta folded in; None when the method cannot be folded into weights.
      reads_weights: Whether the tap reads the module's own arrays. In a chain no method nearer to the module may have a
        tap then: it would change the output of the module but not the arrays.
      adds_tokens: Whether the tap puts tokens in front of each row, which therefore has to be one text.
      reads_ahead: Whether the tap lets states of a token depend on later ones, in a decoder too.
      name, options: The arguments that the method was created from; a chain has only the names.

    Example:
      A method that trains one number, by which it scales the output of every linear layer:

      >>> def tap(delta, site, call, *args):
      ...     return call(*args) * delta["all"]["scale"] if site == "dense" else call(*args)
      >>> method = Peft(init=lambda key, params: {"all": {"scale": jnp.ones(())}}, tap=tap)
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(2, kernel_init=nn.initializers.ones, name="dense")(x)
      >>> params = Model().init(jax.random.key(0), jnp.ones(3))["params"]
      >>> forward(Model(), method, params, {"all": {"scale": jnp.float32(2)}}, jnp.ones(3))
      Array([6., 6.], dtype=float32)
    """

    init: Callable[[jax.Array, Params], Delta]
    reparam: Callable[[Params, Delta], Params] = _as_is
    tap: Callable[..., Any] | None = None
    penalty: Callable[[Delta], jax.Array] = _no_penalty
    optimizer: Optimizer = _same_optimizer
    merge: Callable[[Params, Delta], Params] | None = None
    reads_weights: bool = False
    adds_tokens: bool = False
    reads_ahead: bool = False
    name: str = ""
    options: Mapping[str, Any] = MappingProxyType({})

    @property
    def changes_optimizer(self) -> bool:
        """Whether the method updates its delta by an optimizer of its own."""
        return self.optimizer is not _same_optimizer


def forward(
    module: nn.Module,
    method: Peft,
    params: Params,
    delta: Delta,
    *args: Any,
    apply: str | None = None,
    rngs: dict[str, jax.Array] | None = None,
    cache: Mapping[str, Any] | None = None,
) -> Any:
    """Returns `module.apply({"params": params}, *args)` with the method applied.

    Args:
      module: Any Linen module: the encoder, or the whole recommender with a method that is `within` a part of it.
      method: The method.
      params: The parameters of the module; they are not changed.
      delta: The arrays from `method.init`, trained or not.
      *args: The arguments of the module.
      apply: Name of the module's method to run; None runs `__call__`.
      rngs: {"dropout": key} turns dropout on.
      cache: Collection of `models.decoders.cache`; the result is then a pair with the cache after the call.
    """
    params = method.reparam(params, delta)

    def run() -> Any:
        if cache is None:
            return module.apply({"params": params}, *args, method=apply, rngs=rngs)
        variables = {"params": params, "cache": cache}
        output, changed = module.apply(variables, *args, method=apply, rngs=rngs, mutable=["cache"])
        return output, changed["cache"]

    if (tap := method.tap) is None:
        return run()

    def interceptor(function: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        suffix = "" if context.method_name == "__call__" else f".{context.method_name}"
        site = "/".join(context.module.path) + suffix
        # Positional arguments are arrays and go through the tap; keyword arguments are options and stay with the call.
        return tap(delta, site, Call(partial(function, **kwargs), context.module), *args)

    with nn.intercept_methods(interceptor):
        return run()


def chain(*methods: Peft) -> Peft:
    """Composes methods, the first one nearest to the module.

    Raises:
      ValueError: a method that reads the module's weights comes after one that has a tap.
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
        # In the order of `forward`: first methods that replace weights, then methods that add to them.
        for method, part in sorted(parts(delta), key=lambda pair: pair[0].tap is not None):
            params = (method.merge or _as_is)(params, part)
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
        any(method.adds_tokens for method in methods),
        any(method.reads_ahead for method in methods),
        "+".join(method.name for method in methods),
    )


def optimize_apart(parts: Mapping[str, optax.GradientTransformation]) -> optax.GradientTransformation:
    """Returns a transformation of a tree {name: part} that updates each part by its own transformation.

    Unlike in `optax.partition`, each transformation gets its part as a tree of its own and not the whole tree with the
    rest masked, because a method's `optimizer` depends on the structure of its delta.
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
    """Applies a method to the submodule `scope` of a larger module.

    The method sees the names of sites without the scope. Its delta becomes {scope: delta}.

    Example:
      >>> from llm4rec_jax import peft
      >>> params = {"encoder": {"norm": {"scale": jnp.ones(4)}}, "users": {"norm": {"scale": jnp.ones(8)}}}
      >>> delta = within(peft.create("layernorm"), "encoder").init(jax.random.key(0), params)
      >>> jax.tree.map(jnp.shape, delta)
      {'encoder': {'norm': {'scale': (4,)}}}
    """
    tap, merge = method.tap, method.merge

    def scoped_tap(delta: Delta, site: str, call: Call, *args: Any) -> Any:
        if tap and (inner := site.removeprefix(scope)) != site and inner[:1] in ("", "/", "."):
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
