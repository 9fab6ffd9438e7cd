"""Makes semantic ids from item vectors, as a file that runs of `config.generation` and other codebases read.

    python -m experiments.encode --config=configs/s3rec_beauty.py:frozen --out=beauty.npy
    python -m experiments.semantic_ids --vectors=beauty.npy --out=beauty.index.json --method=residual_kmeans --codes=256

The file has the layout of LETTER's and MiniOneRec's `*.index.json`, under the item ids that `experiments.encode` wrote
beside the vectors. The last line of standard output is one JSON object: collisions before they were resolved, and the
share of the vectors' variance that is left after each level.
"""

import ast
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.cli import command
from llm4rec_jax.checksums import read_json
from llm4rec_jax.semantic_ids import QUANTIZERS, collisions, save_index, with_extra_digit

_VECTORS = flags.DEFINE_string("vectors", None, "The .npy file of experiments.encode.", required=True)
_OUT = flags.DEFINE_string("out", None, "The .index.json file to write.", required=True)
_METHOD = flags.DEFINE_enum("method", "residual_kmeans", sorted(QUANTIZERS), "The quantizer.")
_LEVELS = flags.DEFINE_integer(
    "levels", 3, "Number of levels, before the digit that resolves collisions.", lower_bound=1
)
_CODES = flags.DEFINE_integer("codes", 256, "Number of codes a level.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything random.", lower_bound=0)
_OPTIONS = flags.DEFINE_multi_string("option", [], "NAME=VALUE, an option of the quantizer; may be repeated.")
_RESOLVE = flags.DEFINE_bool("resolve", True, "Add a level that tells items of one id apart, where there are any.")


def options(given: list[str]) -> dict[str, Any]:
    """Returns the options of NAME=VALUE arguments; values are Python literals."""
    values = {}
    for argument in given:
        name, _, value = argument.partition("=")
        try:
            values[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise ValueError(f"--option={argument} is not NAME=VALUE with a value such as 0.01 or True") from None
    return values


def main() -> None:
    source, out = Path(_VECTORS.value or ""), Path(_OUT.value or "")
    if not out.name.endswith(".index.json") or not out.parent.is_dir():
        raise ValueError(f"--out={out} is not an .index.json file in a folder that exists")
    vectors = np.load(source, allow_pickle=False)
    item_ids = read_json(source.with_suffix(".ids.json"))
    if vectors.ndim != 2 or len(vectors) != len(item_ids):
        raise ValueError(f"{source} holds {vectors.shape}, must be [items, width] for {len(item_ids)} items")
    quantizer_options = {"levels": _LEVELS.value, "codes": _CODES.value, "seed": _SEED.value, **options(_OPTIONS.value)}
    ids, left = QUANTIZERS.lookup(_METHOD.value)(vectors, **quantizer_options)
    counts = collisions(ids)
    ids = with_extra_digit(ids) if _RESOLVE.value else ids
    save_index(out, ids, item_ids)
    command.answer({**counts._asdict(), "variance_left": left, "sizes": ids.sizes, "fingerprint": ids.fingerprint})


if __name__ == "__main__":
    command.run(main, needs_workdir=False)
