"""Compares popularity, ids, frozen text and LoRA-tuned text on MovieLens-100k, within ten minutes on two cores.

    python -m experiments.quickstart --workdir=runs/quickstart

Writes table.md and index.html (the table with intervals, learning curves, what accuracy costs, recommendations). Every
model is a run folder; called again, it goes on where it was stopped.
"""

from pathlib import Path
from typing import Any

import rich.console
import rich.text
from absl import flags

from configs import movielens_100k
from experiments.cli import command
from experiments.cli.console import visible
from experiments.recommend import table as side_by_side
from experiments.reports import quickstart as report
from llm4rec_jax.inference.recommend import recommend
from llm4rec_jax.runs.assemble import Assembly
from llm4rec_jax.runs.load import restore_scorer
from llm4rec_jax.runs.run import run

_USER = flags.DEFINE_string("show_user", "42", "The user for whom recommendations are shown.")

NOTE = (
    "Short training, one seed: {id} steps for ids, {frozen} for frozen text, then {lora} for LoRA, which starts from "
    "the frozen run's head and user model. Longer training is better for all three; see the README."
)


def configurations(workdir: Path) -> dict[str, Any]:
    """The models of the quickstart, by name, in the order in which they are run."""
    popular: Any = movielens_100k.get_config("id")
    popular.baseline.name = "popularity"
    configs = {"popularity": popular}
    for name, steps in (("id", 240), ("frozen", 240), ("lora", 24)):
        config: Any = movielens_100k.get_config(name)
        with config.unlocked():
            config.train.steps = steps
            config.train.schedule = "cosine"
            config.train.patience = None
            config.train.eval_every = config.train.checkpoint_every = 6 if name == "lora" else 40
            config.train.log_every = 4
            if name == "lora":
                config.init_from = str(workdir / "frozen")
        configs[name] = config
    return configs


def main() -> None:
    workdir = command.workdir()
    console = rich.console.Console(stderr=command.wants_json(), quiet=command.is_quiet())
    configs = configurations(workdir)
    assembly = Assembly(configs["id"])
    console.print(assembly.summary(), highlight=False, markup=False)
    for name, config in configs.items():
        console.rule(name)
        run(config, workdir / name)

    names = {
        "popularity": "popularity",
        "id": "ids, transformer",
        "frozen": "frozen text, transformer",
        "lora": "LoRA text, transformer",
    }
    runs = {label: workdir / name for name, label in names.items()}
    note = NOTE.format(**{name: config.train.steps for name, config in configs.items()})
    # From what the models read in the test, so that the film that was held out can be among the recommended.
    user, _ = assembly.history_of(_USER.value or "")
    history = assembly.split.history("test").of(user).tolist()
    held_out = ", ".join(assembly.titles[item] for item in assembly.split.targets_of("test").of(user))
    lists = {}
    for name in configs:
        _, scorer = restore_scorer(workdir / name)
        lists[names[name]] = recommend(scorer, history, 10, user, mesh=assembly.mesh)
        console.rule(rich.text.Text(visible(f"user {_USER.value}, {names[name]}; held out: {held_out}")))
        console.print(side_by_side(assembly.titles, history, lists[names[name]]))
    table = report.markdown(runs, note)
    (workdir / "table.md").write_text(table, encoding="utf-8")
    latest = [assembly.titles[item] for item in history[::-1][:10]]
    shown = {label: [assembly.titles[r.item] for r in found] for label, found in lists.items()}
    heading = f"Recommendations for user {_USER.value}; held out for the test: {held_out}"
    shown = {"history, latest first": latest, **shown}
    report.page(workdir / "index.html", "MovieLens-100k", runs, note, heading, shown)
    if command.wants_json():
        command.answer({"table": str(workdir / "table.md"), "page": str(workdir / "index.html")})
        return
    console.rule("test, whole catalogue ranked")
    rich.console.Console().print(table, markup=False, highlight=False, soft_wrap=True)
    console.print(f"The page with plots: {workdir / 'index.html'}", markup=False, highlight=False)


if __name__ == "__main__":
    command.run(main)
