"""Amazon Industrial and Scientific as IISAN's authors prepared it, text only: leave-one-out, 20,825 items ranked.

    git clone https://github.com/GAIR-Lab/IISAN
    python -m experiments.sweep --config=configs/iisan_scientific.py --workdir=runs/iisan
    python -m experiments.tables runs/iisan --spec=configs/iisan_scientific.py

`:arg` is `id`, `frozen`, `id+text`, or one that goes on from `frozen` for the same number of further steps: `more`, the
control without tuning, `lora`, `side` (IISAN's network) and `full`. Fu et al. 2024, arXiv 2404.02059, read titles and
images, so that their rows show what both together reach.
"""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import beauty_tuning_pays, s3rec_beauty
from experiments.reports.spec import Table
from experiments.sweeps.trials import Trial
from llm4rec_jax.registry import unknown_name

SEEDS = (0,)
FOLDER = Path("IISAN/Dataset/Scientific")
FIRST = {"id": "SASRec (ids)", "frozen": "text, frozen", "id+text": "ids + text, frozen"}
FURTHER = {"more": "… and further steps", "lora": "… and LoRA", "side": "… and side", "full": "… and full"}
ARGS = (*FIRST, *FURTHER)
_SOURCE = "Fu et al. 2024, titles and images"
PUBLISHED = [
    ("full fine-tuning", {"hr@10": 0.066, "ndcg@10": 0.041}, _SOURCE),
    ("adapters", {"hr@10": 0.066, "ndcg@10": 0.039}, _SOURCE),
    ("LoRA", {"hr@10": 0.066, "ndcg@10": 0.041}, _SOURCE),
    ("IISAN", {"hr@10": 0.068, "ndcg@10": 0.041}, _SOURCE),
]


def get_config(arg: str = "frozen") -> ConfigDict:
    """The configuration of one row."""
    if arg not in ARGS:
        raise ValueError(unknown_name("row of configs/iisan_scientific.py", arg, ARGS))
    return _on_this_data(arg) if arg in FIRST else beauty_tuning_pays.get_config(arg, _on_this_data)


def _on_this_data(arg: str) -> ConfigDict:
    config: Any = s3rec_beauty.get_config(arg)
    with config.unlocked():
        config.data.source, config.data.published = "sequences", None
        config.data.path = str(FOLDER / "am_Industrial_and_Scientific_users.tsv")
        config.data.options = ConfigDict(
            {
                "items_path": str(FOLDER / "Industrial_and_Scientific_items.tsv"),
                "items_header": ["item_id", "title"],
                "unescape_html": True,
            }
        )
        config.text.item, config.text.title = "{title}", "title"
        config.text.max_tokens = 40
        # The authors read ten items of a history.
        config.train.history, config.model.user_options.transformer.positions = 10, 10
    return config


def sweep() -> list[Trial]:
    """Every row with every seed; what goes on starts from the frozen run of its seed."""
    first = [Trial(f"{arg}-{seed}", arg, {"seed": seed}, group=arg) for arg in FIRST for seed in SEEDS]
    further = [
        Trial(f"{arg}-{seed}", arg, {"seed": seed, "init_from": f"frozen-{seed}"}, group=arg)
        for arg in FURTHER
        for seed in SEEDS
    ]
    return [*first, *further]


def table() -> Table:
    """Returns the table, against frozen texts after the same further steps, with the authors' rows."""
    return Table(
        rows=({"id": FIRST["id"]}, {"frozen": FIRST["frozen"], **FURTHER}, {"id+text": FIRST["id+text"]}),
        metrics=("hr@10", "ndcg@10"),
        costs=("parameters", "delta", "step", "gflop", "memory", "time"),
        baseline="more",
        published=PUBLISHED,
        caption="Amazon Industrial and Scientific as IISAN's authors prepared it, titles only.",
        label="iisan-scientific",
    )
