"""The parts that the configuration of a run by prompts names: a decoder, prompts and answers."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4rec_jax import peft
from llm4rec_jax.data.features.prompts import fitting_rating_prompts, rating_prompts
from llm4rec_jax.data.features.tokens import Tokens, tokenizer
from llm4rec_jax.data.features.vector_tokens import FIELD, has_vector_field, tokenise_with_vectors, vector_texts
from llm4rec_jax.data.notices import Notice
from llm4rec_jax.inference.generate.cached import check_causal
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText
from llm4rec_jax.peft.item_vectors import item_vector_tokens
from llm4rec_jax.runs.encoder import create_method, load_encoder
from llm4rec_jax.runs.item_vectors import ItemVectors, item_vectors_of
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.tasks.prompt_scoring import PromptScoringTask


class PromptAssembly(RatingAssembly):
    """The parts of a run whose language model answers prompts on labeled examples. See `RatingAssembly`."""

    shared = ("whole", "pretrained", "item_vectors", "bare_method", "method", "mesh")

    def check_model(self) -> None:
        """Raises ValueError for keys that such a run cannot follow."""
        config = self.config
        if config.loss.name != "language_model":
            raise ValueError(f"config.loss.name is {config.loss.name!r}; answers are learnt by 'language_model'")
        if len(config.prompt.answers) != 2:
            raise ValueError(
                f"config.prompt.answers has {len(config.prompt.answers)} texts, must be a like's and a dislike's"
            )
        if config.prompt.vectors_from is not None and not has_vector_field(config.text.item):
            raise ValueError(
                f"config.prompt.vectors_from names a run, and config.text.item is {config.text.item!r}: write "
                f"{{{FIELD}}} where the vector of an item stands, or leave vectors_from out"
            )

    @cached_property
    def titles(self) -> list[str]:
        """Names of the items in prompts, with a mark where the vector of an item stands."""
        template, items = self.config.text.item, self.whole.items
        if self.config.prompt.vectors_from is not None:
            return vector_texts(items, template)
        if has_vector_field(template) and FIELD not in items.columns:
            raise ValueError(
                f"config.text.item has the field {{{FIELD}}}, and no run has vectors for it: give the folder of one as "
                "config.prompt.vectors_from"
            )
        return super().titles

    @cached_property
    def item_vectors(self) -> ItemVectors | None:
        """Vectors of the items by the run that the configuration names; None where it names none."""
        if (workdir := self.config.prompt.vectors_from) is None or self.config.baseline.name is not None:
            return None
        return item_vectors_of(Path(workdir), self.whole.items["item_id"].to_list())

    @cached_property
    def bare_method(self) -> peft.Peft:
        """The method of the language model, and the projection of item vectors where prompts have them."""
        method = create_method(self.config.peft)
        if self.item_vectors is None:
            return method
        vocabulary = self.pretrained.encoder.config.vocab_size
        return peft.chain(method, item_vector_tokens(self.item_vectors.vectors, vocabulary))

    @cached_property
    def method(self) -> peft.Peft:
        base = super().method
        return base if self.item_vectors is None else peft.within(self.bare_method, "encoder")

    @cached_property
    def pretrained(self) -> PretrainedText:
        return load_encoder(self.config, self._encoder_path, language_head=True)

    def params(self) -> dict[str, Any]:
        """Returns all parameters at the start."""
        return {"encoder": self.pretrained.params["encoder"]}

    @cached_property
    def answers(self) -> list[list[int]]:
        """Tokens of the two answers.

        Raises:
          ValueError: The tokenizer ends each text with a token of its own, or both answers have the same tokens.
        """
        tokens = tokenizer(self._folder.model)
        check_open_ended(tokens, self._folder.model)
        first, second = (tokens(text, add_special_tokens=False)["input_ids"] for text in self.config.prompt.answers)
        if first == second:
            raise ValueError(
                f"config.prompt.answers: both texts have the tokens {first}, so no prompt tells them apart"
            )
        return [first, second]

    @cached_property
    def task(self) -> PromptScoringTask:
        """The task that is trained."""
        config, shown = self.config, self.config.prompt.examples
        if shown >= self.data.train.size:
            raise ValueError(
                f"config.prompt.examples is {shown}, and there are {self.data.train.size} training examples: show fewer"
            )
        encoder, method = self.pretrained.encoder, self.bare_method
        check_causal(encoder, method)
        answers, parts, limit = self.answers, self.data.parts(), config.text.max_prompt_tokens

        def tokens(texts: list[str]) -> Tokens:
            if self.item_vectors is None:
                return self._tokenise(texts, limit + 1, None)
            texts, size = self._folder.prepare(texts, None), encoder.config.vocab_size
            return tokenise_with_vectors(texts, self._encode, size, limit + 1)

        prompts = {
            name: fitting_rating_prompts(rows, self.titles, config.text.user, tokens, limit, self.demonstrations)
            for name, rows in parts.items()
        }
        return PromptScoringTask(encoder, method, self.params(), self.data, prompts, answers, self.train_config, shown)

    @cached_property
    def _encode(self) -> Callable[[list[str], bool], list[list[int]]]:
        words = tokenizer(self._folder.model)
        return lambda texts, special: words(texts, add_special_tokens=special)["input_ids"]

    @cached_property
    def demonstrations(self) -> str:
        """The first training examples with their answers, which stand before every prompt."""
        config = self.config.prompt
        rows = self.data.train.take(np.arange(config.examples))
        written = zip(rating_prompts(rows, self.titles, self.config.text.user), rows.label, strict=True)
        return "".join(f"{prompt}{config.answers[0 if liked else 1]}{config.separator}" for prompt, liked in written)

    @property
    def notices(self) -> list[Notice]:
        """Says how many test examples the model of the item vectors was trained on, where it was on any."""
        if self.item_vectors is None:
            return []
        data, test = self.whole, self.whole.test
        asked = pl.DataFrame(
            {"user_id": data.users["user_id"].gather(test.user), "item_id": data.items["item_id"].gather(test.target)}
        )
        known = asked.join(self.item_vectors.trained, on=["user_id", "item_id"], how="semi").height
        if not known:
            return []
        message = (
            f"the model of the item vectors was trained on user and item of {known:,} of {test.size:,} test examples"
        )
        return [Notice("trained_on_test", message, "prompt.vectors_from")]

    def identity(self) -> dict[str, Any]:
        """Returns what tells this data from other data, with the hash of the model that item vectors are from."""
        found = super().identity()
        return found if self.item_vectors is None else {**found, "item_vectors": self.item_vectors.digest}


def check_open_ended(tokens: Any, model: Path) -> None:
    """Raises ValueError where a tokenizer ends each text with a token of its own, after which no answer is expected."""
    whole, plain = (tokens("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if whole[-len(plain) :] != plain:
        last = tokens.convert_ids_to_tokens(whole[-1])
        raise ValueError(
            f"the tokenizer of {model} ends every text with {last!r}, after which no answer is expected: give another "
            "language model"
        )
