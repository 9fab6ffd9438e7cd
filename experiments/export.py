"""Writes a trained encoder for other libraries: as an adapter that Hugging Face's peft opens, or as a whole model.

    python -m experiments.export --workdir=runs/lora --out=adapter
    python -m experiments.export --workdir=runs/lora --out=model --merge

An adapter folder also has `recommender.safetensors`, the head and the user model. A merged folder is opened by
transformers and by sentence-transformers.
"""

from pathlib import Path

from absl import flags

from experiments.cli import command
from llm4rec_jax import peft
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.peft.hf import save_load
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import restore

_OUT = flags.DEFINE_string("out", None, "The folder to write.", required=True)
_MERGE = flags.DEFINE_bool("merge", False, "Fold the method into the encoder's weights, and write all of them.")


def main() -> None:
    workdir = command.workdir()
    assembly, restored = restore(workdir)
    if not isinstance(assembly, Assembly):
        raise ValueError(f"{workdir} rates labeled examples: only a run that ranks is exported")
    params, delta = {**restored.frozen, **restored.trainable["params"]}, restored.trainable["delta"]
    config = assembly.config
    if not assembly.reads_text or config.peft.within != "encoder":
        adapted = config.peft.within if assembly.reads_text else "no encoder"
        raise ValueError(f"{workdir} adapts {adapted}: nothing to export")
    method, own = assembly.bare_method, delta["encoder"]
    others = {name: part for name, part in params.items() if name != "encoder"}
    source, encoder = assembly.encoder_path, assembly.model.text_encoder.encoder
    sentences = {
        "tokenizer_from": source,
        "pooling": config.encoder.pooling or encoder.family.pooling,
        "max_tokens": min(config.text.max_tokens, encoder.config.max_position_embeddings),
    }
    if _MERGE.value:
        written = save_load.merge(_OUT.value, encoder, params["encoder"], method, own, **sentences)
    elif assembly.starts_tuned:
        raise ValueError(
            f"{workdir} started from the encoder that {config.init_from} has tuned, and an adapter of it would fit no "
            "published model: give --merge"
        )
    else:
        # A shortened encoder is compared with the whole one, so a hub name must be a folder; a GGUF file always must.
        base = str(huggingface.resolve(source) if config.encoder.layers or Path(source).exists() else source)
        written = save_load.save(
            _OUT.value, method, own, params["encoder"], base=base, others=others, family=encoder.family, **sentences
        )
    command.answer({"out": str(Path(written)), "method": method.name, "parameters": peft.count(own)})


if __name__ == "__main__":
    command.run(main)
