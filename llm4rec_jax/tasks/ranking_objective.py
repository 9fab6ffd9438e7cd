"""The losses of a batch, as a function of what is trained."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax.data.batching.batch import BY_ITEM, Batch
from llm4rec_jax.data.features.columns import NO_COLUMNS, Columns
from llm4rec_jax.losses.blocks import Block, softmax_in_blocks
from llm4rec_jax.losses.ranking import Loss, reduce_mean
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users.base import UserInputs, at_last_position
from llm4rec_jax.peft.core import Peft, forward
from llm4rec_jax.tasks.parts import map_parts, split_rows

# A softmax whose float32 values would take more than 256 MiB at once is computed in blocks of candidates. The blocks'
# sizes, in values, are those that a CPU's caches like best and that keep a larger device busy.
LARGEST_AT_ONCE = 2**26
BLOCK_ON_CPU = 2**22
BLOCK_ELSEWHERE = 2**25


class Objective(NamedTuple):
    """The mean loss of a batch, to be differentiated with respect to what is trained.

    Attributes:
      model: The recommender.
      method: Parameter-efficient method.
      loss: The loss.
      label_threshold: Lowest rating that is the label 1 of a pointwise loss; None: ratings are labels themselves.
      first_trained_layer: Block of the encoder that `frozen["states"]` stand before; None: they are of all blocks.
      mesh: Devices; None where there is one.
      micro_batches: Number of parts of a batch's users whose embeddings and scores are computed one after another, in
        the memory of one part. Items are encoded once, and their backward pass is made once, from the sum of the
        parts' gradients. Such a batch has no `target_positions`.
    """

    model: Recommender
    method: Peft
    loss: Loss
    label_threshold: float | None = None
    first_trained_layer: int | None = 0
    mesh: Mesh | None = None
    micro_batches: int = 1

    def __call__(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the scalar loss.

        Args:
          trainable: {"delta": the method's arrays, "params": trained parameters of the recommender}.
          frozen: {"params": the other parameters, "text": text vectors [I, W] or None, "states": hidden states
            [I, L, W] below the first trained layer, or [I, L, S, W] of all layers, or None, "columns": further
            features of items and users, or None}.
          batch: The batch.
          key: Key of dropout; None turns dropout off.
          item_micro_batch: Number of texts that are encoded at a time, and again for their gradient, so that memory is
            that of one micro-batch; of shorter texts there are more in one. 0 encodes all at once.
        """
        losses = self.losses(trainable, frozen, batch, key, item_micro_batch)
        return reduce_mean(losses, batch.target_mask) + self.method.penalty(trainable["delta"])

    def losses(
        self,
        trainable: Mapping[str, Any],
        frozen: Mapping[str, Any],
        batch: Batch,
        key: jax.Array | None,
        item_micro_batch: int = 0,
    ) -> jax.Array:
        """Returns the loss of every target, [B, T]; see `__call__`."""
        params = {**frozen["params"], **trainable["params"]}

        def runner(keys: Iterator[jax.Array]) -> Callable[..., jax.Array]:
            def run(module: nn.Module, *args: Any, apply: str | None = None) -> jax.Array:
                rngs = None if key is None else {"dropout": next(keys)}
                return forward(module, self.method, params, trainable["delta"], *args, apply=apply, rngs=rngs)

            return run

        keys = iter(() if key is None else jax.random.split(key, 5))
        run = runner(keys)
        columns = frozen.get("columns") or NO_COLUMNS
        features = {"ids": jnp.asarray(batch.items), **jax.tree.map(lambda array: array[batch.items], columns.items)}
        if frozen["text"] is not None:
            features["text"] = frozen["text"][batch.items]
        elif self.model.text is not None:
            # Texts have keys of their own, so that the number of their groups changes no other dropout.
            text_key = None if key is None else jax.random.fold_in(key, 1)
            vectors = jnp.concatenate(list(self._encode(frozen["states"], batch, runner, text_key, item_micro_batch)))
            if self.mesh is not None:
                vectors = jax.lax.with_sharding_constraint(vectors, NamedSharding(self.mesh, PartitionSpec()))
            features["text"] = vectors
        item_embeddings = run(self.model.items, features)
        if self.micro_batches == 1:
            return self._user_losses(item_embeddings, batch, columns, run)

        def part_losses(users: Batch, key: jax.Array | None) -> jax.Array:
            users = users._replace(**{name: getattr(batch, name) for name in BY_ITEM})
            run = runner(iter(() if key is None else jax.random.split(key, 4)))
            return self._user_losses(item_embeddings, users, columns, run)

        by_user = batch._replace(**dict.fromkeys(BY_ITEM))
        return map_parts(part_losses, by_user, next(keys, None), self.micro_batches, self.mesh)

    def _user_losses(
        self, item_embeddings: jax.Array, batch: Batch, columns: Columns, run: Callable[..., jax.Array]
    ) -> jax.Array:
        """Returns the loss of every target [B, T] from the embeddings [U, D] of the batch's items."""
        matcher = self.model.matcher
        history, mask = item_embeddings[batch.history], jnp.asarray(batch.history_mask)
        prompt: Any = None if batch.prompt is None else run(self.model.text_encoder, *batch.prompt)
        masked: Any = batch.masked_positions
        features = jax.tree.map(lambda array: array[batch.users], columns.users)
        inputs = UserInputs(history, mask, masked, jnp.asarray(batch.users), prompt, features)
        user_embeddings = run(matcher, inputs, apply="user_embeddings")
        if batch.target.shape[1] != user_embeddings.shape[1]:
            user_embeddings = at_last_position(user_embeddings, mask)[:, None]

        match self.loss.negatives:
            case "none":
                labels = _given(batch.rating, "rating")
                if self.label_threshold is not None:
                    labels = (labels >= self.label_threshold).astype(jnp.float32)
                return self.loss(run(matcher, user_embeddings, item_embeddings[batch.target], apply="score"), labels)
            case "sampled":
                negatives = _given(batch.negatives, "negatives")
                compared = jnp.concatenate([batch.target[..., None], negatives], axis=-1)
                log_q = None if batch.log_q is None else jnp.asarray(batch.log_q)[negatives]
                return self._sampled_losses(user_embeddings, item_embeddings, compared, log_q, run)
        return self._candidate_losses(user_embeddings, item_embeddings, batch, run)

    def _candidate_losses(
        self, user_embeddings: jax.Array, item_embeddings: jax.Array, batch: Batch, run: Callable[..., jax.Array]
    ) -> jax.Array:
        """Returns the loss of every target [B, T] among all candidates of the batch, from embeddings [B, T, D]."""
        candidates, target = _given(batch.candidates, "candidates"), jnp.asarray(batch.target)
        queries, flat_target = user_embeddings.reshape(-1, user_embeddings.shape[-1]), target.reshape(-1)
        user = jnp.arange(target.size) // target.shape[1]
        if batch.target_positions is not None:
            # Scores against many candidates are dear, and often most positions are padding.
            queries, flat_target, user = (
                a.at[batch.target_positions].get(mode="clip") for a in (queries, flat_target, user)
            )
        items, user_items = jnp.asarray(batch.items), batch.user_items
        if user_items is not None:
            candidates = candidates & ~_repeated(items, candidates)

        def among(items: jax.Array, candidates: jax.Array) -> jax.Array:
            """Returns the candidates [K] themselves, or [P, K] without those that the user of a target has."""
            if user_items is None:
                return candidates
            return (candidates & ~_among(items, candidates, jnp.asarray(user_items)))[user]

        def block_of(block: tuple[Any, ...]) -> Block:
            place, items, candidates, log_q, vectors = block
            scores = run(self.model.matcher, queries, vectors, apply="score_matrix")
            is_target = place == flat_target[:, None]
            return Block(self._logits(scores, log_q), is_target, among(items, candidates & (place >= 0)))

        blocks = self._blocks(len(queries) * len(items), "data", "model")
        if blocks == 1:
            scores = run(self.model.matcher, queries, item_embeddings, apply="score_matrix")
            losses = self.loss(scores, flat_target, batch.log_q, among(items, candidates))
        else:
            log_q = None if batch.log_q is None else jnp.asarray(batch.log_q)
            place = split_rows(jnp.arange(len(items)), blocks, self.mesh, "model", repeat=False)
            rows = (items, candidates, log_q, item_embeddings)
            split = jax.tree.map(lambda array: split_rows(array, blocks, self.mesh, "model"), rows)
            losses = softmax_in_blocks(block_of, (place, *split))
        if batch.target_positions is not None:
            losses = jnp.zeros(target.size, losses.dtype).at[batch.target_positions].set(losses, mode="drop")
        return losses.reshape(target.shape)

    def _sampled_losses(
        self,
        user_embeddings: jax.Array,
        item_embeddings: jax.Array,
        columns: jax.Array,
        log_q: jax.Array | None,
        run: Callable[..., jax.Array],
    ) -> jax.Array:
        """Returns the losses [B, T] of the targets in the first of columns [B, T, 1 + K] among the items in the others.

        Embeddings are of users, [B, T, D], and of the batch's items, [U, D]; log_q is that of the others, [B, T, K].
        """
        blocks = self._blocks(columns.size * item_embeddings.shape[1], "data")
        if blocks == 1:
            users = user_embeddings[:, :, None]
            return self.loss(run(self.model.matcher, users, item_embeddings[columns], apply="score"), log_q=log_q)
        queries = user_embeddings.reshape(-1, user_embeddings.shape[-1])

        if log_q is not None:
            # The target is not drawn; every other is, as often as there are negatives.
            log_q = jnp.pad(log_q + math.log(log_q.shape[-1]), [(0, 0), (0, 0), (1, 0)])

        def block_of(block: tuple[Any, ...]) -> Block:
            place, columns, log_q = block
            scores = run(self.model.matcher, queries, item_embeddings[columns], apply="score")
            return Block(self._logits(scores, log_q).T, jnp.broadcast_to(place == 0, scores.T.shape), place >= 0)

        place = split_rows(jnp.arange(columns.shape[-1]), blocks, repeat=False)
        rows = jax.tree.map(lambda array: split_rows(array.reshape(len(queries), -1).T, blocks), (columns, log_q))
        return softmax_in_blocks(block_of, (place, *rows)).reshape(columns.shape[:2])

    def _logits(self, scores: jax.Array, log_q: jax.Array | None) -> jax.Array:
        assert self.loss.logits is not None
        return self.loss.logits(scores, log_q)

    def _blocks(self, values: int, *axes: str) -> int:
        """Returns the number of blocks for a loss that would hold `values` values at once, divided over mesh axes."""
        if self.mesh is not None:
            values //= math.prod(self.mesh.shape[axis] for axis in axes)
        if self.loss.logits is None or values <= LARGEST_AT_ONCE:
            return 1
        platform = jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        return -(-values // (BLOCK_ON_CPU if platform == "cpu" else BLOCK_ELSEWHERE))

    def _encode(
        self,
        states: jax.Array | None,
        batch: Batch,
        runner: Callable[[Iterator[jax.Array]], Callable[..., jax.Array]],
        key: jax.Array | None,
        micro_batch: int,
    ) -> Iterator[jax.Array]:
        """Yields the text vectors of each group of the batch's items."""
        text, start = self.model.text_encoder, 0

        def encode(rows: tuple[jax.Array, ...], key: jax.Array | None) -> jax.Array:
            (items, ids, mask), run = rows, runner(iter(() if key is None else [key]))
            if states is None:
                return run(text, ids, mask)
            # Cached states are as long as the longest text; padding can make a group longer still.
            known = states[items, : ids.shape[1]]
            padding = ((0, 0), (0, ids.shape[1] - known.shape[1]), *((0, 0),) * (known.ndim - 2))
            return run(text, self.first_trained_layer, jnp.pad(known, padding), mask, apply="encode_from")

        keys = [None] * len(batch.tokens) if key is None else jax.random.split(key, len(batch.tokens))
        longest = max(ids.shape[1] for ids, _ in batch.tokens)
        for (ids, mask), own_key in zip(batch.tokens, keys, strict=True):
            rows = tuple(map(jnp.asarray, (batch.items[start : start + len(ids)], ids, mask)))
            start += len(ids)
            if micro_batch:
                # Each micro-batch has the tokens of one of the longest texts.
                parts = -(-ids.size // (micro_batch * longest))
                yield map_parts(encode, rows, own_key, parts, self.mesh)
            else:
                yield encode(rows, own_key)


def _given(field: Any, name: str) -> jax.Array:
    if field is None:
        raise ValueError(f"this loss reads {name!r} of a batch, and the batch has none")
    return jnp.asarray(field)


def _repeated(items: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns which candidates [U] occur earlier in `items`: several processes may hold the same item.

    With items [7, 5, 7, 7] and candidates [1, 1, 1, 0], values are [7, 5, 7, -4] and sort to [-4, 5, 7, 7], from places
    [3, 1, 0, 2]. The last 7 equals its predecessor, so place 2 is repeated: [0, 0, 1, 0].
    """
    # An item that is no candidate gets a value of its own, so it repeats nothing.
    values = jnp.where(candidates, items, -1 - jnp.arange(items.shape[0]))
    order = jnp.argsort(values, stable=True)
    again = jnp.diff(values[order], prepend=jnp.iinfo(values.dtype).min) == 0
    return jnp.zeros(items.shape, bool).at[order].set(again)


def _among(items: jax.Array, candidates: jax.Array, user_items: jax.Array) -> jax.Array:
    """Returns which candidates [U], all different, are among each user's items [B, M]: bool [B, U].

    With items [7, 5, 9], all candidates, and one user's [[-1, 7]]: sorted values are [5, 7, 9] from places [1, 0, 2].
    -1 would stand at 0 and 7 stands at 1; only 7 is equal to the value there, which is of place 0: [[1, 0, 0]].
    """
    values = jnp.where(candidates, items, jnp.iinfo(items.dtype).max)
    order = jnp.argsort(values)
    # Users have fewer items than there are candidates, so theirs are looked up and not the other way round.
    place = jnp.minimum(jnp.searchsorted(values[order], user_items), items.shape[0] - 1)
    is_same = values[order][place] == user_items
    user = jnp.arange(user_items.shape[0])[:, None]
    return jnp.zeros((user_items.shape[0], items.shape[0]), bool).at[user, order[place]].max(is_same)
