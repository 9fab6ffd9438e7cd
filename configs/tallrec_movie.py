"""TALLRec's movie task: ten films with likes and dislikes, and whether the user likes the next one, from k questions.

    python -m experiments.sweep --config=configs/tallrec_movie.py --workdir=runs/tallrec
    python -m experiments.train --config=configs/tallrec_movie.py:gp --workdir=runs/gp --config.data.few_shot=64

`:arg` is one of liked_share, gp, gp_no_order, gp_no_text, hierarchical, text, text_prior, hierarchical_lora, text_lora.
docs/results/reproductions.md has the table, the time that it took, and what to read from it.

Keys beside those of configs/movielens_100k.py: `text.views`, templates of the texts by which the Gaussian process
compares films; `text.number`, a column of items that it reads as a number; `train.histories`, whether a trained model
learns from the answers of histories too.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
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
TUNED = ("hierarchical_lora", "text_lora")
ARGS = (*FITTED, "hierarchical", "text", "text_prior", *TUNED)

# How many settings were compared on validation. Those of the process, and of attention, are one for all k.
TRIED = {
    "liked_share": 1,
    "gp": 112,
    "gp_no_order": 112,
    "gp_no_text": 112,
    "hierarchical": 32,
    "text": 1,
    # Rates 1e-3, 3e-4 and 1e-4 on the first draw of 64.
    "hierarchical_lora": 3,
    "text_lora": 3,
}
# AUC at 16, 64 and 256 questions, from the table of TALLRec's README (Bao et al. 2023, arXiv 2305.00447).
PUBLISHED = {
    "GRU": (0.4907, 0.4987, 0.5289),
    "SASRec": (0.5043, 0.5048, 0.5225),
    "DROS": (0.5076, 0.5154, 0.5407),
    "GRU-BERT": (0.5085, 0.5165, 0.5344),
    "DROS-BERT": (0.5021, 0.5171, 0.5394),
    "TALLRec (LLaMA-7B, LoRA)": (0.6724, 0.6748, 0.7198),
}
LABELS = {
    "gp": "Gaussian process",
    "gp_no_order": "… without the order of histories",
    "gp_no_text": "… without texts",
    "hierarchical": "attention to titles, from the liked share",
    "text": "frozen encoder reads one prompt",
    "hierarchical_lora": "attention to titles, the encoder tuned by LoRA",
    "text_lora": "LoRA on one prompt, from the liked share",
}


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
        train.histories, train.l2_to_init = True, 10.0
        train.metric, train.patience = "auc", 10
        train.batch_size, train.steps, train.schedule, train.warmup = 256, 300, "constant", 0
        train.learning_rate, train.weight_decay = 2e-2, 0.0
        train.eval_every = train.log_every = 10
        train.checkpoint_every = 100
        if arg in TUNED:
            train.learning_rate, train.scales = 1e-3, "params/answers/.*=20"
            train.batch_size, train.steps, train.patience = 32, 40, None
            train.eval_every = train.checkpoint_every = 20
    return config


def _groups() -> dict[int, list[str]]:
    """The models that are fitted to k questions. No order, no texts: from 64 and all; prompts, LoRA: not from all."""
    return {
        k: ["gp"]
        + ["gp_no_order", "gp_no_text"] * (k in (64, SHOTS[-1]))
        + ["hierarchical"]
        + ["text", *TUNED] * (k < SHOTS[-1])
        for k in SHOTS
    }


def sweep() -> list[Trial]:
    """Every model in five draws of k questions; all 8,000 are one draw."""
    trials = [Trial("liked_share", "liked_share", {}, "liked_share")]
    for k, models in _groups().items():
        for model in models:
            for draw in DRAWS if k < SHOTS[-1] else DRAWS[:1]:
                overrides = {"seed": draw, "data.few_shot": k}
                trials.append(Trial(f"{model}-{k}-{draw}", model, overrides, f"{model}-{k}"))
    return trials


def table() -> Table:
    """A section for each k, all against the liked share, which needs no question at all."""
    return Table(
        rows=(
            {"liked_share": "liked share, untrained"},
            *({f"{model}-{k}": f"{k:,}: {LABELS[model]}" for model in models} for k, models in _groups().items()),
        ),
        metrics=("auc", "gauc"),
        costs=("parameters",),
        baseline="liked_share",
        spread="interval",
        tried={
            "liked_share": 1,
            **{f"{model}-{k}": TRIED[model] for k, models in _groups().items() for model in models},
        },
        published=[
            (f"{k}: {name}", {"auc": values[i]}, "TALLRec's README")
            for i, k in enumerate(SHOTS[:-1])
            for name, values in PUBLISHED.items()
        ],
        scale=100,
        digits=1,
        caption="TALLRec's movie task, k questions to train on. Test has 16 users only: intervals are over users, "
        "wide, and with so few tend to be too narrow all the same.",
        label="tallrec-movie",
    )
