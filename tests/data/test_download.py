import hashlib
import http.server
import threading
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llm4rec_jax.data import download
from llm4rec_jax.data.download import PUBLISHED, File, Published

CONTENT = {"a.txt": b"first\n", "b.csv": b"id,title\n1,x\n"}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A folder and the address at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def publish(monkeypatch):
    """Enters a data set "toy" of the files above, with an address for each name that is given."""

    def enter(urls: dict[str, str] | None = None, archive: str | None = None) -> None:
        files = tuple(File(name, sha(content), (urls or {}).get(name)) for name, content in CONTENT.items())
        monkeypatch.setitem(PUBLISHED, "toy", Published(files, "Ask at the library.", archive))

    return enter


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestDownload:
    def test_fetches_once_and_checks(self, site, publish, tmp_path, monkeypatch):
        folder, url = site
        publish({"a.txt": f"{url}/a.txt", "b.csv": f"{url}/b.csv"})
        monkeypatch.setenv(download.ENVIRONMENT, str(tmp_path / "data"))
        place = download.path("toy")
        assert place == tmp_path / "data" / "toy"
        assert held(place) == CONTENT
        (folder / "a.txt").unlink()
        assert download.path("toy") == place

    def test_a_changed_file_is_refused_and_not_kept(self, site, publish, tmp_path):
        folder, url = site
        publish({"a.txt": f"{url}/a.txt", "b.csv": f"{url}/b.csv"})
        (folder / "b.csv").write_bytes(b"other")
        with pytest.raises(ValueError, match="--from") as error:
            download.path("toy", cache=tmp_path)
        for words in (f"{url}/b.csv", sha(CONTENT["b.csv"]), sha(b"other")):
            assert words in str(error.value)
        assert held(tmp_path / "toy") == {"a.txt": CONTENT["a.txt"]}

    def test_a_file_that_is_not_there(self, site, publish, tmp_path):
        _, url = site
        publish({"a.txt": f"{url}/gone.txt", "b.csv": f"{url}/b.csv"})
        with pytest.raises(ConnectionError, match=r"gone\.txt.*404.*--from"):
            download.path("toy", cache=tmp_path)
        assert held(tmp_path / "toy") == {}

    def test_what_has_no_address_is_asked_for_after_the_rest(self, site, publish, tmp_path):
        folder, url = site
        publish({"a.txt": f"{url}/a.txt"})
        with pytest.raises(ValueError, match=r"b\.csv cannot be downloaded.*library.*toy --from=FOLDER"):
            download.path("toy", cache=tmp_path)
        (folder / "a.txt").unlink()
        assert held(download.path("toy", folder, cache=tmp_path)) == CONTENT


class TestArchive:
    def pack(self, folder: Path, files: dict[str, bytes]) -> None:
        with zipfile.ZipFile(folder / "toy.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)

    def test_takes_its_files_and_no_others(self, site, publish, tmp_path):
        folder, url = site
        publish(archive=f"{url}/toy.zip")
        # A path that leads out of the folder is not followed.
        self.pack(folder, {"toy-1/a.txt": CONTENT["a.txt"], "../../b.csv": CONTENT["b.csv"], "../evil": b"!"})
        place = download.path("toy", cache=tmp_path / "cache")
        assert held(tmp_path / "cache") == {f"toy/{name}": content for name, content in CONTENT.items()}
        assert place == tmp_path / "cache" / "toy"

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"a.txt": b"other", "b.csv": CONTENT["b.csv"]}, "may have changed"),
            ({"a.txt": CONTENT["a.txt"]}, "0 files b.csv"),
            ({"a.txt": CONTENT["a.txt"], "x/b.csv": b"", "y/b.csv": b""}, "2 files b.csv"),
        ],
    )
    def test_other_content_is_refused(self, site, publish, tmp_path, files, words):
        folder, url = site
        publish(archive=f"{url}/toy.zip")
        self.pack(folder, files)
        with pytest.raises(ValueError, match=words):
            download.path("toy", cache=tmp_path / "cache")
        assert held(tmp_path / "cache") == {}

    def test_no_archive(self, site, publish, tmp_path):
        _, url = site
        publish(archive=f"{url}/a.txt")
        with pytest.raises(ValueError, match=r"a\.txt is not a zip file"):
            download.path("toy", cache=tmp_path)


