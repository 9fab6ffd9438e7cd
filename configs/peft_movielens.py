"""Every parameter-efficient method on MovieLens-100k, three seeds each, from one trained recommender a seed.

    python -m experiments.sweep --config=configs/peft_movielens.py --workdir=runs/peft --workers=2

About an hour on two cores. The encoder is the first two blocks of MiniLM-L6, which read titles, so that every method
can adapt all of it. `base` trains head and user model over frozen text; each method starts from the base of its
seed and trains encoder, head and user model on for the same few steps, `frozen` among them: the difference to that row
is what the method gives. docs/results/peft.md says what to read from it.

`:arg` is `base`, a method's name, or a chain such as `lora+bitfit`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.peft import METHODS

SEEDS = (0, 1, 2)
STEPS = 16
BASELINE = "frozen"

# Where a default does not fit an encoder of two blocks, titles of six tokens and few steps; none was tuned.
OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {"alpha": 32.0},
    "compacter": {"reduction": 16},
    "last_k": {"k": 1},
    "lora_plus": {"ratio": 4.0},
    # Behind peft's positions the text is not what the base has seen: validation NDCG@10 starts at .02, and here at .07.
    "prefix": {"length": 5, "shift": False},
    "prompt": {"length": 5},
}
# Head and user model, which the base has trained to the end, go on slowly.
RATE = 3e-4
# Learning rates of what a method trains. Few were tried, all on seed 2: frozen's own; full 1e-4; LoRA 5e-3; LoRA+ 3e-3;
# Houlsby 2e-3; IA3 2e-2; BitFit 2e-3 and 6e-3. A method that resembles one of them has its rate.
RATES = {
    "frozen": RATE,
    **dict.fromkeys(("full", "last_k", "k_adapter"), 1e-4),
    "galore": 1e-3,
    # Its output is multiplied by 4: at the 2e-3 of the other adapters it diverged, on all seeds.
    "parallel": 2e-4,
    **dict.fromkeys(("houlsby", "pfeiffer", "compacter", "side"), 2e-3),
    **dict.fromkeys(("bitfit", "layernorm", "lora_plus"), 3e-3),
    **dict.fromkeys(("lora", "dora", "adalora", "oft"), 5e-3),
    **dict.fromkeys(("prefix", "prompt"), 1e-2),
    **dict.fromkeys(("ia3", "vera"), 2e-2),
}


def get_config(arg: str = "base") -> ConfigDict:
    """The base of a seed, or a method's run from it."""
    config: Any = movielens_100k.get_config("frozen")
    methods = [] if arg == "base" else arg.split("+")
    for name in methods:
        METHODS.lookup(name)
    with config.unlocked():
        config.encoder.layers = 2
        config.text.item = "{title}"
        config.text.max_tokens = 16
        # A linear projection leaves to the encoder what it should say of a title.
        config.model.project = "linear"
        config.model.users = "gru"
        train = config.train
        train.history = 50
        train.steps, train.schedule, train.eval_every, train.checkpoint_every = 300, "cosine", 50, 50
        if methods:
            config.peft.method = arg
            config.peft.options = ConfigDict({name: OPTIONS[name] for name in methods if name in OPTIONS})
            rate = min(RATES.get(name, RATE) for name in methods)
            train.steps, train.learning_rate, train.warmup = STEPS, rate, 3
            train.eval_every = train.checkpoint_every = 8
            train.log_every = 1
            train.scales = f"params/.*={RATE / rate:g}"
    return config


def sweep() -> list[Trial]:
    """The base of every seed, then every method from it."""
    bases = [Trial(f"base-{seed}", "base", {"seed": seed}, group="base") for seed in SEEDS]
    methods = [
        Trial(f"{name}-{seed}", name, {"seed": seed, "init_from": f"base-{seed}"}, group=name, after=f"base-{seed}")
        for name in ("frozen", "full", *sorted(set(METHODS) - {"frozen", "full"}))
        for seed in SEEDS
    ]
    return [*bases, *methods]


def table() -> Table:
    """Accuracy against `frozen`, and what it costs."""
    return Table(metrics=("ndcg@10", "hr@10"), costs=("delta", "share", "step", "gflop", "memory"), baseline=BASELINE)
