"""The parts that the configuration of a run names which generates semantic ids."""

# Its model, scorer and task are of other types than those of a recommender.
# pyright: reportIncompatibleVariableOverride=false

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from llm4rec_jax import peft, sharding
from llm4rec_jax.inference.generative import GenerativeScorer
from llm4rec_jax.models.generators import GENERATORS, IdGenerator
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.semantic_ids import Collisions, SemanticIds, collisions, load_index, with_extra_digit
from llm4rec_jax.tasks.generation import GenerationTask
from llm4rec_jax.training.checkpoint import load_matching_params


class GenerationAssembly(Assembly):
    """An `Assembly` whose model generates ids in place of comparing vectors."""

    @property
    def reads_text(self) -> bool:
        """False: items are codes."""
        return False

    @cached_property
    def _loaded_ids(self) -> SemanticIds:
        own, items = self.config.generation, self.dataset.items["item_id"].to_list()
        path = Path(own.ids)
        if not path.is_file():
            raise ValueError(
                f"config.generation.ids={path} does not exist: make the file by experiments.semantic_ids, or give the "
                "path of published ids"
            )
        return load_index(path, items, own.shift or 0)

    @cached_property
    def ids(self) -> SemanticIds:
        """Ids of the catalogue, with a level that resolves collisions unless the configuration leaves it out."""
        return with_extra_digit(self._loaded_ids) if self._resolves else self._loaded_ids

    @property
    def _resolves(self) -> bool:
        return self.config.generation.resolve is not False

    @property
    def collisions(self) -> Collisions:
        """Counts of items that share an id in the file."""
        return collisions(self._loaded_ids)

    @cached_property
    def model(self) -> IdGenerator:
        """The generator."""
        own = self.config.generation
        # Token 0, the codes of the history and, where every item is trained on, those of the last one.
        positions = 1 + (self.config.train.history + 1) * len(self.ids.sizes)
        return GENERATORS.build(own.model or "tiger", self.ids.sizes, positions, **dict(own.options))

    @cached_property
    def method(self) -> peft.Peft:
        """The method that adapts nothing."""
        if self.config.peft.method != "frozen":
            raise ValueError(
                f"config.peft.method is {self.config.peft.method!r}, but a generator is trained whole: leave it out"
            )
        return self.bare_method

    def params(self) -> dict[str, Any]:
        """All parameters at the start."""
        levels, key = len(self.ids.sizes), jax.random.fold_in(jax.random.key(self.config.seed), 0)
        item = jnp.zeros((1, 1, levels), jnp.int32)
        drawn = jax.jit(lambda key: self.model.init(key, item, jnp.ones((1, 1), bool), item, method="code_logits"))(key)
        params = {"generator": dict(drawn["params"])}
        start = self.config.init_from
        return params if start is None else load_matching_params(params, Path(start))

    @cached_property
    def rules(self) -> sharding.Rules:
        """Rules for arrays that are cut over the data axis when the run is fully sharded."""
        mesh = self.config.mesh
        if mesh.model > 1:
            raise ValueError(f"config.mesh.model is {mesh.model}, but a generator is not cut over a model axis: give 1")
        return [sharding.FULLY_SHARDED] if mesh.fsdp else []

    @cached_property
    def scorer(self) -> GenerativeScorer:
        """Searches ids with the model."""
        beams = self.config.generation.beams or 20
        return GenerativeScorer(self.model, self.ids, self.mesh, self.config.train.history, beams)

    @cached_property
    def task(self) -> GenerationTask:
        """The task that is trained."""
        if self.config.loss.name != "full_softmax":
            raise ValueError(
                f"config.loss.name is {self.config.loss.name!r}, but a generator learns the likelihood of codes: leave "
                "it out"
            )
        return GenerationTask(
            self.model, self.method, self.params(), self.ids, self.split, self.train_config, scorer=self.scorer
        )

    # ------------------------------------------------------------------------------------------------- the run's folder
    def summary(self) -> str:
        """Words the statistics of the dataset, the split and the ids."""
        items, ids, colliding, largest = self.collisions
        resolved = "resolved by one more level" if self._resolves else "scored alike"
        shared = f"{colliding:,} items share one, at most {largest}, {resolved}" if colliding else "no item shares one"
        return f"{super().summary()}\n{ids:,} ids of {items:,} items; {shared}; sizes of levels {self.ids.sizes}"

    def identity(self) -> dict[str, Any]:
        """Returns what tells this data, and these ids, from others."""
        return {**super().identity(), "semantic_ids": self.ids.fingerprint}

    def description(self) -> dict[str, Any]:
        """Returns the contents of dataset.json."""
        return {**super().description(), "collisions": self.collisions._asdict()}
