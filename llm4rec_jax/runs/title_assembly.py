"""The parts that the configuration of a run names which ranks items by the likelihood of their titles."""

# Its model, scorer and task are of other types than those of a recommender.
# pyright: reportIncompatibleVariableOverride=false

import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm4rec_jax import sharding
from llm4rec_jax.data.features.prompts import PromptTokenizer
from llm4rec_jax.data.features.text import UserTemplate
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.notices import Notice, notices
from llm4rec_jax.data.splits.split import Phase
from llm4rec_jax.evaluation.evaluate import Candidates
from llm4rec_jax.evaluation.sampled import num_sampled
from llm4rec_jax.inference.generate.cached import check_causal
from llm4rec_jax.inference.generate.memorization import completed_texts
from llm4rec_jax.inference.listwise import BoundListwiseScorer, ListwiseScorer
from llm4rec_jax.inference.scorer import Prompts
from llm4rec_jax.inference.title_likelihood import TitleLikelihoodScorer
from llm4rec_jax.models.encoders.base import Encoder
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText
from llm4rec_jax.peft import create
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.encoder import load_encoder
from llm4rec_jax.runs.prompt_assembly import check_open_ended
from llm4rec_jax.runs.results import PHASES, evaluate_ranking
from llm4rec_jax.runs.schema import table
from llm4rec_jax.tasks.title_likelihood import TitleLikelihoodTask


