"""The registry of methods: `register` adds a method, `create` makes one by name, printing `METHODS` lists all."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, cast

from llm4rec_jax.peft.core import Peft, chain
from llm4rec_jax.registry import Registered, Registry


class Methods(Registry[Callable[..., Peft]]):
    """A registry of methods that prints as a table of their options, defaults and papers."""

    def __init__(self) -> None:
        super().__init__("parameter-efficient method")
        self.papers: dict[str, str] = {}

    def register(self, name: str, paper: str = "", **former: Any) -> Callable[[Registered], Registered]:
        """Returns a decorator that registers a function from keyword arguments to a `Peft`.

        Args:
          name: The method's name in configurations.
          paper: The paper that defines the method.
          former: Former names of the method and its options; see `Registry.register`.

        Raises:
          ValueError: the name is taken.
        """

        def decorate(function: Registered) -> Registered:
            make = cast(Callable[..., Peft], function)
            signature = inspect.signature(make)

            @functools.wraps(make)
            def remembering(*args: Any, **options: Any) -> Peft:
                given = signature.bind(*args, **options)
                given.apply_defaults()
                return make(*args, **options)._replace(name=name, options=dict(given.arguments))

            super(Methods, self).register(name, **former)(remembering)
            self.papers[name] = paper
            return cast(Registered, remembering)

        return decorate

    def __repr__(self) -> str:
        rows = []
        for name in sorted(self):
            fields = inspect.signature(self[name]).parameters.values()
            options = textwrap.wrap(", ".join(f"{f.name}={f.default!r}" for f in fields), 70) or [""]
            rows.append((name, options[0], self.papers[name]))
            rows += [("", more, "") for more in options[1:]]
        rows.insert(0, ("method", "options and defaults", "paper"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


METHODS = Methods()


def create(spec: str, options: Mapping[str, Mapping[str, Any]] | None = None) -> Peft:
    """Creates a method by name, or a chain of methods.

    Args:
      spec: Names joined by `+`; the first is nearest to the module.
      options: Keyword arguments by method.

    Raises:
      ValueError: a name or an option is unknown; the message names the nearest.

    Example:
      >>> create("lora+bitfit", {"lora": {"rank": 4}}).name
      'lora+bitfit'
      >>> create("lroa")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: unknown parameter-efficient method 'lroa'; did you mean 'lora'? Choose from: ...
    """
    options = options or {}
    names = [name.strip() for name in spec.split("+")]
    for name in names:
        METHODS.lookup(name)
    if stray := sorted(set(options) - set(names)):
        raise ValueError(f"options for {', '.join(stray)}, but the method is {spec!r}")
    methods = [METHODS.build(name, **options.get(name, {})) for name in names]
    return methods[0] if len(methods) == 1 else chain(*methods)
