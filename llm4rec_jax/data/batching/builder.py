"""Training batches: examples of a split with negatives, each item once, padded to few shapes, read by Grain.

A batch holds each of its items once; histories, targets and negatives point into that list, so that the encoder reads
every text once a batch however often it occurs. Sizes that vary are padded to a few shapes, so that jit compiles a
handful of programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import grain
import numpy as np
from absl import flags

from llm4rec_jax.data.batching.batch import NOWHERE, Batch, TokenGroup, token_group
from llm4rec_jax.data.batching.buckets import ANY, bucket, group_lengths, token_bucket
from llm4rec_jax.data.batching.masking import ClozeMasking, draw_masked_positions
from llm4rec_jax.data.batching.negatives import Negatives, NegativeSampler
from llm4rec_jax.data.batching.padding import SAMPLE, BatchSizes, Group, fit, plan_padding
from llm4rec_jax.data.batching.windows import Examples, single_targets, windows
from llm4rec_jax.data.batching.workers import end_with_parent
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.ondisk import mmap
from llm4rec_jax.data.splits.leakage import assert_no_leakage, assert_within_users
from llm4rec_jax.data.splits.split import Split

PromptWriter: TypeAlias = Callable[[list[np.ndarray], np.ndarray], TokenGroup]
"""Histories (rows of the item table, one array a user) and rows of the user table [B] to the tokens of their texts."""


@dataclass(frozen=True)
class BatchOptions:
    """The content of a batch.

    Attributes:
      batch_size: number of examples B, over all processes.
      history: length of the longest history H.
      every_position: whether every position of a window is trained on; else there is one example a target.
      negatives: candidates that the loss compares a target with (`Loss.negatives`).
      num_negatives: number of drawn items: a target's (K) for "sampled", a batch's for "mixed".
      alpha: power of popularity by which negatives are drawn.
      ratings: whether to give the targets' ratings.
      predict_first: whether users' first items are targets too, for a model that reads no history; with one example a
        target only.
      masking: hides positions of the windows, for a user encoder that fills them; a history then has H + 1 items.
      compact_targets: whether to list the positions that have a target, for losses over many candidates; on one device.
      group_cost: padding, in tokens, that one more group of a batch's texts has to save.
      max_tokens: number of positions of the encoder; no text is padded to more.
    """

    batch_size: int
    history: int = 50
    every_position: bool = True
    negatives: Negatives = "sampled"
    num_negatives: int = 1
    alpha: float = 0.0
    ratings: bool = False
    predict_first: bool = False
    masking: ClozeMasking | None = None
    compact_targets: bool = False
    group_cost: int = 0
    max_tokens: int = ANY


class BatchBuilder:
    """Turns example numbers into a `Batch`.

    Args:
      split: the data to train on.
      options: content of a batch.
      tokens, prompts: see `training_batches`.
      multiple_of: divisor of the number of items of a batch.
      num_processes: number of processes that share a batch. Several must run one program, so their shapes are fixed.
      process_rows: the examples of a batch that this process builds.
    """

    def __init__(
        self,
        split: Split,
        options: BatchOptions,
        *,
        tokens: Tokens | None,
        prompts: PromptWriter | None,
        multiple_of: int,
        num_processes: int = 1,
        process_rows: slice = slice(None),
    ) -> None:
        self._options, self._tokens, self._prompts = options, tokens, prompts
        self._multiple_of, self._process_rows = multiple_of, process_rows
        self.sequences, self._is_target = split.training()
        if options.ratings and self.sequences.ratings is None:
            raise DataError("this loss learns ratings, but the data has none: name the rating column, or another loss")
        self.examples, longest = _examples(split, options)
        self.history = min(options.history, longest)

        # A user encoder that reads a prompt reads no items.
        columns = self.history + (options.masking is not None)
        targets = columns if options.every_position else 1
        slots = columns * (prompts is None) + targets * (1 + options.num_negatives)
        shared = options.num_negatives if options.negatives == "mixed" else 0
        self._max_items = min(options.batch_size // num_processes * slots + shared, int(split.known.sum()))
        self._known = np.flatnonzero(split.known).astype(np.int32)
        popularity = np.bincount(self.sequences.items, minlength=len(split.known))
        self._target_share = np.maximum(popularity, 1) / popularity.sum()
        self._sampler = None
        if options.negatives == "sampled":
            self._sampler = NegativeSampler(self.sequences, split.known, popularity, options.alpha)
        self._padding = None
        if num_processes == 1:
            sample = list(self._sample(options.batch_size))
            self._padding = plan_padding(sample, options.group_cost, multiple_of, options.max_tokens)
        self._catalogue = self._with_tokens(self._known) if options.negatives == "catalogue" else None

    def __getstate__(self) -> bytes:
        # Worker processes map the columns' files again instead of receiving copies.
        return mmap.dumps(self.__dict__)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(mmap.loads(state))

    def _sample(self, batch_size: int) -> Iterator[BatchSizes]:
        rng, all_examples = np.random.default_rng(0), len(self.examples.user)
        items_of_user = np.diff(self.sequences.offsets)
        for _ in range(SAMPLE):
            # Drawing without repeats takes time with all examples, and repeats are few then.
            repeats = batch_size > all_examples or all_examples > 2**17
            drawn = self._draw(rng.choice(all_examples, batch_size, replace=repeats), rng)
            items = np.unique(np.concatenate([part.ravel() for part in drawn.parts]))
            lengths = np.zeros(len(items), np.int32) if self._tokens is None else self._tokens.lengths[items]
            yield BatchSizes(lengths, int(drawn.target_mask.sum()), int(items_of_user[drawn.user].max()))

    def _draw(self, numbers: np.ndarray, rng: np.random.Generator) -> _DrawnExamples:
        """Looks up the examples of these numbers and draws their negatives.

        With H = 3, an example that starts at entry 10 of the sequences and stops at entry 12 gives

            column        0   1   2
            history_at   10  11  10   the last one is padding and repeats the first
            target_at    11  12  11   with every position; [12] with one example a target
        """
        options = self._options
        user, start, stop = (column[numbers] for column in self.examples)
        column = np.arange(self.history)
        history_mask = column < (stop - start)[:, None]
        history_at = np.where(history_mask, start[:, None] + column, start[:, None])
        target_at = np.minimum(history_at + 1, stop[:, None]) if options.every_position else stop[:, None]
        target_mask = self._is_target[target_at] & (history_mask if options.every_position else True)
        if options.masking is not None:
            # Whole windows, the last target included: H + 1 entries, of which the hidden ones are the targets.
            column = np.arange(self.history + 1)
            history_mask = column <= (stop - start)[:, None]
            history_at = target_at = np.where(history_mask, start[:, None] + column, start[:, None])
            target_mask = draw_masked_positions(options.masking, history_mask & self._is_target[history_at], rng)
        negatives, num_targets = None, int(target_mask.sum())
        rows = self._process_rows
        if self._sampler is not None:
            negatives = self._sampler(rng, user, target_at.shape[1] * options.num_negatives, rows)
        user, start, stop, history_at, history_mask, target_at, target_mask = (
            array[rows] for array in (user, start, stop, history_at, history_mask, target_at, target_mask)
        )
        if self._prompts is not None:
            history_at, history_mask = history_at[:, :0], history_mask[:, :0]
        parts = [self.sequences.items[history_at], self.sequences.items[target_at]]
        if negatives is not None:
            parts.append(negatives.reshape(*target_at.shape, options.num_negatives))
        elif options.negatives == "mixed":
            parts.append(rng.choice(self._known, options.num_negatives))
        return _DrawnExamples(user, start, stop, parts, history_mask, target_at, target_mask, num_targets)

    def __call__(self, numbers: np.ndarray, rng: np.random.Generator) -> Batch:
        """Builds this process's part of the batch of these examples; everything random is drawn for all processes."""
        options = self._options
        user, start, stop, parts, history_mask, target_at, target_mask, num_targets = self._draw(numbers, rng)
        if self._catalogue is not None:
            items, tokens, position = self._catalogue
            parts = [position[np.searchsorted(self._known, part)] for part in parts]
        else:
            # parts [[7, 9], [9, 4]] have the distinct items [4, 7, 9], and `inverse` is [1, 2, 2, 0].
            distinct, inverse = np.unique(np.concatenate([part.ravel() for part in parts]), return_inverse=True)
            items, tokens, position = self._with_tokens(distinct.astype(np.int32))
            ends = np.cumsum([part.size for part in parts])[:-1]
            parts = [position[i].reshape(part.shape) for i, part in zip(np.split(inverse, ends), parts, strict=True)]
        batch = Batch(
            user.astype(np.int32), items, parts[0], history_mask, parts[1], target_mask, tokens,
            negatives=parts[2] if self._sampler is not None else None,
            log_q=self._sampler.log_q[items] if self._sampler is not None else None,
            masked_positions=target_mask if options.masking is not None else None,
        )  # fmt: skip
        if self._prompts is not None:
            histories = [self.sequences.items[a:b] for a, b in zip(start, stop, strict=True)]
            batch = batch._replace(prompt=self._prompts(histories, user))
        if options.ratings and self.sequences.ratings is not None:
            batch = batch._replace(rating=self.sequences.ratings[target_at].astype(np.float32))
        if self._catalogue is not None:
            # Padding repeats items: only the position that `position` gives is a candidate.
            batch = batch._replace(candidates=np.isin(np.arange(len(items)), position))
        elif options.negatives in ("in_batch", "mixed"):
            candidates = np.zeros(len(items), bool)
            candidates[parts[1][target_mask]] = True
            share = self._target_share[items]
            if options.negatives == "mixed":
                candidates[parts[2]] = True
                # A candidate is one of the targets, or one of the uniform draws from all known items.
                drawn = len(parts[2])
                share = (num_targets * share + drawn / len(self._known)) / (num_targets + drawn)
            log_q = np.log(share).astype(np.float32)
            batch = batch._replace(candidates=candidates, log_q=log_q, user_items=self._user_items(user))
        if options.compact_targets and batch.candidates is not None:
            batch = batch._replace(target_positions=self._target_positions(target_mask))
        return batch

    def _target_positions(self, target_mask: np.ndarray) -> np.ndarray:
        """Lists where the mask [B, T] is true, as positions in the flat [B * T], padded with `NOWHERE`."""
        (positions,) = np.nonzero(target_mask.ravel())
        size = bucket(len(positions)) if self._padding is None else fit(len(positions), self._padding.target_positions)
        padded = np.full(size, NOWHERE, np.int32)
        padded[: len(positions)] = positions
        return padded

    def _with_tokens(self, distinct: np.ndarray) -> tuple[np.ndarray, tuple[TokenGroup, ...], np.ndarray]:
        """Orders distinct items [n] by group and pads each group.

        Items [4, 7, 9] in the groups [7] and [4, 9], padded to 2 and 4 rows, give the items [7, 7, 4, 9, 4, 4] and the
        positions [2, 0, 3].

        Returns:
          The padded items [U], their texts in groups, and the position of each distinct item [n].
        """
        items, texts, position, filled = [], [], np.empty(len(distinct), np.int32), 0
        for members, length, size in self._groups(distinct):
            # Padding rows repeat the first item of the group.
            padding = np.full(size - len(members), members[0] if len(members) else 0)
            rows = distinct[np.concatenate([members, padding])]
            if self._tokens is not None:
                texts.append(token_group(self._tokens, rows, length))
            position[members] = filled + np.arange(len(members))
            items.append(rows)
            filled += size
        return np.concatenate(items), tuple(texts), position

    def _groups(self, distinct: np.ndarray) -> list[Group]:
        lengths = np.zeros(len(distinct), np.int32) if self._tokens is None else self._tokens.lengths[distinct]
        if self._options.negatives == "catalogue":
            # The same in every batch, so that its shape needs no plan.
            lengths = group_lengths(lengths, self._options.group_cost, self._options.max_tokens)
            members = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
            m = self._multiple_of
            return [Group(each, int(lengths[each[0]]), -(-len(each) // m) * m) for each in members]
        if self._padding is not None:
            return self._padding.groups(lengths)
        longest = 0
        if self._tokens is not None:
            longest = token_bucket(int(self._tokens.lengths[self._known].max()), self._options.max_tokens)
        return [Group(np.arange(len(distinct)), longest, bucket(self._max_items, self._multiple_of))]

    def _user_items(self, users: np.ndarray) -> np.ndarray:
        """Returns the training items of users [B], ascending, padded with -1 in front: int32 [B, M]."""
        starts, stops = self.sequences.offsets[users], self.sequences.offsets[users + 1]
        if self._padding is None:
            width = int(np.diff(self.sequences.offsets).max())
        else:
            width = max(int((stops - starts).max()), self._padding.user_items)
        column = np.arange(bucket(width))
        inside = column < (stops - starts)[:, None]
        rows = self.sequences.items[np.where(inside, starts[:, None] + column, 0)]
        return np.sort(np.where(inside, rows, -1), axis=1).astype(np.int32)


class _DrawnExamples(NamedTuple):
    """Examples before their items are looked up.

    `parts` are rows of items: histories [B, H], targets [B, T] and, if drawn, negatives, of each target [B, T, K] or of
    all [K]. `num_targets` counts the targets of all processes.
    """

    user: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    parts: list[np.ndarray]
    history_mask: np.ndarray
    target_at: np.ndarray
    target_mask: np.ndarray
    num_targets: int


def _examples(split: Split, options: BatchOptions) -> tuple[Examples, int]:
    """Cuts a split's training sequences into examples, checks them, and returns them with the longest history."""
    sequences, is_target = split.training()
    if options.every_position:
        examples = windows(sequences, options.history)
    else:
        examples = single_targets(sequences, options.history, options.predict_first)
    assert_within_users(sequences, *examples)
    held_out = [split.targets_of("validation"), split.targets_of("test")]
    assert_no_leakage(split.dataset, sequences, held_out, "the training sequence")
    # Taken over all examples, so that few-shot draws of one sequence do not differ in it.
    longest = int((examples.stop - examples.start).max(initial=1))
    # Windows without a single training target (few-shot) teach nothing.
    counts = np.concatenate([[0], np.cumsum(is_target)])
    first_target = examples.start + 1 if options.every_position else examples.stop
    useful = counts[examples.stop + 1] > counts[first_target]
    examples = Examples(*(column[useful] for column in examples))
    if not len(examples.user):
        raise DataError(
            f"no training example: under {split.protocol!r} no user has a training target with an item before it; "
            "keep users with more interactions, or another split"
        )
    return examples, longest


def training_batches(
    split: Split,
    options: BatchOptions,
    *,
    tokens: Tokens | None = None,
    prompts: PromptWriter | None = None,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    multiple_of: int = 1,
    workers: int = 0,
) -> tuple[BatchBuilder, grain.IterDataset]:
    """Makes an endless, shuffled stream of batches, whose iterator's state can be saved and restored.

    Args:
      split: the data to train on.
      options: content of a batch.
      tokens: texts of all items; None where item embeddings need none (ids, or text vectors computed beforehand).
      prompts: writes histories as texts, for a user encoder that reads text.
      seed: seed of order and negatives.
      shard: (index, count) of this process. Laid end to end, the examples of all processes are those of one process,
        with the same negatives.
      multiple_of: size of the mesh's data axis, over which B and U are split.
      workers: number of processes that make batches; 0 uses threads of this process. The batches do not depend on it,
        but an iterator's state does. Close the iterator to end the processes.

    Returns:
      The builder (its `examples` count an epoch) and the Grain dataset.

    Raises:
      DataError: if there is nothing to train on, the data lacks the ratings that are asked for, or a user has no
        possible negative.
      ValueError: if the processes cannot share the batch size, or the number of workers is negative.

    Example:
      >>> import polars as pl
      >>> from llm4rec_jax.data.interactions import Dataset, Interactions
      >>> from llm4rec_jax.data.splits.protocols import leave_one_out
      >>> item = np.array([0, 1, 2, 3, 2, 1], np.int32)
      >>> data = Interactions(np.zeros(6, np.int32), item, timestamp=np.arange(6))
      >>> tables = pl.DataFrame({"item_id": list("abcd")}), pl.DataFrame({"user_id": ["u"]})
      >>> split = leave_one_out(Dataset("tiny", data, *tables))
      >>> _, batches = training_batches(split, BatchOptions(batch_size=1, history=5, negatives="in_batch"))
      >>> batch = next(iter(batches))
      >>> batch.items[batch.history][batch.history_mask].tolist(), batch.items[batch.target][batch.target_mask].tolist()
      ([0, 1, 2], [1, 2, 3])
    """
    index, count = shard
    batch_size = options.batch_size
    if workers < 0:
        raise ValueError(f"workers is {workers}: give the number of processes that make batches, 0 for none")
    if multiple_of % count or batch_size < 1 or batch_size % multiple_of:
        raise ValueError(
            f"batch_size {batch_size} is not a positive multiple of {multiple_of} devices on the data axis, in {count} "
            "processes"
        )
    build = BatchBuilder(
        split,
        options,
        tokens=tokens,
        prompts=prompts,
        multiple_of=multiple_of if options.negatives == "catalogue" else multiple_of // count,
        num_processes=count,
        process_rows=slice(index * batch_size // count, (index + 1) * batch_size // count),
    )
    numbers = grain.MapDataset.range(len(build.examples.user)).seed(seed).shuffle().repeat(None)
    draws = int(np.random.SeedSequence((seed, 0)).generate_state(1)[0])
    batches = numbers.batch(batch_size, drop_remainder=True).random_map(build, seed=draws)
    stream = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if workers:
        # Grain reads flags of its own, which nobody has parsed where this is not called by a command.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        processes = grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(processes, worker_init_fn=end_with_parent)
    return build, stream
