"""Files tell when they are damaged, and old ones without a checksum are read as they are."""

import json

import polars as pl
import pytest

from llm4rec_jax import checksums
from llm4rec_jax.checksums import Damaged
from llm4rec_jax.io import NotWritten

VALUE = {"b": [1, 2.5, None], "a": {"ndcg@10": 0.1 + 0.2, "rows": 3}, "name": 'ü " \\'}
TABLE = pl.DataFrame({"user_id": ["u1", "u2"], "ndcg@10": [0.5, 0.25], "targets": [1, 1]})


def test_json_comes_back_with_its_checksum_beside_it(tmp_path):
    file = tmp_path / "x.json"
    checksums.write_json(file, VALUE)
    assert checksums.read_json(file, required=True) == VALUE
    assert list(json.loads(file.read_text())) == [*VALUE, "checksum"]
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_every_bit_of_json_that_says_something_is_guarded(tmp_path):
    file = tmp_path / "x.json"
    checksums.write_json(file, VALUE)
    content, unnoticed, said = file.read_bytes(), 0, []
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            assert checksums.read_json(file) == VALUE, changed
            unnoticed += 1
        except Damaged as error:
            said.append(str(error))
    assert all(str(file) in message for message in said)
    # White space for other white space, and nothing else.
    assert unnoticed < 0.02 * 8 * len(content)


def test_every_bit_of_a_table_is_guarded(tmp_path):
    file = tmp_path / "x.parquet"
    checksums.write_parquet(file, TABLE)
    assert checksums.read_parquet(file, required=True).equals(TABLE)
    assert pl.read_parquet(file).equals(TABLE)
    content = file.read_bytes()
    for bit in range(0, 8 * len(content), 3):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(Damaged, match=r"x\.parquet is damaged"):
            checksums.read_parquet(file, required=True)


def test_what_has_no_checksum_is_read_unless_one_is_required(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(VALUE))
    TABLE.write_parquet(tmp_path / "x.parquet")
    assert checksums.read_json(tmp_path / "x.json") == VALUE
    assert checksums.read_parquet(tmp_path / "x.parquet").equals(TABLE)
    with pytest.raises(Damaged, match=r"x\.json is damaged"):
        checksums.read_json(tmp_path / "x.json", required=True)
    with pytest.raises(Damaged, match=r"x\.parquet is damaged: its checksum is gone"):
        checksums.read_parquet(tmp_path / "x.parquet", required=True)


def test_a_manifest_knows_all_that_is_below_it(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(Damaged, match=r"checksums\.json is missing"):
        checksums.check_manifest(tmp_path)
    checksums.write_manifest(tmp_path)
    checksums.check_manifest(tmp_path)
    (tmp_path / "deep" / "b").write_bytes(b"other")
    with pytest.raises(Damaged, match="deep/b is damaged"):
        checksums.check_manifest(tmp_path)
    (tmp_path / "deep" / "b").unlink()
    with pytest.raises(Damaged, match="deep/b is missing"):
        checksums.check_manifest(tmp_path)
    manifest = tmp_path / checksums.MANIFEST
    manifest.write_text(manifest.read_text().replace("deep/b", "deep/c"))
    with pytest.raises(Damaged, match=r"checksums\.json is damaged"):
        checksums.check_manifest(tmp_path)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    checksums.write_json(file, VALUE)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(NotWritten, match=rf"cannot write {file} \(No space left on device\): make room"):
        checksums.write_json(file, {"other": 1})
    monkeypatch.undo()
    assert checksums.read_json(file) == VALUE
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(NotWritten, match=rf"gone/x.json \(No such file or directory; {tmp_path}/gone is not there"):
        checksums.write_json(tmp_path / "gone" / "x.json", VALUE)
