"""Commands run as a person runs them, in processes of their own, and a configuration on files of the tiny dataset."""

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import forked
from tests.helpers.compiling import environment

ROOT = Path(__file__).parents[2]

CONFIG = """
from ml_collections import ConfigDict
from configs import movielens_100k

def get_config(arg="id"):
    config = movielens_100k.get_config(arg)
    with config.unlocked():
        config.data.source = "table"
        config.data.path = {interactions!r}
        config.data.options = ConfigDict(dict(
            user="user", item="item", rating="rating", timestamp="timestamp", items_path={items!r},
            item_columns=dict(title="title"),
        ))
        config.text.item = "the {{title}}."
        config.encoder.path = {encoder!r}
        config.model.width = 16
        config.model.user_options.transformer.positions = 8
        if arg == "lora":
            config.peft.options.lora.target = r".*/(query|value)"
        config.train.update(dict(steps=12, batch_size=16, history=8, warmup=0))
        config.train.update(dict(eval_every=6, log_every=4, metric="ndcg@5"))
    return config
"""


def command(name: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    module, given, variables = f"experiments.{name}", list(map(str, arguments)), environment()
    if forked.can_run(variables):
        done = forked.run(module, given, variables)
    else:
        done = subprocess.run(
            [sys.executable, "-m", module, *given],
            cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> dict:
    return json.loads(done.stdout.strip().splitlines()[-1])
