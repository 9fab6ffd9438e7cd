"""The losses of a batch, as a function of what is trained."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.data.batching.batch import BY_ITEM, Batch
from llm4rec_jax.losses.ranking import Loss, reduce_mean
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users.base import UserInputs, at_last_position
from llm4rec_jax.peft.core import Peft, forward


class Objective(NamedTuple):
    """The mean loss of a batch, to be differentiated with respect to what is trained.

    Attributes:
      model: The recommender.
      method: Parameter-efficient method.
      loss: The loss.
      label_threshold: Lowest rating that is the label 1 of a pointwise loss; None: ratings are labels themselves.
      first_trained_layer: Block of the encoder that `frozen["states"]` stand before; None: they are of all blocks.
      gather: Brings text vectors [U, W], encoded on many devices, to all of them.
      micro_batches: Number of parts of a batch's users whose embeddings and scores are computed one after another, in
        the memory of one part. Items are encoded once, and so is their backward pass made, from the sum of the parts'
        gradients (gradient caching, Gao et al. 2021, arXiv 2101.06983). Such a batch has no `target_positions`.
    """

    model: Recommender
    method: Peft
    loss: Loss
    label_threshold: float | None = None
    first_trained_layer: int | None = 0
    gather: Callable[[jax.Array], jax.Array] = lambda text: text
    micro_batches: int = 1

    def __call__(
        self, trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Batch, key: jax.Array | None
    ) -> jax.Array:
        """Returns the scalar loss.

        Args:
          trainable: {"delta": the method's arrays, "params": trained parameters of the recommender}.
          frozen: {"params": the other parameters, "text": text vectors [I, W] or None, "states": hidden states
            [I, L, W] below the first trained layer, or [I, L, S, W] of all layers, or None}.
          batch: The batch.
          key: Key of dropout; None turns dropout off.
        """
        losses = self.losses(trainable, frozen, batch, key)
        return reduce_mean(losses, batch.target_mask) + self.method.penalty(trainable["delta"])

    def losses(
        self, trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Batch, key: jax.Array | None
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
        features = {"ids": jnp.asarray(batch.items)}
        if frozen["text"] is not None:
            features["text"] = frozen["text"][batch.items]
        elif self.model.text is not None:
            # Texts have keys of their own, so that the number of their groups changes no other dropout.
            text_keys = () if key is None else jax.random.split(jax.random.fold_in(key, 1), len(batch.tokens))
            vectors = self._encode(frozen["states"], batch, runner(iter(text_keys)))
            features["text"] = self.gather(jnp.concatenate(list(vectors)))
        item_embeddings = run(self.model.items, features)
        if self.micro_batches == 1:
            return self._user_losses(item_embeddings, batch, run)
        n = self.micro_batches
        part_keys = None if key is None else jax.random.split(next(keys), n)

        @jax.checkpoint
        def part_losses(part: tuple[Batch, jax.Array | None]) -> jax.Array:
            users, key = part
            users = users._replace(**{name: getattr(batch, name) for name in BY_ITEM})
            return self._user_losses(
                item_embeddings, users, runner(iter(() if key is None else jax.random.split(key, 4)))
            )

        # Interleaves examples across micro-batches, so that every device contributes equally to each one: of examples
        # 0 … 3 on device 0 and 4 … 7 on device 1, micro-batch 0 of 2 has 0, 2, 4, 6 and micro-batch 1 has 1, 3, 5, 7.
        by_user = batch._replace(**dict.fromkeys(BY_ITEM))
        parts = jax.tree.map(lambda a: a.reshape(len(a) // n, n, *a.shape[1:]).swapaxes(0, 1), by_user)
        losses = jax.lax.map(part_losses, (parts, part_keys))
        return losses.swapaxes(0, 1).reshape(-1, losses.shape[-1])

    def _user_losses(self, item_embeddings: jax.Array, batch: Batch, run: Callable[..., jax.Array]) -> jax.Array:
        """Returns the loss of every target [B, T] from the embeddings [U, D] of the batch's items."""
        matcher = self.model.matcher
        history, mask = item_embeddings[batch.history], jnp.asarray(batch.history_mask)
        prompt: Any = None if batch.prompt is None else run(self.model.text_encoder, *batch.prompt)
        masked: Any = batch.masked_positions
        inputs = UserInputs(history, mask, masked, jnp.asarray(batch.users), prompt)
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
                columns = jnp.concatenate([batch.target[..., None], negatives], axis=-1)
                scores = run(matcher, user_embeddings[:, :, None], item_embeddings[columns], apply="score")
                return self.loss(scores, log_q=None if batch.log_q is None else jnp.asarray(batch.log_q)[negatives])
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
        if batch.user_items is not None:
            items = jnp.asarray(batch.items)
            candidates = candidates & ~_repeated(items, candidates)
            candidates = (candidates & ~_among(items, candidates, jnp.asarray(batch.user_items)))[user]
        scores = run(self.model.matcher, queries, item_embeddings, apply="score_matrix")
        losses = self.loss(scores, flat_target, batch.log_q, candidates)
        if batch.target_positions is not None:
            losses = jnp.zeros(target.size, losses.dtype).at[batch.target_positions].set(losses, mode="drop")
        return losses.reshape(target.shape)

    def _encode(self, states: jax.Array | None, batch: Batch, run: Callable[..., jax.Array]) -> Iterator[jax.Array]:
        """Yields the text vectors of each group of the batch's items."""
        text, start = self.model.text_encoder, 0
        for ids, mask in batch.tokens:
            if states is None:
                yield run(text, ids, mask)
            else:
                # Cached states are as long as the longest text; padding can make a group longer still.
                known = states[batch.items[start : start + ids.shape[0]], : ids.shape[1]]
                padding = ((0, 0), (0, ids.shape[1] - known.shape[1]), *((0, 0),) * (known.ndim - 2))
                known = jnp.pad(known, padding)
                yield run(text, self.first_trained_layer, known, mask, apply="encode_from")
            start += ids.shape[0]


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
