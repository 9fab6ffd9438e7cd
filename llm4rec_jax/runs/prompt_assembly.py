"""The parts that the configuration of a run by prompts names: a decoder, prompts and answers."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm4rec_jax.data.features.prompts import fitting_rating_prompts, rating_prompts
from llm4rec_jax.data.features.tokens import Tokens, tokenizer
from llm4rec_jax.inference.generate.cached import check_causal
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText
from llm4rec_jax.runs.encoder import create_method, load_encoder
from llm4rec_jax.runs.rating_assembly import RatingAssembly
from llm4rec_jax.tasks.prompt_scoring import PromptScoringTask


class PromptAssembly(RatingAssembly):
    """The parts of a run whose language model answers prompts on labeled examples. See `RatingAssembly`."""

    shared = ("whole", "pretrained", "method", "mesh")

    def check_model(self) -> None:
        """Raises ValueError for keys that such a run cannot follow."""
        config = self.config
        if config.loss.name != "language_model":
            raise ValueError(f"config.loss.name is {config.loss.name!r}; answers are learnt by 'language_model'")
        if len(config.prompt.answers) != 2:
            raise ValueError(
                f"config.prompt.answers has {len(config.prompt.answers)} texts, must be a like's and a dislike's"
            )

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
        encoder, method = self.pretrained.encoder, create_method(config.peft)
        check_causal(encoder, method)
        answers, parts, limit = self.answers, self.data.parts(), config.text.max_prompt_tokens

        def tokens(texts: list[str]) -> Tokens:
            return self._tokenise(texts, limit + 1, None)

        prompts = {
            name: fitting_rating_prompts(rows, self.titles, config.text.user, tokens, limit, self.demonstrations)
            for name, rows in parts.items()
        }
        return PromptScoringTask(encoder, method, self.params(), self.data, prompts, answers, self.train_config, shown)

    @cached_property
    def demonstrations(self) -> str:
        """The first training examples with their answers, which stand before every prompt."""
        config = self.config.prompt
        rows = self.data.train.take(np.arange(config.examples))
        written = zip(rating_prompts(rows, self.titles, self.config.text.user), rows.label, strict=True)
        return "".join(f"{prompt}{config.answers[0 if liked else 1]}{config.separator}" for prompt, liked in written)


def check_open_ended(tokens: Any, model: Path) -> None:
    """Raises ValueError where a tokenizer ends each text with a token of its own, after which no answer is expected."""
    whole, plain = (tokens("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if whole[-len(plain) :] != plain:
        last = tokens.convert_ids_to_tokens(whole[-1])
        raise ValueError(
            f"the tokenizer of {model} ends every text with {last!r}, after which no answer is expected: give another "
            "language model"
        )
