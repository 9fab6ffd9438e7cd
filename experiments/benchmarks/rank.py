"""Ranks over a whole catalogue: ours against torch and numpy, which score users in chunks of items.

Vectors are multiples of 1/8, so that scores are exact whatever the order of their sums: all sides find the same ranks.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import timing
from llm4rec_jax.data.splits.split import Sequences
from llm4rec_jax.inference.ranks import rank
from llm4rec_jax.sharding import make_mesh

# The fastest for torch of 1024 and 4096 users by 1024 to 8192 items; numpy differs little.
BATCH, CHUNK = 4096, 2048


class Case(NamedTuple):
    """Users' vectors [B, D], items' [I, D], one target a user [B], and histories [B, H], distinct within a user."""

    users: np.ndarray
    items: np.ndarray
    target: np.ndarray
    history: np.ndarray


def run() -> Iterator[dict[str, Any]]:
    """10,000 users, 100,000 items, D 64, histories of 20."""
    yield measure(10_000, 100_000, 64, 20)


def measure(users: int, items: int, width: int, history: int, repeats: int = 5) -> dict[str, Any]:
    """Seconds of a whole evaluation, and what memory each side takes beyond its inputs, in a process of its own."""
    sizes = users, items, width, history
    case = draw(*sizes)
    found = {name: side(case)() for name, side in SIDES.items()}
    memory = {}
    for name in SIDES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            memory[f"{name}_peak_mib"] = pool.submit(_peak, name, sizes).result()
    times = timing.interleaved({name: side(case) for name, side in SIDES.items()}, repeats, warm=1)
    return {
        "users": users,
        "items": items,
        "width": width,
        "history": history,
        **timing.summary(times),
        **memory,
        **{f"different_ranks_{name}": int((ranks != found["ours"]).sum()) for name, ranks in found.items()},
        "mean_rank": float(found["ours"].mean()),
    }


def draw(users: int, items: int, width: int, history: int) -> Case:
    """Random vectors, and distinct items for each user, of which the last is the target."""
    rng = np.random.default_rng(0)
    vectors = (np.round(8 * rng.standard_normal((n, width), np.float32)) / 8 for n in (users, items))
    # Steps of at least one between sorted draws keep a user's items apart.
    chosen = np.sort(rng.integers(items - history, size=(users, history + 1)), axis=1) + np.arange(history + 1)
    chosen = rng.permuted(chosen, axis=1).astype(np.int32)
    user_vectors, item_vectors = vectors
    return Case(user_vectors, item_vectors, chosen[:, -1], chosen[:, :-1])


def ours(case: Case) -> Callable[[], np.ndarray]:
    """`ranking.rank` as `evaluate` calls it."""
    count, width = case.history.shape
    history = Sequences(width * np.arange(count + 1), case.history.ravel(), None, None)
    targets = Sequences(np.arange(count + 1), case.target, None, None)
    candidates = np.ones(len(case.items), bool)
    mesh = make_mesh()

    def ranks() -> np.ndarray:
        return rank(
            _dot,
            None,
            lambda rows: case.users[rows],
            case.items,
            history=history,
            targets=targets,
            candidates=candidates,
            mesh=mesh,
        ).ranks.rank

    return ranks


def _dot(params: None, user_embeddings: jax.Array, item_embeddings: jax.Array) -> jax.Array:
    return user_embeddings @ item_embeddings.T


def torch_side(case: Case, top: int = 0) -> Callable[[], np.ndarray]:
    """Counts in chunks what scores above or as the target; with `top`, keeps lists of that number of the best, too."""
    import torch

    users, items = torch.from_numpy(case.users), torch.from_numpy(case.items)
    target, history = torch.from_numpy(case.target).long(), torch.from_numpy(case.history).long()

    @torch.inference_mode()
    def ranks() -> np.ndarray:
        out, kept = [], torch.empty(2, BATCH * CHUNK)
        for some in torch.arange(len(users)).split(BATCH):
            vectors, seen = users[some], history[some]
            own = (vectors * items[target[some]]).sum(1, keepdim=True)
            rivals = torch.zeros(len(some))
            best = torch.full((len(some), top), -torch.inf), torch.full((len(some), top), -1)
            for low in range(0, len(items), CHUNK):
                chunk = items[low : low + CHUNK].T
                # Memory that is kept, and marks that are summed as floats, take half the time of what is shorter.
                scores, marks = (memory[: len(some) * chunk.shape[1]].view(len(some), -1) for memory in kept)
                torch.mm(vectors, chunk, out=scores)
                row, place = ((seen >= low) & (seen < low + CHUNK)).nonzero(as_tuple=True)
                scores[row, seen[row, place] - low] = -torch.inf
                rivals += torch.ge(scores, own, out=marks).sum(1)
                if top:
                    values, places = scores.topk(min(top, scores.shape[1]))
                    values, places = torch.cat([best[0], values], 1), torch.cat([best[1], places + low], 1)
                    values, order = values.topk(top)
                    best = values, places.gather(1, order)
            # The target, which is no rival of itself, has been counted.
            out.append(rivals)
        return torch.cat(out).long().numpy()

    return ranks


def torch_lists(case: Case) -> Callable[[], np.ndarray]:
    """The usual way: torch's topk of every chunk, merged, beside the exact rank."""
    return torch_side(case, top=20)


def numpy_side(case: Case) -> Callable[[], np.ndarray]:
    """The same in numpy."""

    def ranks() -> np.ndarray:
        out = []
        for start in range(0, len(case.users), BATCH):
            some = slice(start, start + BATCH)
            vectors, seen = case.users[some], case.history[some]
            own = (vectors * case.items[case.target[some]]).sum(1, keepdims=True)
            rivals = np.zeros(len(vectors), np.int64)
            for low in range(0, len(case.items), CHUNK):
                scores = vectors @ case.items[low : low + CHUNK].T
                row, place = np.nonzero((seen >= low) & (seen < low + CHUNK))
                scores[row, seen[row, place] - low] = -np.inf
                rivals += np.count_nonzero(scores >= own, axis=1)
            out.append(rivals)
        return np.concatenate(out)

    return ranks


SIDES: dict[str, Callable[[Case], Callable[[], np.ndarray]]] = {
    "ours": ours,
    "torch": torch_side,
    "torch_topk": torch_lists,
    "numpy": numpy_side,
}


def _peak(name: str, sizes: tuple[int, int, int, int]) -> float:
    """MiB by which an evaluation raises the process's memory at most, by Linux; ours compiles its programs in it."""
    ranks = SIDES[name](draw(*sizes))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    ranks()
    return (_status("VmHWM") - before) / 2**10


def _status(name: str) -> int:
    """KiB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
