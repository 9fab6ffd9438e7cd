"""How much room batches of a kind need, from a sample of them, so that nearly all have one shape and little padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm4rec_jax.data.batching.buckets import ANY, bucket, group_lengths, token_bucket

# Batches of a sample.
SAMPLE = 32


class Sizes(NamedTuple):
    """Of one batch of a sample.

    Attributes:
      lengths: tokens of each of its items, [n]; zeros where items have no texts.
      real: positions that have a target.
      own: the most training items that one of its users has.
    """

    lengths: np.ndarray
    real: int
    own: int


class Group(NamedTuple):
    """Places [m] among a batch's items, the tokens that each is padded to, and for how many there is room."""

    members: np.ndarray
    length: int
    rows: int


class Room(NamedTuple):
    """What a batch is padded to; one that needs more is padded to a `bucket`, which is another program.

    Attributes:
      lengths: tokens of each group of texts, ascending; (0,) where items have no texts.
      rows: items of each group.
      real, own: see `Sizes`.
      multiple_of: what all numbers of rows are multiples of.
      most: tokens that the encoder has positions for.
    """

    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    real: int
    own: int
    multiple_of: int
    most: int = ANY

    def groups(self, lengths: np.ndarray) -> list[Group]:
        """The groups of a batch's items, of so many tokens each; those longer than any are a group more."""
        of_item = np.searchsorted(self.lengths, lengths)
        groups = []
        for g, (length, rows) in enumerate(zip(self.lengths, self.rows, strict=True)):
            (members,) = np.nonzero(of_item == g)
            groups.append(Group(members, length, fit(len(members), rows, self.multiple_of)))
        (members,) = np.nonzero(of_item == len(self.lengths))
        if len(members):
            length = token_bucket(int(lengths.max()), self.most)
            groups.append(Group(members, length, bucket(len(members), self.multiple_of)))
        return groups


def fit(size: int, room: int, multiple_of: int = 1) -> int:
    """`room` where it holds `size`, else a bucket."""
    return room if size <= room else bucket(size, multiple_of)


def room_of(sample: Sequence[Sizes], cost: int, multiple_of: int, most: int = ANY) -> Room:
    """The room that nearly all batches like those of the sample fit into.

    Groups of texts are those that take the fewest tokens (see `group_lengths`), up to the lengths that one batch in ten
    or more has. Each has room for the mean and four standard deviations of what the sample has in it.

    Args:
      cost: what one more group counts for, in tokens of a batch.
      multiple_of: of the numbers of rows.
      most: tokens that the encoder has positions for.
    """
    longest = np.quantile([each.lengths.max() for each in sample], 0.9, method="lower")
    pooled = np.concatenate([each.lengths for each in sample])
    lengths = np.unique(group_lengths(pooled[pooled <= longest], cost * len(sample), most))
    rows = np.array([np.diff(np.searchsorted(np.sort(each.lengths), lengths, "right"), prepend=0) for each in sample])
    together = int(np.lcm(8, multiple_of))
    return Room(
        tuple(map(int, lengths)),
        tuple(_usual(column, together) for column in rows.T),
        _usual(np.array([each.real for each in sample]), 8),
        max(each.own for each in sample),
        multiple_of,
        most,
    )


def _usual(counts: np.ndarray, multiple_of: int) -> int:
    """What nearly no count like these is above."""
    most = max(np.ceil(counts.mean() + 4 * counts.std()), 1)
    return int(-(-most // multiple_of) * multiple_of)
