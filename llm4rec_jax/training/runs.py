"""What a training run is given and what comes of it, one or several side by side."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation import metrics
from llm4rec_jax.inference.scorer import RecommenderScorer
from llm4rec_jax.losses.ranking import Loss
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.sites import parts_of
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.sharding import digest, fetch
from llm4rec_jax.training.checkpoint import Checkpoints
from llm4rec_jax.trees import flatten


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite. The message names the step, the batch's users and the last good checkpoint."""


class Preempted(SystemExit):
    """SIGTERM came; the state has been saved, and the same call goes on from there. Exits with code 0.

    The step is None where there was nothing to save.
    """

    def __init__(self, step: int | None) -> None:
        super().__init__(0)
        self.step = step


@contextlib.contextmanager
def noting_sigterm() -> Iterator[threading.Event]:
    """An event that is set when SIGTERM comes while this is entered; elsewhere than in the main thread it never is."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


class Run(NamedTuple):
    """What may differ between runs that are trained together.

    Attributes:
      params: all parameters at the start; those that are frozen must be the same in all.
      split: training and validation data, of one dataset.
      workdir: the run's own folder.
      seed: of initialisation, order, negatives and dropout.
      learning_rate, weight_decay: see `optim.optimizer`.
    """

    params: Mapping[str, Any]
    split: Split
    workdir: Path
    seed: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


class Trained(NamedTuple):
    """Attributes:
    trainable: {"delta": …, "params": …} of the best validation.
    frozen: {"params": …, "text": [I, W] or None, "states": [I, L, W] or [I, L, S, W] or None}.
    best_step, best_value: where, and the validation metric there.
    step: the last step that was made.
    scorer: `scorer.of(...)` scores with any parameters.
    """

    trainable: dict[str, Any]
    frozen: dict[str, Any]
    best_step: int
    best_value: float
    step: int
    scorer: RecommenderScorer


def separate(method: Peft, params: Mapping[str, Any], key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters as (trainable, frozen): the encoder and what else the method adapts is frozen, its delta trained."""
    delta = method.init(key, params)
    adapted = {"encoder", *parts_of(delta)}
    own = {name: part for name, part in params.items() if name not in adapted}
    base = {name: part for name, part in params.items() if name in adapted}
    return {"delta": delta, "params": own}, {"params": base, "text": None, "states": None}


def check(
    split: Split,
    name: str,
    loss: Loss,
    num_negatives: int,
    label_threshold: float | None,
    metric: str,
    ks: Sequence[int],
) -> None:
    """Raises ValueError for what would otherwise come out only after the first steps, or never."""
    one = np.ones(1, np.int64)
    _, known = metrics.evaluate_ranks(metrics.Ranks(np.array([0, 1]), one, one - 1, one + 1), ks)
    # How many users there are is none.
    choices = [name for name in known if not name.startswith("users")]
    if metric not in choices:
        raise ValueError(unknown_name("validation metric", metric, choices))
    if not len(split.validation):
        raise ValueError(f"nothing to validate on: under {split.protocol!r} the validation part is empty")
    if loss.negatives == "sampled" and num_negatives < 1:
        raise ValueError(
            f"num_negatives is {num_negatives}, but the loss {name!r} compares with sampled items: give 1 or more"
        )
    if label_threshold is not None and name != "bce_pointwise":
        raise ValueError(f"label_threshold makes labels for the loss 'bce_pointwise', but the loss is {name!r}")
    ratings = split.dataset.interactions.rating
    if (
        name == "bce_pointwise"
        and label_threshold is None
        and ratings is not None
        and (ratings.min() < 0 or ratings.max() > 1)
    ):
        raise ValueError(
            f"the loss 'bce_pointwise' takes labels between 0 and 1, but ratings go from {ratings.min():g} to "
            f"{ratings.max():g}: give label_threshold, at or above which a rating is a positive"
        )


def stack(trees: Sequence[Any]) -> Any:
    """Trees of several runs as one with a first axis for the runs; that of a single run as it is."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def of_run(tree: Any, k: int, many: bool) -> Any:
    """The part of run k in what `stack` made."""
    return jax.tree.map(lambda a: a[k], tree) if many else tree


def shared_base(runs: Sequence[Run], frozen: Sequence[Any]) -> str:
    """The digest of the frozen parameters, one tree a run; ValueError when they are not the same."""
    base = digest(frozen[0])
    for run, other in zip(runs, frozen, strict=True):
        same = all(a is b for a, b in zip(*map(jax.tree.leaves, (frozen[0], other)), strict=True))
        if not same and digest(other) != base:
            raise ValueError(
                f"the runs {runs[0].workdir} and {run.workdir} do not share what is frozen: train them apart"
            )
    return base


def settings(runs: Sequence[Run]) -> dict[str, jax.Array]:
    """What runs differ in as arrays, `stack`ed: key data of the seed, learning rate and weight decay."""
    return stack(
        [
            {
                # Several processes cannot place a typed key.
                "key": jax.random.key_data(jax.random.key(run.seed)),
                "learning_rate": jnp.float32(run.learning_rate),
                "weight_decay": jnp.float32(run.weight_decay),
            }
            for run in runs
        ]
    )


def unmoved(before: Any, after: Any) -> list[str]:
    """The paths of the arrays that are the same bits in two trees; `before` is on this host."""
    pairs = zip(flatten(before).items(), jax.tree.leaves(after), strict=True)
    return [path for (path, one), other in pairs if np.array_equal(one, fetch(other))]


def not_finite(
    name: str, figures: Mapping[str, float], step: int, run: Run, users: Any, checkpoints: Checkpoints
) -> NonFiniteLoss:
    """The error of a run whose figure `name` is not finite at a step, in a batch of these user rows."""
    names = run.split.dataset.users["user_id"].gather(users).to_list()
    good = checkpoints.latest("last")
    return NonFiniteLoss(
        f"the {name.replace('_', ' ')} is {figures[name]} at step {step}, in a batch of the users "
        f"{', '.join(names[:20])}{' …' if len(names) > 20 else ''}; the last good checkpoint is "
        f"{'none' if good is None else checkpoints.folder / 'last' / str(good)}. Lower the learning rate, lengthen the "
        "warm-up, or look at these users' data"
    )
