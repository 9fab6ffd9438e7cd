"""Training on questions, by the pointwise loss.

A loop of its own beside `train`: a question brings its own history, likes and dislikes, and there is no catalogue to
rank, no split and no negatives, so that hardly a line of a `Batch`, or of what makes one, would be shared.
"""

import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from llm4rec_jax.data.labeled import LabeledData, LabeledExamples
from llm4rec_jax.evaluation import rating_metrics as pointwise
from llm4rec_jax.evaluation.metrics import is_better
from llm4rec_jax.losses.ranking import LOSSES, reduce_mean
from llm4rec_jax.peft.core import forward
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.tasks.rating_scoring import Questions, Reader, batch, logits, scorer
from llm4rec_jax.training import throughput as speed
from llm4rec_jax.training.checkpoint import Checkpoints, digest
from llm4rec_jax.training.metric_writer import Journal
from llm4rec_jax.training.optimizer import optimizer
from llm4rec_jax.training.runs import NonFiniteLoss, Preempted, noting_sigterm, separate

METRICS = ("auc", "gauc", "log_loss", "accuracy")


class Trained(NamedTuple):
    """Attributes:
    trainable: {"delta": …, "params": …} of the best validation.
    frozen: the parameters that were not trained.
    best_step, step: where the best was, and the last that was made.
    """

    trainable: dict[str, Any]
    frozen: dict[str, Any]
    best_step: int
    step: int


