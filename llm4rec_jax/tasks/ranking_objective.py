"""From a batch to its losses: what is differentiated in training."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm4rec_jax.data.batching.batch import BY_ITEM, Batch
from llm4rec_jax.losses.ranking import Loss, reduce_mean
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.models.users import base as user_models
from llm4rec_jax.peft.core import Peft, forward


class Objective(NamedTuple):
    """The mean loss of a batch as a function of what is trained.

    Attributes:
      model, method, loss: the parts.
      label_threshold: with a pointwise loss, the label is rating ≥ this instead of the rating.
      cut: with `frozen["states"]`, the block of the encoder that they are the input of; None: they are of all blocks.
      gather: brings the text vectors [U, W], encoded on many devices, to all of them.
      micro_batches: parts of the batch's users whose user embeddings and scores are computed one after another, in the
        memory of one part, against item embeddings that are encoded once (gradient caching, Gao et al. 2021, arXiv
        2101.06983: the encoder's backward pass is made once, from the sum of the parts' gradients). Such a batch has
        no `real`.
    """

    model: Recommender
    method: Peft
    loss: Loss
    label_threshold: float | None = None
    cut: int | None = 0
    gather: Callable[[jax.Array], jax.Array] = lambda text: text
    micro_batches: int = 1

    def __call__(
        self, trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Batch, key: jax.Array | None
    ) -> jax.Array:
        """The scalar loss.

        Args:
          trainable: {"delta": the method's, "params": the recommender's own parts}.
          frozen: {"params": the rest of the recommender's parameters, "text": [I, W] text vectors or None, "states":
            [I, L, W] hidden states below the lowest trained block, or [I, L, S, W] of all blocks, or None}.
          batch: see `Batch`.
          key: turns dropout on; None leaves it off.
        """
        losses = self.losses(trainable, frozen, batch, key)
        return reduce_mean(losses, batch.target_mask) + self.method.penalty(trainable["delta"])

    def losses(
        self, trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Batch, key: jax.Array | None
    ) -> jax.Array:
        """The loss of every target, [B, T]."""
        params = {**frozen["params"], **trainable["params"]}

        def runner(keys: Iterator[jax.Array]) -> Callable[..., jax.Array]:
            def run(apply: str, *args: Any) -> jax.Array:
                rngs = None if key is None else {"dropout": next(keys)}
                return forward(self.model, self.method, params, trainable["delta"], *args, apply=apply, rngs=rngs)

            return run

        keys = iter(() if key is None else jax.random.split(key, 5))
        run = runner(keys)
        text = None
        if frozen["text"] is not None:
            text = frozen["text"][batch.items]
        elif self.model.encoder is not None:
            # Keys of their own: how many groups the texts are in changes no other dropout.
            own = () if key is None else jax.random.split(jax.random.fold_in(key, 1), len(batch.tokens))
            text = self.gather(jnp.concatenate(list(self._encode(frozen["states"], batch, runner(iter(own))))))
        item_embeddings = run("context", batch.items, text)
        if self.micro_batches == 1:
            return self._of_users(item_embeddings, batch, run)
        own = None if key is None else jax.random.split(next(keys), self.micro_batches)

        @jax.checkpoint
        def of_some(part: tuple[Batch, jax.Array | None]) -> jax.Array:
            some, key = part
            some = some._replace(**{name: getattr(batch, name) for name in BY_ITEM})
            return self._of_users(item_embeddings, some, runner(iter(() if key is None else jax.random.split(key, 4))))

        # Every so manieth example, so that on a mesh each part has as many of every device as the others.
        by_user = batch._replace(**dict.fromkeys(BY_ITEM))
        n = self.micro_batches
        parts = jax.tree.map(lambda a: a.reshape(len(a) // n, n, *a.shape[1:]).swapaxes(0, 1), by_user)
        losses = jax.lax.map(of_some, (parts, own))
        return losses.swapaxes(0, 1).reshape(-1, losses.shape[-1])

    def _of_users(self, item_embeddings: jax.Array, batch: Batch, run: Callable[..., jax.Array]) -> jax.Array:
        """The loss of every target [B, T] from the item embeddings of the batch's items, [U, D]."""
        if batch.prompt is not None:
            user_embeddings = run("prompt_profile", run("encode", *batch.prompt))[:, None]
        else:
            user_embeddings = run(
                "user_embeddings",
                item_embeddings[batch.history],
                batch.history_mask,
                batch.users,
                batch.masked_positions,
            )
            if batch.target.shape[1] != user_embeddings.shape[1]:
                user_embeddings = user_models.last(user_embeddings, jnp.asarray(batch.history_mask))[:, None]

        if self.loss.negatives == "none":
            assert batch.rating is not None
            wanted = batch.rating
            if self.label_threshold is not None:
                wanted = (wanted >= self.label_threshold).astype(jnp.float32)
            return self.loss(run("score", user_embeddings, item_embeddings[batch.target]), wanted)
        if self.loss.negatives == "sampled":
            assert batch.negatives is not None
            columns = jnp.concatenate([batch.target[..., None], batch.negatives], axis=-1)
            return self.loss(run("score", user_embeddings[:, :, None], item_embeddings[columns]))
        assert batch.candidates is not None
        where, target = jnp.asarray(batch.candidates), jnp.asarray(batch.target)
        flat, flat_target, per_user = (
            user_embeddings.reshape(-1, user_embeddings.shape[-1]),
            target.reshape(-1),
            target.shape[1],
        )
        user = jnp.arange(target.size) // per_user
        if batch.target_positions is not None:
            # Scores against many candidates are dear, and often most positions are padding.
            flat, flat_target, user = (a.at[batch.target_positions].get(mode="clip") for a in (flat, flat_target, user))
        if batch.user_items is not None:
            items = jnp.asarray(batch.items)
            where = where & ~_repeated(items, where)
            where = (where & ~_among(items, where, jnp.asarray(batch.user_items)))[user]
        losses = self.loss(run("score_matrix", flat, item_embeddings), flat_target, batch.log_q, where)
        if batch.target_positions is not None:
            losses = jnp.zeros(target.size, losses.dtype).at[batch.target_positions].set(losses, mode="drop")
        return losses.reshape(target.shape)

    def _encode(self, states: jax.Array | None, batch: Batch, run: Callable[..., jax.Array]) -> Iterator[jax.Array]:
        """The text vectors of each group of the batch's items."""
        start = 0
        for ids, mask in batch.tokens:
            if states is None:
                yield run("encode", ids, mask)
            else:
                # A cached text is as long as the longest; in a group they may be longer still, by padding.
                known = states[batch.items[start : start + ids.shape[0]], : ids.shape[1]]
                padding = ((0, 0), (0, ids.shape[1] - known.shape[1]), *((0, 0),) * (known.ndim - 2))
                known = jnp.pad(known, padding)
                if self.cut is None:
                    yield run("encode_over", known, mask)
                else:
                    yield run("encode_above", known, mask, self.cut)
            start += ids.shape[0]


def _repeated(items: jax.Array, candidates: jax.Array) -> jax.Array:
    """Candidates [U] that stand in `items` before: two processes may hold the same item."""
    # What is no candidate gets a value of its own, so it repeats nothing.
    values = jnp.where(candidates, items, -1 - jnp.arange(items.shape[0]))
    order = jnp.argsort(values, stable=True)
    again = jnp.diff(values[order], prepend=jnp.iinfo(values.dtype).min) == 0
    return jnp.zeros(items.shape, bool).at[order].set(again)


def _among(items: jax.Array, candidates: jax.Array, own: jax.Array) -> jax.Array:
    """Which candidates [U], no two the same item, are among each user's own [B, M]: bool [B, U]."""
    values = jnp.where(candidates, items, jnp.iinfo(items.dtype).max)
    order = jnp.argsort(values)
    # Users have fewer items than there are candidates, so theirs are looked up and not the other way round.
    place = jnp.minimum(jnp.searchsorted(values[order], own), items.shape[0] - 1)
    found = values[order][place] == own
    user = jnp.arange(own.shape[0])[:, None]
    return jnp.zeros((own.shape[0], items.shape[0]), bool).at[user, order[place]].max(found)
