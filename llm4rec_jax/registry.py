"""Named choices whose lookup explains a wrong name."""

import difflib
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

_SHOWN = 40

T = TypeVar("T")
Registered = TypeVar("Registered")


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Words the error for a name that is none of `choices`: first the nearest, then all, or the first of many."""
    listed = [str(choice) for choice in choices]
    nearest = difflib.get_close_matches(str(name), listed, n=1, cutoff=0.4)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ";"
    shown = ", ".join(listed[:_SHOWN]) or "(none)"
    rest = f", … ({len(listed)} in all)" if len(listed) > _SHOWN else ""
    return f"unknown {kind} {name!r}{hint} Choose from: {shown}{rest}"


class Registry(dict[str, T], Generic[T]):
    """A dictionary of named objects of one kind, filled by the `register` decorator.

    Args:
        kind: Singular noun that error messages call an entry by ("source", "split").

    Attributes:
        aliases: Former names of entries and the names that replace them.

    Example:
        >>> shapes = Registry("shape")
        >>> @shapes.register("square", aliases=("quad",))
        ... def corners() -> int:
        ...     return 4
        >>> shapes.build("square")
        4
        >>> shapes.lookup("sqare")
        Traceback (most recent call last):
        ValueError: unknown shape 'sqare'; did you mean 'square'? Choose from: square
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.aliases: dict[str, str] = {}
        self._option_aliases: dict[str, Mapping[str, str]] = {}
        self._warned: set[str] = set()

    def register(
        self, name: str, *, aliases: Iterable[str] = (), option_aliases: Mapping[str, str] = MappingProxyType({})
    ) -> Callable[[Registered], Registered]:
        """Returns a decorator that stores its argument under `name` and returns it unchanged.

        Args:
            name: Name of the entry.
            aliases: Former names, which still find the entry, with a warning.
            option_aliases: Former names of options that `build` takes, and the names that replace them.

        Raises:
            ValueError: if the name or an alias is taken.
        """

        def decorate(value: Registered) -> Registered:
            for taken in (name, *aliases):
                if taken in self or taken in self.aliases:
                    raise ValueError(f"{self.kind} {taken!r} is registered already; choose another name")
            self.aliases.update(dict.fromkeys(aliases, name))
            self._option_aliases[name] = option_aliases
            # The decorated object keeps its own, more precise type for its callers.
            self[name] = cast(T, value)
            return value

        return decorate

    def current_name(self, name: str) -> str:
        """Returns the name that replaces an alias, with one warning a process; any other name as it is."""
        if name not in self.aliases:
            return name
        self._warn(f"the {self.kind} {name!r}", self.aliases[name])
        return self.aliases[name]

    def _warn(self, what: str, name: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"{what} is now called {name!r}; the old name still works", FutureWarning, stacklevel=3)

    def lookup(self, name: str) -> T:
        """Returns the entry of that name or alias.

        Raises:
            ValueError: if there is no such entry; the message names the nearest and lists all.
        """
        name = self.current_name(name)
        if name not in self:
            raise ValueError(unknown_name(self.kind, name, sorted(self)))
        return self[name]

    def build(self, name: str, /, *args: Any, **options: Any) -> Any:
        """Calls the entry of that name.

        Raises:
            ValueError: no such entry, or an option that it does not take; the message names the nearest and lists all.
        """
        name, given = self.current_name(name), options
        entry, renamed = cast(Callable[..., Any], self.lookup(name)), self._option_aliases.get(name, {})
        options = {renamed.get(option, option): value for option, value in given.items()}
        for option in given.keys() & renamed.keys():
            self._warn(f"the option {option!r} of the {self.kind} {name!r}", renamed[option])
        accepted = [n for n in list(inspect.signature(entry).parameters)[len(args) :] if n not in ("parent", "name")]
        for option in options:
            if option not in accepted:
                raise ValueError(unknown_name(f"option of {self.kind} {name!r}:", option, accepted))
        return entry(*args, **options)


def import_all(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package, so that each registers what it holds.

    Args:
        package: the package's `__name__`.
        path: the package's `__path__`.
    """
    for module in pkgutil.iter_modules(path):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
