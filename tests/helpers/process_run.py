"""One of several processes of small runs, one a loss; "rating" is a run of the rating task:

python -m tests.helpers.process_run WORKDIR LOSSES INDEX COUNT PORT
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from llm4rec_jax import peft, sharding
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.evaluation import evaluate
from llm4rec_jax.models.encoders import huggingface as pretrained
from llm4rec_jax.models.recommender import init, recommender
from llm4rec_jax.training import loop
from tests.helpers import rating, tiny
from tests.helpers.training import train


def main(workdir: Path, losses: str, index: int, count: int, port: int) -> None:
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    names = losses.split(",")
    if "rating" in names:
        names.remove("rating")
        task, config = rating.task_of(steps=8, eval_every=4, log_every=1)
        rated = loop.train(task, config, workdir / "rating", mesh=sharding.make_mesh())
        found = task.evaluate(rated.trainable, rated.frozen)
        (workdir / "rating" / f"found{index}.json").write_text(json.dumps(found))
    if names:
        rank(workdir, names, index)


def rank(workdir: Path, losses: Sequence[str], index: int) -> None:
    split = tiny.split()
    folder = workdir.parent / f"encoder{index}"
    tokens = tokenise(
        item_texts(split.dataset.items, "the {title}."), tokenizer(tiny.encoder_folder(folder)), 16, folder / "cache"
    )
    encoder, params = pretrained.load(folder, layers=1)
    model = recommender(encoder=encoder, users="mean", width=16)
    method = peft.within(peft.create("lora"), "encoder")
    mesh = sharding.make_mesh()
    for loss in losses:
        trained = train(
            model, method, init(model, jax.random.key(0), params), split, workdir / loss, loss=loss, tokens=tokens,
            mesh=mesh, steps=8, batch_size=16, history=8, eval_every=8, log_every=1, dropout=False, num_negatives=2,
        )  # fmt: skip
        weights = {**trained.frozen["params"], **trained.trainable["params"]}
        scorer = trained.scorer.of(
            weights, trained.trainable["delta"], trained.frozen["text"], trained.frozen["states"]
        )
        found = evaluate.evaluate(scorer, split, "test", mesh=mesh, beyond_accuracy=True)
        summary = {name: float(value) for name, value in found.summary.items()}
        ranks = found.per_user["mean_rank"].to_list()
        (workdir / loss / f"found{index}.json").write_text(json.dumps({"summary": summary, "ranks": ranks}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
