"""The interface of models that generate semantic ids, and their vocabulary.

Token 0 begins a text, and each level has tokens of its own: with sizes (4, 3), the codes 0 … 3 of the first level are
the tokens 1 … 4, and 0 … 2 of the second one are 5 … 7. A softmax is over the codes of one level.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.registry import Registry


class IdGenerator(Protocol):
    """A Linen module that generates ids of L codes.

    Attributes:
      sizes: Number of codes of each level.
      every_position: Whether one pass trains on every item of a window; otherwise on the item after it.
    """

    sizes: tuple[int, ...]
    every_position: ClassVar[bool]

    def code_logits(self, history: jax.Array, mask: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the logits of each level, given the codes before, for training.

        Args:
          history: Codes of the items that were read [B, H, L], the oldest first, padded at the end.
          mask: Which items are real, [B, H].
          targets: Codes of the items that come next [B, T, L]; T is H with `every_position`, else 1.

        Returns:
          L arrays [B, T, size of the level].
        """
        ...

    def read(self, history: jax.Array, mask: jax.Array) -> Any:
        """Returns what `next_logits` needs of histories; see `code_logits`."""
        ...

    def next_logits(self, memory: Any, prefixes: jax.Array) -> jax.Array:
        """Returns the logits [B, K, size of level t] of the code after each of K prefixes [B, K, t] of every user."""
        ...

    def init(self, *args: Any, **kwargs: Any) -> Any: ...

    def apply(self, *args: Any, **kwargs: Any) -> Any: ...


GENERATORS: Registry[Callable[..., IdGenerator]] = Registry("generator")
"""Each takes `sizes`, `positions` (the longest text in tokens) and the sizes of its network."""


def vocabulary_size(sizes: Sequence[int]) -> int:
    """Returns the number of tokens.

    Example:
      >>> vocabulary_size((4, 3))
      8
    """
    return 1 + sum(sizes)


def tokens_of(codes: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Returns the tokens of the first codes of ids, [..., t] to [..., t].

    Example:
      >>> tokens_of(jnp.array([[3, 0], [0, 2]]), (4, 3)).tolist()
      [[4, 5], [1, 7]]
    """
    first = [1, *accumulate(sizes, initial=1)][1:-1]
    return codes + np.array(first[: codes.shape[-1]], np.int32)


class LevelLogits:
    """The output of generators: a code's logit is the product with its embedding, among those of its level."""

    sizes: tuple[int, ...]
    embeddings: Any

    def level_logits(self, states: jax.Array, level: int) -> jax.Array:
        """Returns the logits [..., size] of the codes of a level by states [..., D]."""
        first, table = 1 + sum(self.sizes[:level]), self.embeddings.word.embedding
        return (states @ table[first : first + self.sizes[level]].T.astype(states.dtype)).astype(jnp.float32)


def history_tokens(history: jax.Array, mask: jax.Array, sizes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns the tokens of histories [B, H, L] with their mask [B, H], [B, 1 + H · L] both; token 0 is in front."""
    tokens = tokens_of(history, sizes).reshape(len(history), -1)
    real = jnp.repeat(mask.astype(bool), len(sizes), axis=1)
    first = ((0, 0), (1, 0))
    return jnp.pad(tokens, first), jnp.pad(real, first, constant_values=True)
