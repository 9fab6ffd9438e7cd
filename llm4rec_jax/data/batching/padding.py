"""Padded batch shapes, chosen from a sample of batches so that almost all share one compiled shape."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.batching.buckets import ANY, bucket, group_lengths, token_bucket

# Number of batches in a sample.
SAMPLE = 32


class BatchSizes(NamedTuple):
    """Unpadded sizes of one sampled batch.

    Attributes:
      lengths: number of tokens of each item, [n]; zeros where items have no texts.
      target_positions: number of positions that have a target.
      user_items: largest number of training items of one of the batch's users.
    """

    lengths: np.ndarray
    target_positions: int
    user_items: int


class Group(NamedTuple):
    """A group of texts that are padded to one length.

    Attributes:
      members: positions [m] among the batch's items.
      length: number of tokens that each text is padded to.
      rows: number of rows that the group is padded to, at least m.
    """

    members: np.ndarray
    length: int
    rows: int


class PaddingPlan(NamedTuple):
    """The shape that batches are padded to. A batch that needs more is padded to a `bucket`, which compiles anew.

    Attributes:
      lengths: number of tokens of each group of texts, ascending; (0,) where items have no texts.
      rows: number of items of each group.
      target_positions, user_items: as in `BatchSizes`.
      multiple_of: divisor of all numbers of rows.
      max_tokens: number of positions of the encoder.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    target_positions: int
    user_items: int
    multiple_of: int
    max_tokens: int = ANY

    def groups(self, lengths: np.ndarray) -> list[Group]:
        """Groups the items of a batch by their numbers of tokens [n]; longer ones than planned form one more group."""
        # Planned lengths (8, 16): texts of 3, 8, 9 and 40 tokens belong to groups 0, 0, 1 and 2.
        of_item = np.searchsorted(self.lengths, lengths)
        groups = []
        for g, (length, rows) in enumerate(zip(self.lengths, self.rows, strict=True)):
            (members,) = np.nonzero(of_item == g)
            groups.append(Group(members, length, fit(len(members), rows, self.multiple_of)))
        (members,) = np.nonzero(of_item == len(self.lengths))
        if len(members):
            length = token_bucket(int(lengths.max()), self.max_tokens)
            groups.append(Group(members, length, bucket(len(members), self.multiple_of)))
        return groups


def fit(size: int, planned: int, multiple_of: int = 1) -> int:
    """Returns `planned` if it holds `size`, else a bucket that does.

    Example:
      >>> fit(20, 24), fit(25, 24)
      (24, 32)
    """
    return planned if size <= planned else bucket(size, multiple_of)


def plan_padding(sample: Sequence[BatchSizes], cost: int, multiple_of: int, max_tokens: int = ANY) -> PaddingPlan:
    """Chooses padded shapes that almost all batches like those of the sample fit into.

    The groups of texts are those that take the fewest tokens (see `group_lengths`), up to the lengths that at least
    one batch in ten has. Each group holds the sample's mean plus four standard deviations.

    Args:
      sample: sizes of some batches.
      cost: padding, in tokens of a batch, that one more group has to save.
      multiple_of: divisor of the numbers of rows.
      max_tokens: number of positions of the encoder.

    Example:
      >>> sample = [BatchSizes(np.array([5, 6, 30]), target_positions=8, user_items=3)] * 4
      >>> plan_padding(sample, cost=0, multiple_of=1)[:4]
      ((8, 32), (8, 8), 8, 3)
    """
    longest = np.quantile([sizes.lengths.max() for sizes in sample], 0.9, method="lower")
    pooled = np.concatenate([sizes.lengths for sizes in sample])
    lengths = np.unique(group_lengths(pooled[pooled <= longest], cost * len(sample), max_tokens))
    rows = np.array([np.diff(np.searchsorted(np.sort(sizes.lengths), lengths, "right"), prepend=0) for sizes in sample])
    row_multiple = int(np.lcm(8, multiple_of))
    return PaddingPlan(
        tuple(map(int, lengths)),
        tuple(_upper_bound(column, row_multiple) for column in rows.T),
        _upper_bound(np.array([sizes.target_positions for sizes in sample]), 8),
        max(sizes.user_items for sizes in sample),
        multiple_of,
        max_tokens,
    )


def _upper_bound(counts: np.ndarray, multiple_of: int) -> int:
    """Returns a number that almost no count of the same distribution exceeds."""
    bound = max(np.ceil(counts.mean() + 4 * counts.std()), 1)
    return int(-(-bound // multiple_of) * multiple_of)
