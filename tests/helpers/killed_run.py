"""A small run for the tests that kill it, or one of its processes: python -m tests.helpers.killed_run WORKDIR STEPS
[INDEX COUNT PORT WORKERS]."""

import sys
from pathlib import Path

import jax

from llm4rec_jax import peft
from llm4rec_jax.models.recommender import init, recommender
from tests.helpers import tiny
from tests.helpers.training import train


def main(workdir: Path, steps: int, index: int = 0, count: int = 1, port: int = 0, workers: int = 0) -> None:
    if count > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    split = tiny.split()
    model = recommender(num_items=split.dataset.num_items, users="transformer", width=16)
    train(
        model, peft.create("frozen"), init(model, jax.random.key(0)), split, workdir,
        loss="softmax", num_negatives=4, steps=steps, batch_size=16, history=8, accumulate=2, schedule="cosine",
        eval_every=7, checkpoint_every=3, log_every=2, input_workers=workers,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
