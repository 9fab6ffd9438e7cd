"""The one schema of a configuration: every key with its type, range, default and meaning.

A study's configuration is an `ml_collections.ConfigDict`, so that flags can change its values. `default_config` makes
one, and `resolve` checks one: unknown tables and wrong values are errors, old names are translated with a warning, and
keys that an older configuration lacks get their defaults.
"""

import dataclasses
import types
import typing
import warnings
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from llm4rec_jax.evaluation.evaluate import Candidates
from llm4rec_jax.models.layers.quantized import FORMATS
from llm4rec_jax.options import check, option
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.runs.features import FeaturesConfig
from llm4rec_jax.tasks.generation import GenerationConfig
from llm4rec_jax.tasks.prompt_scoring import PromptConfig
from llm4rec_jax.tasks.ranking import LossConfig
from llm4rec_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class BaselineConfig:
    """A baseline without training steps, in place of everything that is trained."""

    name: str | None = option(None)
    """Name of the baseline; None trains a model. See `baselines.BASELINES`."""
    options: dict[str, Any] = option({})
    """Options of the baseline."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of a run: where it comes from, how it is filtered and split."""

    source: str = option("movielens_100k")
    """Name of the source; see `data.sources.SOURCES` and, for labeled examples, `LABELED_SOURCES`."""
    path: str | None = option(None)
    """File or folder of the data; None lets the source find its own."""
    published: str | None = option(None)
    """Name of published data that is downloaded, in place of a path."""
    options: dict[str, Any] = option({})
    """Options of the source."""
    min_rating: float | None = option(None)
    """Least rating that counts as an interaction."""
    k_core: int | None = option(None, low=1)
    """Least number of interactions of every user and item."""
    deduplicate: str | None = option(None, choices=("first", "last"))
    """Which of a user's repeated interactions with an item is kept; None keeps all."""
    split: str = option("leave_one_out")
    """Name of the split; see `data.splits.SPLITS`."""
    split_options: dict[str, Any] = option({})
    """Options of the split."""
    few_shot: int | None = option(None, low=1)
    """Number of training targets (or labeled examples) that are kept."""
    few_shot_per: str = option("user", choices=("user", "total"))
    """Whether `few_shot` counts targets of each user or of all."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The texts of items and users."""

    item: str = option("{title} ({year}). {genres}")
    """Template of an item's text, over the columns of the item table."""
    user: str = option("The user watched: {history}")
    """Template of a history's text, for a user model that reads prompts."""
    title: str = option("title")
    """Item column that people and prompts call an item by."""
    max_items: int = option(20, low=1)
    """Number of most recent items in a prompt."""
    max_tokens: int = option(64, low=1)
    """Number of tokens after which an item's text is cut."""
    max_prompt_tokens: int = option(256, low=1)
    """Number of tokens after which a prompt is cut."""
    views: tuple[str, ...] | list[str] = option(())
    """Rating task: templates of the texts by which the Gaussian process compares items."""
    number: str | None = option(None)
    """Rating task: item column that the Gaussian process reads as a number."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The pretrained language model."""

    path: str | None = option(None)
    """Folder, hub name, "minilm" or "smollm2" as `make setup` installs them; None takes "minilm"."""
    pretrained: bool = option(True)
    """Whether the weights are those at the path; False draws random ones, the same in every run, for a control."""
    layers: int | None = option(None, low=1)
    """Number of first blocks that are kept; None keeps all."""
    dtype: str = option("float32", choices=("float32", "bfloat16", "float16"))
    """Type of activations; parameters are float32."""
    remat: bool = option(False)
    """Whether blocks are computed again in the backward pass, to save memory."""
    attention: str = option("xla", choices=("xla", "cudnn", "splash"))
    """Implementation of attention; cuDNN's runs on NVIDIA GPUs in 16 bits without dropout, "splash" on a TPU."""
    packing: bool = option(False)
    """Whether the texts of the catalogue are encoded side by side in rows, with little padding."""
    dropout: float | None = option(0.0, low=0.0, below=1.0)
    """Replaces the dropout rates of the pretrained model; None keeps them."""
    quantize: str | None = option(None, choices=tuple(FORMATS))
    """Format in which the frozen weights of the blocks are stored; see `models.layers.quantized`. None: float32."""
    pooling: str | None = option(None)
    """How token states become a text's vector; see `models.encoders.pooling.POOLINGS`. None takes what suits the
    model's family: "mean", or "last" for decoders. "folder" does what the encoder's folder says, with the dense layers
    and the norm that stand there."""
    item_prompt: str | None = option(None)
    """Name of a prompt of the encoder's folder that stands before items' texts; None takes the folder's default."""
    user_prompt: str | None = option(None)
    """Name of the prompt that stands before the texts of users, for a user model that reads prompts."""
    center: bool = option(False)
    """Whether the mean of the catalogue's vectors is taken from each; for a frozen encoder."""
    whiten: int | None = option(None, low=1)
    """Number of principal components to which the catalogue's vectors are whitened; for a frozen encoder."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The recommender around the language model."""

    width: int = option(64, low=1)
    """Width of item and user embeddings (D)."""
    project: str = option("mlp", choices=("mlp", "linear", "none"))
    """Projection of text vectors to D; "none" keeps the encoder's own width."""
    project_options: dict[str, Any] = option({})
    """Options of the projection."""
    tower: str = option("none", choices=("mlp", "linear", "none"))
    """Network over id embeddings."""
    users: str = option("transformer")
    """User model; see `models.users.USERS`, among them "text" and "llm" for language models."""
    user_options: dict[str, Any] = option(
        {
            "transformer": {"layers": 2, "heads": 2, "dropout": 0.2, "positions": 100},
            "attention": {"hidden": 64},
            "gru": {"dropout": 0.2},
            "bert4rec": {
                "layers": 2,
                "heads": 2,
                "dropout": 0.2,
                "positions": 100,
                "mask_prob": 0.2,
                "mask_last_prob": 0.2,
            },
            "two_tower": {"hidden": 128, "dropout": 0.2},
            "lightgcn": {"layers": 2},
            "llm": {"path": "smollm2", "pretrained": True, "layers": 4, "dropout": 0.0},
        }
    )
    """Options by user model."""
    head: str = option("dot")
    """Scoring head; see `models.heads.HEADS`."""
    head_options: dict[str, Any] = option({})
    """Options of the scoring head."""


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """The parameter-efficient method."""

    method: str = option("frozen")
    """Name of the method, or a chain such as "lora+bitfit"; see `peft.METHODS`."""
    options: dict[str, Any] = option({})
    """Options by method."""
    within: str = option("encoder")
    """Part that the method adapts: "encoder", "users" or "encoder+users". The part's own parameters are frozen."""
    users: str | None = option(None)
    """Method of the user model, where `within` names it; None takes `method`. "frozen" keeps it as it starts."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The protocol by which runs are evaluated."""

    repeats: str = option("keep", choices=("keep", "drop", "unmask_history"))
    """Treatment of targets that the user has interacted with before; see `evaluation.evaluate`."""
    candidates: str = option("all", choices=typing.get_args(Candidates))
    """Items that are ranked; see `evaluation.evaluate.evaluate`."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The layout over devices."""

    model: int = option(1, low=1)
    """Number of devices over which the encoder's matrices and the tables of ids are cut."""
    fsdp: bool | None = option(None)
    """Whether all parameters and optimizer states are cut over the other devices too."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Destinations of records beside metrics.jsonl and TensorBoard."""

    wandb: str | None = option(None)
    """Name of a Weights & Biases project; None sends nothing there."""


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole configuration."""

    seed: int = option(0, low=0, below=2**32)
    """Seed of everything random."""
    task: str | None = option(None, choices=("ranking", "title_likelihood", "rating", "prompt_scoring"))
    """Definition of what is learned; None takes "rating" for sources of labeled examples, otherwise "ranking"."""
    inputs: str = option("text")
    """Representation of an item: "text", "id" and names of further features, joined by "+"."""
    init_from: str | None = option(None)
    """Folder of a finished run from whose trained parts this one starts: its tuned encoder, method folded in, too."""
    imports: str | None = option(None)
    """Modules that register methods, losses or sources of your own, joined by spaces."""
    strict: bool = option(False)
    """Whether notices about the data are errors."""
    baseline: BaselineConfig = BaselineConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    prompt: PromptConfig = PromptConfig()
    features: FeaturesConfig = FeaturesConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = ModelConfig()
    generation: GenerationConfig = GenerationConfig()
    peft: PeftConfig = PeftConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()
    log: LogConfig = LogConfig()


# Keys of older configurations.
RENAMED_KEYS = {"train.pull": "train.l2_to_init"}
# Values of older configurations, by key.
RENAMED_VALUES = {
    "loss.name": {"catalogue": "full_softmax"},
    "model.users": {"bidirectional": "bert4rec", "graph": "lightgcn", "id": "mf", "tower": "two_tower"},
}
# Ranges of options that the modules of a model share, by name.
_OPTION_RANGES: dict[str, dict[str, Any]] = {
    "dropout": {"low": 0.0, "below": 1.0},
    "layers": {"low": 1},
    "heads": {"low": 1},
    "ffn": {"low": 1},
    "hidden": {"low": 1},
    "positions": {"low": 1},
    "mask_prob": {"above": 0.0, "high": 1.0},
    "mask_last_prob": {"low": 0.0, "high": 1.0},
    "temperature": {"above": 0.0},
    "init_scale": {"above": 0.0},
    "rank": {"low": 1, "high": 4096},
    "reduction": {"low": 1},
    "length": {"low": 1},
}


def default_config() -> ConfigDict:
    """Returns the configuration of every default, which studies change.

    Example:
      >>> config = default_config()
      >>> config.train.batch_size = 256
      >>> config.model.users
      'transformer'
    """
    return _as_config_dict(Config())


def resolve(config: Any) -> ConfigDict:
    """Returns a configuration with every key of the schema, once each value has been checked.

    Args:
      config: A study's configuration, or that of an older run.

    Raises:
      ValueError: A key that does not exist, or a value of a wrong type or outside its range; the message names it.

    Example:
      >>> config = default_config()
      >>> config.train.clip = -1.0
      >>> resolve(config)
      Traceback (most recent call last):
      ...
      ValueError: config.train.clip is -1.0, must be at least 0.0
    """
    values = config.to_dict()
    _rename(values)
    _check_table(values, Config(), "config")
    resolved = default_config()
    with resolved.unlocked():
        _update(resolved, values)
    return resolved.lock()


def table(config: Any, name: str, **more: Any) -> Any:
    """Returns a table of a resolved configuration as its dataclass: `table(config, "loss").num_negatives`."""
    return _as_dataclass(getattr(Config(), name), config[name].to_dict(), **more)


def _as_dataclass(defaults: Any, values: Mapping[str, Any], **more: Any) -> Any:
    """Returns an object of the type of `defaults` with these values; tables within a table become dataclasses too."""
    inner = {name: getattr(defaults, name) for name in values}
    tables = {name: _as_dataclass(default, values[name]) for name, default in inner.items() if _is_table(default)}
    return type(defaults)(**{**values, **tables, **more})


def _is_table(default: Any) -> bool:
    return dataclasses.is_dataclass(default) and not isinstance(default, type)


def _as_config_dict(options: Any) -> ConfigDict:
    """Turns a dataclass into a ConfigDict; None of a field that may be None becomes a placeholder of the other type."""
    hints, values = typing.get_type_hints(type(options)), {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            values[field.name] = _as_config_dict(value)
        elif value is None:
            (kind,) = (choice for choice in typing.get_args(hints[field.name]) if choice is not types.NoneType)
            values[field.name] = placeholder(kind)
        elif isinstance(value, dict):
            values[field.name] = ConfigDict(value)
        elif {int, str} <= set(typing.get_args(hints[field.name])):
            # A reference of this type takes numbers and words.
            values[field.name] = FieldReference(value, field_type=object)
        else:
            values[field.name] = value
    if isinstance(options, TrainConfig):
        del values["seed"]  # a key of the whole configuration
    return ConfigDict(values)


def _rename(values: dict[str, Any]) -> None:
    for old, new in RENAMED_KEYS.items():
        (name, key), (_, new_key) = old.split("."), new.split(".")
        if isinstance(values.get(name), dict) and key in values[name]:
            warnings.warn(f"config.{old} is called config.{new} now", FutureWarning, stacklevel=3)
            values[name][new_key] = values[name].pop(key)
    for path, names in RENAMED_VALUES.items():
        name, key = path.split(".")
        held = values.get(name, {})
        if isinstance(held, dict) and isinstance(held.get(key), str) and held[key] in names:
            warnings.warn(f"config.{path}={held[key]} is called {names[held[key]]} now", FutureWarning, stacklevel=3)
            held[key] = names[held[key]]
    options = values.get("model", {}).get("user_options")
    for old, new in RENAMED_VALUES["model.users"].items():
        if isinstance(options, dict) and old in options:
            options[new] = options.pop(old)
    cloze = options.get("bert4rec") if isinstance(options, dict) else None
    for old, new in {"share": "mask_prob", "only_last": "mask_last_prob"}.items():
        if isinstance(cloze, dict) and old in cloze:
            cloze[new] = cloze.pop(old)


def _check_table(values: Mapping[str, Any], defaults: Any, name: str) -> None:
    """Checks a table and the tables in it."""
    fields = {field.name for field in dataclasses.fields(defaults)}
    if isinstance(defaults, TrainConfig):
        fields -= {"seed"}
    if unknown := [key for key in values if key not in fields]:
        raise ValueError(unknown_name(f"key of {name}:", unknown[0], sorted(fields)))
    plain: dict[str, Any] = {}
    for key, value in values.items():
        default = getattr(defaults, key)
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise ValueError(f"{name}.{key} is {value!r}, must be a table of options")
            _check_table(value, default, f"{name}.{key}")
        else:
            plain[key] = value
            if isinstance(value, dict):
                _check_options(value, f"{name}.{key}")
    check(dataclasses.replace(defaults, **plain), name)


def _check_options(options: Mapping[str, Any], name: str) -> None:
    """Checks the ranges of options that modules share, in tables of any depth."""
    for key, value in options.items():
        if isinstance(value, dict):
            _check_options(value, f"{name}.{key}")
        # A list, such as the layers that a feature reads, is checked where it is used.
        elif key in _OPTION_RANGES and value is not None and not isinstance(value, (list, tuple)):
            field = option(value, **_OPTION_RANGES[key])
            check(dataclasses.make_dataclass("Options", [(key, float, field)])(), name)


def _update(config: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and key in config and not key.endswith("options"):
            _update(config[key], value)
        else:
            config[key] = ConfigDict(value) if isinstance(value, dict) else value
