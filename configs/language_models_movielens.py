"""Language models on MovieLens-100k: a sentence encoder, a plain language model and random weights, frozen and tuned.

    python -m experiments.sweep --config=configs/language_models_movielens.py --workdir=runs/language_models --workers=2
    python -m experiments.train --config=configs/language_models_movielens.py:smollm2_8 --workdir=runs/smollm2_8

A night on two cores; on a GPU change get_config's `encoder.dtype` to bfloat16. `:arg` is `id`, or a model, alone for
frozen vectors or with what is done to it, as in `minilm_centred`. Models:

    random      MiniLM's architecture with random weights
    minilm      MiniLM-L6, a frozen sentence encoder
    smollm2_8   the first eight blocks of SmolLM2-135M, a frozen language model
    smollm2     all thirty

`_centred` and `_whitened` change the frozen vectors of the catalogue, the latter to 64 components. `_lora` tunes the
last two blocks from where the frozen run of the seed ended, and `_more` makes the same further steps without LoRA.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import movielens_100k
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

SEEDS = (0,)
MODELS: dict[str, dict[str, Any]] = {
    "random": {"encoder.pretrained": False},
    "minilm": {},
    "smollm2_8": {"encoder.path": "smollm2", "encoder.layers": 8},
    "smollm2": {"encoder.path": "smollm2"},
}
VECTORS: dict[str, dict[str, Any]] = {"centred": {"encoder.center": True}, "whitened": {"encoder.whiten": 64}}
TUNED = ("minilm", "smollm2_8", "smollm2")
FROZEN = tuple(f"{model}{change}" for model in MODELS for change in ("", *(f"_{name}" for name in VECTORS)))
FURTHER = tuple(f"{model}_{change}" for model in TUNED for change in ("more", "lora"))
ARGS = ("id", *FROZEN, *FURTHER)

LABELS = {
    "id": "ids, no text",
    "random": "random weights",
    "minilm": "frozen sentence encoder (MiniLM-L6)",
    "smollm2_8": "frozen language model (SmolLM2-135M, 8 of 30 blocks)",
    "smollm2": "frozen language model (SmolLM2-135M)",
}
CHANGES = {
    "centred": "… centred",
    "whitened": "… whitened to 64 components",
    "more": "… and further steps",
    "lora": "… and LoRA in the last two blocks",
}


def get_config(arg: str = "minilm") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("model of configs/language_models_movielens.py", arg, ARGS))
    model, _, change = arg.rpartition("_") if arg.rpartition("_")[2] in CHANGES else (arg, "", "")
    config: Any = movielens_100k.get_config("id" if arg == "id" else "frozen")
    with config.unlocked():
        # The same pooling for all: the mean, by which the sentence encoder was trained.
        config.encoder.pooling = "mean"
        config.update_from_flattened_dict({**MODELS.get(model, {}), **VECTORS.get(change, {})})
        if arg in FURTHER:
            train = config.train
            train.steps, train.warmup, train.batch_size, train.learning_rate = 200, 20, 256, 1e-3
            train.eval_every = train.checkpoint_every = 20
            # The head is trained already and goes on slowly.
            train.scales = "params/.*=0.2"
            if change == "lora":
                config.peft.method = "lora"
                config.peft.options.lora = ConfigDict({"rank": 16, "alpha": 32.0, "target": "layer_-[12]/.*"})
    return config


def sweep() -> list[Trial]:
    """All rows with every seed; what goes on starts from the frozen run of its seed."""
    first = [Trial(f"{arg}-{seed}", arg, {"seed": seed}, group=arg) for arg in ("id", *FROZEN) for seed in SEEDS]
    further = [
        Trial(f"{arg}-{seed}", arg, {"seed": seed, "init_from": f"{arg.rpartition('_')[0]}-{seed}"}, group=arg)
        for arg in FURTHER
        for seed in SEEDS
    ]
    return [*first, *further]


def table() -> Table:
    """A section for each model, all against the frozen sentence encoder."""
    sections = [{"id": LABELS["id"]}]
    for model in MODELS:
        changes = [*VECTORS, *(("more", "lora") if model in TUNED else ())]
        sections.append({model: LABELS[model], **{f"{model}_{change}": CHANGES[change] for change in changes}})
    return Table(
        rows=sections,
        metrics=("hr@10", "ndcg@10", "mrr"),
        costs=("delta", "step", "time"),
        baseline="minilm",
        spread="interval",
        caption="Language models on MovieLens-100k, leave-one-out, all 1,682 films ranked.",
        label="language-models-movielens",
    )
