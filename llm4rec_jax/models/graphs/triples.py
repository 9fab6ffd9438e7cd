"""Embeddings of entities and relations that score triples, one class each."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm4rec_jax.registry import Registry

TRIPLE_MODELS: Registry = Registry("model of triples")


class TripleModel(nn.Module):
    """Base of models that score a triple (head, relation, tail).

    A score is a function of a query, made of the relation and one entity, and of the other entity, so that all entities
    are scored at once.

    Attributes:
      num_entities: E.
      num_relations: R.
      width: Width D of the vectors.
    """

    num_entities: int
    num_relations: int
    width: int

    def setup(self) -> None:
        init = nn.initializers.normal(self.width**-0.5)
        self.entity = self.param("entity", init, (self.num_entities, self.width))
        self.relation = self.param("relation", init, (self.num_relations, self.width))

    def __call__(self, triples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Triples [B, 3] to the scores [B, E] of all entities as tails, and [B, E] as heads."""
        entity, relation = jnp.asarray(self.entity), jnp.asarray(self.relation)[triples[:, 1]]
        tails = self.score_all(self.tail_query(entity[triples[:, 0]], relation), entity)
        return tails, self.score_all(self.head_query(relation, entity[triples[:, 2]]), entity)

    def tail_query(self, head: jax.Array, relation: jax.Array) -> jax.Array:
        """Vectors of heads and relations [B, D] to queries [B, D] for tails."""
        raise NotImplementedError

    def head_query(self, relation: jax.Array, tail: jax.Array) -> jax.Array:
        """Vectors of relations and tails [B, D] to queries [B, D] for heads."""
        raise NotImplementedError

    def score_all(self, query: jax.Array, entity: jax.Array) -> jax.Array:
        """Queries [B, D] and entities [E, D] to scores [B, E]."""
        raise NotImplementedError


@TRIPLE_MODELS.register("transe")
class TransE(TripleModel):
    """TransE (Bordes et al. 2013, NeurIPS): the score is -||h + r - t||, with Euclidean distance."""

    def tail_query(self, head: jax.Array, relation: jax.Array) -> jax.Array:
        return head + relation

    def head_query(self, relation: jax.Array, tail: jax.Array) -> jax.Array:
        return tail - relation

    def score_all(self, query: jax.Array, entity: jax.Array) -> jax.Array:
        squared = (query**2).sum(-1, keepdims=True) + (entity**2).sum(-1) - 2 * query @ entity.T
        # The root has no gradient at 0, and rounding can go below it.
        return -jnp.sqrt(jnp.maximum(squared, 1e-9))


@TRIPLE_MODELS.register("complex")
class ComplEx(TripleModel):
    """ComplEx (Trouillon et al. 2016, ICML): the score is Re <h, r, conj(t)>; a vector holds D / 2 complex numbers."""

    def setup(self) -> None:
        if self.width % 2:
            raise ValueError(f"width is {self.width}, but a vector of real and imaginary parts has an even one")
        super().setup()

    def tail_query(self, head: jax.Array, relation: jax.Array) -> jax.Array:
        (a, b), (c, d) = jnp.split(head, 2, axis=-1), jnp.split(relation, 2, axis=-1)
        return jnp.concatenate([a * c - b * d, a * d + b * c], axis=-1)

    def head_query(self, relation: jax.Array, tail: jax.Array) -> jax.Array:
        (a, b), (c, d) = jnp.split(tail, 2, axis=-1), jnp.split(relation, 2, axis=-1)
        return jnp.concatenate([a * c + b * d, b * c - a * d], axis=-1)

    def score_all(self, query: jax.Array, entity: jax.Array) -> jax.Array:
        return query @ entity.T
