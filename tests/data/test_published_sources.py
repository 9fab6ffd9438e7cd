from pathlib import Path

import numpy as np
import pytest

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.sources import load
from llm4rec_jax.data.splits import protocols as splits

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"
# The first user's history is longer than the window of 3; the second user has nothing to train on but one item.
SEQUENCES = {"0": list("0123410"), "1": list("312")}
WINDOW = 3


def lines() -> dict[str, list[str]]:
    """The three files as the authors write them."""
    found = {"train": [HEADER], "valid": [HEADER], "test": [HEADER]}
    for user, items in SEQUENCES.items():
        for end in range(len(items) - 3, 0, -1):
            found["train"].append(f"{user}\t{' '.join(items[max(0, end - WINDOW) : end])}\t{items[end]}")
        for part, end in (("valid", len(items) - 2), ("test", len(items) - 1)):
            found[part].append(f"{user}\t{' '.join(items[max(0, end - WINDOW) : end])}\t{items[end]}")
    return found


def write(folder: Path, **changed: list[str]) -> Path:
    files = {
        **{f"{part}.inter": rows for part, rows in lines().items()},
        "text": ["item_id:token\ttext:token_seq", *(f'B{i}\ttext {i}, "5' for i in (2, 0, 1, 3, 4))],
        "item2index": [f"B{i}\t{i}" for i in range(5)],
        "user2index": ["UA\t0", "UB\t1"],
    }
    for name, rows in (files | {name.replace("_", "."): rows for name, rows in changed.items()}).items():
        (folder / f"Toy.{name}").write_text("\n".join(rows) + "\n")
    return folder


class TestUniSRec:
    def test_puts_the_sequences_together(self, tmp_path):
        dataset = load("unisrec", write(tmp_path), window=WINDOW)
        assert dataset.name == "Toy"
        assert dataset.users["user_id"].to_list() == ["UA", "UB"]
        assert dataset.items.row(0) == ("B2", 'text 2, "5')
        ids = dataset.items["item_id"].to_numpy()[dataset.interactions.item]
        assert [i[1:] for i in ids] == SEQUENCES["0"] + SEQUENCES["1"]
        assert dataset.interactions.timestamp is not None
        assert dataset.interactions.timestamp.tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]

    def test_leave_one_out_has_the_authors_targets(self, tmp_path):
        split = splits.leave_one_out(load("unisrec", write(tmp_path), window=WINDOW))
        index = np.array([2, 0, 1, 3, 4])
        for phase, part in (("validation", "valid"), ("test", "test")):
            targets = [int(row.split("\t")[2]) for row in lines()[part][1:]]
            assert index[split.targets_of(phase).items].tolist() == targets
        # Each user's first item is no target of the authors'.
        assert len(split.train) - 2 == len(lines()["train"]) - 1

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"valid_inter": [HEADER, "0\t2 3 0\t1", "1\t3\t1"]}, r"Toy\.valid\.inter, line 2: .*2 3 0 where .*2 3 4"),
            ({"test_inter": [*lines()["test"], "1\t3 1\t4"]}, r"Toy\.test\.inter, line 4: user 1 has a line already"),
            ({"test_inter": lines()["test"][:2]}, r"Toy\.valid\.inter, line 3: user 1 is not in Toy\.test\.inter"),
            ({"valid_inter": lines()["valid"][:2]}, r"Toy\.test\.inter, line 3: user 1 is not in Toy\.valid\.inter"),
            ({"train_inter": [HEADER, *lines()["train"][:0:-1]]}, r"Toy\.train\.inter, line \d: .*longest.*first"),
            ({"train_inter": [*lines()["train"][:2], *lines()["train"][3:]]}, r"Toy\.train\.inter, line 2: "),
            ({"train_inter": [HEADER, "0\t\t1"]}, r"Toy\.train\.inter, line 2: a user, a history"),
            (
                {"train_inter": [HEADER.replace("item_id_list", "items"), "0\t0\t1"]},
                "columns .*'items'.*'item_id_list'",
            ),
            ({"item2index": ["B0\t0", "B1\t1"]}, r"Toy\.item2index has no item of index '2'"),
            ({"item2index": ["B0\t0", "B1\t0"]}, r"Toy\.item2index, line 2: index 0 stands twice"),
            ({"user2index": ["UA 0 1"]}, r"Toy\.user2index, line 1: 'UA 0 1' is not an id and its index"),
            ({"text": ["item_id:token\ttext:token_seq", "B0\tx"]}, "item 'B1' is not in"),
        ],
    )
    def test_files_that_do_not_agree(self, tmp_path, change, words):
        with pytest.raises(DataError, match=words):
            load("unisrec", write(tmp_path, **change), window=WINDOW)

    def test_another_window_is_noticed(self, tmp_path):
        with pytest.raises(DataError, match="window="):
            load("unisrec", write(tmp_path))

    def test_misuse(self, tmp_path):
        with pytest.raises(ValueError, match="window must be positive"):
            load("unisrec", write(tmp_path), window=0)
        (tmp_path / "Other.test.inter").write_text(HEADER)
        with pytest.raises(FileNotFoundError, match=r"holds Other\.test\.inter, Toy\.test\.inter"):
            load("unisrec", tmp_path)


class TestS3Rec:
    def write(self, folder: Path, items: str = "1\tB1\tnail polish\n3\tB3\tsoap\n2\tB2\toil\n") -> Path:
        (folder / "Beauty_sequences.txt").write_text("1 1 2 3\n2 3 1\n")
        (folder / "Beauty_items.tsv").write_text("s3rec_item_id\tasin\tidgenrec_text\n" + items)
        return folder

    def test_reads_sequences_and_texts(self, tmp_path):
        dataset = load("s3rec", self.write(tmp_path, "1\tB1\tnail polish\n3\tB3\tsoap\n2\tB2\toil\n"))
        assert dataset.name == "s3rec_beauty"
        assert list(dataset.items.iter_rows()) == [("1", "nail polish", "B1"), ("3", "soap", "B3"), ("2", "oil", "B2")]
        assert dataset.interactions.item.tolist() == [0, 2, 1, 1, 0]
        assert len(splits.leave_one_out(dataset).test) == 1

    def test_items_without_text_get_the_one_given(self, tmp_path):
        folder = self.write(tmp_path, "1\tB1\tnail polish\n2\tB2\t \n3\tB3\t\n")
        assert load("s3rec", folder, no_text="product").items["text"].to_list() == ["nail polish", "product", "product"]

    def test_an_item_without_text(self, tmp_path):
        with pytest.raises(DataError, match="item '2' is not in"):
            load("s3rec", self.write(tmp_path, "1\tB1\tnail polish\n3\tB3\tsoap\n"))

    def test_another_name(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"Sports_sequences\.txt"):
            load("s3rec", self.write(tmp_path), subset="Sports")
