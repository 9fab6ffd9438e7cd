"""HLLM on MovieLens-100k: a language model reads the films' texts, and another one reads the films of a history.

    python -m experiments.train --config=configs/hllm_movielens.py:hllm --workdir=runs/hllm
    python -m experiments.sweep --config=configs/hllm_movielens.py --workdir=runs/hllm_study

Both language models are the first four blocks of SmolLM2-135M. Every row has the same vectors of films at the start,
the same losses and the same number of steps. `:arg` is one of

    sasrec       SASRec over the films' vectors
    random       the decoder over histories from random weights
    hllm         the decoder over histories from SmolLM2's weights, trained whole
    hllm_lora    the same with LoRA in both language models
    hllm_full    the same with both trained whole; give it a GPU

docs/guides/llm_recommenders.md describes the model (Chen et al. 2024, arXiv 2409.12740).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

BLOCKS, WIDTH = 4, 576
SEEDS = (0,)
ROWS: tuple[dict[str, str], ...] = (
    {"sasrec": "SASRec"},
    {"random": "decoder from random weights", "hllm": "SmolLM2 (HLLM)", "hllm_lora": "… LoRA in both models"},
)
ARGS = ("sasrec", "random", "hllm", "hllm_lora", "hllm_full")


def get_config(arg: str = "hllm") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/hllm_movielens.py", arg, ARGS))
    config: Any = movielens_100k.get_config("frozen")
    with config.unlocked():
        config.encoder.path, config.encoder.layers = "smollm2", BLOCKS
        config.encoder.pooling = "last"
        # Vectors of the last token differ little between films before training, so they are projected.
        config.model.width, config.model.project = WIDTH, "linear"
        config.model.head, config.model.head_options = "cosine", ConfigDict({"temperature": 0.05})
        config.loss.name = "in_batch"
        config.model.users = "transformer" if arg == "sasrec" else "llm"
        users = config.model.user_options
        users.transformer.layers, users.transformer.heads = 2, 8
        users.llm = ConfigDict({"path": "smollm2", "pretrained": arg != "random", "layers": BLOCKS, "dropout": 0.0})
        if arg in ("hllm_lora", "hllm_full"):
            config.peft.method = arg.removeprefix("hllm_")
            config.peft.within = "encoder+users"
        if arg == "hllm_lora":
            # States of films below the encoder's last block are computed once.
            lora = {"rank": 16, "alpha": 32.0, "target": "layer_-1/.*"}
            config.peft.options = ConfigDict({"lora": lora})
        train = config.train
        train.history, train.batch_size = 50, 64
        train.steps, train.warmup, train.learning_rate = 300, 30, 3e-4
        # The decoder is trained already, and goes on slowly; the projection and SASRec begin at random.
        train.scales = "params/users/.*=0.3" if arg == "hllm" else ""
        train.eval_every = train.checkpoint_every = 50
    return config


def sweep() -> list[Trial]:
    """The rows of the table with every seed."""
    names = [name for section in ROWS for name in section]
    return [Trial(f"{name}-{seed}", name, {"seed": seed}, group=name) for name in names for seed in SEEDS]


def table() -> Table:
    """All rows against SASRec."""
    return Table(
        rows=ROWS,
        metrics=("hr@10", "ndcg@10", "mrr"),
        costs=("parameters", "step", "time"),
        baseline="sasrec",
        spread="interval",
        caption="HLLM on MovieLens-100k, leave-one-out, all 1,682 films ranked.",
        label="hllm-movielens",
    )
