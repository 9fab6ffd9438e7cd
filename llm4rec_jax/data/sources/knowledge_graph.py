"""Knowledge graphs: triples (head, relation, tail) over entities, some of which are items."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.atomic import read_atomic
from llm4rec_jax.data.sources.formats import read_table
from llm4rec_jax.data.sources.movielens import read_movies
from llm4rec_jax.data.sources.reading import Table, ids


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Triples over numbered entities and relations.

    Attributes:
        entities: names of the E entities, sorted.
        relations: names of the R relations, sorted.
        triples: int32 [T, 3], rows (head, relation, tail) of the two, each triple once.
        items: entity row by item id, for items that are in the graph.
    """

    entities: list[str]
    relations: list[str]
    triples: NDArray[np.int32]
    items: Mapping[str, int]


def read_graph(
    path: str | Path,
    links: str | Path | None = None,
    *,
    head: str = "head",
    relation: str = "relation",
    tail: str = "tail",
) -> KnowledgeGraph:
    """Reads RecBole's `.kg` and `.link`, or tables of triples and of links in any form that source `table` reads.

    Args:
        path: the triples.
        links: the table of item_id and entity_id; by default the `.link` beside a `.kg`. Without one, the entities that
            are called by an item's id are the items.
        head, relation, tail: columns of a table of triples. In `.kg` they are head_id, relation_id and tail_id.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed, or an item has two entities.
    """
    file = Path(path)
    if file.suffix == ".kg":
        table, names = read_atomic(file)[0], ("head_id", "relation_id", "tail_id")
    else:
        table, names = read_table(file), (head, relation, tail)
    if links is None and file.suffix == ".kg" and file.with_suffix(".link").exists():
        links = file.with_suffix(".link")
    heads, related, tails = (ids(table, name) for name in names)
    rows = {name: row for row, name in enumerate(sorted({*heads, *tails}))}
    relations = {name: row for row, name in enumerate(sorted(set(related)))}
    triples = [(rows[h], relations[r], rows[t]) for h, r, t in zip(heads, related, tails, strict=True)]
    items = rows if links is None else _items(Path(links), rows)
    return KnowledgeGraph(list(rows), list(relations), np.unique(np.array(triples, np.int32), axis=0), items)


def _items(file: Path, rows: Mapping[str, int]) -> dict[str, int]:
    table: Table = read_atomic(file)[0] if file.suffix == ".link" else read_table(file)
    items, entities = ids(table, "item_id"), ids(table, "entity_id")
    repeated = (~items.is_first_distinct()).arg_true()
    if len(repeated):
        raise table.error(repeated[0], f"item {items[repeated[0]]!r} has an entity already; keep one of the rows")
    return {item: rows[entity] for item, entity in zip(items, entities, strict=True) if entity in rows}


def renumbered(graph: KnowledgeGraph, items: pl.DataFrame, movies: Path) -> KnowledgeGraph:
    """Returns a graph whose items have the ids of a table, found by title and year.

    MovieLens-100k numbers its movies otherwise than MovieLens-1M and all later releases, whose ids the links of public
    graphs have, RecBole's `ml-100k.link` among them.

    Args:
        graph: the graph, with ids of a later release.
        items: the table, with title and year; titles that stand in it twice are left out.
        movies: movies.csv of a later release.

    Raises:
        DataError: if the file is malformed, or no title is in both.
    """
    theirs = read_movies(movies).frame.select("title", "year", pl.col("item_id").alias("release_id"))
    ours = items.select("title", "year", "item_id")
    both = [table.unique(["title", "year"], keep="none") for table in (ours, theirs)]
    pairs = both[0].join(both[1], on=["title", "year"])
    if pairs.is_empty():
        raise DataError(f"{movies} has no title and year of the items; give movies.csv of a MovieLens release")
    own = dict(zip(pairs["release_id"], pairs["item_id"], strict=True))
    return replace(graph, items={own[item]: row for item, row in graph.items.items() if item in own})


