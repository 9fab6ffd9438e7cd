"""The parts that the configuration of a run on a pointwise source names: questions, texts, models."""

from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from llm4rec_jax import peft, sharding
from llm4rec_jax.baselines import ANSWER_BASELINES
from llm4rec_jax.baselines.rating import Features, Predictor
from llm4rec_jax.data import assets, download, sources
from llm4rec_jax.data.features.prompts import rating_prompts
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import Tokens, tokenise
from llm4rec_jax.data.interactions import format_statistics
from llm4rec_jax.data.labeled import LabeledData, few_shot
from llm4rec_jax.data.notices import Notice
from llm4rec_jax.inference.text_encoder import check_token_ids
from llm4rec_jax.inference.text_vectors import text_vectors
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText, SentenceFolder, describe
from llm4rec_jax.models.rating import RATING_HEADS
from llm4rec_jax.models.text_encoder import TextEncoder, init
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs.encoder import create_method, load_encoder, reading_fingerprint
from llm4rec_jax.runs.features import feature_names
from llm4rec_jax.runs.results import evaluate_rating
from llm4rec_jax.runs.schema import resolve, table
from llm4rec_jax.tasks import rating_scoring
from llm4rec_jax.tasks.prompt_scoring import PromptScoringTask
from llm4rec_jax.tasks.rating import RatingTask
from llm4rec_jax.tasks.rating_scoring import Reader
from llm4rec_jax.training.config import TrainConfig

# The prompts of these parts stand in one table, in this order.
_PARTS = ("validation", "test", "train")


