import dataclasses
import hashlib
import json

import numpy as np
import polars as pl
import pytest

from llm4rec_jax.data.interactions import DataError
from llm4rec_jax.data.labeled import LabeledData, LabeledExamples, few_shot
from llm4rec_jax.data.sources import load_labeled, tallrec
from llm4rec_jax.data.sources.movielens import load_movielens_100k


def made(n: int, seed: int = 0) -> LabeledExamples:
    rng = np.random.default_rng(seed)
    mask = np.arange(3) < rng.integers(0, 4, (n, 1))
    return LabeledExamples(
        user=rng.integers(0, 4, n).astype(np.int32),
        history=np.where(mask, rng.integers(0, 5, (n, 3)), 0).astype(np.int32),
        liked=mask & (rng.random((n, 3)) < 0.5),
        mask=mask,
        target=rng.integers(0, 5, n).astype(np.int32),
        label=(np.arange(n) % 2).astype(np.float32),
    )


def data(**changes) -> LabeledData:
    items, users = (pl.DataFrame({f"{kind}_id": [f"{kind[0]}{i}" for i in range(n)]}) for kind, n in KINDS)
    return LabeledData(**({**PARTS, "name": "toy", "items": items, "users": users, "protocol": "made"} | changes))


KINDS = (("item", 5), ("user", 4))
PARTS = {"train": made(8), "validation": made(4, 1), "test": made(6, 2)}


class TestData:
    def test_statistics(self):
        figures = data().statistics()
        assert (figures["users"], figures["items"], figures["train"], figures["test"]) == (4, 5, 8, 6)
        assert figures["validation_liked_share"] == 0.5

    def test_the_fingerprint_sees_every_column_and_no_name(self):
        base = data()
        assert data(name="other", protocol="other").fingerprint == base.fingerprint
        found = {base.fingerprint}
        for column in PARTS["test"]._fields[:-1]:
            values = getattr(PARTS["test"], column)
            changed = values.copy()
            changed[0] = 1 - changed[0] if values.dtype != bool else ~changed[0]
            found.add(data(test=PARTS["test"]._replace(**{column: np.abs(changed)})).fingerprint)
        found.add(data(train=PARTS["train"].take(np.arange(8)[::-1])).fingerprint)
        found.add(data(test=PARTS["test"]._replace(impression=np.zeros(PARTS["test"].size, np.int32))).fingerprint)
        assert len(found) == 9

    @pytest.mark.parametrize(
        ("column", "values", "words"),
        [
            ("label", np.full(6, 0.5, np.float32), "test, row 0: label 0.5"),
            ("label", np.ones(6, np.float64), "'label' is float64"),
            ("history", np.full((6, 3), 5, np.int32), "history item 5 is outside the item table of 5"),
            ("liked", np.ones((6, 2), bool), r"'liked' is bool \(6, 2\); make it bool \(6, 3\)"),
            ("target", np.full(6, 7, np.int32), "item 7 is outside the item table"),
            ("user", np.full(6, 4, np.int32), "user 4 is outside the user table"),
        ],
    )
    def test_misuse_is_explained(self, column, values, words):
        with pytest.raises(DataError, match=words):
            data(test=PARTS["test"]._replace(**{column: values}))

    def test_no_part_is_empty(self):
        with pytest.raises(DataError, match="the validation part has no examples"):
            data(validation=made(0))


class TestFewShot:
    def test_draws_by_seed_from_training_alone(self):
        draws = [few_shot(data(), 3, seed=seed) for seed in (0, 0, 1)]
        assert draws[0].fingerprint == draws[1].fingerprint != draws[2].fingerprint
        assert draws[0].train.size == 3
        assert draws[0].test is PARTS["test"]
        assert "3 training questions drawn with seed 0" in draws[0].protocol
        whole = few_shot(data(), 8, seed=4).train
        keys = [
            sorted(map(tuple, np.column_stack((rows.user, rows.target, rows.history)))) for rows in (whole, made(8))
        ]
        assert keys[0] == keys[1]

    def test_misuse_is_explained(self):
        with pytest.raises(ValueError, match="k must be positive"):
            few_shot(data(), 0)
        with pytest.raises(DataError, match="asks for 9 training examples but toy has 8"):
            few_shot(data(), 9)


