"""Folders of runs that never ran: made-up results of sixty users, or of labelled rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4rec_jax.evaluation import metrics

USERS = 60


def write(folder: Path, file: str, value: Any) -> None:
    (folder / file).write_text(json.dumps(value), encoding="utf-8")


def run(folder: Path, seed: int = 0, better: float = 0.0, users: int = USERS, **config: Any) -> Path:
    """A run that ranks; `better` is added to every user's NDCG, and a seed moves every one a little."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    ndcg = rng.uniform(0, 0.5, users)
    noise = np.random.default_rng([seed, int(1e4 * better)]).normal(0, 0.02, users)
    values = {
        "hr@10": (ndcg + noise > 0.3).astype(float),
        "ndcg@10": ndcg + better + noise,
        "mrr": ndcg / 2 + better / 10 + noise,
        "mean_rank": 100 - 100 * (ndcg + better + noise),
    }
    history = np.arange(users) % 12 + 1
    popularity = np.arange(users) % 10 * 1.5
    about = {"user_id": [f"u{i}" for i in range(users)], "targets": [1] * users}
    pl.DataFrame({**about, "history": history, "target_popularity": popularity, **values}).write_parquet(
        folder / "per_user_test.parquet"
    )
    test = {name: float(value.mean()) for name, value in values.items()}
    return _finish(folder, seed, {**test, "coverage@20": 0.5 + better, "users": users}, {"name": "lora", **config})


def labelled(folder: Path, seed: int = 0, better: float = 0.0, **config: Any) -> Path:
    """A run that scores labelled rows, two a user; their scores are the label times `better`, and noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 2 * USERS).astype(float)
    scores = better * labels + np.random.default_rng([seed, int(100 * better)]).normal(0, 1, len(labels))
    names = {"user_id": np.repeat([f"u{i}" for i in range(USERS)], 2), "item_id": ["i"] * len(labels)}
    pl.DataFrame({**names, "label": labels, "score": scores}).write_parquet(folder / "per_row_test.parquet")
    return _finish(folder, seed, {"auc": metrics.auc(scores, labels), "rows": len(labels)}, {"name": "like", **config})


def _finish(folder: Path, seed: int, test: dict[str, float], config: dict[str, Any]) -> Path:
    write(folder, "config.json", {"seed": seed, "init_from": str(folder), "train": config, "unset": None})
    data = {"name": "toys", "fingerprint": "ab12", "protocol": "leave-one-out", "split": {"train": 500, "test": USERS}}
    write(folder, "dataset.json", data)
    parameters = {"trainable": 1500 + seed, "delta": 500, "frozen": 20_000}
    step = {"seconds": 0.25, "flops": 3e9, "bytes": 2**21, "programs": 1}
    write(
        folder,
        "result.json",
        {"test": test, "best_step": 20, "parameters": parameters, "seconds": 30.0 + seed, "step": step},
    )
    lines = [
        {"kind": "validation", "step": step, "seconds": 1.0 + step, "ndcg@10": step / 100, "auc": 0.5 + step / 100}
        for step in (0, 10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def sweep(workdir: Path, text: str = "", **groups: float) -> Path:
    """A sweep's workdir: group to how much better it is, two seeds each; `text` is its configuration file's."""
    workdir.mkdir(parents=True)
    trials = []
    for group, better in groups.items():
        for seed in (0, 1):
            folder = f"hash-of-{group}-{seed}"
            run(workdir / folder, seed, better, group=group)
            trials.append({"folder": folder, "name": f"{group}-{seed}", "group": group, "status": "finished"})
    config = workdir.with_name(f"{workdir.name}_config.py")
    config.write_text(text, encoding="utf-8")
    write(workdir, "sweep.json", {"config": str(config), "trials": trials})
    return workdir
