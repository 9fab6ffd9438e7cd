"""The one training loop, read from top to bottom."""

import contextlib
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax import sharding
from llm4rec_jax.data.batching.batch import Batch
from llm4rec_jax.data.batching.buckets import ANY
from llm4rec_jax.data.batching.builder import BatchOptions, training_batches
from llm4rec_jax.data.batching.masking import ClozeMasking
from llm4rec_jax.data.features.tokens import Tokens
from llm4rec_jax.data.splits.split import Split
from llm4rec_jax.evaluation.evaluate import evaluate
from llm4rec_jax.evaluation.metrics import is_better
from llm4rec_jax.evaluation.ranks import NonFiniteScores
from llm4rec_jax.inference.batch_sizes import group_cost
from llm4rec_jax.inference.scorer import Prompts, RecommenderScorer
from llm4rec_jax.losses.ranking import LOSSES, Loss
from llm4rec_jax.models.recommender import Recommender
from llm4rec_jax.peft.core import Peft
from llm4rec_jax.peft.sites import constant_below, count
from llm4rec_jax.tasks.ranking_objective import Objective
from llm4rec_jax.training import throughput as speed
from llm4rec_jax.training.checkpoint import Checkpoints, digest
from llm4rec_jax.training.compiled_steps import Programs
from llm4rec_jax.training.metric_writer import Journal, aside
from llm4rec_jax.training.optimizer import optimizer
from llm4rec_jax.training.placement import place_batch, place_together
from llm4rec_jax.training.runs import (
    NonFiniteLoss,
    Preempted,
    Run,
    Trained,
    check,
    not_finite,
    noting_sigterm,
    of_run,
    separate,
    settings,
    shared_base,
    stack,
    unmoved,
)
from llm4rec_jax.training.step import Update


def train(
    model: Recommender,
    method: Peft,
    params: Mapping[str, Any],
    split: Split,
    workdir: Path,
    *,
    seed: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    **options: Any,
) -> Trained:
    """Trains, or goes on with, the run in `workdir`, and returns its best state by validation.

    Everything random is a function of the seed and the step, and the input's position is part of a checkpoint: a run
    that is killed at any instant and started again ends with the same bits as one that never was.

    Args:
      model, params: a recommender and all its parameters, the pretrained encoder's among them.
      method: adapts the encoder or another part, whose own parameters are frozen then, as the encoder's always are;
        bring a method for the bare encoder `within(method, "encoder")`.
      split: training and validation data.
      workdir: gets checkpoints, metrics.jsonl and TensorBoard events.
      seed: of initialisation, order, negatives and dropout.
      learning_rate, weight_decay: see `optim.optimizer`.
      options: see `train_together`.

    Raises:
      NonFiniteLoss, Preempted: see there.
      DataError, ValueError: arguments that do not go together, before anything is computed.
    """
    run = Run(params, split, workdir, seed, learning_rate, weight_decay)
    (outcome,) = train_together(model, method, [run], **options)
    if isinstance(outcome, NonFiniteLoss):
        raise outcome
    return outcome