def item_facts(graph: KnowledgeGraph, item_ids: list[str]) -> NDArray[np.int32]:
    """Returns which entities are next to which items in a graph, whatever the relation and its direction.

    Triples of two items, and of two entities that are no items, are left out.

    Args:
        graph: the graph.
        item_ids: ids of the items, by row.

    Returns:
        Item rows and entity rows, int32 [2, F], each pair once. Entities are numbered by those that occur.

    Raises:
        DataError: if no item has a fact.

    Example:
        >>> triples = np.array([[0, 0, 1], [2, 0, 1], [1, 0, 3], [0, 0, 2]], np.int32)
        >>> graph = KnowledgeGraph(["e0", "e1", "e2", "e3"], ["genre"], triples, {"7": 0, "9": 2})
        >>> item_facts(graph, ["9", "8", "7"]).tolist()
        [[0, 2], [0, 0]]
    """
    row_of = np.full(len(graph.entities), -1)
    for row, item in enumerate(item_ids):
        if item in graph.items:
            row_of[graph.items[item]] = row
    ends = np.concatenate([graph.triples[:, [0, 2]], graph.triples[:, [2, 0]]])
    ends = ends[(row_of[ends[:, 0]] >= 0) & (row_of[ends[:, 1]] < 0)]
    if not len(ends):
        raise DataError("no item of the data has a fact in the graph: give links, the table of item_id and entity_id")
    entities = np.unique(ends[:, 1], return_inverse=True)[1]
    return np.unique(np.stack([row_of[ends[:, 0]], entities]), axis=1).astype(np.int32)


def facts(
    graph: KnowledgeGraph,
    item_ids: list[str],
    names: Mapping[str, str],
    *,
    template: str = "{relation}: {entities}",
    most: int = 5,
) -> list[str]:
    """Writes what a graph says about items as text, such as "genre: Drama, Crime; directed by: Michael Mann".

    Args:
        graph: the graph.
        item_ids: the items.
        names: words for entities; those that have none are left out.
        template: text of one relation. The name of a relation is its last part, with blanks for underscores.
        most: number of entities that are named of one relation.

    Returns:
        One text an item; "" where there is nothing to say.

    Example:
        >>> graph = KnowledgeGraph(["e1", "e2"], ["film.film.directed_by"], np.array([[0, 0, 1]], np.int32), {"7": 0})
        >>> facts(graph, ["7", "8"], {"e2": "Michael Mann"})
        ['directed by: Michael Mann', '']
    """
    if most < 1:
        raise ValueError(f"most is {most}, must be at least 1")
    words = [relation.rsplit(".", 1)[-1].replace("_", " ") for relation in graph.relations]
    said: dict[int, dict[str, list[str]]] = {}
    for head, relation, tail in graph.triples.tolist():
        name = names.get(graph.entities[tail], "")
        if name.strip():
            said.setdefault(head, {}).setdefault(words[relation], []).append(name)
    texts = []
    for item in item_ids:
        of_item = said.get(graph.items.get(item, -1), {})
        parts = [template.format(relation=word, entities=", ".join(known[:most])) for word, known in of_item.items()]
        texts.append("; ".join(parts))
    return texts


def with_facts(
    items: pl.DataFrame,
    *,
    path: str,
    links: str | None = None,
    movies_path: str | None = None,
    names_path: str | None = None,
    title: str = "title",
    template: str = "{relation}: {entities}",
    most: int = 5,
) -> pl.DataFrame:
    """Returns the table of items with a column "facts", which a template such as "{title}. {facts}" writes.

    Args:
        items: the table.
        path, links: see `read_graph`.
        movies_path: see `renumbered`.
        names_path: a table of entity_id and name. Entities that are items are called by their titles.
        title: the column of titles.
        template, most: see `facts`.

    Raises:
        DataError: if a file is malformed, or no item has a fact.
    """
    graph = read_graph(path, links)
    if movies_path is not None:
        graph = renumbered(graph, items, Path(movies_path))
    titles = dict(zip(items["item_id"], items[title], strict=True)) if title in items.columns else {}
    names = {graph.entities[row]: titles[item] for item, row in graph.items.items() if titles.get(item)}
    if names_path is not None:
        table = read_table(Path(names_path))
        names |= dict(zip(ids(table, "entity_id"), ids(table, "name"), strict=True))
    texts = facts(graph, items["item_id"].to_list(), names, template=template, most=most)
    if not any(texts):
        raise DataError(
            f"the graph {path} says nothing about any item: none of its facts has an entity "
            "with a name; give names_path, a table of entity_id and name"
        )
    return items.with_columns(pl.Series("facts", texts, pl.String))