class TitleAssembly(Assembly):
    """An `Assembly` whose language model scores titles after a prompt in place of comparing vectors."""

    @property
    def writes_prompts(self) -> bool:
        """True: histories are written as texts."""
        return True

    @cached_property
    def pretrained(self) -> PretrainedText:
        """The decoder with its language head."""
        if self.config.init_from is not None:
            raise ValueError(
                f"config.init_from is {self.config.init_from!r}, but a run by title likelihood starts from a language "
                "model as it came: leave it out"
            )
        return load_encoder(self.config, self.encoder_path, language_head=True)

    @cached_property
    def model(self) -> Encoder:
        """The decoder."""
        check_causal(self.pretrained.encoder, self.bare_method)
        return self.pretrained.encoder

    def params(self) -> dict[str, Any]:
        """Returns all parameters at the start."""
        return {"encoder": self.pretrained.params["encoder"]}

    @cached_property
    def rules(self) -> sharding.Rules:
        """Rules for arrays that are cut over the data axis when the run is fully sharded."""
        mesh = self.config.mesh
        if mesh.model > 1:
            raise ValueError(f"config.mesh.model is {mesh.model}, but prompts are not cut over a model axis: give 1")
        return [sharding.FULLY_SHARDED] if mesh.fsdp else []

    @cached_property
    def title_tokens(self) -> list[list[int]]:
        """Tokens of the items' titles as they stand after a prompt.

        Raises:
          ValueError: `config.prompt.title` has no field {title}, or the tokenizer ends each text.
        """
        template, words = self.config.prompt.title, self._tokenizer
        if "{title}" not in template:
            raise ValueError(f"config.prompt.title is {template!r}, must have the field {{title}}")
        check_open_ended(words, self._folder.model)
        texts = [template.replace("{title}", title) for title in self.titles]
        return words(texts, add_special_tokens=False)["input_ids"]

    @cached_property
    def scorer(self) -> TitleLikelihoodScorer | ListwiseScorer:
        """Scores items by their titles, or by their letters in a list."""
        if self.config.prompt.orders is not None:
            return self._listwise
        prompts, method, long = self._prompts, self.bare_method, self.config.prompt.normalize_length
        return TitleLikelihoodScorer(self.model, method, self.mesh, self.title_tokens, prompts, long)

    @property
    def _listwise(self) -> ListwiseScorer:
        config, words = self.config, self._tokenizer
        if num_sampled(self._candidates) is None or config.train.steps:
            raise ValueError(
                f"config.prompt.orders is {config.prompt.orders}, which lists drawn candidates for a language model as "
                "it came: give config.evaluation.candidates=sampled_20 and config.train.steps=0"
            )
        check_open_ended(words, self._folder.model)
        rows, template = self.dataset.users.to_dicts(), UserTemplate(config.text.user, max_items=config.text.max_items)

        def write(histories: Sequence[np.ndarray], users: np.ndarray, lists: Sequence[str]) -> Tokens:
            known = [rows[user] if user < len(rows) else dict.fromkeys(rows[0]) for user in users]
            fields = [{**row, "candidates": text} for row, text in zip(known, lists, strict=True)]
            made = PromptTokenizer(template, self.titles, fields, words, max_tokens=config.text.max_prompt_tokens)
            return made(histories, np.arange(len(users)))

        letters = [words(f" {letter}", add_special_tokens=False)["input_ids"] for letter in string.ascii_uppercase]
        encoder, method = self.model, self.bare_method
        return ListwiseScorer(encoder, method, self.mesh, self.titles, letters, write, config.prompt.orders)

    @cached_property
    def task(self) -> TitleLikelihoodTask:
        """The task that is trained."""
        if self.config.loss.name != "full_softmax":
            raise ValueError(
                f"config.loss.name is {self.config.loss.name!r}, but titles are learnt by likelihood: leave it out"
            )
        return TitleLikelihoodTask(
            self.model,
            self.bare_method,
            self.params(),
            self.split,
            self.title_tokens,
            self._prompts,
            self.train_config,
            scorer=self.scorer,
            candidates=self._candidates,
        )

    @property
    def _candidates(self) -> Candidates:
        return self.config.evaluation.candidates

    @property
    def _prompts(self) -> Prompts:
        assert self.prompts is not None
        return self.prompts

    @property
    def notices(self) -> list[Notice]:
        """Unusual traits of the data."""
        return notices(self.split)

    # ------------------------------------------------------------------------------------------------- the run's folder
    def evaluate(self, trainable: Any, frozen: Any, workdir: Path) -> dict[str, dict[str, float]]:
        """Evaluates a state as every run is, and adds the bias of places where candidates were listed."""
        scorer = self.scorer.of({**frozen["params"], **trainable["params"]}, trainable["delta"])
        metrics = evaluate_ranking(scorer, self.split, self.mesh, workdir, table(self.config, "evaluation"))
        if isinstance(scorer, BoundListwiseScorer):
            metrics["listwise"] = {"position_bias": scorer.position_bias}
        return metrics

    @cached_property
    def memorized_titles(self) -> float:
        """Share of the titles that the language model, as it came, completes from their first half of tokens."""
        weights = self.pretrained.params["encoder"], {}
        return float(completed_texts(self.model, create("frozen"), weights, self.mesh, self.title_tokens).mean())

    def _cold_targets(self, phase: Phase) -> int:
        """Returns the number of targets without an interaction in training."""
        trained = np.bincount(self.split.training()[0].items, minlength=self.dataset.num_items) > 0
        return int((~trained[self.split.targets_of(phase).items]).sum())

    def description(self) -> dict[str, Any]:
        """Returns the contents of dataset.json, with what makes a comparison with other models fair or unfair."""
        sampled = num_sampled(self._candidates)
        return {
            **super().description(),
            "language_model": {
                "memorized_titles": self.memorized_titles,
                "candidates": {p: sampled or int(self.split.candidates(p).sum()) for p in PHASES},
                "cold_targets": {p: self._cold_targets(p) for p in PHASES},
            },
        }

    def summary(self) -> str:
        """Words the statistics of the dataset and the split, and the probes of the language model."""
        sampled, cold = num_sampled(self._candidates), self._cold_targets("test")
        among = f"{sampled} drawn items" if sampled else f"{self.split.candidates('test').sum():,} items"
        return (
            f"{super().summary()}\n{self.memorized_titles:.1%} of the titles are completed from their first half; "
            f"targets are ranked among {among}, and {cold:,} of the test's have no interaction in training"
        )
