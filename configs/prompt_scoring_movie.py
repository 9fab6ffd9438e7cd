"""TALLRec's movie task by prompts: a language model reads ten films with likes and dislikes, and answers Yes or No.

    python -m experiments.sweep --config=configs/prompt_scoring_movie.py --workdir=runs/prompts
    python -m experiments.train --config=configs/prompt_scoring_movie.py:lora --workdir=runs/lora

`:arg` is one of liked_share, zero_shot, in_context, lora. Questions are those of configs/tallrec_movie.py, as is the
row without a language model. docs/guides/llm_recommenders.md describes the keys.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import tallrec_movie
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

SHOTS = (64, 256)
DRAWS = (0, 1, 2, 3, 4)
ARGS = ("liked_share", "zero_shot", "in_context", "lora")
LABELS = {"liked_share": "liked share, untrained", "zero_shot": "zero-shot"}
TEMPLATE = (
    "The user liked these films: {liked}.\nThe user disliked these films: {disliked}.\n"
    "Question: Will the user like the film {target}?\nAnswer with Yes or No:"
)


def get_config(arg: str = "lora") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/prompt_scoring_movie.py", arg, ARGS))
    if arg == "liked_share":
        return tallrec_movie.get_config(arg)
    config: Any = tallrec_movie.get_config("text_lora")
    with config.unlocked():
        config.task, config.loss.name = "prompt_scoring", "language_model"
        config.encoder.path = "smollm2"
        config.text.user, config.text.max_prompt_tokens = TEMPLATE, 320
        train = config.train
        train.scales, train.l2_to_init, train.histories = "", 0.0, False
        train.batch_size, train.steps, train.learning_rate = 16, 32, 1e-3
        train.schedule, train.warmup = "cosine", 4
        train.eval_every = train.checkpoint_every = 32
        train.log_every = 4
        # As in TALLRec: queries and values of all blocks.
        lora = {"rank": 8, "alpha": 16.0, "dropout": 0.05, "target": ".*/(query|value)"}
        config.peft.options = ConfigDict({"lora": lora} if arg == "lora" else {})
        if arg != "lora":
            config.peft.method, train.steps, train.warmup = "frozen", 0, 0
        if arg == "in_context":
            config.prompt.examples, config.text.max_prompt_tokens = 4, 1600
    return config


def sweep() -> list[Trial]:
    """The liked share and the language model as it came, and LoRA in five draws of k questions."""
    trials = [Trial(arg, arg, {}, arg) for arg in ("liked_share", "zero_shot")]
    for k in SHOTS:
        for draw in DRAWS:
            trials.append(Trial(f"lora-{k}-{draw}", "lora", {"seed": draw, "data.few_shot": k}, f"lora-{k}"))
    return trials


def table() -> Table:
    """All rows against the liked share."""
    return Table(
        rows=(LABELS, *({f"lora-{k}": f"{k}: LoRA"} for k in SHOTS)),
        metrics=("auc", "gauc"),
        costs=("parameters",),
        baseline="liked_share",
        spread="interval",
        tried={**dict.fromkeys(LABELS, 1), **{f"lora-{k}": 1 for k in SHOTS}},
        published=[
            (f"{k}: {name}", {"auc": values[tallrec_movie.SHOTS.index(k)]}, "TALLRec's README")
            for k in SHOTS
            for name, values in tallrec_movie.PUBLISHED.items()
        ],
        scale=100,
        digits=1,
        caption="TALLRec's movie task, a language model asked by prompts, k questions to train on. Test has 16 users "
        "only: intervals are over users.",
        label="prompt-scoring-movie",
    )
