"""The batch that one training step reads: each item once, its texts in groups by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from llm4rec_jax.data.features.tokens import Tokens

if TYPE_CHECKING:
    import jax

# NumPy arrays here, device arrays by the time a model sees them.
Array: TypeAlias = "np.ndarray | jax.Array"

# An index outside of every array: a gather is clipped to the last element, a scatter is dropped.
NOWHERE = np.iinfo(np.int32).max

# Fields of a `Batch` that describe its items and are shared by all of its users.
BY_ITEM = ("items", "tokens", "candidates", "log_q")


class TokenGroup(NamedTuple):
    """Texts of similar length: token ids int32 [U_g, L_g] and mask bool [U_g, L_g]."""

    ids: Array
    mask: Array


class Batch(NamedTuple):
    """One training batch. Fields that the model and the loss do not use are None.

    Attributes:
      users: rows of the user table, [B].
      items: rows of the item table, [U], each once, padded with repeats.
      history: positions in `items`, [B, H], padded at the end. H is 0 where there are prompts.
      history_mask: bool [B, H].
      target: positions in `items`, [B, T]; T is H where every position is trained on, else 1.
      target_mask: bool [B, T].
      tokens: texts of `items`, in that order, in groups by length.
      prompt: the histories as texts, for a user encoder that reads text.
      rating: ratings of the targets, float32 [B, T].
      negatives: positions in `items`, [B, T, K].
      candidates: bool [U], the items that a target is compared with: the batch's targets, perhaps with items drawn for
        all of them, or the whole catalogue.
      log_q: log probability by which a candidate or a negative is this item, [U].
      user_items: rows of the item table that the user has in training, [B, M], ascending, padded with -1 in front.
      masked_positions: bool [B, H], positions of the history that a user encoder has to fill; `target` has the items.
      target_positions: positions in the flat [B * T] where `target_mask` is true, [P], padded with `NOWHERE`; losses
        against many candidates are computed there only.
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
    """Takes rows of a token table and cuts or pads them to `length` columns.

    Example:
      >>> tokens = Tokens(np.array([[5, 6, 7], [8, 0, 0]], np.int32), np.array([3, 1], np.int32))
      >>> token_group(tokens, np.array([1, 0]), 2).ids.tolist()
      [[8, 0], [5, 6]]
    """
    ids = tokens.ids[rows, :length]
    ids = np.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    return TokenGroup(ids, np.arange(length) < tokens.lengths[rows][:, None])


def in_groups(batch: Batch, shapes: Sequence[Sequence[int]]) -> Batch:
    """Pads a batch's groups of texts to these shapes (rows, tokens), adding groups where it has fewer.

    A batch of groups with 2 and 1 rows, brought to 3 and 2 rows:

        position before   0 1   2
        moves to          0 1   3       new_position = [0, 1, 3]
        source row        0 1 0 2 2     padding rows repeat the first item of their group
    """
    if [list(np.shape(group.ids)) for group in batch.tokens] == [list(shape) for shape in shapes]:
        return batch
    ids, masks = ([np.asarray(group[i]) for group in batch.tokens] for i in range(2))
    rows = np.array([len(group_ids) for group_ids in ids] + [0] * (len(shapes) - len(ids)))
    new_rows = [n for n, _ in shapes]
    starts, new_starts = (np.concatenate([[0], np.cumsum(sizes)[:-1]]) for sizes in (rows, new_rows))
    new_position = (np.arange(rows.sum()) + np.repeat(new_starts - starts, rows)).astype(np.int32)
    # A group that the batch does not have repeats the first item of the batch.
    source = np.repeat(np.where(rows, starts, 0), new_rows)
    source[new_position] = np.arange(len(new_position))
    is_padding = np.ones(len(source), bool)
    is_padding[new_position] = False
    texts = []
    for g, (n, length) in enumerate(shapes):
        in_group = source[new_starts[g] : new_starts[g] + n]
        old_group, row = (g, in_group - starts[g]) if rows[g] else (0, in_group)
        wider = ((0, 0), (0, max(length - ids[old_group].shape[1], 0)))
        texts.append(TokenGroup(*(np.pad(part[old_group], wider)[row, :length] for part in (ids, masks))))
    return batch._replace(
        items=batch.items[source],
        tokens=tuple(texts),
        candidates=None if batch.candidates is None else batch.candidates[source] & ~is_padding,
        log_q=None if batch.log_q is None else batch.log_q[source],
        history=new_position[batch.history],
        target=new_position[batch.target],
        negatives=None if batch.negatives is None else new_position[batch.negatives],
    )
