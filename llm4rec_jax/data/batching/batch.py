"""What one step reads: a batch, each item once, and the texts of its items in groups of a length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from llm4rec_jax.data.features.tokens import Tokens

if TYPE_CHECKING:
    import jax

# A batch is made of numpy arrays here, and of device arrays by the time a model sees it.
Array: TypeAlias = "np.ndarray | jax.Array"

# Outside of every array: what gathers there is cut to the last place, what scatters there is dropped.
NOWHERE = np.iinfo(np.int32).max


# Fields of a `Batch` that are of its items, and the same for all of its users.
BY_ITEM = ("items", "tokens", "candidates", "log_q")


class TokenGroup(NamedTuple):
    """Texts of similar length: ids [U_g, L_g] int32 and mask [U_g, L_g] bool."""

    ids: Array
    mask: Array


class Batch(NamedTuple):
    """One training batch; what a model or loss has no use for is None.

    Attributes:
      users: [B] rows of the user table.
      items: [U] rows of the item table, each once, padded with repeats.
      history: [B, H] positions in `items`, padded at the end; history_mask: [B, H]. H is 0 where there are prompts.
      target: [B, T] positions in `items`; T is H where every position is trained on, else 1; target_mask: [B, T].
      tokens: the texts of `items`, in that order, in groups by length.
      prompt: the histories as text, for a user model that reads text.
      rating: [B, T] float32 of the targets.
      negatives: [B, T, K] positions in `items`.
      candidates: [U] bool, the `items` that a target is compared with: the batch's targets, or the whole catalogue.
      log_q: [U] log of the probability that a target is this item.
      user_items: [B, M] rows of the item table that the user has in training, ascending, padded with -1 in front.
      masked_positions: [B, H] bool, the positions of the history that a user model has to fill; `target` is what stands there.
      target_positions: [P] where `target_mask` is true, as places in the flat [B * T], padded with `NOWHERE`: losses against many
        candidates need not be computed elsewhere.
    """

    users: Array
    items: Array
    history: Array
    history_mask: Array
    target: Array
    target_mask: Array
    tokens: tuple[TokenGroup, ...] = ()
    prompt: TokenGroup | None = None
    rating: Array | None = None
    negatives: Array | None = None
    candidates: Array | None = None
    log_q: Array | None = None
    user_items: Array | None = None
    masked_positions: Array | None = None
    target_positions: Array | None = None


def token_group(tokens: Tokens, rows: np.ndarray, length: int) -> TokenGroup:
    """Rows of a token table, cut or padded to `length` columns."""
    ids = tokens.ids[rows, :length]
    ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    return TokenGroup(ids, np.arange(length) < tokens.lengths[rows][:, None])


def in_groups(batch: Batch, shapes: Sequence[Sequence[int]]) -> Batch:
    """The batch with its groups of texts padded to these rows and tokens, and with more groups where it has fewer."""
    if [list(np.shape(group.ids)) for group in batch.tokens] == [list(shape) for shape in shapes]:
        return batch
    ids, masks = ([np.asarray(group[i]) for group in batch.tokens] for i in range(2))
    rows, wanted = np.array([len(each) for each in ids] + [0] * (len(shapes) - len(ids))), [n for n, _ in shapes]
    starts, new_starts = (np.concatenate([[0], np.cumsum(sizes)[:-1]]) for sizes in (rows, wanted))
    place = (np.arange(rows.sum()) + np.repeat(new_starts - starts, rows)).astype(np.int32)
    # What is room repeats the first item of its group, or of the batch.
    source = np.repeat(np.where(rows, starts, 0), wanted)
    source[place] = np.arange(len(place))
    is_room = np.ones(len(source), bool)
    is_room[place] = False
    texts = []
    for g, (n, length) in enumerate(shapes):
        own = slice(new_starts[g], new_starts[g] + n)
        of, row = (g, source[own] - starts[g]) if rows[g] else (0, source[own])
        wide = ((0, 0), (0, max(length - ids[of].shape[1], 0)))
        texts.append(TokenGroup(*(np.pad(each[of], wide)[row, :length] for each in (ids, masks))))
    return batch._replace(
        items=batch.items[source],
        tokens=tuple(texts),
        candidates=None if batch.candidates is None else batch.candidates[source] & ~is_room,
        log_q=None if batch.log_q is None else batch.log_q[source],
        history=place[batch.history],
        target=place[batch.target],
        negatives=None if batch.negatives is None else place[batch.negatives],
    )
