"""From a split to batches: examples, negatives, each item once, padded to buckets, read by Grain.

A batch holds each of its items once; histories, targets and negatives point into that list, so that the encoder reads
every text once a batch however often it occurs. Sizes that vary are padded to a few buckets, so that jit compiles a
handful of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from llm4rec_jax.data.batching.batch import NOWHERE, Batch, TokenGroup, token_group
from llm4rec_jax.data.batching.buckets import ANY, bucket, group_lengths, token_bucket
from llm4rec_jax.data.batching.negatives import Negatives, NegativeSampler
from llm4rec_jax.data.batching.padding import SAMPLE, Group, Sizes, fit, room_of
from llm4rec_jax.data.batching.windows import Examples, single_targets, windows
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.ondisk import mmap as mapped
from llm4rec_jax.data.splits.leakage import no_leak, within_users
from llm4rec_jax.data.splits.split import Split


class Gaps(NamedTuple):
    """How positions are hidden from a user model that reads in both directions.

    Attributes:
      share: the probability of each position.
      only_last: the probability that of a window only the last position is hidden.
    """

    share: float
    only_last: float


class BatchBuilder:
    """Turns example numbers into a `Batch`. See `training_batches` for the arguments."""

    def __init__(
        self,
        split: Split,
        *,
        history: int,
        every_position: bool,
        negatives: Negatives,
        num_negatives: int,
        alpha: float,
        ratings: bool,
        tokens: Tokens | None,
        prompts: Callable[[list[np.ndarray], np.ndarray], TokenGroup] | None,
        batch_size: int,
        multiple_of: int,
        most_examples: int | None,
        first: bool = False,
        gaps: Gaps | None = None,
        compact: bool = False,
        group_cost: int = 0,
        most_tokens: int = ANY,
        share: slice = slice(None),
    ) -> None:
        self._share, self._group_cost, self._most_tokens = share, group_cost, most_tokens
        self.sequences, targets = split.training()
        self._is_target = targets
        self._every_position, self._gaps, self._compact = every_position, gaps, compact
        if every_position:
            examples = windows(self.sequences, history)
        else:
            examples = single_targets(self.sequences, history, first)
        within_users(self.sequences, *examples)
        # Of all, so that few-shot draws of one sequence do not differ in it.
        longest = int((examples.stop - examples.start).max(initial=1))
        held_out = [split.targets_of("validation"), split.targets_of("test")]
        no_leak(split.dataset, self.sequences, held_out, "the training sequence")
        # Windows without a single training target (few-shot) teach nothing.
        counts = np.concatenate([[0], np.cumsum(targets)])
        first_target = examples.start + 1 if every_position else examples.stop
        useful = counts[examples.stop + 1] > counts[first_target]
        self.examples = Examples(*(column[useful] for column in examples))
        if not len(self.examples.user):
            raise DataError(
                f"no training example: under {split.protocol!r} no user has a training target with an item before it; "
                "keep users with more interactions, or another split"
            )
        self.history = min(history, longest)
        self._mode, self._k, self._ratings = negatives, num_negatives, ratings
        if ratings and self.sequences.ratings is None:
            raise DataError("this loss learns ratings, but the data has none: name the rating column, or another loss")
        self._tokens, self._prompts, self._multiple_of = tokens, prompts, multiple_of
        # Several processes must run one program, so none may choose its sizes by what it happens to read.
        self._fixed_shapes = most_examples is not None
        columns = self.history + (gaps is not None)
        # A user model that reads a prompt reads no items.
        slots = columns * (prompts is None) + (columns if every_position else 1) * (1 + num_negatives)
        self._most_items = min((most_examples or 0) * slots, int(split.known.sum()))
        self._known = np.flatnonzero(split.known).astype(np.int32)
        num_items = len(split.known)
        popularity = np.bincount(self.sequences.items, minlength=num_items)
        self._sampler = (
            NegativeSampler(self.sequences, split.known, popularity, alpha) if negatives == "sampled" else None
        )
        self._log_q = np.log(np.maximum(popularity, 1) / popularity.sum()).astype(np.float32)
        self._room = None
        if not self._fixed_shapes:
            self._room = room_of(list(self._sample(batch_size)), group_cost, multiple_of, most_tokens)
        self._catalogue = self._with_tokens(self._known) if negatives == "catalogue" else None

    def __getstate__(self) -> bytes:
        # For worker processes: mapped columns go as names of files.
        return mapped.dumps(self.__dict__)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(mapped.loads(state))

    def _sample(self, batch_size: int) -> Iterator[Sizes]:
        rng, all_examples = np.random.default_rng(0), len(self.examples.user)
        items_of_user = np.diff(self.sequences.offsets)
        for _ in range(SAMPLE):
            # Drawing without repeats takes time with all examples, and repeats are few then.
            repeats = batch_size > all_examples or all_examples > 2**17
            drawn = self._draw(rng.choice(all_examples, batch_size, replace=repeats), rng)
            items = np.unique(np.concatenate([part.ravel() for part in drawn.parts]))
            lengths = np.zeros(len(items), np.int32) if self._tokens is None else self._tokens.lengths[items]
            yield Sizes(lengths, int(drawn.target_mask.sum()), int(items_of_user[drawn.user].max()))

    def _draw(self, numbers: np.ndarray, rng: np.random.Generator) -> _Drawn:
        """The examples of these numbers."""
        user, start, stop = (column[numbers] for column in self.examples)
        width = stop - start
        column = np.arange(self.history)
        history_mask = column < width[:, None]
        at = np.where(history_mask, start[:, None] + column, start[:, None])
        target_at = np.minimum(at + 1, stop[:, None]) if self._every_position else stop[:, None]
        target_mask = self._is_target[target_at] & (history_mask if self._every_position else True)
        hidden = None
        if self._gaps is not None:
            at, history_mask, hidden = self._with_gaps(start, stop, rng)
            target_at, target_mask = at, hidden
            hidden = hidden[self._share]
        drawn = None
        if self._sampler is not None:
            drawn = self._sampler(rng, user, target_at.shape[1] * self._k, self._share)
        user, start, stop, at, history_mask, target_at, target_mask = (
            column[self._share] for column in (user, start, stop, at, history_mask, target_at, target_mask)
        )
        if self._prompts is not None:
            at, history_mask = at[:, :0], history_mask[:, :0]
        parts = [self.sequences.items[at], self.sequences.items[target_at]]
        if drawn is not None:
            parts.append(drawn.reshape(*target_at.shape, self._k))
        return _Drawn(user, start, stop, parts, history_mask, target_at, target_mask, hidden)

    def __call__(self, numbers: np.ndarray, rng: np.random.Generator) -> Batch:
        """The examples of these numbers, of which a process builds its share; what is random is drawn for all."""
        user, start, stop, parts, history_mask, target_at, target_mask, hidden = self._draw(numbers, rng)
        if self._catalogue is not None:
            items, tokens, order = self._catalogue
            parts = [order[np.searchsorted(self._known, part)] for part in parts]
        else:
            unique, inverse = np.unique(np.concatenate([part.ravel() for part in parts]), return_inverse=True)
            items, tokens, order = self._with_tokens(unique.astype(np.int32))
            ends = np.cumsum([part.size for part in parts])[:-1]
            parts = [order[i].reshape(part.shape) for i, part in zip(np.split(inverse, ends), parts, strict=True)]
        batch = Batch(
            user.astype(np.int32), items, parts[0], history_mask, parts[1], target_mask, tokens,
            negatives=parts[2] if self._sampler is not None else None, masked_positions=hidden,
        )  # fmt: skip
        if self._prompts is not None:
            histories = [self.sequences.items[a:b] for a, b in zip(start, stop, strict=True)]
            batch = batch._replace(prompt=self._prompts(histories, user))
        if self._ratings and self.sequences.ratings is not None:
            batch = batch._replace(rating=self.sequences.ratings[target_at].astype(np.float32))
        if self._catalogue is not None:
            # Padding repeats items: only the place of each item counts.
            batch = batch._replace(candidates=np.isin(np.arange(len(items)), order))
        elif self._mode == "in_batch":
            candidates = np.zeros(len(items), bool)
            candidates[parts[1][target_mask]] = True
            batch = batch._replace(candidates=candidates, log_q=self._log_q[items], user_items=self._own(user))
        if self._compact and batch.candidates is not None:
            places = np.flatnonzero(target_mask)
            size = bucket(len(places)) if self._room is None else fit(len(places), self._room.real)
            real = np.full(size, NOWHERE, np.int32)
            real[: len(places)] = places
            batch = batch._replace(target_positions=real)
        return batch

    def _with_gaps(
        self, start: np.ndarray, stop: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Whole windows [B, H + 1], the last target included: rows of the sequences, mask, and what is hidden."""
        assert self._gaps is not None
        column = np.arange(self.history + 1)
        mask = column <= (stop - start)[:, None]
        at = np.where(mask, start[:, None] + column, start[:, None])
        eligible = mask & self._is_target[at]
        last = eligible & (column == np.max(eligible * column, axis=1, keepdims=True))
        drawn = eligible & (rng.random(at.shape) < self._gaps.share)
        drawn = drawn & (rng.random((len(at), 1)) >= self._gaps.only_last)
        # A window without a gap would teach nothing.
        return at, mask, np.where(drawn.any(axis=1, keepdims=True), drawn, last)

    def _with_tokens(self, unique: np.ndarray) -> tuple[np.ndarray, tuple[TokenGroup, ...], np.ndarray]:
        """Distinct items to (items padded and ordered, their texts in groups, place of each of the distinct items)."""
        items, texts, order, filled = [], [], np.empty(len(unique), np.int32), 0
        for members, length, size in self._groups(unique):
            # What is room only repeats an item.
            spare = np.full(size - len(members), members[0] if len(members) else 0)
            rows = unique[np.concatenate([members, spare])]
            if self._tokens is not None:
                texts.append(token_group(self._tokens, rows, length))
            order[members] = filled + np.arange(len(members))
            items.append(rows)
            filled += size
        return np.concatenate(items), tuple(texts), order

    def _groups(self, unique: np.ndarray) -> list[Group]:
        lengths = np.zeros(len(unique), np.int32) if self._tokens is None else self._tokens.lengths[unique]
        if self._mode == "catalogue":
            # The same every time, so that it needs no room.
            lengths = group_lengths(lengths, self._group_cost, self._most_tokens)
            members = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
            m = self._multiple_of
            return [Group(each, int(lengths[each[0]]), -(-len(each) // m) * m) for each in members]
        if self._room is not None:
            return self._room.groups(lengths)
        longest = 0
        if self._tokens is not None:
            longest = token_bucket(int(self._tokens.lengths[self._known].max()), self._most_tokens)
        return [Group(np.arange(len(unique)), longest, bucket(self._most_items, self._multiple_of))]

    def _own(self, users: np.ndarray) -> np.ndarray:
        starts, stops = self.sequences.offsets[users], self.sequences.offsets[users + 1]
        lengths = np.diff(self.sequences.offsets) if self._room is None else stops - starts
        column = np.arange(bucket(max(int(lengths.max()), 0 if self._room is None else self._room.own)))
        inside = column < (stops - starts)[:, None]
        rows = self.sequences.items[np.where(inside, starts[:, None] + column, 0)]
        return np.sort(np.where(inside, rows, -1), axis=1).astype(np.int32)


class _Drawn(NamedTuple):
    """Examples before their items are looked up: `parts` are rows of items, [B, H], [B, T] and, if drawn, [B, T, K]."""

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    parts: list[np.ndarray]
    history_mask: np.ndarray
    target_at: np.ndarray
    target_mask: np.ndarray
    hidden: np.ndarray | None


def training_batches(
    split: Split,
    *,
    batch_size: int,
    history: int = 50,
    every_position: bool = True,
    negatives: Negatives = "sampled",
    num_negatives: int = 1,
    alpha: float = 0.0,
    ratings: bool = False,
    tokens: Tokens | None = None,
    prompts: Callable[[list[np.ndarray], np.ndarray], TokenGroup] | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    multiple_of: int = 1,
    first: bool = False,
    gaps: Gaps | None = None,
    compact: bool = False,
    group_cost: int = 0,
    most_tokens: int = ANY,
    workers: int = 0,
) -> tuple[BatchBuilder, grain.IterDataset]:
    """An endless, shuffled stream of batches, whose iterator's state can be saved and set.

    Args:
      split: what to train on.
      batch_size: B over all processes.
      history: H, the longest history that is read.
      every_position: train on every position of a window; else one example a target.
      negatives: what the loss compares a target with (`Loss.negatives`).
      num_negatives, alpha: K, and the power of popularity that they are drawn by, for "sampled".
      ratings: give the targets' ratings.
      tokens: the catalogue's texts; None where item embeddings need none (ids, or text vectors computed beforehand).
      prompts: (histories, users) to their texts' tokens, for a user model that reads text.
      seed: of order and negatives.
      shard: (index, count) of this process. Laid end to end, the examples of all are those of one process, with the
        same negatives.
      multiple_of: the size of the mesh's data axis, over which B and U are split.
      first: with one example a target, users' first items are targets too, for a model that reads no history.
      gaps: hide positions of the windows, for a user model that fills them; a history then has H + 1 items.
      compact: give the places of the real targets, for losses over the catalogue or the batch's items; on one device.
      group_cost: padding that one more group of a batch's texts has to save, in tokens.
      most_tokens: that the encoder has positions for: no text is padded to more.
      workers: processes that make batches, the same ones whatever their number; 0 for threads of this one. An
        iterator's state goes with their number. Close the iterator to end them.

    Returns:
      The builder (its `examples` count an epoch) and the Grain dataset.

    Raises:
      DataError: nothing to train on, ratings that the data lacks, a user without a possible negative.
      ValueError: a batch size that the processes cannot share, a negative number of workers.
    """
    index, count = shard
    if workers < 0:
        raise ValueError(f"workers is {workers}: give the number of processes that make batches, 0 for none")
    if multiple_of % count or batch_size < 1 or batch_size % multiple_of:
        raise ValueError(
            f"batch_size {batch_size} is not a positive multiple of {multiple_of} devices on the data axis, in {count} "
            "processes"
        )
    build = BatchBuilder(
        split,
        history=history,
        every_position=every_position,
        negatives=negatives,
        num_negatives=num_negatives,
        alpha=alpha,
        ratings=ratings,
        tokens=tokens,
        prompts=prompts,
        batch_size=batch_size,
        multiple_of=multiple_of if negatives == "catalogue" else multiple_of // count,
        most_examples=None if count == 1 else batch_size // count,
        first=first,
        gaps=gaps,
        compact=compact,
        group_cost=group_cost,
        most_tokens=most_tokens,
        share=slice(index * batch_size // count, (index + 1) * batch_size // count),
    )
    numbers = grain.MapDataset.range(len(build.examples.user)).seed(seed).shuffle().repeat(None)
    draws = int(np.random.SeedSequence((seed, 0)).generate_state(1)[0])
    batches = numbers.batch(batch_size, drop_remainder=True).random_map(build, seed=draws)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        # Grain reads flags of its own, which nobody has parsed where this is not called by a command.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        stream = stream.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=2))
    return build, stream