@pytest.fixture(scope="module")
def movie() -> LabeledData:
    return load_labeled("tallrec_movie")


class TestTallrec:
    def test_counts(self, movie):
        figures = movie.statistics()
        assert [figures[part] for part in ("train", "validation", "test")] == [8000, 1000, 1000]
        assert [figures[f"{part}_users"] for part in ("train", "validation", "test")] == [80, 14, 16]
        assert [round(figures[f"{part}_liked_share"], 3) for part in ("train", "validation", "test")] == [
            0.557,
            0.658,
            0.528,
        ]
        assert movie.train.history.shape == (8000, 10)
        assert movie.train.mask.all()

    @pytest.mark.parametrize(
        ("part", "sha256"),
        [
            ("validation", "d4aa0c005868aef9b8a85583db946662a2be9c2e0e09f810fe3a7ad31d89274f"),
            ("test", "474e02cde467c8c7001168a4a390a581217edcd8f4726c39aa88c9aa37c54d5e"),
        ],
    )
    def test_written_out_it_is_the_published_file(self, movie, part, sha256):
        titles = tallrec.published_titles(load_movielens_100k(natural_titles=False))
        text = json.dumps(tallrec.render(movie.parts()[part], titles), indent=4)
        assert hashlib.sha256(text.encode()).hexdigest() == sha256

    def test_a_history_is_the_ten_ratings_before(self, movie):
        rows = movie.test
        same = np.flatnonzero(rows.user[1:] == rows.user[:-1])
        assert np.array_equal(rows.history[same + 1, :-1], rows.history[same, 1:])
        assert np.array_equal(rows.history[same + 1, -1], rows.target[same])
        assert np.array_equal(rows.liked[same + 1, -1], rows.label[same] == 1)

    def test_compares_with_the_files_it_is_given(self, movie, tmp_path):
        titles = tallrec.published_titles(load_movielens_100k(natural_titles=False))
        rows = tallrec.render(movie.test, titles)
        (tmp_path / "test.json").write_text(json.dumps(rows))
        assert load_labeled("tallrec_movie", tmp_path).fingerprint == movie.fingerprint
        parts = movie.parts()
        for content, words in (
            (json.dumps([*rows[:6], {**rows[6], "output": "Maybe."}, *rows[7:]]), r"test\.json, row 7: .*Maybe"),
            (json.dumps(rows[:-1]), "has 999 rows where MovieLens-100k gives 1000"),
            (json.dumps({}), "has a dict where"),
            ("[1,", "is not JSON"),
        ):
            (tmp_path / "test.json").write_text(content)
            with pytest.raises(DataError, match=words):
                tallrec.compare(tmp_path, parts, titles)

    def test_a_folder_without_the_files(self, movie, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none of train\.json, valid\.json, test\.json"):
            tallrec.compare(tmp_path, movie.parts(), [])

    def test_titles_are_natural_unless_published(self, movie):
        plain = load_labeled("tallrec_movie", natural_titles=False)
        assert (movie.items["title"][11], plain.items["title"][11]) == ("The Usual Suspects", "Usual Suspects, The")
        assert dataclasses.replace(plain, items=movie.items).fingerprint == movie.fingerprint

    def test_too_few_ratings(self, tmp_path):
        inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
            f"u\ti{i}\t{i % 5 + 1}\t{i}\n" for i in range(12)
        )
        item = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n" + "".join(
            f"i{i}\tT{i}\t1990\tDrama\n" for i in range(12)
        )
        for suffix, content in (("inter", inter), ("item", item), ("user", "user_id:token\tage:token\nu\t3\n")):
            (tmp_path / f"ml-100k.{suffix}").write_text(content)
        with pytest.raises(DataError, match="gives 2 questions"):
            load_labeled("tallrec_movie", movielens=tmp_path)

    def test_names_are_explained(self):
        with pytest.raises(ValueError, match="did you mean 'tallrec_movie'"):
            load_labeled("tallrec_movies")
        with pytest.raises(ValueError, match="option of labelled source 'tallrec_movie' 'movielen'"):
            load_labeled("tallrec_movie", movielen="x")
