"""Lists the families of language models, or says what would be loaded and how much memory a training step takes.

    python -m experiments.models
    python -m experiments.models smollm2 /models/bert-base-uncased
    python -m experiments.models qwen2.5-1.5b --methods=full,lora --texts=16 --tokens=128 --dtype=bfloat16

Without an argument it prints the families. Each argument is a folder, "minilm" or "smollm2", a hub name, or the name of
a shape that needs no weights: smollm2-135m, smollm2-360m, qwen2.5-0.5b, qwen2.5-1.5b, qwen2.5-7b, llama-3.2-1b,
llama-3.2-3b. The memory is what XLA's buffer assignment says for this machine's device; nothing is computed.
"""

import json
from typing import Any

from absl import flags

from experiments.cli import command
from experiments.cli.console import visible
from experiments.reports import models
from llm4rec_jax.models.layers.quantized import FORMATS

_METHODS = flags.DEFINE_list("methods", ["frozen", "lora", "full"], "Methods, or chains such as lora+bitfit.")
_TEXTS = flags.DEFINE_integer("texts", 16, "Number of texts in a batch.", lower_bound=2)
_TOKENS = flags.DEFINE_integer("tokens", 128, "Number of tokens of a text.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", None, "Number of first blocks that are kept; all by default.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Type of activations.")
_QUANTIZE = flags.DEFINE_enum("quantize", None, sorted(FORMATS), "Format of the frozen weights; float32 by default.")
_REMAT = flags.DEFINE_bool("remat", False, "Compute blocks again in the backward pass.")


def main(names: list[str]) -> None:
    if not names:
        if command.wants_json():
            for row in models.family_rows():
                print(json.dumps(row))
        else:
            print(models.family_table())
    options = {"layers": _LAYERS.value, "compute_dtype": _DTYPE.value, "remat": _REMAT.value}
    for model in [models.find_model(name, **options) for name in names]:
        summary = model.summary
        rows = models.memory_rows(model, _METHODS.value, _TEXTS.value, _TOKENS.value, _QUANTIZE.value)
        if command.wants_json():
            print(json.dumps({**summary, "texts": _TEXTS.value, "tokens": _TOKENS.value, **options, "memory": rows}))
        else:
            print("\n".join(f"{key}: {visible(_worded(value))}" for key, value in summary.items()))
            print(f"\nA step on {_TEXTS.value} texts of {_TOKENS.value} tokens, {_DTYPE.value}, in GB:\n")
            print(f"{models.memory_table(rows)}\n", flush=True)


def _worded(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value if value not in ([], {}, None) else "–")


if __name__ == "__main__":
    command.run_on(main, "model", needs_one=False)
