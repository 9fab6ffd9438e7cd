"""Downloads data published by others and checks every file by its SHA-256.

    python -m llm4rec_jax.data.download NAME [--cache=DIR] [--from=FOLDER]

Files come from their official addresses or, with --from, out of a folder that has them already. They go to a folder of
~/.cache/llm4rec_jax, or to DIR, or to where LLM4REC_DATA says. The last line of standard output is the data's folder,
for --config.data.path. Terms and citations: third_party/README.md.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from llm4rec_jax.data import cache as default_cache
from llm4rec_jax.io import replacing
from llm4rec_jax.progress import Meter
from llm4rec_jax.registry import Registry

ENVIRONMENT = "LLM4REC_DATA"

# Largest unpacked file of an archive. Published files are far smaller.
MOST_BYTES = 2**30


class File(NamedTuple):
    """A published file.

    Attributes:
        name: name in the data's folder.
        sha256: SHA-256 of the content, in hex.
        url: official address; None if no address gives the file itself.
    """

    name: str
    sha256: str
    url: str | None = None


class Published(NamedTuple):
    """A published data set.

    Attributes:
        files: the files that the project reads.
        origin: publisher and place; for a file that nobody publishes in this form, how it was made.
        archive: official address of a zip file that holds the files without an address of their own, in any folder.
    """

    files: tuple[File, ...]
    origin: str
    archive: str | None = None


PUBLISHED: Registry[Published] = Registry("published data set")

_TALLREC = "https://raw.githubusercontent.com/SAI990323/TALLRec/5fb0ae562ec0ad555a4c075d072d29d2e1087ed1/data/movie"
PUBLISHED["tallrec_movie"] = Published(
    (
        File(
            "valid.json", "d4aa0c005868aef9b8a85583db946662a2be9c2e0e09f810fe3a7ad31d89274f", f"{_TALLREC}/valid.json"
        ),
        File("test.json", "474e02cde467c8c7001168a4a390a581217edcd8f4726c39aa88c9aa37c54d5e", f"{_TALLREC}/test.json"),
    ),
    "github.com/SAI990323/TALLRec, data/movie. Optional: the source makes the same questions from MovieLens-100k, and "
    "compares them with these files if it is given their folder.",
)
_S3REC = "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/e6c774da92dba847b00ac89e8bfc5c55cc44d378/data"
PUBLISHED["s3rec_beauty"] = Published(
    (
        File(
            "Beauty_sequences.txt",
            "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
            f"{_S3REC}/Beauty.txt",
        ),
        File("Beauty_items.tsv", "aea928bf1588310b7650a9c1f0e24cf9c6b6659d9845d5775763fdc5b2156a9a"),
    ),
    "Sequences: github.com/aHuiWang/CIKM2020-S3Rec, data/Beauty.txt. Beauty_items.tsv has no official address: it is "
    "S³-Rec's item ids joined, on the ASIN, with the texts that github.com/agiresearch/IDGenRec has in "
    "rec_datasets/Beauty/item_generative_indexing_phase_0.txt; columns s3rec_item_id, asin, idgenrec_text.",
)
PUBLISHED["unisrec_scientific"] = Published(
    (
        File("Scientific.train.inter", "7284f6489d956fa20c9b64ffc84569264320edba5c3bc2fcb22db2ea083a1163"),
        File("Scientific.valid.inter", "5f37c84d3b54617cdc46638c89dfe8741c7efc4987acd5eb64de2cbd4311f46c"),
        File("Scientific.test.inter", "546da7e5f44002b4518d7fd58066684bc09613f76c240914e16976d57cfe7083"),
        File("Scientific.text", "95887e6bda76e54f59b71b566320520d5da74e21d3b6ff8f20bfb6e8e84aa831"),
        File("Scientific.item2index", "896ab1017508cf20834d3d0537da9f8f624324223a835af272a98ba16f8c087a"),
        File("Scientific.user2index", "f0162b1a3a0c6b7e816f86208e7b36f65d6787923126f9558fbc6d368e4c4974"),
    ),
    "The authors' Google Drive, linked from github.com/RUCAIBox/UniSRec: "
    "https://drive.google.com/drive/folders/1Uik0fMk4oquV_bS9lXTZuExAYbIDkEMW, folder downstream/Scientific. A folder "
    "there has no address that a program may fetch from: download it by hand.",
)
PUBLISHED["movielens_small"] = Published(
    (
        File("movies.csv", "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07"),
        File("ratings.csv", "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646"),
        File("README.txt", "63d22ac138e80fae37021797ed8e1b9424b5239dc576a137422adf783ae3f404"),
    ),
    "GroupLens, https://grouplens.org/datasets/movielens/. A release in development: GroupLens may change it, and then "
    "the files of September 2018 must come from a folder.",
    archive="https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
)


def cache_folder() -> Path:
    """Returns the folder that keeps data: $LLM4REC_DATA, or llm4rec_jax in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get(ENVIRONMENT) or default_cache.cache_home() / "llm4rec_jax")


