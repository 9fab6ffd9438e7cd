"""Whatever is flipped, overwritten or cut in a file that was written is noticed, named, and never read as a number."""

import contextlib
import json
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.reports import finished_runs
from llm4rec_jax import peft
from llm4rec_jax.checksums import MANIFEST
from llm4rec_jax.data import sources
from llm4rec_jax.data.features.text import item_texts
from llm4rec_jax.data.features.tokens import tokenise, tokenizer
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.peft.hf import save_load
from llm4rec_jax.runs import folder as run_folder
from llm4rec_jax.sharding import digest
from llm4rec_jax.training.checkpoint import Checkpoints
from tests.helpers import tiny
from tests.helpers.commands import command


class Kind(NamedTuple):
    """Files that are damaged one at a time.

    Attributes:
      files: which.
      read: reads values of them, to compare; it raises one of `errors`, or warns, when it sees damage.
      errors: exceptions that it may raise.
    """

    files: list[Path]
    read: Callable[[], Any]
    errors: tuple[type[Exception], ...]


@pytest.fixture(scope="module")
def kinds(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    """Every file of a finished run and around it, by what it is."""
    run = tmp_path_factory.mktemp("runs") / "run"
    often = [f"--config.train.{name}=2" for name in ("eval_every", "checkpoint_every", "log_every")]
    command("train", f"--config={config}:id", f"--workdir={run}", "--config.train.steps=4", *often)
    with contextlib.closing(Checkpoints(run, digest({}))) as checkpoints:
        best = checkpoints.record("last")["best_step"]
    folder = tmp_path_factory.mktemp("beside")
    encoder, params = huggingface.load(tiny.encoder_folder(folder / "encoder"))
    del encoder
    method = peft.create("lora", {"lora": {"rank": 2}})
    delta = method.init(jax.random.key(0), params)
    save_load.save(folder / "adapter", method, delta, params, others={"users": {"kernel": np.ones((3, 2), np.float32)}})
    texts, words = item_texts(tiny.dataset().items, "the {title}."), tokenizer(folder / "encoder")
    tokenise(texts, words, 16, folder / "cache")

    def state(name: str, step: int | None) -> Any:
        with contextlib.closing(Checkpoints(run, digest({}))) as checkpoints:
            return checkpoints.record(name, step)

    def data() -> str:
        dataset = sources.load(
            "table", config.with_name("interactions.csv"), user="user", item="item", rating="rating",
            timestamp="timestamp", items_path=str(config.with_name("items.csv")), item_columns={"title": "title"},
        )  # fmt: skip
        split: Any = SimpleNamespace(protocol=run_folder.read(run / "dataset.json")["protocol"])
        described = {"fingerprint": dataset.fingerprint, "protocol": split.protocol}
        fingerprint = run_folder.read(run / "run.json")["tokenizer"]
        run_folder.check_data(SimpleNamespace(identity=lambda: described, tokenizer_fingerprint=fingerprint), run)
        return dataset.fingerprint

    def table() -> Any:
        found = finished_runs.read(run)
        return found.result, found.data, found.config, found.tested.to_dicts()

    def adapter() -> str:
        found = save_load.load(folder / "adapter")
        return digest({"delta": found.delta, "others": found.others}) + repr(found.method.options)

    def below(folder: Path) -> list[Path]:
        return sorted(file for file in folder.rglob("*") if file.is_file())

    return {
        "last checkpoint": Kind(below(run / "checkpoints/last/4"), lambda: state("last", None), ()),
        "best checkpoint": Kind(below(run / f"checkpoints/best/{best}"), lambda: state("best", best), (ValueError,)),
        "run's JSON": Kind([run / f"{name}.json" for name in ("result", "config", "dataset")], table, (ValueError,)),
        "metrics.jsonl": Kind([run / "metrics.jsonl"], table, (ValueError,)),
        "per-user table": Kind([run / "per_user_test.parquet"], table, (ValueError,)),
        "token cache": Kind(
            below(folder / "cache"), lambda: tokenise(texts, words, 16, folder / "cache").ids.tolist(), ()
        ),
        "adapter": Kind(below(folder / "adapter"), adapter, (save_load.InterchangeError,)),
        "dataset": Kind(
            [config.with_name(name) for name in ("interactions.csv", "items.csv")], data,
            (DataError, run_folder.RunFolderError),
        ),
    }  # fmt: skip


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a bit flipped, a stretch overwritten, zeroed, left out or written twice, or the end cut off."""
    at = rng.randrange(len(content)) if content else 0
    stop = min(len(content), at + rng.randint(1, 64))
    match rng.randrange(6):
        case 0:
            return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        case 1:
            return content[:at] + rng.randbytes(stop - at) + content[stop:]
        case 2:
            return content[:at] + bytes(stop - at) + content[stop:]
        case 3:
            return content[:at] + content[stop:]
        case 4:
            return content[:stop] + content[at:]
        case _:
            return content[:at]


def damage(kinds: dict[str, Kind], count: int, seed: int) -> None:
    rng = random.Random(seed)
    whole = {}
    for name, kind in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            whole[name] = kind.read()
    tally: Counter[tuple[str, str]] = Counter()
    for number in range(count):
        name = list(kinds)[number % len(kinds)]
        kind = kinds[name]
        file = rng.choice([file for file in kind.files if file.stat().st_size])
        content = file.read_bytes()
        while (changed := mutated(content, rng)) == content:
            pass
        cached = {f: f.read_bytes() for f in kind.files} if name == "token cache" else {}
        file.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                read = kind.read()
            except kind.errors as error:
                what, said = "refused", str(error)
            else:
                # The command did without a file that it warned of: by an older one, or by making it again.
                what, said = ("done without", str(caught[0].message)) if caught else ("unchanged", "")
        where = f"mutation {number} of {file}"
        if what == "unchanged":
            assert read == whole[name], f"{where} was not noticed"
            # Nothing of a checkpoint may change but the white space of its manifest.
            if "checkpoint" in name:
                assert file.name == MANIFEST, f"{where} was not noticed"
                assert json.loads(changed) == json.loads(content), f"{where} was not noticed"
        else:
            known = (file.name, "data changed since", "is damaged", "they are of different evaluations")
            assert any(word in said for word in known), f"{where} is not named by: {said}"
        if what == "done without":
            assert read == (whole[name] if name == "token cache" else older(kinds)), where
        tally[name, what] += 1
        for other, held in {**cached, file: content}.items():
            other.write_bytes(held)
    print()
    for (name, what), times in sorted(tally.items()):
        print(f"{name}: {times} {what}")


def older(kinds: dict[str, Kind]) -> Any:
    run = kinds["metrics.jsonl"].files[0].parent
    with contextlib.closing(Checkpoints(run, digest({}))) as checkpoints:
        return checkpoints.record("last", 2)


def test_five_hundred_mutations_are_noticed_and_named(kinds):
    damage(kinds, 504, seed=0)


@pytest.mark.long
def test_ten_thousand_more(kinds):
    damage(kinds, 10_000, seed=1)
