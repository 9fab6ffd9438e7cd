"""Recommends items, beside the history that they follow from.

    python -m experiments.recommend --workdir=runs/lora --user=42 --k=10
    python -m experiments.recommend --workdir=runs/lora --history="Toy Story; GoldenEye; Twelve Monkeys"
    python -m experiments.recommend --workdir=runs/lora --user=42 --k=3 --explain=words

--user takes an id of the data; --history serves somebody who isn't in it: titles or ids, the most recent last.
--explain=words lets a language model write about each item and those of the history that it finds closest to it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich.console
import rich.table
import rich.text
from absl import flags

from experiments.cli import command
from experiments.cli.console import visible
from llm4rec_jax.data.assets import language_model
from llm4rec_jax.data.features.tokens import tokenizer
from llm4rec_jax.inference.explanations import Explanation, explain
from llm4rec_jax.inference.recommend import Named, Recommendation, find_items, recommend
from llm4rec_jax.models.encoders import huggingface
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import restore_scorer

_USER = flags.DEFINE_string("user", None, "A user id of the data.")
_HISTORY = flags.DEFINE_multi_string(
    "history", None, "Title or id of an item, or several with semicolons between; may be repeated; the latest last."
)
_EXPLAIN = flags.DEFINE_enum("explain", None, ["words"], "Explain each item in words.")
_EXPLAIN_WITH = flags.DEFINE_string(
    "explain_with", "smollm2", "Folder or name of the decoder that writes explanations, whatever the run's model is."
)
_K = flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)


def named_items(assembly: Assembly, histories: Sequence[str]) -> Named:
    """Returns the items of the --history flags: each is one title or id, or several with semicolons between them."""
    ids, names = assembly.dataset.items["item_id"].to_list(), []
    for history in histories:
        try:
            find_items([history], ids, assembly.titles)
            names.append(history)
        except ValueError:
            names += [name for name in history.split(";") if name.strip()]
    if not names:
        raise ValueError("--history is empty: give titles or ids, with semicolons between them")
    return find_items(names, ids, assembly.titles)


def table(titles: Sequence[str], history: Sequence[int], recommended: Sequence[Recommendation]) -> rich.table.Table:
    """The most recent of the history beside what is recommended."""
    result = rich.table.Table(box=None, pad_edge=False)
    for header in ("history, latest first", "recommended", "score"):
        result.add_column(header, justify="right" if header == "score" else "left")
    latest = [titles[i] for i in reversed(history)][: len(recommended)]
    for i, (item, score) in enumerate(recommended):
        # Text: Rich would read "[b]" in a title as markup.
        shown = latest[i] if i < len(latest) else "", titles[item], f"{score:.3f}"
        result.add_row(*(rich.text.Text(visible(text)) for text in shown))
    return result


def explanations(assembly: Assembly, history: Sequence[int], items: Sequence[int]) -> list[Explanation]:
    """Explains items in words by the language model of --explain_with."""
    folder = huggingface.resolve(language_model(_EXPLAIN_WITH.value))
    decoder, params = huggingface.load(folder, language_head=True)
    read, titles = ([assembly.titles[row] for row in rows] for rows in (history, items))
    return explain(decoder, params, tokenizer(folder), assembly.mesh, read, titles)


def main() -> None:
    if (_USER.value is None) == (_HISTORY.value is None):
        raise ValueError("give either --user=ID or --history='title; title'")
    workdir: Path = command.workdir()
    assembly, scorer = restore_scorer(workdir)
    if _USER.value is not None:
        user, history = assembly.history_of(_USER.value)
    else:
        user = assembly.dataset.num_users
        named = named_items(assembly, _HISTORY.value or [])
        history = np.array(named.rows)
        for notice in named.notices:
            print(f"notice: {notice}", file=sys.stderr)
    found = recommend(scorer, history.tolist(), _K.value, user, mesh=assembly.mesh)
    explained: list[Explanation] = []
    if _EXPLAIN.value is not None:
        explained = explanations(assembly, history.tolist(), [row for row, _ in found])
    if command.wants_json():
        ids = assembly.dataset.items["item_id"].to_list()
        listed = [{"item_id": ids[row], "title": assembly.titles[row], "score": score} for row, score in found]
        for entry, explanation in zip(listed, explained, strict=False):
            entry.update(explanation._asdict())
        command.answer({"history": [ids[row] for row in history.tolist()], "recommended": listed})
    else:
        rich.console.Console(width=None).print(table(assembly.titles, history.tolist(), found))
        for (row, _), (evidence, text) in zip(found, explained, strict=False):
            print(f"\n{visible(assembly.titles[row])}, after {visible(', '.join(evidence))}:\n  {visible(text)}")


if __name__ == "__main__":
    command.run(main)
