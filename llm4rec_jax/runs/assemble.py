"""The parts that a configuration names: dataset, split, texts, model, method.

Every error in a configuration or its data is raised here, before any long work starts.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from llm4rec_jax import peft, sharding
from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.data import assets, sources
from llm4rec_jax.data.batching.batch import TokenGroup, token_group
from llm4rec_jax.data.batching.buckets import token_bucket
from llm4rec_jax.data.features.prompts import PromptTokenizer
from llm4rec_jax.data.features.text import UserTemplate, item_texts
from llm4rec_jax.data.features.tokens import Tokens, tokenise, tokenizer
from llm4rec_jax.data.interactions import Dataset, format_statistics
from llm4rec_jax.data.notices import Notice, notices
from llm4rec_jax.data.ondisk import reader as ondisk
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation.sampled import name_protocol
from llm4rec_jax.inference.scorer import Prompts, RecommenderScorer, Scorer
from llm4rec_jax.inference.standardize import center, whiten
from llm4rec_jax.inference.text_encoder import check_token_ids
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.encoders.sentence_folder import PretrainedText, SentenceFolder, describe
from llm4rec_jax.models.graphs.base import GRAPHS, Edges
from llm4rec_jax.models.recommender import Recommender, init, recommender, user_model_name
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs import plugins
from llm4rec_jax.runs.data import load_dataset, load_split
from llm4rec_jax.runs.encoder import create_method, load_encoder, method_within, reading_fingerprint
from llm4rec_jax.runs.features import FeatureSet, columns_of, digest_of, fit_features, fitted_of
from llm4rec_jax.runs.graph import digest_of_facts, training_edges
from llm4rec_jax.runs.results import evaluate_ranking
from llm4rec_jax.runs.schema import table
from llm4rec_jax.runs.start import tuned_encoder
from llm4rec_jax.runs.user_model import UserModel, user_model
from llm4rec_jax.tasks.ranking import RankingTask
from llm4rec_jax.training.checkpoint import load_matching_params
from llm4rec_jax.training.config import TrainConfig


class Assembly:
    """The parts that a resolved configuration describes, each made when it is first asked for."""

    def __init__(self, config: ConfigDict) -> None:
        # Keys are not known statically.
        self.config: Any = config
        plugins.load(plugins.names(config))
        if self.config.data.source in sources.LABELED_SOURCES:
            raise ValueError(
                f"the source {self.config.data.source!r} has questions and no catalogue to rank: experiments.train, "
                "evaluate, sweep and tables take its runs, and no other command does"
            )
        LOSSES.lookup(self.config.loss.name)
        if self.config.baseline.name is not None:
            BASELINES.lookup(self.config.baseline.name)

    def beside(self, config: ConfigDict) -> "Assembly":
        """Returns the assembly of a configuration that `train_together` takes beside this one; the rest is shared."""
        other = type(self)(config)
        # An encoder that an earlier run has tuned is that run's alone.
        shared = self.reads_text and not self.starts_tuned and not other.starts_tuned
        read = ("dataset", "tokens", "prompts", "features", *(("pretrained",) if shared else ()))
        for name in (*read, "user_model", "model", "method", "mesh", "rules", "scorer"):
            other.__dict__[name] = getattr(self, name)
        return other

    @cached_property
    def dataset(self) -> Dataset:
        return load_dataset(self.config.data)

    @cached_property
    def split(self) -> Split:
        return load_split(self.config.data, self.dataset, self.config.seed)

    @property
    def reads_text(self) -> bool:
        """Whether items are text, wholly or in part."""
        return "text" in self.config.inputs.split("+")

    @property
    def writes_prompts(self) -> bool:
        """Whether histories are written as texts, for the encoder."""
        return self.config.model.users == "text"

    @cached_property
    def features(self) -> FeatureSet | None:
        """Features of items and users beside text and ids, fitted to the training data; None without any."""
        return fit_features(self.config, self.split)

    @cached_property
    def encoder_path(self) -> str:
        """The folder or hub name of the encoder."""
        return assets.language_model(self.config.encoder.path or "minilm")

    @cached_property
    def titles(self) -> list[str]:
        """Names of the items, for people and for prompts."""
        items, column = self.dataset.items, self.config.text.title
        if column not in items.columns:
            if not self.reads_text:
                return items["item_id"].to_list()
            raise ValueError(unknown_name("config.text.title: item column", column, items.columns))
        return [title or item for title, item in items.select(column, "item_id").iter_rows()]

    def history_of(self, user_id: str) -> tuple[int, np.ndarray]:
        """Returns the row of a user of the data and the rows of their whole history, in order of time.

        Raises:
          ValueError: The data has no such user.
        """
        ids = self.dataset.users["user_id"].to_list()
        if user_id not in ids:
            raise ValueError(unknown_name("user", user_id, ids))
        user, interactions = ids.index(user_id), self.dataset.interactions
        (rows,) = np.nonzero(interactions.user == user)
        if interactions.timestamp is not None:
            rows = rows[np.argsort(interactions.timestamp[rows], kind="stable")]
        return user, interactions.item[rows]

    @cached_property
    def baseline(self) -> Scorer:
        """The baseline that the configuration names, fitted."""
        chosen = self.config.baseline
        texts = item_texts(self.dataset.items, self.config.text.item) if self.reads_text else None
        return BASELINES.build(chosen.name, self.split, texts, self.config.seed, **chosen.options)

    @cached_property
    def tokens(self) -> Tokens | None:
        if not self.reads_text:
            return None
        text = self.config.text
        if not self._folder.changes_texts(self.config.encoder.item_prompt):
            stored = ondisk.stored_tokens(self.dataset, text.item, lambda: self._tokenizer, text.max_tokens)
            if stored is not None:
                # To look at every token would be to read the whole file.
                known = pretrained.read_config(self._folder.model)[1].vocab_size
                beyond = len(self._tokenizer) > known
                return check_token_ids(stored, self.pretrained.encoder, self._folder.model) if beyond else stored
        return self.tokenise(item_texts(self.dataset.items, text.item), text.max_tokens)

    def tokenise(self, texts: list[str], max_tokens: int) -> Tokens:
        """Token ids of items' texts, from the cache when they have been tokenised before."""
        prepared = self._folder.prepare(texts, self.config.encoder.item_prompt)
        tokens = tokenise(prepared, self._folder.model, max_tokens)
        return check_token_ids(tokens, self.pretrained.encoder, self._folder.model)

    @cached_property
    def _folder(self) -> SentenceFolder:
        """Treatment of texts, as the encoder's folder describes it."""
        return describe(pretrained.resolve(self.encoder_path))

    @cached_property
    def _tokenizer(self) -> Any:
        return tokenizer(self._folder.model)

    @cached_property
    def prompts(self) -> Prompts | None:
        """Writes histories as prompts, when a language model reads users."""
        if not self.writes_prompts:
            return None
        text = self.config.text
        longest = token_bucket(text.max_prompt_tokens, self.pretrained.encoder.config.max_position_embeddings)

        def encode(written: str, **options: Any) -> Any:
            return self._tokenizer(*self._folder.prepare([written], self.config.encoder.user_prompt), **options)

        write = PromptTokenizer(
            UserTemplate(text.user, max_items=text.max_items),
            self.titles,
            self.dataset.users.to_dicts(),
            encode,
            max_tokens=text.max_prompt_tokens,
            width=longest,
            pad_token_id=self._tokenizer.pad_token_id,
        )

        def prompts(histories: Sequence[np.ndarray], users: np.ndarray) -> TokenGroup:
            return token_group(write(histories, users), np.arange(len(users)), longest)

        return prompts

    @cached_property
    def pretrained(self) -> PretrainedText:
        """The text encoder as it came, or as the run that this one starts from has tuned it."""
        loaded = load_encoder(self.config, self.encoder_path)
        tuned = self._tuned_encoder
        return loaded if tuned is None else loaded._replace(params={**loaded.params, "encoder": tuned})

    @property
    def starts_tuned(self) -> bool:
        """Whether the encoder at the start is one that an earlier run has tuned."""
        return self._tuned_encoder is not None

    @cached_property
    def _tuned_encoder(self) -> dict[str, Any] | None:
        return tuned_encoder(self.config, Assembly)

    @cached_property
    def users(self) -> str:
        """The current name of the user model."""
        return user_model_name(self.config.model.users)

    @cached_property
    def _edges(self) -> Edges | None:
        return training_edges(self.users, dict(self.config.features.graph_options), self.split)

    @cached_property
    def user_model(self) -> UserModel:
        """The options and pretrained parameters of the user model."""
        return user_model(self.config, self.users)

    @cached_property
    def model(self) -> Recommender:
        model, users = self.config.model, self.users
        return recommender(
            encoder=self.pretrained.encoder if self.reads_text else None,
            num_items=self.dataset.num_items if "id" in self.config.inputs.split("+") else None,
            num_users=self.dataset.num_users,
            edges=self._edges,
            users=users,
            head=model.head,
            pooling=self.pretrained.pooling if self.reads_text else "mean",
            project=model.project,
            tower=model.tower,
            features=self.features,
            width=model.width,
            options={
                "users": self.user_model.options,
                "head": dict(model.head_options),
                "project": dict(model.project_options),
            },
        )

    @cached_property
    def bare_method(self) -> peft.Peft:
        """The method as its paper has it, over one module."""
        return create_method(self.config.peft)

    @cached_property
    def method(self) -> peft.Peft:
        """The method within the parts of the recommender that it adapts."""
        return method_within(self.config.peft, self.reads_text)

    def params(self) -> dict[str, Any]:
        """All parameters at the start: the encoder's, and those that `init_from` gives."""
        given = self.pretrained.params if self.reads_text else {}
        key = jax.random.fold_in(jax.random.key(self.config.seed), 0)
        params = {**init(self.model, key, given.get("encoder"), self.user_model.params), **given}
        start = self.config.init_from
        return params if start is None else load_matching_params(params, Path(start))

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return sharding.make_mesh(self.config.mesh.model)

    @cached_property
    def rules(self) -> sharding.Rules:
        """Rules for arrays cut over the model axis, and over the data axis when the run is fully sharded."""
        mesh, users = self.config.mesh, self.users
        rules: list[Any] = []
        if mesh.model > 1:
            rules += self.pretrained.encoder.family.sharding_rules if self.reads_text else ()
            rules += [sharding.ITEM_RULE] if self.model.num_items and users not in GRAPHS else []
            rules += [sharding.USER_TABLE_RULE] if users in GRAPHS or USERS.lookup(users).inputs == "user_id" else []
        # Runs of before have no such key.
        return [*rules, sharding.FULLY_SHARDED] if mesh.get("fsdp") else rules

    @cached_property
    def scorer(self) -> RecommenderScorer:
        return RecommenderScorer(
            self.model,
            self.method,
            self.mesh,
            self.tokens,
            self.prompts,
            self.config.train.history,
            self._standardize if self.reads_text else None,
            columns_of(self.features),
        )

    @property
    def _standardize(self) -> Callable[[np.ndarray], np.ndarray] | None:
        encoder = self.config.encoder
        if encoder.whiten is not None:
            return partial(whiten, components=encoder.whiten)
        return center if encoder.center else None

    @cached_property
    def train_config(self) -> TrainConfig:
        """Options of training."""
        return table(self.config, "train", seed=self.config.seed)

    @cached_property
    def task(self) -> RankingTask:
        """The task that is trained."""
        return RankingTask(
            self.model,
            self.method,
            self.params(),
            self.split,
            self.train_config,
            loss=table(self.config, "loss"),
            tokens=self.tokens,
            prompts=self.prompts,
            # Validation and the last evaluation run the same programs.
            scorer=self.scorer,
        )

    @cached_property
    def notices(self) -> list[Notice]:
        """Unusual traits of the data and its texts."""
        if not self.reads_text or self.config.baseline.name is not None:
            return notices(self.split)
        text = self.config.text
        texts = item_texts(self.dataset.items, text.item)
        return notices(
            self.split,
            texts=texts,
            tokens=self.tokens,
            max_tokens=text.max_tokens,
            unknown_token=self._tokenizer.unk_token_id,
        )

    # ------------------------------------------------------------------------------------------------- the run's folder
    def summary(self) -> str:
        """Words the dataset's and the split's statistics."""
        dataset, split = self.dataset, self.split
        return (
            f"{dataset.name}, fingerprint {dataset.fingerprint[:12]}\n{format_statistics(dataset.statistics())}\n"
            f"{split.protocol}\n{format_statistics(split.statistics())}"
        )

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """Hash of how texts are read; None where no model reads any."""
        if not self.reads_text or self.config.baseline.name is not None:
            return None
        return reading_fingerprint(self._folder, self.config.encoder.pooling)

    def identity(self) -> dict[str, Any]:
        """Returns what tells this data from other data."""
        files = {**digest_of(self.features), **digest_of_facts(self._edges)}
        protocol = name_protocol(self.split.protocol, self.config.evaluation.candidates)
        return {"fingerprint": self.dataset.fingerprint, "protocol": protocol, **files}

    def description(self) -> dict[str, Any]:
        """Returns the contents of dataset.json."""
        return {
            "name": self.dataset.name,
            **self.identity(),
            "statistics": self.dataset.statistics(),
            "split": self.split.statistics(),
            **fitted_of(self.features),
        }

    def evaluate(self, trainable: Any, frozen: Any, workdir: Path) -> dict[str, dict[str, float]]:
        """Evaluates a trained state on validation and test, and writes the tables of users.

        Args:
          trainable: {"delta": …, "params": …}.
          frozen: {"params": …}, and "text" and "states" where they are known.
          workdir: Folder of the run.
        """
        weights = {**frozen["params"], **trainable["params"]}
        scorer = self.scorer.of(weights, trainable["delta"], frozen.get("text"), frozen.get("states"))
        return evaluate_ranking(scorer, self.split, self.mesh, workdir, table(self.config, "evaluation"))

    def evaluate_baseline(self, workdir: Path) -> dict[str, dict[str, float]]:
        """Fits the baseline and evaluates it."""
        return evaluate_ranking(
            self.baseline, self.split, self.mesh, workdir, table(self.config, "evaluation"), baseline=True
        )