class TestFolder:
    def test_takes_files_by_either_name(self, site, publish, tmp_path):
        folder, _ = site
        publish({"a.txt": "http://127.0.0.1:9/official.txt"})
        (folder / "a.txt").rename(folder / "official.txt")
        assert held(download.path("toy", folder, cache=tmp_path / "cache")) == CONTENT

    def test_another_file_is_refused_with_both_hashes(self, site, publish, tmp_path):
        folder, _ = site
        publish()
        (folder / "a.txt").write_bytes(b"other")
        with pytest.raises(ValueError, match="library") as error:
            download.path("toy", folder, cache=tmp_path / "cache")
        for words in (str(folder / "a.txt"), sha(CONTENT["a.txt"]), sha(b"other")):
            assert words in str(error.value)
        assert held(tmp_path / "cache") == {}

    def test_a_missing_file_is_named(self, site, publish, tmp_path):
        folder, _ = site
        publish()
        (folder / "b.csv").unlink()
        with pytest.raises(FileNotFoundError, match=r"no b\.csv;.*library"):
            download.path("toy", folder, cache=tmp_path / "cache")

    def test_a_damaged_cache_is_noticed(self, site, publish, tmp_path):
        folder, _ = site
        publish()
        place = download.path("toy", folder, cache=tmp_path / "cache")
        (place / "a.txt").write_bytes(b"fir")
        with pytest.raises(ValueError, match="delete it"):
            download.path("toy", cache=tmp_path / "cache")


class TestCommand:
    def test_prints_the_folder(self, site, publish, tmp_path, capsys):
        folder, _ = site
        publish()
        download.main(["toy", f"--from={folder}", f"--cache={tmp_path}"])
        assert capsys.readouterr().out == f"{tmp_path / 'toy'}\n"

    def test_an_unknown_name_is_one_message(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as end:
            download.main(["tallrec_movies", f"--cache={tmp_path}"])
        assert end.value.code == 2
        assert "did you mean 'tallrec_movie'?" in capsys.readouterr().err

    def test_help_lists_the_names(self, capsys):
        with pytest.raises(SystemExit):
            download.main(["--help"])
        shown = capsys.readouterr().out
        assert all(f"  {name}\n" in shown for name in PUBLISHED)


def test_the_registry_is_in_order():
    for published in PUBLISHED.values():
        names = [file.name for file in published.files]
        assert len(set(names)) == len(names)
        assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in published.files)
        # An address is pinned: to a commit, or else the file is checked out of the archive.
        assert all(file.url is None or len(file.url.split("/")[5]) == 40 for file in published.files)


class TestHostileArchive:
    """Archives are searched for the names that are wanted, and written under these."""

    def fetch(self, site, publish, tmp_path):
        folder, url = site
        publish(archive=f"{url}/toy.zip")
        return folder / "toy.zip", lambda: download.path("toy", cache=tmp_path / "data")

    def test_names_that_lead_elsewhere_lead_nowhere(self, site, publish, tmp_path):
        target, run = self.fetch(site, publish, tmp_path)
        outside = tmp_path / "outside"
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("../../../a.txt", CONTENT["a.txt"])
            archive.writestr(f"{outside}/b.csv", CONTENT["b.csv"])
            archive.writestr("../../evil.txt", b"evil")
        before = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
        place = run()
        assert held(place) == CONTENT
        assert {path for path in tmp_path.rglob("*") if "data" not in path.parts} == before
        assert not outside.exists()

    def test_a_link_is_a_file_of_other_content(self, site, publish, tmp_path):
        target, run = self.fetch(site, publish, tmp_path)
        link = zipfile.ZipInfo("a.txt")
        link.external_attr = 0o120777 << 16
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr(link, "/etc/passwd")
            archive.writestr("b.csv", CONTENT["b.csv"])
        with pytest.raises(ValueError, match=r"a\.txt has SHA-256"):
            run()
        assert held(tmp_path / "data") == {}

    def test_a_bomb_is_not_unpacked(self, site, publish, tmp_path, monkeypatch):
        target, run = self.fetch(site, publish, tmp_path)
        monkeypatch.setattr(download, "MOST_BYTES", 10_000)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", bytes(10_001))
            archive.writestr("b.csv", CONTENT["b.csv"])
        with pytest.raises(ValueError, match=r"a\.txt has 10,001 bytes unpacked, more than"):
            run()
        assert held(tmp_path / "data") == {}

    def test_a_bomb_that_lies_about_its_size_is_cut_and_refused(self, site, publish, tmp_path):
        target, run = self.fetch(site, publish, tmp_path)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", bytes(1_000_000))
            archive.writestr("b.csv", CONTENT["b.csv"])
        content = target.read_bytes()
        target.write_bytes(content.replace((1_000_000).to_bytes(4, "little"), (6).to_bytes(4, "little")))
        with pytest.raises(ValueError, match=r"damaged archive|has SHA-256"):
            run()
        assert held(tmp_path / "data") == {}

    @pytest.mark.parametrize("seed", range(20))
    def test_damaged_archives_end_in_one_message(self, site, publish, tmp_path, seed):
        target, run = self.fetch(site, publish, tmp_path)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in CONTENT.items():
                archive.writestr(name, content)
        damaged = bytearray(target.read_bytes())
        for at in np.random.default_rng(seed).integers(0, len(damaged), 3):
            damaged[at] ^= 1 << (seed % 8)
        target.write_bytes(damaged)
        try:
            place = run()
        except ValueError:
            return
        assert held(place) == CONTENT
