"""Frozen and tuned language models on Amazon Beauty, each with the steps and rates that it wants.

    python -m experiments.sweep --config=configs/beauty_tuning_pays_tuning.py --workdir=runs/tuning_pays_tuning
    python -m experiments.sweep --config=configs/beauty_tuning_pays.py --workdir=runs/tuning_pays

`frozen` and `id+text` are the rows of configs/s3rec_beauty.py. `:arg` is one of

    frozen, id+text                           frozen texts, by the softmax over the catalogue
    more, bitfit, lora, houlsby, side, full   from where `frozen` ended, for the same number of further steps; `more` is
                                              the control, which tunes nothing
    id+text_more, id+text_lora, id+text_full  the same from where `id+text` ended
    joint_frozen, joint_lora, joint_full      from the start, by the in-batch softmax
    joint_frozen_head, …                      from there all but the encoder, by the softmax over the catalogue
    pairs                                     the encoder alone, by items that follow each other in histories
    pairs_frozen                              `frozen` over the encoder of `pairs`

configs/scientific_tuning_pays.py and configs/movielens_tuning_pays.py have the same rows on other data.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import s3rec_beauty
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

SEEDS = (0, 1, 2)
METHODS = ("bitfit", "lora", "houlsby", "side", "full")
JOINT = ("frozen", "lora", "full")
WARM = {
    **{name: ("frozen", "frozen" if name == "more" else name) for name in ("more", *METHODS)},
    **{f"id+text_{name}": ("id+text", "frozen" if name == "more" else name) for name in ("more", "lora", "full")},
}
ARGS = (
    "frozen",
    "id+text",
    *WARM,
    *(f"joint_{method}" for method in JOINT),
    *(f"joint_{method}_head" for method in JOINT),
    "pairs",
    "pairs_frozen",
)
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 32, "alpha": 32.0, "target": ".*"},
    "houlsby": {"reduction": 16},
}
# Learning rates of what a method trains, and those that configs/*_tuning_pays_tuning.py compares on validation.
RATES = {"bitfit": 1e-3, "lora": 5e-4, "houlsby": 5e-4, "side": 2e-3, "full": 5e-5}
TRIED_RATES = {name: (rate / 2.5, rate, rate * 2.5) for name, rate in RATES.items()}


def get_config(arg: str = "lora", study: Callable[[str], ConfigDict] = s3rec_beauty.get_config) -> ConfigDict:
    """The configuration of one row.

    Args:
      arg: Name of the row.
      study: Gives the configurations of `frozen` and `id+text` on the data.
    """
    if arg not in ARGS:
        raise ValueError(unknown_name("row of configs/beauty_tuning_pays.py", arg, ARGS))
    config: Any = study("id+text" if arg.startswith("id+text") else "frozen")
    train = config.train
    with config.unlocked():
        if arg in WARM:
            _tune(config, WARM[arg][1])
            # The rest is trained already and goes on slowly.
            train.steps, train.warmup, train.batch_size, train.learning_rate = 600, 30, 256, 5e-4
            train.eval_every = train.checkpoint_every = 100
        elif arg.endswith("_head"):
            train.steps, train.warmup, train.batch_size, train.learning_rate = 200, 10, 256, 5e-4
            train.eval_every = train.checkpoint_every = 50
        elif arg.startswith("joint_"):
            _tune(config, arg.removeprefix("joint_"))
            config.loss.name = "in_batch"
            # Frozen texts are encoded once, and dropout would differ from step to step.
            config.encoder.dropout = 0.0 if arg == "joint_frozen" else 0.1
            config.model.project_options = ConfigDict({"init_scale": 0.01})
            train.steps, train.batch_size, train.learning_rate = 2 * train.steps, 256, 1e-3
            train.warmup, train.weight_decay, train.patience = train.steps // 20, 0.01, 10
        elif arg == "pairs":
            # A user is the last item alone: the loss compares the texts of items that follow each other (InfoNCE).
            _tune(config, "lora")
            config.model.users, config.model.project, config.model.head = "mean", "none", "cosine"
            config.loss.name = "info_nce"
            train.history, train.batch_size, train.steps, train.warmup = 1, 512, 1000, 50
            train.eval_every = train.checkpoint_every = 250
    return config


def _tune(config: Any, method: str) -> None:
    config.peft.method = method
    config.peft.options = ConfigDict({method: OPTIONS[method]} if method in OPTIONS else {})
    config.train.rates.encoder = RATES.get(method)


def start_of(arg: str) -> str | None:
    """Returns the row from whose run a row starts."""
    if arg in WARM:
        return WARM[arg][0]
    return {"pairs_frozen": "pairs"}.get(arg, arg.removesuffix("_head") if arg.endswith("_head") else None)


def sweep() -> list[Trial]:
    """Every row with every seed."""
    return [trial(arg, f"{arg}-{seed}", {"seed": seed}, seed) for arg in ARGS for seed in SEEDS]


def trial(arg: str, name: str, overrides: dict[str, Any], seed: int = 0) -> Trial:
    """A run of a row, which starts where the run of the seed that it needs ended."""
    start = start_of(arg)
    return Trial(name, arg, {**overrides, **({"init_from": f"{start}-{seed}"} if start else {})}, group=arg)


def table() -> Table:
    """Returns the table, against frozen texts after the same further steps."""
    return Table(
        rows=(
            {"frozen": "text, frozen", "more": "… and further steps", **{name: f"… and {name}" for name in METHODS}},
            {"id+text": "ids + text, frozen", **{name: name for name in WARM if name.startswith("id+text")}},
            {f"joint_{method}{head}": f"jointly, {method}{', then the head' if head else ''}" for method in JOINT
             for head in ("", "_head")},
            {"pairs": "item pairs", "pairs_frozen": "item pairs, then frozen"},
        ),
        metrics=("ndcg@10", "hr@10"),
        costs=("parameters", "delta", "step", "gflop", "memory", "time"),
        tried={arg: len(TRIED_RATES[method]) if (method := tuned_by(arg)) else 1 for arg in ARGS},
        baseline="more",
        caption="Amazon Beauty as S³-Rec prepared it: frozen and tuned texts.",
        label="beauty-tuning-pays",
    )  # fmt: skip


def tuned_by(arg: str) -> str | None:
    """Returns the method whose rates were compared for a row."""
    method = WARM[arg][1] if arg in WARM else arg.removeprefix("joint_")
    return method if method in RATES else None
