"""Writes a configuration's data as files that training maps into memory instead of reading them.

    python -m experiments.prepare --config=configs/movielens_100k.py:lora --out=prepared
    python -m experiments.train --config=configs/movielens_100k.py:lora --workdir=runs/lora \\
        --config.data.source=prepared --config.data.path=prepared

The filters of the configuration are applied, so leave them out of the second command. The last line of standard output
is one JSON object with the seconds and the peak memory it took. With --beam the work is an Apache Beam pipeline, whose
runner the pipeline options name: --beam="--runner=DirectRunner". docs/guides/large_data.md has figures and limits.
"""

import resource
import shlex
import time
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from experiments.cli import command
from llm4rec_jax.data.ondisk.writer import PART, Texts, local, prepare
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.runs.assemble import Assembly

_CONFIG = config_flags.DEFINE_config_file("config", None, "FILE.py or FILE.py:arg; --config.KEY=VALUE changes a value.")
_OUT = flags.DEFINE_string("out", None, "The folder to write, which must not exist.", required=True)
_PART = flags.DEFINE_integer("part", PART, "Interactions sorted in memory at a time.", lower_bound=1)
_BEAM = flags.DEFINE_string("beam", None, 'Options of a Beam pipeline; needs the extra "beam".')


def main() -> None:
    started = time.perf_counter()
    assembly = Assembly(_CONFIG.value)
    config, out = assembly.config, Path(_OUT.value or "")
    if out.exists():
        raise ValueError(f"--out={out} exists: remove it, or name another folder to prepare")
    if config.data.split != "leave_one_out":
        raise ValueError(f"config.data.split is {config.data.split!r}: only leave_one_out is prepared")
    texts = None
    if assembly.reads_text:
        texts = Texts(config.text.item, str(huggingface.resolve(assembly.encoder_path)), config.text.max_tokens)
    engine = local
    if _BEAM.value is not None:
        from llm4rec_jax.data.ondisk.beam import pipeline  # Comes with an extra

        engine = pipeline(shlex.split(_BEAM.value))
    prepare(assembly.dataset, out, texts=texts, engine=engine, part=_PART.value, **config.data.split_options)
    used = resource.getrusage(resource.RUSAGE_SELF)
    command.answer(
        {
            "folder": str(out),
            "bytes": sum(path.stat().st_size for path in out.iterdir()),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "peak_rss_bytes": used.ru_maxrss * 1024,
        }
    )


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    command.run(main, needs_workdir=False)