def train(
    head: nn.Module,
    reader: Reader,
    params: Mapping[str, Any],
    data: LabeledData,
    prompts: Mapping[str, np.ndarray],
    workdir: Path,
    *,
    seed: int = 0,
    steps: int = 200,
    batch_size: int = 256,
    learning_rate: float = 1e-2,
    schedule: str = "constant",
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    accumulate: int = 1,
    scales: Mapping[str, float] | None = None,
    pull: float = 0.0,
    histories: bool = True,
    eval_every: int = 10,
    metric: str = "auc",
    patience: int | None = None,
    log_every: int = 10,
    checkpoint_every: int = 100,
) -> Trained:
    """Trains, or goes on with, the run in `workdir`. What is random is a function of seed and step.

    Args:
      head: one of `models.answers.RATING_HEADS`, made.
      reader: reads the texts.
      params: {"encoder": …, "answers": the head's, …}.
      data: the questions.
      prompts: by part, train and validation, the text numbers of the questions' prompts [n].
      workdir: gets checkpoints, metrics.jsonl and TensorBoard events.
      seed: of the order of questions, and of what the method draws.
      steps, batch_size: batches, and questions in each, at most all.
      learning_rate … scales: see `optim.optimizer`.
      pull: a Gaussian prior on the head's parameters θ about their start θ₀, where the head says the liked share:
        pull / 2 ‖θ − θ₀‖² is added to the sum of the losses of all answers that are trained on. pull is 1 / variance.
      histories: whether each answer of a history is trained on too, from the others. A prompt has one answer only.
      eval_every, metric, patience: validation every so many steps, what is best by it, and after how many without a
        better one to stop (None: never). Step 0 counts, which is the prior.
      log_every, checkpoint_every: steps.

    Raises:
      NonFiniteLoss: the loss became NaN or infinite.
      Preempted: SIGTERM came, and the state has been saved.
      ValueError: arguments that do not go together, before anything is computed.
    """
    # ------------------------------------------------------------------------------------------------ what is trained
    started = time.perf_counter()
    if metric not in METRICS:
        raise ValueError(unknown_name("validation metric", metric, METRICS))
    if min(steps, batch_size, eval_every, log_every, checkpoint_every) < 1:
        raise ValueError("steps, batch_size, eval_every, log_every and checkpoint_every must be at least 1")
    trainable, frozen = separate(reader.method, params, jax.random.fold_in(jax.random.key(seed), 1))
    frozen = frozen["params"]
    tx = optimizer(
        reader.method,
        trainable,
        learning_rate=learning_rate,
        steps=steps,
        schedule_kind=schedule,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        accumulate=accumulate,
        scales=scales,
    )
    loss = LOSSES.lookup("bce_pointwise")
    every = histories and not reader.prompts
    answers = _answers(data.train) if every else data.train.size

    # ------------------------------------------------------------------------------------------------------------ step
    def objective(trainable: Any, frozen: Any, vectors: Any, asked: Questions) -> jax.Array:
        if asked.texts is not None:
            weights = {**frozen, **trainable["params"]}
            vectors = forward(reader.model, reader.method, weights, trainable["delta"], *asked.texts)
        scores, labels, counts = logits(head, trainable["params"]["answers"], reader.centre, vectors, asked, every)
        own, start = trainable["params"]["answers"], params["answers"]
        moved = sum(jnp.square(a - b).sum() for a, b in zip(*map(jax.tree.leaves, (own, start)), strict=True))
        prior = pull / 2 * moved / answers + reader.method.penalty(trainable["delta"])
        return reduce_mean(loss(scores, labels), counts) + prior

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, frozen: Any, vectors: Any, asked: Questions) -> tuple[Any, dict[str, jax.Array]]:
        value, grads = jax.value_and_grad(objective)(state["trainable"], frozen, vectors, asked)
        updates, opt_state = tx.update(grads, state["opt_state"], state["trainable"])
        state = {**state, "trainable": optax.apply_updates(state["trainable"], updates), "opt_state": opt_state}
        return state, {"loss": value, "grad_norm": optax.tree.norm(grads)}

    # ---------------------------------------------------------------------------------------------------------- resume
    # A step gives its input's memory away; the caller keeps the arrays that were passed in.
    trainable = jax.tree.map(jnp.copy, trainable)
    state: dict[str, Any] = {
        "trainable": trainable,
        "opt_state": jax.jit(tx.init)(trainable),
        "best": jax.tree.map(jnp.copy, trainable),
    }
    record: dict[str, Any] = {"best_value": None, "best_step": 0, "worse": 0}
    checkpoints = Checkpoints(workdir, digest(frozen))
    held = checkpoints.latest("last")
    step = held or 0
    if held is not None:
        state, record = checkpoints.restore("last", state)

    size = min(batch_size, data.train.size)
    an_epoch = data.train.size // size
    scores = scorer(head, reader)

    def validate() -> None:
        asked = scores(state["trainable"], frozen, data.validation, prompts["validation"])
        found = pointwise.evaluate(asked, data, data.validation).summary
        journal.record("validation", step, {name: found[name] for name in METRICS})
        if record["best_value"] is None or is_better(metric, found[metric], record["best_value"]):
            record.update(best_value=found[metric], best_step=step, worse=0)
            state["best"] = jax.tree.map(jnp.copy, state["trainable"])
        else:
            record["worse"] += 1

    # ------------------------------------------------------------------------------------------------------------ loop
    windows: list[dict[str, float]] = []
    done: list[speed.Work] = []
    programs: dict[tuple[Any, ...], float] = {}  # shapes to FLOPs
    before = record.get("records", 0)
    with (
        noting_sigterm() as stop,
        Journal(workdir, -1 if held is None else step, steps, size, started, records=before) as journal,
    ):
        if held is None:
            with journal.aside():
                validate()
        while step < steps and (patience is None or record["worse"] < patience):
            epoch, place = divmod(step, an_epoch)
            drawn = np.random.default_rng([seed, epoch]).permutation(data.train.size)[place * size : (place + 1) * size]
            asked = batch(data.train.take(drawn), prompts["train"][drawn], reader)
            if (shapes := tuple(np.shape(a) for a in jax.tree.leaves(asked))) not in programs:
                with journal.aside():
                    compiled = update.lower(state, frozen, reader.vectors, asked).compile()
                programs[shapes] = (compiled.cost_analysis() or {}).get("flops", 0.0)
                journal.program(step, len(programs), compiled, programs[shapes])
            done.append(_work(asked, programs[shapes]))
            state, figures = update(state, frozen, reader.vectors, asked)
            step += 1
            windows.append({name: float(value) for name, value in figures.items()})
            if not math.isfinite(windows[-1]["loss"]):
                raise NonFiniteLoss(f"the loss is {windows[-1]['loss']} at step {step}: lower the learning rate")
            journal.advance(step)
            due = step % eval_every == 0 or step == steps
            if step % log_every == 0 or due:
                means = {name: float(np.mean([window[name] for window in windows])) for name in windows[0]}
                with journal.aside():
                    peak = speed.peak(jax.devices()[0], jnp.float32)
                journal.train(step, means, done, peak, len(programs))
                windows.clear()
                done.clear()
            ending = stop.is_set()
            with journal.aside():
                if due:
                    validate()
                if step % checkpoint_every == 0 or ending:
                    checkpoints.save("last", step, state, {**record, "records": journal.records})
            if ending:
                checkpoints.finish()
                journal.say(f"SIGTERM: saved at step {step}; the same command goes on from here")
                raise Preempted(step)
    if step != held:
        checkpoints.save("last", step, state, {**record, "records": journal.records})
    checkpoints.close()
    return Trained(state["best"], frozen, record["best_step"], step)


def _work(asked: Questions, flops: float) -> speed.Work:
    """What a step reads: of the films, those that are told apart by text numbers."""
    mask, target = np.asarray(asked.mask) > 0, np.asarray(asked.target)
    read = target if asked.history is None else np.concatenate([np.asarray(asked.history)[mask], target])
    texts = np.zeros((0, 0)) if asked.texts is None else np.asarray(asked.texts[1])
    return speed.Work(int(texts.sum()), texts.size, len(np.unique(read)), len(read), flops)


def _answers(rows: LabeledExamples) -> int:
    """How many different answers questions hold: consecutive ones share most of their histories."""
    history = np.column_stack(
        [np.broadcast_to(rows.user[:, None], rows.mask.shape)[rows.mask], rows.history[rows.mask]]
    )
    return len(np.unique(np.concatenate([history, np.column_stack([rows.user, rows.target])]), axis=0))