def path(name: str, folder: str | Path | None = None, *, cache: str | Path | None = None) -> Path:
    """Returns the folder of a published data set, after checking each file and downloading the missing ones.

    Args:
      name: a name in `PUBLISHED`.
      folder: a folder that has the files, under our names or the official ones; nothing is downloaded then.
      cache: parent of the data's folder, `cache_folder()` by default.

    Raises:
      ValueError: if the name is unknown, a file's content is not the published one, or a file has no official address
        and no folder was given.
      FileNotFoundError: if the folder lacks a file.
      ConnectionError: if an address does not answer with the file.
    """
    published = PUBLISHED.lookup(name)
    place = (Path(cache) if cache is not None else cache_folder()) / name
    place.mkdir(parents=True, exist_ok=True)
    missing = [file for file in published.files if not (place / file.name).exists()]
    for file in published.files:
        if file not in missing:
            _check(place / file.name, file, "delete it and fetch again")
    if folder is not None:
        for file in missing:
            _copy(Path(folder), file, place, published)
        return place
    for file in missing:
        if file.url is not None:
            _download(file.url, place / file.name, file)
    packed = [file for file in missing if file.url is None]
    if packed and published.archive is None:
        raise ValueError(
            f"{name}: {', '.join(file.name for file in packed)} cannot be downloaded by a program. {published.origin} "
            f"Then: python -m llm4rec_jax.data.download {name} --from=FOLDER"
        )
    if packed and published.archive is not None:
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            archive = Path(scratch) / "archive.zip"
            _download(published.archive, archive, None)
            _extract(archive, published.archive, packed, Path(scratch))
            for file in packed:
                os.replace(Path(scratch) / file.name, place / file.name)
    return place


def resolve_data_path(given: str | Path | None, published: str | None) -> str | Path | None:
    """Returns the path of a configuration's data: the given one, or that of a name in `PUBLISHED`.

    Raises:
      ValueError: if both are given, and as `path` does.

    Example:
      >>> resolve_data_path("my/data", None)
      'my/data'
    """
    if given is not None and published is not None:
        raise ValueError("config.data.path and config.data.published are both given: the data is in one place")
    return given if published is None else path(published)


def _copy(folder: Path, file: File, place: Path, published: Published) -> None:
    """Copies a file out of a folder, under our name."""
    names = [file.name, *([file.url.rpartition("/")[2]] if file.url else [])]
    present = [folder / name for name in names if (folder / name).is_file()]
    if not present:
        raise FileNotFoundError(
            f"{folder} has no {' or '.join(dict.fromkeys(names))}; give a folder with the files. {published.origin}"
        )
    _check(present[0], file, f"give the published file. {published.origin}")
    with replacing(place / file.name) as scratch:
        shutil.copyfile(present[0], scratch)


def _download(url: str, target: Path, file: File | None) -> None:
    """Downloads to a path, where the file appears when its content has been checked."""
    import pooch

    pooch.get_logger().setLevel("ERROR")
    known = None if file is None else f"sha256:{file.sha256}"
    registry = pooch.create(target.parent, base_url="", registry={target.name: known}, urls={target.name: url})
    try:
        with Meter(target.name, unit="bytes") as meter:
            # Pooch gives the meter its total; its annotations know of no bars but its own.
            download: Any = pooch.HTTPDownloader
            registry.fetch(target.name, downloader=download(progressbar=meter))
    except OSError as error:  # as are the errors of requests
        raise ConnectionError(f"{url}: {error}; download it by hand and give its folder by --from") from error
    except ValueError as error:
        # Pooch's message names a temporary file and not the address.
        raise ValueError(
            f"{url} does not give the published {target.name}: {error}. If the publisher changed the file, find the "
            "old one and give its folder by --from"
        ) from error


def _extract(archive: Path, url: str, files: list[File], place: Path) -> None:
    """Writes the wanted files of an archive, found by their last name, straight into a folder, and checks them."""
    if not zipfile.is_zipfile(archive):
        raise ValueError(f"{url} is not a zip file; download the data by hand and give its folder by --from")
    try:
        with zipfile.ZipFile(archive) as opened:
            for file in files:
                # Only the content is taken: where in the archive it lies decides nothing about where it is written.
                members = [member for member in opened.infolist() if member.filename.rpartition("/")[2] == file.name]
                if len(members) != 1:
                    raise ValueError(f"{url} has {len(members)} files {file.name}, where one is needed; give --from")
                # No more than this is ever unpacked, whatever the compressed bytes hold.
                if members[0].file_size > MOST_BYTES:
                    raise ValueError(
                        f"{url}: {file.name} has {members[0].file_size:,} bytes unpacked, more than the {MOST_BYTES:,} "
                        "that any published file may have; give --from a folder with the published file"
                    )
                with opened.open(members[0]) as source, (place / file.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
                _check(place / file.name, file, f"{url} may have changed; give --from a folder with the published file")
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # A RuntimeError is an encrypted file, or, as NotImplementedError, a compression that there is not.
        raise ValueError(
            f"{url} is a damaged archive ({error}); give --from a folder with the published file"
        ) from error


def _check(file_path: Path, file: File, remedy: str) -> None:
    """Raises ValueError unless a file has the published content."""
    with file_path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(f"{file_path} has SHA-256 {digest}, and {file.name} has {file.sha256}; {remedy}")


def main(arguments: list[str] | None = None) -> None:
    """The command. An error that its user can mend is one message and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m llm4rec_jax.data.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="names:\n" + "\n".join(f"  {name}" for name in PUBLISHED),
    )
    parser.add_argument("name", help="which data set")
    parser.add_argument("--cache", help=f"where to keep data; by default {ENVIRONMENT} or ~/.cache/llm4rec_jax")
    parser.add_argument("--from", dest="folder", help="a folder that has the files already")
    options = parser.parse_args(arguments)
    try:
        print(path(options.name, options.folder, cache=options.cache))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
