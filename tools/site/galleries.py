"""Galleries: for each registry, an index and a page for every entry."""

import functools
import importlib
import pkgutil
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import llm4rec_jax
from experiments.reports.render import markdown_table
from llm4rec_jax.baselines import BASELINES
from llm4rec_jax.baselines.rating import ANSWER_BASELINES
from llm4rec_jax.data.download import PUBLISHED
from llm4rec_jax.data.sources import LABELED_SOURCES, SOURCES
from llm4rec_jax.data.splits.protocols import SPLITS
from llm4rec_jax.losses.ranking import LOSSES
from llm4rec_jax.models.encoders.base import FAMILIES
from llm4rec_jax.models.encoders.pooling import POOLINGS
from llm4rec_jax.models.graphs.base import GRAPHS
from llm4rec_jax.models.heads import HEADS
from llm4rec_jax.models.items.projection import PROJECTIONS
from llm4rec_jax.models.rating import RATING_HEADS
from llm4rec_jax.models.users.base import USERS
from llm4rec_jax.models.vision.base import VISION_FAMILIES
from llm4rec_jax.peft.registry import METHODS
from llm4rec_jax.registry import Registry
from tools.site.entry_pages import (
    SHAPE_NAME,
    describe_method,
    entry_page,
    family_page,
    loss_page,
    method_page,
    published_page,
    summary,
    trained_parameters,
    user_page,
    vision_page,
)


class Gallery(NamedTuple):
    """Pages about the entries of some registries.

    Attributes:
      folder: Folder of its pages.
      title: Heading.
      intro: Paragraph below the heading.
      registries: Registries whose entries have a page.
      page: Makes the page of an entry from its name and the entry.
      facts: Columns of the index beside name and summary, from the name of an entry.
      columns: Names of these columns.
    """

    folder: str
    title: str
    intro: str
    registries: tuple[Registry[Any], ...]
    page: Callable[[str, Any], str]
    facts: Callable[[str], list[str]] = lambda name: []
    columns: tuple[str, ...] = ()

    @property
    def entries(self) -> dict[str, Any]:
        """All entries by name."""
        return {name: entry for registry in self.registries for name, entry in sorted(registry.items())}


def registries() -> list[Registry[Any]]:
    """Returns all registries of the package."""
    found: dict[int, Registry[Any]] = {}
    for module in pkgutil.walk_packages(llm4rec_jax.__path__, "llm4rec_jax."):
        # Beam has an environment of its own, and a program is not to be run.
        if not module.name.endswith((".beam", ".__main__")):
            values = vars(importlib.import_module(module.name)).values()
            found |= {id(value): value for value in values if isinstance(value, Registry)}
    return list(found.values())


def plural(kind: str) -> str:
    """Returns the heading of a gallery from the kind of its entries.

    Example:
      >>> plural("quantizer"), plural("model of triples")
      ('Quantizers', 'Models of triples')
    """
    noun, _, rest = kind.capitalize().partition(" of ")
    return f"{noun}s of {rest}" if rest else f"{noun}s"


@functools.cache
def galleries() -> tuple[Gallery, ...]:
    """Returns all galleries. A registry without words here has a gallery of its docstrings."""
    shown = {id(registry) for gallery in _described() for registry in gallery.registries}
    others = [
        Gallery(re.sub(r"\W+", "_", registry.kind), plural(registry.kind), "", (registry,), entry_page())
        for registry in registries()
        if id(registry) not in shown
    ]
    return (*_described(), *others)


@functools.cache
def _described() -> tuple[Gallery, ...]:
    return (
        Gallery(
            "methods",
            "Parameter-efficient methods",
            f"Trained parameters are counted in {SHAPE_NAME}, with default options. [The guide](../../guides/peft.md) "
            "describes how to choose a method, and [a study](../../results/peft.md) compares them.",
            (METHODS,),
            method_page,
            lambda name: [f"{trained_parameters(name)[0]:,}"],
            ("trained parameters",),
        ),
        Gallery(
            "losses",
            "Losses",
            "`loss.name` selects a loss.",
            (LOSSES,),
            loss_page,
        ),
        Gallery(
            "user_encoders",
            "User encoders",
            "`model.users` selects a user encoder; its options are under `model.user_options.NAME`.",
            (USERS, GRAPHS),
            user_page,
        ),
        Gallery(
            "heads",
            "Heads",
            "`model.head` selects a scoring head, and `model.head_options` holds its options.",
            (HEADS,),
            entry_page("model.head"),
        ),
        Gallery(
            "rating_heads",
            "Rating heads",
            "`model.name` selects the head of the rating task.",
            (RATING_HEADS,),
            entry_page("model.name"),
        ),
        Gallery(
            "projections",
            "Projections",
            "`model.project` selects the layer from the width of texts to that of item embeddings.",
            (PROJECTIONS,),
            entry_page("model.project"),
        ),
        Gallery(
            "poolings",
            "Poolings",
            "`encoder.pooling` selects how token states become one vector.",
            (POOLINGS,),
            entry_page("encoder.pooling"),
        ),
        Gallery(
            "sources",
            "Data sources",
            "`data.source` selects a source, and `data.options` holds its options: [the guide](../../guides/data.md).",
            (SOURCES, LABELED_SOURCES),
            entry_page("data.source"),
        ),
        Gallery(
            "published",
            "Published data",
            "Data that others have published, fetched by name and checked by SHA-256.",
            (PUBLISHED,),
            published_page,
        ),
        Gallery(
            "splits",
            "Splits",
            "`data.split` selects a split: [the guide](../../guides/data.md#splits).",
            (SPLITS,),
            entry_page("data.split"),
        ),
        Gallery(
            "baselines",
            "Baselines",
            "`baseline.name` selects a baseline, and `baseline.options` holds its options.",
            (BASELINES, ANSWER_BASELINES),
            entry_page("baseline.name"),
        ),
        Gallery(
            "families",
            "Model families",
            "The `model_type` in a folder's `config.json` selects the family. "
            "[A guide](../../guides/adding_a_model_family.md) describes how to add one.",
            (FAMILIES,),
            family_page,
        ),
        Gallery(
            "vision_families",
            "Vision families",
            "The `model_type` in a folder's `config.json` selects the family. "
            "[The guide](../../guides/features.md#images) describes features of images.",
            (VISION_FAMILIES,),
            vision_page,
        ),
    )


def pages() -> dict[str, str]:
    """Returns the Markdown of all pages of the galleries by their path in the site."""
    made = {}
    for gallery in galleries():
        rows = []
        for name, entry in gallery.entries.items():
            made[f"gallery/{gallery.folder}/{name}.md"] = gallery.page(name, entry)
            said = describe_method(name).summary if gallery.folder == "methods" else summary(entry)
            rows.append([f"[{name}]({name}.md)", said, *gallery.facts(name)])
        table = markdown_table(["name", "summary", *gallery.columns], rows).replace(
            "| --- | ---: |", "| --- | --- |", 1
        )
        made[f"gallery/{gallery.folder}/index.md"] = f"# {gallery.title}\n\n{gallery.intro}\n\n{table}\n"
    return made
