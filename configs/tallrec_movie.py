"""TALLRec's movie task: ten films with likes and dislikes, and whether the user likes the next one, from k questions.

    python -m experiments.sweep --config=configs/tallrec_movie.py --workdir=runs/tallrec
    python -m experiments.train --config=configs/tallrec_movie.py:gp --workdir=runs/gp --config.data.few_shot=64

`:arg` is one of liked_share, gp, gp_no_order, gp_no_text, hierarchical, text, text_prior, hierarchical_lora, text_lora.
docs/reproductions.md has the table, the time that it took, and what to read from it.

Keys beside those of configs/movielens_100k.py: `text.views`, templates of the texts by which the Gaussian process
compares films; `text.number`, a column of items that it reads as a number; `train.histories`, whether a trained model
learns from the answers of histories too.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.trials import Trial
from llm4rec_jax.registry import unknown_name

SHOTS = (16, 64, 256, 8000)
DRAWS = (0, 1, 2, 3, 4)

TITLE = "{title} ({year})"
# Options of the baselines. The process's were chosen on validation, once for all k.
FITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "liked_share": ("liked_share", {}),
    "gp": ("gp", {}),
    "gp_no_order": ("gp", {"order": False}),
    "gp_no_text": ("gp", {"lengths": ()}),
}
TRAINED = ("hierarchical", "text", "text_prior", "hierarchical_lora", "text_lora")
ARGS = (*FITTED, *TRAINED)


def get_config(arg: str = "gp") -> ConfigDict:
    """The configuration of one model."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/tallrec_movie.py", arg, ARGS))
    config: Any = movielens_100k.get_config("lora" if arg.endswith("_lora") else "frozen")
    with config.unlocked():
        config.data.source = "tallrec_movie"
        config.data.few_shot = 64
        config.text.item = TITLE
        config.text.views = () if arg == "gp_no_text" else (TITLE, "The movie " + TITLE)
        config.text.number = "year"
        config.text.user = "Liked: {liked}. Disliked: {disliked}. Next: {target}."
        config.text.max_prompt_tokens = 192
        config.loss.name = "bce_pointwise"
        if arg in FITTED:
            name, options = FITTED[arg]
            config.baseline.name, config.baseline.options = name, ConfigDict(options)
        else:
            config.model.users = arg.split("_")[0]
            config.model.user_options = ConfigDict(
                {
                    "hierarchical": {"start_closeness": 2.0, "start_recency": 0.05},
                    "text": {"prior": arg != "text"},
                }
            )
        train = config.train
        train.histories, train.pull = True, 10.0
        train.metric, train.patience = "auc", 10
        train.batch_size, train.steps, train.schedule, train.warmup = 256, 300, "constant", 0
        train.learning_rate, train.weight_decay = 1e-2, 0.0
        train.eval_every = train.log_every = 10
        train.checkpoint_every = 100
    return config


def sweep() -> list[Trial]:
    """Every model from k questions in five draws; all 8,000 are one draw."""
    trials = [Trial("liked_share", "liked_share", {}, "liked_share")]
    for model in ("gp", "gp_no_order", "gp_no_text"):
        for k in SHOTS:
            for draw in DRAWS if k < SHOTS[-1] else DRAWS[:1]:
                overrides = {"seed": draw, "data.few_shot": k}
                trials.append(Trial(f"{model}-{k}-{draw}", model, overrides, f"{model}-{k}"))
    return trials
