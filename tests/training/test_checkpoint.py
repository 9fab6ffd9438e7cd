"""Checkpoints come back bit by bit, and those of something else are refused with what differs."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from llm4rec_jax import checksums, io
from llm4rec_jax.checksums import MANIFEST
from llm4rec_jax.sharding import digest, make_mesh, place
from llm4rec_jax.training.checkpoint import CheckpointError, Checkpoints, latest_step, load_matching_params

BASE = digest({"encoder": np.arange(3.0)})


def state(seed: int = 0, width: int = 6) -> dict:
    rng = np.random.default_rng(seed)
    # A denormal, a NaN and an infinity are bits like others.
    kernel = rng.normal(size=(8, width)).astype(np.float32)
    kernel[0, :3] = [1e-42, np.nan, -np.inf]
    tree = {
        "step": jnp.asarray(seed, jnp.int32),
        "trainable": {
            "delta": {"layer_0/query": {"a": jnp.asarray(rng.normal(size=(4, 2)), jnp.bfloat16)}},
            "params": {"users": {"kernel": jnp.asarray(kernel)}},
        },
    }
    return place(tree, make_mesh())


def same(a: dict, b: dict) -> None:
    assert digest(a) == digest(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    opened = Checkpoints(tmp_path, BASE)
    yield opened
    opened.close()


def test_a_state_comes_back_bit_by_bit(checkpoints, tmp_path):
    record = {"best_value": 0.1 + 0.2, "best_step": None, "input": {"next_index": 7}}
    checkpoints.save("last", 3, state(3), record)
    checkpoints.finish()
    again = Checkpoints(tmp_path, BASE)
    restored = again.restore("last", state(9))
    again.close()
    same(restored.state, state(3))
    assert {name: restored.record[name] for name in record} == record


def test_arrays_come_back_where_they_are_wanted(checkpoints):
    checkpoints.save("last", 1, state(1), {})
    like = state(0)
    kernel = place(
        {"kernel": np.zeros((8, 6), np.float32)}, make_mesh(2), (("kernel", PartitionSpec("data", "model")),)
    )
    like["trainable"]["params"]["users"] = kernel
    restored = checkpoints.restore("last", like).state
    same(restored, state(1))
    assert restored["trainable"]["params"]["users"]["kernel"].sharding == kernel["kernel"].sharding


def test_files_are_written_while_training_goes_on(checkpoints, monkeypatch):
    """The state may be given away as soon as `save` returns, and the next checkpoint waits for this one."""
    held, write = threading.Event(), checksums.write_manifest

    def slowly(folder: Path) -> None:
        assert held.wait(60)
        write(folder)

    monkeypatch.setattr(checksums, "write_manifest", slowly)
    given = state(1)
    checkpoints.save("best", 1, given, {})
    given = jax.jit(lambda tree: jax.tree.map(lambda a: a * 0, tree), donate_argnums=0)(given)
    jax.block_until_ready(given)
    assert not (checkpoints.folder / "best" / "1" / checksums.MANIFEST).exists()
    other = threading.Thread(target=checkpoints.save, args=("last", 1, state(2), {}))
    other.start()
    other.join(0.3)
    assert other.is_alive()
    assert not (checkpoints.folder / "last" / "1").exists()
    held.set()
    other.join()
    same(checkpoints.restore("best", state()).state, state(1))
    same(checkpoints.restore("last", state()).state, state(2))


def test_what_cannot_be_written_is_told_at_the_latest_when_it_must_be_there(checkpoints, monkeypatch):
    def full(folder: Path) -> None:
        raise io.not_written(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    monkeypatch.setattr(checksums, "write_manifest", full)
    for tell in (checkpoints.finish, lambda: checkpoints.save("last", 2, state(2), {})):
        checkpoints.save("last", 1, state(1), {})
        with pytest.raises(io.NotWritten, match=r"last/1.* \(No space left on device"):
            tell()


def test_last_and_best_go_their_own_ways(checkpoints):
    assert checkpoints.latest("last") is None
    for step in (1, 2, 3):
        checkpoints.save("last", step, state(step), {})
    for step in (1, 2):
        checkpoints.save("best", step, state(10 + step), {})
    assert (checkpoints.latest("last"), checkpoints.latest("best")) == (3, 2)
    same(checkpoints.restore("last", state()).state, state(3))
    same(checkpoints.restore("last", state(), step=2).state, state(2))
    same(checkpoints.restore("best", state()).state, state(12))
    assert sorted(path.name for path in (checkpoints.folder / "last").iterdir()) == ["2", "3"]
    assert sorted(path.name for path in (checkpoints.folder / "best").iterdir()) == ["1", "2"]


def test_a_step_that_is_done_again_is_saved_again(checkpoints):
    checkpoints.save("best", 2, state(1), {"try": 1})
    checkpoints.save("best", 2, state(2), {"try": 2})
    restored = checkpoints.restore("best", state())
    same(restored.state, state(2))
    assert restored.record["try"] == 2


def test_where_there_is_none_one_must_be_trained(checkpoints):
    with pytest.raises(CheckpointError, match="last holds no checkpoint: train first"):
        checkpoints.restore("last", state())


def test_another_base_is_refused(checkpoints, tmp_path):
    checkpoints.save("last", 1, state(), {})
    checkpoints.finish()
    other = Checkpoints(tmp_path, digest({"encoder": np.arange(4.0)}))
    with pytest.raises(CheckpointError, match=rf"frozen base with digest {BASE[:12]}…, but .* another workdir"):
        other.restore("last", state())
    other.close()


def other_shape(tree: dict) -> None:
    tree["trainable"]["params"]["users"]["kernel"] = jnp.zeros((8, 7))


def another_array(tree: dict) -> None:
    tree["trainable"]["params"]["users"]["scale"] = jnp.zeros(3)


def an_array_fewer(tree: dict) -> None:
    del tree["trainable"]["params"]["users"]["kernel"]


def other_names(tree: dict) -> None:
    tree["trainable"]["delta"] = {"layer_1/value": {"a": jnp.zeros((4, 2))}}


def other_dtype(tree: dict) -> None:
    tree["trainable"]["params"]["users"]["kernel"] = jnp.zeros((8, 6), jnp.bfloat16)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_shape, "users/kernel"),
        (another_array, "users/scale"),
        (an_array_fewer, "users/kernel"),
        (other_names, "layer_1/value"),
        (other_dtype, "users/kernel"),
    ],
)
def test_other_arrays_are_refused_by_name(checkpoints, change, named):
    checkpoints.save("last", 1, state(), {})
    like = state()
    change(like)
    like = place(like, make_mesh())
    with pytest.raises(CheckpointError, match=rf"(?s)last/1 does not hold what this model trains.*{named}"):
        checkpoints.restore("last", like)


def test_the_digest_sees_names_types_shapes_and_bits():
    tree = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2)}
    assert digest(tree) == digest({"b": np.zeros(2), "a": jnp.arange(6, dtype=jnp.float32)})
    changed = [
        {"c": tree["a"], "b": tree["b"]},
        tree | {"a": tree["a"].reshape(2, 3)},
        tree | {"a": tree["a"].view(np.int32)},
        tree | {"a": np.nextafter(tree["a"], 9)},
        tree | {"b": -tree["b"]},
        {"a": tree["a"]},
    ]
    assert len({digest(other) for other in [tree, *changed]}) == 1 + len(changed)


def damaged(folder: Path) -> Path:
    """A bit of the largest file of a checkpoint's arrays is flipped."""
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "checksums.json"]
    file = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return file


