"""Reading of a table by the extension of its file."""

from collections.abc import Sequence
from pathlib import Path

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources.delimited import read_delimited
from llm4rec_jax.data.sources.json_rows import read_json
from llm4rec_jax.data.sources.reading import Table, read_parquet, require

# Separator of each extension and whether double quotes enclose fields. TSV is written without quoting more often than
# with it: a title such as `"Weird Al" Yankovic` must not swallow the rows after it.
_DELIMITED = {".csv": (",", True), ".tsv": ("\t", False), ".dat": ("::", False), ".txt": ("\t", False)}


def read_table(
    path: Path,
    *,
    separator: str | None = None,
    quoted: bool | None = None,
    columns: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> Table:
    """Reads a table by its extension, in any case: .csv, .tsv, .txt, .dat, .parquet, .json, .jsonl or .ndjson.

    Text files may be compressed (.gz, .zst).

    Args:
        path: the file.
        separator: characters between fields; by default "," in .csv, a tab in .tsv and .txt, "::" in .dat. Given, it
            makes a delimited file of any extension.
        quoted: whether double quotes enclose fields; by default in .csv only.
        columns: names of the columns of a delimited file without a header line.
        keys: the keys of JSON objects that are read, where others hold what no column can; None reads all.
        encoding: text encoding of the file.

    Raises:
        FileNotFoundError: if the file is missing.
        DataError: if the extension is another, or the content is malformed.
    """
    suffix = Path(path.stem).suffix.lower() if path.suffix.lower() in (".gz", ".zst") else path.suffix.lower()
    default_separator, default_quoted = _DELIMITED.get(suffix, ("", False))
    if separator is not None or default_separator:
        return read_delimited(
            path,
            separator or default_separator,
            quoted=default_quoted if quoted is None else quoted,
            columns=columns,
            encoding=encoding,
        )
    if quoted is not None or columns is not None:
        raise ValueError(f"{path}: quoted= and columns= are for delimited text; leave them out for {suffix!r}")
    if suffix in (".json", ".jsonl", ".ndjson"):
        return read_json(path, keys=keys, encoding=encoding)
    if suffix == ".parquet":
        return read_parquet(path)
    require(path)
    raise DataError(
        f"{path}: unknown extension {suffix!r}; give .csv, .tsv, .txt, .dat, .parquet, .json, .jsonl or .ndjson, "
        "or the option separator="
    )
