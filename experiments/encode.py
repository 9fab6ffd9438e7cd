"""Writes the item vectors of a run, and the ids that they belong to.

    python -m experiments.encode --workdir=runs/lora --out=items.npy

items.npy is float32 [I, D], what the scoring head compares user embeddings with; items.ids.json lists the I item ids
in order.
"""

import json
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.cli import command
from llm4rec_jax.io import replacing, write_text
from llm4rec_jax.runs.results import restored_scorer

_OUT = flags.DEFINE_string("out", None, "The .npy file to write.", required=True)


def main() -> None:
    out = Path(_OUT.value or "")
    if out.suffix != ".npy" or not out.parent.is_dir():
        raise ValueError(f"--out={out} is not a .npy file in a folder that exists")
    assembly, scorer = restored_scorer(command.workdir())
    vectors = scorer.item_embeddings().astype(np.float32)
    if jax.process_index():
        return
    with replacing(out) as scratch:
        np.save(scratch, vectors)
    ids = out.with_suffix(".ids.json")
    write_text(ids, json.dumps(assembly.dataset.items["item_id"].to_list()) + "\n")
    print(f"{out}: {vectors.shape[0]} items, {vectors.shape[1]} wide; ids in {ids}")


if __name__ == "__main__":
    command.run(main, several=True)
