"""MovieLens-100k by the likelihood of a film's title after a history, beside popularity and a model of ids.

    python -m experiments.sweep --config=configs/title_likelihood_movielens.py --workdir=runs/titles
    python -m experiments.train --config=configs/title_likelihood_movielens.py:lora --workdir=runs/titles_lora

`:arg` is one of popularity, id, zero_shot, zero_shot_normalized, listwise, lora. Each target is ranked among 20
films, the same for every model; `--config.evaluation.candidates=all` ranks the whole catalogue, for which SmolLM2
takes a GPU.
docs/guides/llm_recommenders.md describes the keys.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

LABELS = {
    "popularity": "popularity",
    "id": "ids, no text",
    "zero_shot": "SmolLM2-135M, zero-shot",
    "zero_shot_normalized": "SmolLM2-135M, zero-shot, by token",
    "listwise": "SmolLM2-135M, lettered candidates",
    "lora": "SmolLM2-135M, LoRA",
}
ARGS = tuple(LABELS)
TEMPLATE = "A user watched these films, one after the other: {history};"
LISTWISE = "A user watched these films: {history}.\nCandidates:\n{candidates}\nThe next film has the letter"


def get_config(arg: str = "zero_shot") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/title_likelihood_movielens.py", arg, ARGS))
    config: Any = movielens_100k.get_config("lora" if arg == "lora" else "id" if arg == "id" else "frozen")
    with config.unlocked():
        config.evaluation.candidates = "sampled_20"
        if arg in ("popularity", "id"):
            config.baseline.name = "popularity" if arg == "popularity" else None
            return config
        config.task, config.encoder.path = "title_likelihood", "smollm2"
        config.text.user, config.text.max_items, config.text.max_prompt_tokens = TEMPLATE, 10, 128
        # After the titles of the history, each of which is followed by a semicolon.
        config.prompt.title = " {title};"
        config.prompt.normalize_length = arg == "zero_shot_normalized"
        train = config.train
        train.scales = ""
        if arg == "listwise":
            config.prompt.orders, config.text.user, config.text.max_prompt_tokens = 4, LISTWISE, 512
        if arg != "lora":
            train.steps, train.warmup = 0, 0
            return config
        train.batch_size, train.steps, train.warmup, train.learning_rate = 32, 400, 20, 5e-4
        train.eval_every = train.checkpoint_every = 100
        config.peft.options = ConfigDict({"lora": {"rank": 8, "alpha": 16.0, "target": ".*/(query|value)"}})
    return config


def sweep() -> list[Trial]:
    """All rows."""
    return [Trial(arg, arg, {}, arg) for arg in ARGS]


def table() -> Table:
    """All rows against popularity."""
    return Table(
        rows=(LABELS,),
        metrics=("hr@5", "ndcg@5", "ndcg@10", "mrr"),
        costs=("parameters",),
        baseline="popularity",
        spread="interval",
        tried=dict.fromkeys(LABELS, 1),
        caption="MovieLens-100k, the target among 20 drawn films, the same for every model.",
        label="title-likelihood-movielens",
    )
