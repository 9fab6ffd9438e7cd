"""MovieLens, with its titles, years and genres brought into one form."""

import re
from pathlib import Path

import polars as pl

from llm4rec_jax.data import assets
from llm4rec_jax.data.interactions import Dataset
from llm4rec_jax.data.sources.assembly import Catalogue, assemble, catalogue, observed
from llm4rec_jax.data.sources.atomic import read_atomic
from llm4rec_jax.data.sources.delimited import read_delimited
from llm4rec_jax.data.sources.reading import Table
from llm4rec_jax.data.sources.registry import register

_ARTICLES = r"The|A|An|La|Le|Les|L'|Il|Lo|Los|Las|El|Der|Die|Das|Det|Den|De|Un|Une|Una|O|I"
# A title, or an alternative title in brackets, that ends in its article.
_TRAILING_ARTICLE = re.compile(
    rf"(?P<open>^|\((?:a\.k\.a\. )?)(?P<rest>[^()]+), (?P<article>{_ARTICLES})(?= *(?:\(|\)|$))"
)
_YEAR_SUFFIX = r"^(.*?)\s*\(([0-9]{4})(?:[-–][0-9]*)?\)\s*$"


def natural_title(title: str) -> str:
    """Moves trailing articles to the front: "Usual Suspects, The" becomes "The Usual Suspects"."""

    def front(match: re.Match[str]) -> str:
        article = match["article"]
        return f"{match['open']}{article}{'' if article.endswith(chr(39)) else ' '}{match['rest']}"

    return _TRAILING_ARTICLE.sub(front, title)


@register("movielens_100k")
def load_movielens_100k(path: Path | None = None, *, natural_titles: bool = True, encoding: str = "utf-8") -> Dataset:
    """Loads MovieLens-100k from RecBole's atomic files: 943 users, 1682 items, 100000 ratings of 1 to 5.

    Items have title (string), year (int32, null where unknown) and genres (string, separated by ", "; empty where
    unknown). Two rows of the files are mended: item 267 is "unkonwn" in title and year, and item 1412 has its year
    left in the title. As in the official data, 18 movies stand under two ids each, which stay apart.

    Args:
        path: the folder of ml-100k.inter, .item and .user; the installed one by default.
        natural_titles: whether to move trailing articles to the front.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if the files are missing.
        DataError: if they are malformed.
    """
    folder = assets.movielens_100k() if path is None else path
    table, _ = read_atomic(folder / "ml-100k.inter", encoding)
    item_table, _ = read_atomic(folder / "ml-100k.item", encoding)
    user_table, _ = read_atomic(folder / "ml-100k.user", encoding)
    columns = {"title": "movie_title", "year": "release_year", "genres": "class"}
    items = catalogue(item_table, "item", "item_id", columns)
    years = pl.when(pl.col("year").str.contains(r"^[0-9]{4}$")).then(pl.col("year"))
    frame = items.frame.with_columns(
        pl.col("title").replace("unkonwn", "unknown"),
        years.alias("year"),
        pl.col("genres").replace("unknown", "").str.replace_all(" ", ", ", literal=True),
    )
    return assemble(
        "movielens_100k",
        table,
        catalogue(user_table, "user", "user_id"),
        Catalogue(_tidy(frame, natural_titles), items.path),
        user="user_id",
        item="item_id",
        rating="rating",
        timestamp="timestamp",
    )


@register("movielens_small")
def load_movielens_small(path: Path, *, natural_titles: bool = True, encoding: str = "utf-8") -> Dataset:
    """Loads the official CSV files of MovieLens latest-small, or of any release in that form.

    Items have title (string), year (int32, null where the title has none) and genres (string, separated by ", "; empty
    where none are listed). Users are those with ratings, in order of first appearance.

    Args:
        path: the folder of movies.csv and ratings.csv.
        natural_titles: whether to move trailing articles to the front.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed or a rating refers to a movie that movies.csv lacks.
    """
    items = read_movies(path / "movies.csv", natural_titles, encoding)
    table = read_delimited(path / "ratings.csv", ",", quoted=True, encoding=encoding)
    return assemble(
        "movielens_small",
        table,
        observed(table, "user", "userId"),
        items,
        user="userId",
        item="movieId",
        rating="rating",
        timestamp="timestamp",
    )


def read_movies(path: Path, natural_titles: bool = True, encoding: str = "utf-8") -> Catalogue:
    """Reads the official movies.csv of MovieLens latest-small, or of any release in that form, as a table of items."""
    movies = read_delimited(path, ",", quoted=True, encoding=encoding)
    items = catalogue(movies, "item", "movieId", {"title": "title", "genres": "genres"})
    genres = pl.col("genres").replace("(no genres listed)", "").str.replace_all("|", ", ", literal=True)
    frame = items.frame.select("item_id", "title", pl.lit(None, pl.String).alias("year"), genres)
    return Catalogue(_tidy(frame, natural_titles), items.path)


@register("movielens_1m")
def load_movielens_1m(path: Path, *, natural_titles: bool = True, encoding: str = "latin-1") -> Dataset:
    """Loads the official files of MovieLens-1M: ratings.dat, movies.dat and users.dat.

    Items have title (string), year (int32) and genres (string, separated by ", "). Users have gender, age, occupation
    and zip_code, in the codes of the data's README.

    Args:
        path: the folder of the files.
        natural_titles: whether to move trailing articles to the front.
        encoding: text encoding of the files.

    Raises:
        FileNotFoundError: if a file is missing.
        DataError: if a file is malformed or a rating refers to a user or movie that the other files lack.
    """

    def read(name: str, *columns: str) -> Table:
        return read_delimited(path / name, "::", quoted=False, columns=columns, encoding=encoding)

    table = read("ratings.dat", "user_id", "item_id", "rating", "timestamp")
    users = catalogue(read("users.dat", "user_id", "gender", "age", "occupation", "zip_code"), "user", "user_id")
    items = catalogue(read("movies.dat", "item_id", "title", "genres"), "item", "item_id")
    genres = pl.col("genres").str.replace_all("|", ", ", literal=True)
    frame = items.frame.select("item_id", "title", pl.lit(None, pl.String).alias("year"), genres)
    return assemble(
        "movielens_1m",
        table,
        users,
        Catalogue(_tidy(frame, natural_titles), items.path),
        user="user_id",
        item="item_id",
        rating="rating",
        timestamp="timestamp",
    )


def _tidy(items: pl.DataFrame, natural_titles: bool) -> pl.DataFrame:
    """Takes years out of titles into the empty cells of the year column, and makes that column int32."""
    titles = pl.col("title").str.strip_chars()
    year = pl.coalesce("year", titles.str.extract(_YEAR_SUFFIX, 2)).cast(pl.Int32)
    items = items.with_columns(titles.str.replace(_YEAR_SUFFIX, "${1}"), year)
    if natural_titles:
        items = items.with_columns(pl.Series("title", map(natural_title, items["title"]), pl.String))
    return items
