"""Knowledge graphs in RecBole's form and as tables, and what they say about items."""

import re

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data import assets
from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources import load
from llm4rec_jax.data.sources.knowledge_graph import facts, item_facts, read_graph

TRIPLES = [
    ("m.1", "film.film.genre", "m.d"), ("m.1", "film.film.genre", "m.c"), ("m.1", "film.film.directed_by", "m.p"),
    ("m.2", "film.film.sequel", "m.1"), ("m.2", "film.film.genre", "m.x"), ("m.2", "film.film.genre", "m.x"),
]  # fmt: skip
LINKS = [("7", "m.1"), ("8", "m.2"), ("9", "m.gone")]
NAMES = {"m.d": "Drama", "m.c": "Crime", "m.p": "Michael Mann", "m.1": "Heat"}


@pytest.fixture(params=["kg", "csv"])
def files(request, tmp_path):
    if request.param == "kg":
        header = "head_id:token\trelation_id:token\ttail_id:token\n"
        (tmp_path / "t.kg").write_text(header + "".join("\t".join(triple) + "\n" for triple in TRIPLES))
        (tmp_path / "t.link").write_text(
            "item_id:token\tentity_id:token\n" + "".join("\t".join(x) + "\n" for x in LINKS)
        )
        return tmp_path / "t.kg", None
    pl.DataFrame(TRIPLES, ["head", "relation", "tail"], orient="row").write_csv(tmp_path / "t.csv")
    pl.DataFrame(LINKS, ["item_id", "entity_id"], orient="row").write_csv(tmp_path / "links.csv")
    return tmp_path / "t.csv", tmp_path / "links.csv"


def test_triples_and_links(files):
    graph = read_graph(*files)
    named = [(graph.entities[h], graph.relations[r], graph.entities[t]) for h, r, t in graph.triples.tolist()]
    assert sorted(named) == sorted(set(TRIPLES))
    assert {item: graph.entities[row] for item, row in graph.items.items()} == {"7": "m.1", "8": "m.2"}


def test_facts_are_written_with_the_names_that_are_known(files):
    said = facts(read_graph(*files), ["8", "7", "9", "0"], NAMES, most=1)
    assert said == ["sequel: Heat", "directed by: Michael Mann; genre: Crime", "", ""]
    said = facts(read_graph(*files), ["7"], NAMES, template="{relation} is {entities}")
    assert said == ["directed by is Michael Mann; genre is Crime, Drama"]


def test_facts_are_entities_beside_items(files):
    """Item 7 has three, and item 8 one, beside the sequel, which is an item; item 9 is not in the graph."""
    found = item_facts(read_graph(*files), ["9", "8", "7"])
    assert np.bincount(found[0], minlength=3).tolist() == [0, 1, 3]
    assert len(set(found[1].tolist())) == 4
    with pytest.raises(DataError, match="no item of the data has a fact in the graph"):
        item_facts(read_graph(*files), ["9"])


def test_movielens_100k_has_its_graph():
    graph = read_graph(assets.movielens_100k() / "ml-100k.kg")
    assert (len(graph.triples), len(graph.entities), len(graph.items)) == (91_631, 34_628, 1_598)


def test_items_of_another_release_are_found_by_title_and_year(tmp_path):
    """The graph's links have the ids of later releases: Alien is 183 in MovieLens-100k, and 1214 in all others."""
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n1214,Alien (1979),Horror\n1200,Aliens (1986),Horror\n1,Alien (1901),Drama\n"
    )
    facts = {"path": str(assets.movielens_100k() / "ml-100k.kg"), "movies_path": str(tmp_path / "movies.csv")}
    items = load("movielens_100k", facts=facts).items
    said = dict(items.filter(pl.col("facts") != "").select("title", "facts").iter_rows())
    assert said["Aliens"] == "prequel: Alien"
    assert set(said) <= {"Alien", "Aliens"}


def test_a_graph_that_says_nothing_is_an_error(files, tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id\nu,1\n")
    options = {"path": str(files[0]), "links": None if files[1] is None else str(files[1])}
    with pytest.raises(DataError, match="says nothing about any item"):
        load("table", tmp_path / "events.csv", facts=options)


def test_an_item_has_one_entity(files, tmp_path):
    (tmp_path / "twice.csv").write_text("item_id,entity_id\n7,m.1\n7,m.2\n")
    with pytest.raises(DataError, match=re.escape("twice.csv, line 3: item '7' has an entity already")):
        read_graph(files[0], tmp_path / "twice.csv")