def three_steps(workdir: Path, name: str = "last") -> Checkpoints:
    made = Checkpoints(workdir, BASE)
    for step in (1, 2, 3):
        made.save(name, step, state(step), {"step": step})
    made.close()
    return Checkpoints(workdir, BASE)


def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path):
    opened = three_steps(tmp_path)
    file = damaged(opened.folder / "last" / "3")
    with pytest.warns(UserWarning, match=f"{file} is damaged.*going on from the checkpoint of step 2, which is whole"):
        restored = opened.restore("last", state())
    same(restored.state, state(2))
    assert restored.record["step"] == 2
    with pytest.warns(UserWarning, match="is damaged"):
        assert latest_step(tmp_path) == 2
    with pytest.raises(CheckpointError, match=f"{file} is damaged.*bring it back from a copy"):
        opened.restore("last", state(), step=3)
    # The steps after it are done again, and the damaged checkpoint goes.
    opened.save("last", 3, state(7), {})
    opened.close()
    again = Checkpoints(tmp_path, BASE)
    same(again.restore("last", state()).state, state(7))
    again.close()


def test_damage_that_orbax_refuses_on_opening_is_named_too(tmp_path):
    """Its metadata is read when a manager is made, unless that is forbidden."""
    opened = three_steps(tmp_path)
    opened.save("best", 3, state(3), {})
    opened.close()
    files = [opened.folder / name / "3" / "_CHECKPOINT_METADATA" for name in ("last", "best")]
    for file in files:
        content = file.read_text()
        assert '"performance_metrics": {}' in content
        file.write_text(content.replace('"performance_metrics": {}', '"performance_metrics": 5'))
    with pytest.warns(UserWarning, match=f"{files[0]} is damaged.*going on from the checkpoint of step 2"):
        assert latest_step(tmp_path) == 2
    again = Checkpoints(tmp_path, BASE)
    with pytest.warns(UserWarning, match="is damaged"):
        same(again.restore("last", state()).state, state(2))
    with pytest.raises(CheckpointError, match=f"{files[1]} is damaged, .*bring it back from a copy"):
        again.restore("best", state())
    again.close()