class RatingAssembly:
    """The parts that a configuration describes, each made when it is first asked for.

    Attributes:
      config: the resolved configuration.
    """

    shared = ("whole", "pretrained", "model", "method", "mesh")
    """Names of the parts that runs in one program share."""

    def __init__(self, config: Any) -> None:
        self.config: Any = resolve(config)
        for name, unused in (("input_workers", (None, 0)), ("micro_batches", (None, 1))):
            if (asked := self.config.train[name]) not in unused:
                raise ValueError(
                    f"config.train.{name} is {asked}, but a batch of labeled examples is made and computed "
                    "whole: leave it out"
                )
        if any(feature_names(config)):
            raise ValueError("config.inputs and config.features name features of a ranking: labeled examples have none")
        if config.baseline.name is not None:
            ANSWER_BASELINES.lookup(config.baseline.name)
            return
        self.check_model()

    def check_model(self) -> None:
        """Raises ValueError for keys that such a run cannot follow."""
        config = self.config
        RATING_HEADS.lookup(config.model.users)
        if config.loss.name != "bce_pointwise":
            raise ValueError(f"config.loss.name is {config.loss.name!r}; ratings are learnt by 'bce_pointwise'")

    def beside(self, config: Any) -> "RatingAssembly":
        """Returns the assembly of a configuration that `train_together` takes beside this one; the rest is shared."""
        other = type(self)(config)
        for name in self.shared:
            other.__dict__[name] = getattr(self, name)
        return other

    @cached_property
    def whole(self) -> LabeledData:
        """The data before training questions are drawn."""
        data = self.config.data
        path = download.resolve_data_path(data.path, data.published)
        return sources.load_labeled(data.source, path, **data.options)

    @cached_property
    def data(self) -> LabeledData:
        """The data with the training questions drawn, by the seed."""
        k = self.config.data.few_shot
        return self.whole if k is None else few_shot(self.whole, k, seed=self.config.seed)

    @cached_property
    def _encoder_path(self) -> str:
        return assets.language_model(self.config.encoder.path or "minilm")

    @cached_property
    def _folder(self) -> SentenceFolder:
        """Treatment of texts, as the encoder's folder describes it."""
        return describe(pretrained.resolve(self._encoder_path))

    def _tokenise(self, texts: list[str], max_tokens: int, prompt: str | None) -> Tokens:
        tokens = tokenise(self._folder.prepare(texts, prompt), self._folder.model, max_tokens)
        return check_token_ids(tokens, self.pretrained.encoder, self._folder.model)

    @cached_property
    def model(self) -> TextEncoder:
        """Encoder and pooling."""
        return TextEncoder(self.pretrained.encoder, self.pretrained.pooling)

    @cached_property
    def pretrained(self) -> PretrainedText:
        return load_encoder(self.config, self._encoder_path)

    @cached_property
    def reading(self) -> dict[str, Any]:
        """Parameters of encoder and pooling at the start."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 0)
        given = self.pretrained.params
        return {**init(self.model, key, given["encoder"]), **given}

    def vectors(self, tokens: Tokens) -> np.ndarray:
        """Vectors of texts by the encoder as it came, [n, W]."""
        return text_vectors(self.model, self.reading, tokens)

    # -------------------------------------------------------------------------------------------------------- baselines

    @cached_property
    def predictor(self) -> Predictor:
        """The baseline that the configuration names, fitted."""
        chosen, text, items = self.config.baseline, self.config.text, self.whole.items
        if chosen.name == "liked_share":
            return ANSWER_BASELINES.build(chosen.name, self.data.train, Features(items.height), **chosen.options)
        prompt = self.config.encoder.item_prompt
        texts = [self._tokenise(item_texts(items, template), text.max_tokens, prompt) for template in text.views]
        number = None
        if text.number is not None:
            if text.number not in items.columns:
                raise ValueError(unknown_name("config.text.number: item column", text.number, items.columns))
            number = items[text.number].cast(float, strict=False).to_numpy()
        vectors = tuple(self.vectors(tokens).astype(np.float64) for tokens in texts)
        features = Features(items.height, vectors, number)
        return ANSWER_BASELINES.build(chosen.name, self.data.train, features, **chosen.options)

    # ---------------------------------------------------------------------------------------------------------- trained

    @cached_property
    def head(self) -> Any:
        model = self.config.model
        return RATING_HEADS.build(model.users, **dict(model.user_options.get(model.users, {})))

    @cached_property
    def method(self) -> peft.Peft:
        chosen = self.config.peft
        if chosen.within != "encoder":
            raise ValueError(f"config.peft.within is {chosen.within!r}; a rating model adapts 'encoder' only")
        return peft.within(create_method(chosen), "encoder")

    @cached_property
    def prompts(self) -> dict[str, np.ndarray]:
        """Text numbers of the questions [n], by part."""
        sizes = [self.data.parts()[name].size for name in _PARTS]
        numbers = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        return dict(zip(_PARTS, numbers, strict=True))

    @cached_property
    def reader(self) -> Reader:
        """Reads the prompts of all questions, or the texts of all items."""
        text, encoder, asks = self.config.text, self.config.encoder, not self.head.reads_history
        if asks:
            parts, length, prompt = self.data.parts(), text.max_prompt_tokens, encoder.user_prompt
            texts = [rating_prompts(parts[name], self.titles, text.user) for name in _PARTS]
        else:
            texts, length, prompt = [self.titles], text.max_tokens, encoder.item_prompt
        # Each part apart: validation and test are the same in every draw, and so their vectors are found in the cache.
        tokens = [self._tokenise(own, length, prompt) for own in texts]
        # The centre is that of the training prompts, or of all items.
        centre = self.vectors(tokens[-1]).mean(0)
        vectors = None if self._tuned else np.concatenate([self.vectors(own) for own in tokens])
        return Reader(self.model, self.method, _joined(tokens), asks, vectors, centre)

    @cached_property
    def _tuned(self) -> bool:
        """Whether what reads texts is trained."""
        return self.config.peft.method != "frozen" or "pooling" in self.reading

    @cached_property
    def titles(self) -> list[str]:
        """Names of the items in prompts."""
        return item_texts(self.whole.items, self.config.text.item)

    def params(self) -> dict[str, Any]:
        """Returns all parameters at the start."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), 2)
        return {**self.reading, "answers": rating_scoring.start(self.head, len(self.reader.centre), key)}

    @cached_property
    def train_config(self) -> TrainConfig:
        """Options of training."""
        return table(self.config, "train", seed=self.config.seed)

    @cached_property
    def mesh(self) -> Mesh:
        return sharding.make_mesh(self.config.mesh.model)

    @property
    def rules(self) -> sharding.Rules:
        """Sharding rules: only the encoder is large enough to be cut."""
        mesh = self.config.mesh
        rules: list[Any] = [*self.pretrained.encoder.family.sharding_rules] if mesh.model > 1 else []
        return [*rules, sharding.FULLY_SHARDED] if mesh.fsdp else rules

    @cached_property
    def task(self) -> RatingTask | PromptScoringTask:
        """The task that is trained."""
        return RatingTask(self.head, self.reader, self.params(), self.data, self.prompts, self.train_config)

    @property
    def notices(self) -> list[Notice]:
        """Unusual traits of the data; none are looked for in labeled examples."""
        return []

    # ------------------------------------------------------------------------------------------------- the run's folder

    def summary(self) -> str:
        """Words the statistics of the data."""
        data = self.whole
        return (
            f"{data.name}, fingerprint {data.fingerprint[:12]}\n{format_statistics(data.statistics())}\n{data.protocol}"
        )

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Hash of how texts are read; None where no model reads any."""
        if self.config.baseline.name == "liked_share":
            return None
        return reading_fingerprint(self._folder, self.config.encoder.pooling)

    def identity(self) -> dict[str, Any]:
        """Returns what tells this data from other data.

        Fingerprint and protocol are of the data before the draw: the examples tested are the same however many are
        trained on, and such runs share a table.
        """
        k = self.config.data.few_shot
        drawn = {"questions": k, "seed": self.config.seed, "fingerprint": self.data.fingerprint}
        return {
            "fingerprint": self.whole.fingerprint,
            "protocol": self.whole.protocol,
            "few_shot": None if k is None else drawn,
        }

    def description(self) -> dict[str, Any]:
        """Returns the contents of dataset.json."""
        return {"name": self.whole.name, **self.identity(), "statistics": self.whole.statistics()}

    def evaluate(self, trainable: Any, frozen: Any, workdir: Path) -> dict[str, dict[str, float]]:
        """Evaluates a trained state on validation and test, and writes the tables of examples."""
        self.task.bind(self.mesh)
        return evaluate_rating(lambda part: self.task.scores(trainable, frozen["params"], part), self.data, workdir)

    def evaluate_baseline(self, workdir: Path) -> dict[str, dict[str, float]]:
        """Fits the baseline and evaluates it."""
        return evaluate_rating(lambda part: self.predictor(self.data.parts()[part]), self.data, workdir)


def _joined(tokens: list[Tokens]) -> Tokens:
    """Tables of tokens, one below the other."""
    wide = max(own.ids.shape[1] for own in tokens)
    # Padding is masked by the lengths.
    ids = [np.pad(own.ids, ((0, 0), (0, wide - own.ids.shape[1]))) for own in tokens]
    return Tokens(np.concatenate(ids), np.concatenate([own.lengths for own in tokens]))
