"""Regular expressions over module names that come from files, matched at a bounded cost."""

import itertools
import math
import re
import re._parser as parser  # pyright: ignore[reportMissingImports]
from collections.abc import Iterable
from typing import Any

MOST_CHARACTERS = 100_000
MOST_CHOICES = 4
"""Number of places in a pattern where matching may go several ways. Four `.*` can divide a name of 60 characters in
600,000 ways, which takes a few milliseconds; every further one multiplies that by ten and more."""


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Returns the names that a regular expression matches in full.

    Raises:
      ValueError: it is not a regular expression, or one whose cost may grow without bound. The message is a predicate,
        for the caller to put a subject in front.

    Example:
      >>> matching(r"layer_\\d+/(query|value)", ["layer_0/query", "layer_0/key"])
      ['layer_0/query']
      >>> matching(r"(a+)+b", ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac"])
      Traceback (most recent call last):
      ValueError: repeats what repeats, or has more than 4 repetitions in a row, so matching it may never end
    """
    if len(pattern) > MOST_CHARACTERS:
        raise ValueError(f"has {len(pattern)} characters, more than {MOST_CHARACTERS}")
    try:
        compiled, tree = re.compile(pattern), parser.parse(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is not a regular expression ({error})") from error
    if _choices(tree, whole=True) > MOST_CHOICES:
        raise ValueError(
            f"repeats what repeats, or has more than {MOST_CHOICES} repetitions in a row, so matching it may never end"
        )
    return [name for name in names if compiled.fullmatch(name)]


def _choices(tree: Any, whole: bool = False) -> float:
    """Returns the largest number of places on a way through a parsed pattern where matching may go several ways."""
    total = 0.0
    for op, value in tree:
        if op.name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, inner = value
            within = _choices(inner)
            # `(a+)+` can divide a name in a number of ways that is exponential in its length.
            total += (math.inf if within and most > 1 else within) + (least != most)
        elif op.name == "BRANCH":
            # Nothing follows the alternatives of a whole pattern, so overlaps of them do not multiply.
            total += max(map(_choices, value[1])) + (not (whole and len(tree) == 1) and _overlap(value[1]))
        elif op.name == "GROUPREF_EXISTS":
            total += max(_choices(branch or ()) for branch in value[1:])
        elif op.name in ("SUBPATTERN", "ASSERT", "ASSERT_NOT"):
            total += _choices(value[-1])
        elif op.name == "ATOMIC_GROUP":
            total += _choices(value)
    return total


def _overlap(branches: Any) -> bool:
    """Returns whether several branches may match at one place, as texts do not unless one begins another."""
    if not all(op.name == "LITERAL" for branch in branches for op, _ in branch):
        return True
    texts = sorted("".join(chr(value) for _, value in branch) for branch in branches)
    return any(later.startswith(text) for text, later in itertools.pairwise(texts))