def test_what_comes_after_the_step_that_one_goes_back_to_is_no_more(tmp_path):
    opened = three_steps(tmp_path)
    opened.save("last", 2, state(9), {})
    opened.finish()
    assert sorted(path.name for path in (opened.folder / "last").iterdir()) == ["2"]
    opened.close()


def test_when_all_are_damaged_nothing_starts_anew_by_itself(tmp_path):
    opened = three_steps(tmp_path)
    for step in ("2", "3"):
        damaged(opened.folder / "last" / step)
    with pytest.raises(CheckpointError, match=f"every checkpoint in .*last is damaged .*remove {tmp_path} to start"):
        opened.latest("last")
    opened.close()


def test_nothing_stands_in_for_a_damaged_best_state(tmp_path):
    opened = three_steps(tmp_path, "best")
    file = damaged(opened.folder / "best" / "3")
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        opened.restore("best", state())
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        load_matching_params({}, tmp_path)
    opened.close()


def test_one_whose_manifest_is_not_there_yet_was_broken_off(tmp_path):
    """A kill came between the two. Where all are so, they are of an older version, and are taken as they are."""
    opened = three_steps(tmp_path)
    (opened.folder / "last" / "3" / MANIFEST).unlink()
    assert opened.latest("last") == 2
    (opened.folder / "last" / "2" / MANIFEST).unlink()
    opened.close()
    older = Checkpoints(tmp_path, BASE)
    same(older.restore("last", state()).state, state(3))
    older.close()


def best(workdir: Path, params: dict) -> None:
    made = Checkpoints(workdir, BASE)
    made.save("best", 5, place({"delta": {}, "params": params}, make_mesh()), {})
    made.close()


def test_another_run_lends_all_but_the_encoder(tmp_path):
    theirs = {"users": {"kernel": np.full((2, 3), 7.0, np.float32)}, "pooling": {"query": np.ones(2, np.float32)}}
    best(tmp_path, theirs)
    ours = {
        "encoder": {"kernel": np.zeros(5, np.float32)},
        "users": {"kernel": np.zeros((2, 3), np.float32)},
        "head": {"weight": np.eye(2, dtype=np.float32)},
    }
    adopted = load_matching_params(ours, tmp_path)
    assert set(adopted) == set(ours)
    np.testing.assert_array_equal(adopted["users"]["kernel"], theirs["users"]["kernel"])
    assert adopted["encoder"] is ours["encoder"]
    assert adopted["head"] is ours["head"]
    assert not ours["users"]["kernel"].any()


def test_what_does_not_fit_is_not_lent(tmp_path):
    best(tmp_path, {"users": {"kernel": np.zeros((2, 3), np.float32)}})
    with pytest.raises(CheckpointError, match=r"users has the shapes .*\(2, 3\).* this model needs .*\(3, 2\)"):
        load_matching_params({"users": {"kernel": np.zeros((3, 2), np.float32)}}, tmp_path)


def test_a_run_that_was_never_trained_lends_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="holds no trained run: "):
        load_matching_params({}, tmp_path)
    Checkpoints(tmp_path, BASE).close()
    with pytest.raises(CheckpointError, match="has that run been trained"):
        load_matching_params({}, tmp_path)


@pytest.mark.parametrize("name", [*["a[b]c", "x]", "st*r", "wh?t", "back\\slash", "ünï"], "sp ace", f"[{'long' * 40}]"])
def test_a_folder_may_have_any_name(tmp_path, name):
    checkpoints = Checkpoints(tmp_path / name, "base")
    checkpoints.save("last", 3, state(3), {})
    checkpoints.save("best", 3, state(3), {})
    checkpoints.close()
    again = Checkpoints(tmp_path / name, "base")
    same(again.restore("last", state(9)).state, state(3))
    again.close()
    assert (tmp_path / name / "checkpoints" / "best" / "3").is_dir()