def train_together(
    model: Recommender,
    method: Peft,
    runs: Sequence[Run],
    *,
    loss: str = "catalogue",
    tokens: Tokens | None = None,
    prompts: Prompts | None = None,
    steps: int = 1000,
    batch_size: int = 128,
    history: int = 100,
    num_negatives: int = 1,
    alpha: float = 0.0,
    label_threshold: float | None = None,
    dropout: bool = True,
    schedule: str = "constant",
    warmup: int = 0,
    clip: float | None = 1.0,
    accumulate: int = 1,
    micro_batches: int | None = None,
    scales: Mapping[str, float] | None = None,
    eval_every: int = 100,
    metric: str = "ndcg@10",
    patience: int | None = None,
    ks: Sequence[int] = (5, 10, 20),
    log_every: int = 10,
    checkpoint_every: int = 100,
    input_workers: int | None = None,
    state_cache_bytes: int = 2**31,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
    profile: Path | None = None,
) -> list[Trained | NonFiniteLoss]:
    """Trains runs that differ in little, in one program: `vmap` over what they train, with what is frozen held once.

    Each run is what `train` makes of it, up to rounding: its own batches, randomness, optimizer, early stopping, and
    its own folder. A run whose loss is not finite ends there, and the others go on.

    Args:
      model, method: see `train`.
      runs: each as `train` takes it; their frozen parameters are the same, and so is the step that they stand at.
      loss: a name in `LOSSES`.
      tokens: the catalogue's texts, when the model reads them.
      prompts: the histories as text, when the user model is "text".
      steps, batch_size, history: batches, examples a batch (B), longest history (H).
      num_negatives, alpha: K, and the power of popularity, for losses over sampled negatives.
      label_threshold: for "bce_pointwise": a rating at or above it is a positive.
      dropout: False turns every dropout off.
      schedule … scales: see `optim.optimizer`.
      micro_batches: parts of a batch's users that are computed one after another, to save memory: see `Objective`.
      eval_every, metric, patience: validation every so many steps, the metric of the best state, and after how many
        validations without a better one to stop (None: never).
      ks: cut-offs of validation metrics.
      log_every, checkpoint_every: steps.
      input_workers: processes that make batches; None or 0 for threads of this one.
      state_cache_bytes: hidden states below the lowest trained block are computed once when they are no larger.
      mesh, rules: see `sharding`; rules are over the paths frozen/…, trainable/… and opt_state/…, and for one run only.
      profile: a folder that gets a trace of five steps, for TensorBoard and Perfetto.

    Returns:
      For each run its best state, or the error that ended it.

    Raises:
      Preempted: see there.
      DataError, ValueError: arguments that do not go together, before anything is computed.
    """
    # ------------------------------------------------------------------------------------------------ what is trained
    started = time.perf_counter()
    mesh = mesh or sharding.make_mesh()
    if eval_every < 1 or steps < 1 or checkpoint_every < 1 or log_every < 1:
        raise ValueError("steps, eval_every, checkpoint_every and log_every must be at least 1")
    parts_of_batch = 1 if micro_batches is None else micro_batches
    if parts_of_batch < 1:
        raise ValueError(f"micro_batches is {micro_batches}, must be at least 1")
    if batch_size < 1 or batch_size % (parts_of_batch * mesh.shape["data"]):
        parts_too = f" in {parts_of_batch} micro-batches" if parts_of_batch > 1 else ""
        raise ValueError(
            f"batch_size is {batch_size}: {mesh.shape['data']} devices on the data axis cannot share that{parts_too}; "
            f"give a multiple of {parts_of_batch * mesh.shape['data']}"
        )
    chosen: Loss = LOSSES.lookup(loss)
    first, many = runs[0], len(runs) > 1
    if many and (rules or jax.process_count() > 1):
        raise ValueError("several runs are trained together in one process and with whole parameters: train them apart")
    for run in runs:
        check(run.split, loss, chosen, num_negatives, label_threshold, metric, ks)
    parts = [separate(method, run.params, jax.random.fold_in(jax.random.key(run.seed), 1)) for run in runs]
    frozen = parts[0][1]
    base = shared_base(runs, [other["params"] for _, other in parts])
    # A step gives its input's memory away; the caller keeps the arrays that were passed in.
    trainable = stack([jax.tree.map(jnp.copy, own) for own, _ in parts])
    initial = jax.tree.map(np.asarray, trainable)
    both = sharding.place({"frozen": frozen["params"], "trainable": trainable}, mesh, rules)
    frozen["params"], trainable = both["frozen"], both["trainable"]
    one = parts[0][0]
    scorer = RecommenderScorer(model, method, mesh, tokens, prompts, history)
    # Dropout in the encoder makes its states differ from step to step; without it some of them are constants.
    c = None if model.text is None else model.text.encoder.config
    still = c is not None and (not dropout or c.dropout == 0)
    cut, every = (0, False) if c is None else constant_below(one["delta"], c.num_hidden_layers)
    fixed = c is not None and cut == c.num_hidden_layers and not every
    constant = still and fixed and "pooling" not in first.params

    # ----------------------------------------------------------------------------------------------------------- input
    knows_users = model.users.inputs == "user_id"
    inputs = [
        training_batches(
            run.split,
            BatchOptions(
                batch_size=batch_size,
                history=1 if knows_users else history,
                every_position=prompts is None and not knows_users,
                negatives=chosen.negatives,
                num_negatives=num_negatives,
                alpha=alpha,
                ratings=chosen.negatives == "none",
                predict_first=knows_users,
                masking=None if model.users.masking is None else ClozeMasking(*model.users.masking),
                compact_targets=mesh.size == 1 and parts_of_batch == 1,
                group_cost=group_cost(mesh),
                max_tokens=ANY if c is None else c.max_position_embeddings,
            ),
            tokens=None if constant else tokens,
            prompts=prompts,
            seed=run.seed,
            shard=(jax.process_index(), jax.process_count()),
            multiple_of=mesh.shape["data"],
            workers=input_workers or 0,
        )
        for run in runs
    ]
    streams: list[Any] = [iter(batches) for _, batches in inputs]

    # ------------------------------------------------------------------------------------------------------------ step
    replicated = NamedSharding(mesh, PartitionSpec())
    level = None if every else cut
    states = None
    if c is not None and cut and tokens is not None and still and not constant:
        states = scorer.shape_of_states(level)
        states = states if states.size * c.dtype.itemsize <= state_cache_bytes else None
    objective = Objective(
        model,
        method,
        chosen,
        label_threshold,
        level,
        lambda text: jax.lax.with_sharding_constraint(text, replicated),
        parts_of_batch,
    )

    def tx_of(setting: Mapping[str, Any]) -> optax.GradientTransformation:
        return optimizer(
            method,
            one,
            learning_rate=setting["learning_rate"],
            steps=steps,
            schedule_kind=schedule,
            warmup=warmup,
            weight_decay=setting["weight_decay"],
            clip=clip,
            accumulate=accumulate,
            scales=scales,
        )

    tx_of(first._asdict())  # raises what can be wrong with it

    update = Update(objective, tx_of, dropout)

    setting = sharding.place(settings(runs), mesh)
    axes: Any = None
    if many:
        # Every run has the whole catalogue in its batches: it is held once, like what is frozen.
        whole = chosen.negatives == "catalogue"
        axes = Batch._make(None if whole and name in ("items", "tokens", "candidates") else 0 for name in Batch._fields)
    begin = jax.vmap(update.start) if many else update.start
    # Moments of the optimizer lie where their parameters do, and stay there from step to step.
    layout = sharding.shardings(jax.eval_shape(begin, setting, trainable), mesh, rules, strict=False)
    layout["trainable"] = jax.tree.map(lambda a: a.sharding, trainable)
    state = jax.jit(begin, out_shardings=layout)(setting, trainable)
    step_function = jax.jit(
        jax.vmap(update.step, in_axes=(None, 0, 0, axes)) if many else update.step,
        donate_argnums=2,
        out_shardings=(layout, replicated),
    )

    def take() -> tuple[list[Batch], Any]:
        """The next batch of every run, and all of them on the mesh."""
        batches = [next(stream) for stream in streams]
        return batches, place_together(batches, axes, mesh) if many else place_batch(batches[0], mesh)

    # ---------------------------------------------------------------------------------------------------------- resume
    every_run = range(len(runs))
    checkpoints = [Checkpoints(run.workdir, base) for run in runs]
    records: list[dict[str, Any]] = [
        {"best_value": None, "best_step": None, "worse": 0, "stopped": False} for _ in runs
    ]
    stands = [kept.latest("last") for kept in checkpoints]
    if len(set(stands)) > 1:
        where = ", ".join(f"{run.workdir} at {at}" for run, at in zip(runs, stands, strict=True))
        raise ValueError(f"runs go on together only from the same step: {where}. Finish them apart")
    step = 0
    fresh = stands[0] is None
    if not fresh:
        restored = [checkpoints[k].restore("last", of_run(state, k, many)) for k in every_run]
        state = sharding.place(stack([found.state for found in restored]), mesh) if many else restored[0].state
        records = [found.record for found in restored]
        assert stands[0] is not None
        step = stands[0]
        for stream, record in zip(streams, records, strict=True):
            stream.set_state(record["input"])
    failed: dict[int, NonFiniteLoss] = {}

    def going() -> list[int]:
        """The runs that have neither failed nor stopped early."""
        return [k for k in every_run if k not in failed and not records[k]["stopped"]]

    # ------------------------------------------------------------------------------------------------------- constants
    # A frozen encoder's vectors, or the states below the lowest trained block, are computed once a run; the program of
    # the first step is compiled meanwhile.
    found: Any = {"frozen": {"text": scorer.shape_of_text() if constant else None, "states": states}}
    where = sharding.shardings(found, mesh, rules, strict=False)
    frozen |= jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), found, where)["frozen"]
    positions = [stream.get_state() for stream in streams]
    upcoming: list[Batch] = []  # batches that have been taken before their step
    placed: Any = None
    programs = Programs(step_function, loops=parts_of_batch > 1 or model.users.is_recurrent)
    if step < steps and going():
        upcoming, placed = take()
        programs.begin(dict(frozen), setting, state, placed)
    weights = {**frozen["params"], **one["params"]}
    if constant:
        found["frozen"]["text"] = scorer.text(weights, one["delta"])
    if states is not None:
        found["frozen"]["states"] = scorer.states(weights, one["delta"], level)
    frozen |= jax.tree.map(sharding.put, found, where)["frozen"]
    # The state has what is trained; of its start only shapes are asked for from here on.
    one = jax.eval_shape(lambda tree: tree, one)
    del parts, both, trainable, weights

    # ------------------------------------------------------------------------------------------------------------ runs
    journals = [
        Journal(
            run.workdir,
            -1 if fresh else step,
            steps,
            batch_size,
            started,
            write=jax.process_index() == 0,
            records=record.get("records", 0),
        )
        for run, record in zip(runs, records, strict=True)
    ]
    say = journals[0].say

    def stopping(stop: threading.Event) -> bool:
        """Whether to save and end here; several processes agree on it, at steps that are a log's."""
        if jax.process_count() == 1:
            return stop.is_set()
        return step % log_every == 0 and bool(multihost_utils.process_allgather(np.array(stop.is_set())).any())

    def save_last(which: Sequence[int]) -> None:
        for k in which:
            at = positions[k] if upcoming else streams[k].get_state()
            record = {**records[k], "input": at, "records": journals[k].records}
            checkpoints[k].save("last", step, of_run(state, k, many), record)

    def validate() -> None:
        for k in going():
            record, own = records[k], of_run(state["trainable"], k, many)
            bound = scorer.of({**frozen["params"], **own["params"]}, own["delta"], frozen["text"], frozen["states"])
            try:
                summary = evaluate(bound, runs[k].split, "validation", mesh=mesh, ks=ks).summary
            except NonFiniteScores as error:
                if not many:
                    raise
                failed[k] = NonFiniteLoss(f"validation at step {step}: {error}")
                say(f"{runs[k].workdir.name}: {failed[k]}")
                continue
            journals[k].record("validation", step, summary)
            better = record["best_value"] is None or is_better(metric, summary[metric], record["best_value"])
            name = f"{runs[k].workdir.name}: " if many else ""
            if step and summary["users_constant"]:
                say(f"warning: {name}all items have one score for {summary['users_constant']:.0f} users")
            say(f"{name}step {step}: validation {metric} {summary[metric]:.4f}{' (best so far)' if better else ''}")
            if better:
                record.update(best_value=summary[metric], best_step=step, worse=0)
                checkpoints[k].save("best", step, own, {"step": step, metric: summary[metric]})
            else:
                record["worse"] += 1
                record["stopped"] = patience is not None and record["worse"] >= patience
                if record["stopped"]:
                    say(f"{name}stopped early: {record['worse']} validations without a better {metric}")

    # ------------------------------------------------------------------------------------------------------------ loop
    pending: deque[tuple[int, list[Batch], dict[str, jax.Array]]] = deque()
    windows: list[list[dict[str, float]]] = [[] for _ in runs]
    done: list[list[speed.Work]] = [[] for _ in runs]
    limit = functools.cache(lambda: speed.peak(mesh.devices.flat[0], c.dtype if c is not None else jnp.float32))
    traced = None if profile is None else speed.Profile(profile)

    def settle(leave: int) -> None:
        """Reads the figures of all steps but the latest few, which the device may still be working on."""
        while len(pending) > leave:
            at, batches, device_figures = pending.popleft()
            all_figures = {name: np.asarray(value).reshape(-1) for name, value in device_figures.items()}
            for k in going():
                figures = {name: float(values[k]) for name, values in all_figures.items()}
                if broken := [name for name, value in figures.items() if not math.isfinite(value)]:
                    error = not_finite(broken[0], figures, at, runs[k], batches[k].users, checkpoints[k])
                    if not many:
                        raise error
                    failed[k] = error
                    say(f"{runs[k].workdir.name}: {error}")
                else:
                    windows[k].append(figures)

    try:
        with contextlib.ExitStack() as opened:
            stop = opened.enter_context(noting_sigterm())
            for journal in journals:
                opened.enter_context(journal)
            say(
                f"training {f'{len(runs)} times ' if many else ''}{count(one):,} parameters ({count(one['delta']):,} "
                f"of them in the delta), {count(frozen['params']):,} frozen; {len(inputs[0][0].examples.user):,} "
                f"examples an epoch, {'starting' if fresh else f'going on after step {step}'}, {steps} steps"
            )
            if states is not None:
                what = "is only read from beside" if every else f"has nothing to train in its first {cut} blocks"
                say(f"the encoder {what}: each text passes there once")
            with aside(journals):
                if fresh:
                    validate()
                    save_last(going())
            while step < steps and going():
                if not upcoming:
                    upcoming, placed = take()
                batches, upcoming = upcoming, []
                if placed not in programs:
                    with aside(journals):
                        program = programs.compile(frozen, setting, state, placed)
                    for journal in journals:
                        journal.program(step, len(programs), program, programs.flops(placed))
                if traced is not None:
                    if traced.ends:
                        settle(leave=0)
                    if traced.step():
                        say(f"{traced.made} steps are traced in {traced.folder}, for TensorBoard or ui.perfetto.dev")
                for k in going():
                    done[k].append(speed.work(batches[k], programs.flops(placed)))
                state, figures = step_function(frozen, setting, state, placed)
                step += 1
                pending.append((step, batches, figures))
                settle(leave=2)
                for journal in journals:
                    journal.advance(step)
                due = step % eval_every == 0 or step == steps
                if step % log_every == 0 or due:
                    settle(leave=0)
                    for k in going():
                        window = windows[k]
                        means = {name: float(np.mean([w[name] for w in window])) for name in window[0]}
                        with aside(journals):
                            reachable = limit()
                        journals[k].train(step, means, done[k], reachable, len(programs))
                        window.clear()
                        done[k].clear()
                ending = stopping(stop)
                if due or step % checkpoint_every == 0 or ending:
                    settle(leave=0)
                    with aside(journals):
                        before = going()
                        if due:
                            validate()
                        # What has just stopped early is saved once more, as stopped.
                        save_last(before)
                if ending:
                    for kept in checkpoints:
                        kept.finish()
                    say(f"SIGTERM: saved at step {step}; the same command goes on from here")
                    raise Preempted(step)
    finally:
        if traced is not None and not traced.made:
            say(f"warning: no step is traced: tracing begins after {traced.first} steps, when programs are compiled")
        if traced is not None and traced.close():
            say(f"only {traced.made} steps are traced in {traced.folder}: no more were made")
        if input_workers:
            for stream in streams:
                stream.close()

    # ------------------------------------------------------------------------------------------------ what came of it
    if digest(frozen["params"]) != base:
        raise RuntimeError("a frozen parameter has changed in training: this is a bug, do not trust the run")
    if still_there := unmoved(initial, state["trainable"]):
        delta = [name for name in still_there if name.startswith("delta/")]
        if delta and len(delta) == len(jax.tree.leaves(initial["delta"])):
            raise ValueError(
                f"nothing of the delta has moved in {step} steps: the method {method.name!r} has trained nothing. Look "
                "at the learning rate, its scales and warm-up, and at accumulate"
            )
        say(f"warning: not moved by {step} steps: {', '.join(still_there)}")
    outcomes: list[Trained | NonFiniteLoss] = []
    for k in every_run:
        if k in failed:
            outcomes.append(failed[k])
            continue
        record = records[k]
        best = checkpoints[k].restore("best", of_run(state["trainable"], k, many), record["best_step"])
        last = checkpoints[k].latest("last")
        assert last is not None
        outcomes.append(Trained(best.state, frozen, record["best_step"], record["best_value"], last, scorer))
    for kept in checkpoints:
        kept.close()
    return outcomes
