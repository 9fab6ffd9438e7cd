"""Writes the item vectors of a run, and the ids that they belong to.

    python -m experiments.encode --workdir=runs/lora --out=items.npy
    python -m experiments.encode --config=configs/movielens_100k.py:frozen --out=items.npy

items.npy is float32 [I, D], what the scoring head compares user embeddings with; items.ids.json lists the I item ids
in order. With --config in place of --workdir, the vectors are those of the items' texts by the configuration's language
model as it came.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments.cli import command
from experiments.cli.console import visible
from llm4rec_jax.inference.generative import Ranker
from llm4rec_jax.io import replacing, write_text, writing
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import restore_scorer
from llm4rec_jax.runs.schema import resolve

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration whose language model encodes, without a run.")
flags.declare_key_flag("workdir")
_OUT = flags.DEFINE_string("out", None, "The .npy file to write.", required=True)


def main() -> None:
    out = Path(_OUT.value or "")
    if out.suffix != ".npy" or not out.parent.is_dir():
        raise ValueError(f"--out={out} is not a .npy file in a folder that exists")
    if _CONFIG.value is None:
        assembly, scorer = restore_scorer(command.workdir())
        if isinstance(scorer, Ranker):
            raise ValueError(f"{command.workdir()} generates ids and has no vectors of items: take another run")
        vectors = scorer.item_embeddings().astype(np.float32)
    else:
        assembly = Assembly(resolve(_CONFIG.value))
        params = assembly.params()
        vectors = assembly.scorer.text(params, assembly.method.init(jax.random.key(0), params))
    if jax.process_index():
        return
    ids = out.with_suffix(".ids.json")
    # A command that is killed on the way leaves vectors without ids, and never with those of other items.
    with writing(ids):
        ids.unlink(missing_ok=True)
    with replacing(out) as scratch:
        np.save(scratch, vectors)
    write_text(ids, json.dumps(assembly.dataset.items["item_id"].to_list()) + "\n")
    if command.wants_json():
        command.answer({"out": str(out), "ids": str(ids), "items": vectors.shape[0], "width": vectors.shape[1]})
    else:
        command.log(visible(f"{out}: {vectors.shape[0]} items, {vectors.shape[1]} wide; ids in {ids}"))


if __name__ == "__main__":
    command.run(main, several=True, needs_workdir=False)
