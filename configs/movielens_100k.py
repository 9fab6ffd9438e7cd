"""MovieLens-100k, leave-one-out, the whole catalogue ranked: ids, frozen text, and text tuned in six ways.

    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora

`:arg` is one of id, frozen, full, lora, bitfit, houlsby, prefix, id+text.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from llm4rec_jax.registry import unknown_name

METHODS = ("frozen", "full", "lora", "bitfit", "houlsby", "prefix")
ARGS = (*METHODS, "id", "id+text")


def get_config(arg: str = "lora") -> ConfigDict:
    """The configuration of one model."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/movielens_100k.py", arg, ARGS))
    config: Any = ConfigDict()
    config.seed = 0
    config.inputs = arg if arg in ("id", "id+text") else "text"
    # A finished run whose parts outside the encoder this one starts from.
    config.init_from = placeholder(str)
    # Modules that register components of your own, joined by spaces: see docs/guides/extending.md.
    config.imports = placeholder(str)

    # A baseline in closed form, in place of everything that is trained: see llm4rec_jax/baselines.
    config.baseline = ConfigDict({"name": placeholder(str), "options": ConfigDict()})

    data: Any = ConfigDict()
    config.data = data
    data.source = "movielens_100k"
    data.path = placeholder(str)
    # Instead of a path: data that llm4rec_jax/data/download.py knows.
    data.published = placeholder(str)
    data.options = ConfigDict()
    data.min_rating = placeholder(float)
    data.k_core = placeholder(int)
    # "first" or "last" of a user's repeated interactions with an item.
    data.deduplicate = placeholder(str)
    data.split = "leave_one_out"
    data.split_options = ConfigDict()
    data.few_shot = placeholder(int)
    data.few_shot_per = "user"

    text: Any = ConfigDict()
    config.text = text
    text.item = "{title} ({year}). {genres}"
    text.user = "The user watched: {history}"
    text.title = "title"
    text.max_items = 20
    text.max_tokens = 64
    text.max_prompt_tokens = 256

    encoder: Any = ConfigDict()
    config.encoder = encoder
    # A folder or a hub name; by default MiniLM-L6 as `make setup` installs it.
    encoder.path = placeholder(str)
    encoder.layers = placeholder(int)
    encoder.dtype = "float32"
    encoder.remat = False
    encoder.attention = "xla"
    encoder.dropout = 0.0
    encoder.pooling = "mean"

    model: Any = ConfigDict()
    config.model = model
    model.width = 64
    model.project = "mlp"  # or linear, or none: the encoder's own width
    model.project_options = ConfigDict()
    model.tower = "none"  # or linear, or mlp, over the ids
    model.users = "transformer"
    model.user_options = ConfigDict(
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
        }
    )
    model.head = "dot"
    model.head_options = ConfigDict()

    peft: Any = ConfigDict()
    config.peft = peft
    peft.method = arg if arg in METHODS else "frozen"
    peft.options = ConfigDict()
    # What the method adapts: encoder, users, or encoder+users. The users' own parameters are frozen then: give them
    # trained ones by init_from.
    peft.within = "encoder"
    if arg == "lora":
        # Every linear layer of the upper third: the states below it are then computed once a run, not once a step.
        peft.options.lora = {"rank": 8, "alpha": 8.0, "dropout": 0.0, "target": r"layer_[45]/.*"}
    if arg == "houlsby":
        peft.options.houlsby = {"reduction": 16}
    if arg == "prefix":
        # Texts here have about fifteen tokens.
        peft.options.prefix = {"length": 5}

    loss: Any = ConfigDict()
    config.loss = loss
    loss.name = "catalogue"
    loss.num_negatives = 1
    loss.alpha = 0.0
    loss.label_threshold = placeholder(float)

    # A step that tunes the encoder reads the whole catalogue, so it takes as many users as it can.
    tuned = peft.method != "frozen"
    train: Any = ConfigDict()
    config.train = train
    train.steps = 60 if tuned else 480
    train.batch_size = 256 if tuned else 128
    train.history = 100
    train.input_workers = placeholder(int)  # processes that make batches; threads where it is not set
    train.dropout = True
    train.learning_rate = 1e-3 if tuned else 3e-3
    train.schedule = "cosine"
    train.warmup = 6 if tuned else 0
    train.weight_decay = 0.0
    train.clip = 1.0  # largest norm of the gradient, 0 for any
    train.accumulate = 1
    # Parts of a batch's users that are computed one after another, in the memory of one; items are encoded once.
    train.micro_batches = placeholder(int)
    # Factors on the learning rate by regex, in order, as "regex=factor" joined by spaces.
    train.scales = ""
    train.eval_every = 6 if tuned else 60
    train.metric = "ndcg@10"
    train.patience = placeholder(int)
    train.log_every = 2 if tuned else 12
    train.checkpoint_every = 6 if tuned else 60

    # Devices over which the encoder's matrices and the tables of ids are cut; with fsdp, all parameters and optimizer
    # states are cut over the others too. See docs/guides/scaling.md.
    config.mesh = ConfigDict({"model": 1, "fsdp": placeholder(bool)})
    config.lock()
    return config


def search(trial: Any) -> dict[str, Any]:
    """What `experiments.search` tries of the models over ids; `trial` is Optuna's."""
    return {
        "train.learning_rate": trial.suggest_float("learning_rate", 3e-4, 1e-2, log=True),
        "model.width": trial.suggest_categorical("width", [32, 64, 128]),
        "model.user_options.transformer.layers": trial.suggest_int("layers", 1, 3),
        "model.user_options.transformer.dropout": trial.suggest_float("dropout", 0.0, 0.5, step=0.1),
    }
