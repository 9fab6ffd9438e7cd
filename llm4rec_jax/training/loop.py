"""The one training loop, read from top to bottom."""

import functools
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm4rec_jax import sharding, trees
from llm4rec_jax.peft.sites import count
from llm4rec_jax.registry import unknown_name
from llm4rec_jax.training import memory, throughput
from llm4rec_jax.training.compiled_steps import CompiledSteps
from llm4rec_jax.training.config import TrainConfig
from llm4rec_jax.training.metric_writer import MetricWriter
from llm4rec_jax.training.preemption import Preempted, should_stop, stop_request
from llm4rec_jax.training.recorder import Recorder, RunRecorder, closing
from llm4rec_jax.training.step import TrainStep
from llm4rec_jax.training.task import LoopTask, Params, Task, TrainResult


def train(
    task: Task,
    config: TrainConfig,
    workdir: Path,
    *,
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
    profile: Path | None = None,
    writers: Callable[[], Sequence[MetricWriter]] = tuple,
) -> TrainResult:
    """Trains, or goes on with, the run in `workdir`, and returns its best state by validation.

    Everything random is a function of the seed and the step, and the input's position is part of a checkpoint: a run
    that is killed at any instant and started again ends with the same bits as one that never was.

    Args:
      task: Definition of what is learned and how it is measured, e.g. `tasks.ranking.RankingTask`.
      config: Options of the run.
      workdir: Folder that gets checkpoints, metrics.jsonl and TensorBoard events.
      mesh: Devices; all of them by default.
      rules: Sharding rules over the paths frozen/…, trainable/… and opt_state/….
      profile: Folder that gets a trace of five steps, for TensorBoard and Perfetto.
      writers: Makes further destinations of the run's records.

    Raises:
      NonFiniteLoss: The loss became NaN or infinite.
      Preempted: The process received SIGTERM or SIGINT, and the state has been saved.
      DataError, ValueError: Arguments that do not go together, before anything is computed.
    """
    recorder = RunRecorder(task, config, workdir, writers=writers)
    make_step = functools.partial(TrainStep, task, config)
    return run_loop(task, config, recorder, make_step=make_step, mesh=mesh, rules=rules, profile=profile)


def run_loop(
    task: LoopTask,
    config: TrainConfig,
    recorder: Recorder,
    *,
    make_step: Callable[[Any], TrainStep],
    mesh: Mesh | None = None,
    rules: sharding.Rules = (),
    profile: Path | None = None,
) -> Any:
    """Runs the loop for whatever the recorder keeps the books of. See `train`; `population` passes its own step."""
    started = time.perf_counter()
    mesh = mesh or sharding.make_mesh()
    if config.metric not in task.metrics:
        unknown = unknown_name("validation metric", config.metric, task.metrics)
        raise ValueError(f"config.train.metric: {unknown}")
    task.bind(mesh)

    # ------------------------------------------------------------------------------------------------------ parameters
    params = task.init(jax.random.fold_in(jax.random.key(config.seed), 1))
    base, sizes = (
        sharding.digest(params.frozen),
        tuple(map(count, (params.trainable, params.trainable["delta"], params.frozen))),
    )
    step_of = make_step(params.trainable)
    # A step gives its input's memory away; the caller keeps the arrays that were passed in.
    trainable = jax.tree.map(jnp.copy, params.trainable)
    initial = jax.tree.map(np.asarray, trainable)
    placed = sharding.place({"frozen": params.frozen, "trainable": trainable}, mesh, rules)
    params = Params(placed["trainable"], placed["frozen"])

    # ----------------------------------------------------------------------------------------------------------- state
    replicated = NamedSharding(mesh, PartitionSpec())
    setting = sharding.place(step_of.setting, mesh)
    # Moments of the optimizer lie where their parameters do, and stay there from step to step.
    layout = sharding.shardings(jax.eval_shape(step_of.start, setting, params.trainable), mesh, rules, strict=False)
    for name in layout.keys() & {"trainable", "average"}:
        layout[name] = jax.tree.map(lambda a: a.sharding, params.trainable)
    state = jax.jit(step_of.start, out_shardings=layout)(setting, params.trainable)
    stream = task.batches(config.seed)
    recorder.open(base)
    with closing(recorder):
        state, position = recorder.restore(state)
        state = jax.tree.map(sharding.put, state, layout)
        step = recorder.step or 0
        if position is not None:
            stream.set_state(position)

        # --------------------------------------------------------------------------------------------------- constants
        # Frozen vectors and states are computed once a run; the first step is compiled meanwhile.
        shapes = {"frozen": task.constant_shapes(params)}
        where = sharding.shardings(shapes, mesh, rules, strict=False)
        abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where)
        position = stream.get_state()
        upcoming: Any = None  # a batch that has been taken before its step, on the host and on the mesh
        compiled = CompiledSteps(
            step_of.jitted(layout, replicated),
            task.text_shapes,
            memory.device_bytes(mesh),
            config.texts_at_once,
            mesh.size,
        )
        if step < config.steps and recorder.active:
            host = next(stream)
            upcoming = host, task.place(host)
            compiled.begin({"params": params.frozen, **abstract["frozen"]}, setting, state, upcoming[1])
        constants = jax.tree.map(sharding.put, {"frozen": task.prepare(params)}, where)
        frozen = {"params": params.frozen, **constants["frozen"]}
        del params, placed, trainable

        # -------------------------------------------------------------------------------------------------------- loop
        pending: deque[tuple[int, Any, float, dict[str, jax.Array]]] = deque()
        peak = functools.cache(lambda: throughput.peak(mesh.devices.flat[0], task.compute_dtype))

        def flush_metrics(leave: int) -> None:
            """Reads the figures of all steps but the latest, which the device may still be working on."""
            while len(pending) > leave:
                at, batch, flops, figures = pending.popleft()
                recorder.add(at, batch, flops, {name: np.asarray(value) for name, value in figures.items()})

        try:
            with (
                stop_request() as stop,
                recorder.logging(started) as log,
                throughput.Profile(profile, log.log, functools.partial(flush_metrics, 0)) as tracer,
            ):
                log.log(
                    f"training {sizes[0]:,} parameters ({sizes[1]:,} of them in the delta), {sizes[2]:,} frozen; "
                    f"{'starting' if recorder.step is None else f'going on after step {step}'}, {config.steps} steps"
                )
                for note in task.notes:
                    log.log(note)
                if recorder.step is None:
                    with recorder.exclude_from_timing():
                        recorder.checkpoint(0, state, frozen, position, validate=True)
                while step < config.steps and recorder.active:
                    if upcoming is None:
                        host = next(stream)
                        upcoming = host, task.place(host)
                    (host, batch), upcoming = upcoming, None
                    if batch not in compiled:
                        with recorder.exclude_from_timing():
                            program = compiled.compile(frozen, setting, state, batch)
                        if program.note:
                            log.log(program.note)
                        recorder.write_program(step, len(compiled), program, compiled.flops(batch))
                    tracer.before_step()
                    state, figures = compiled(frozen, setting, state, batch)
                    step += 1
                    pending.append((step, host, compiled.flops(batch), figures))
                    flush_metrics(leave=2)
                    recorder.advance(step)
                    validate = step % config.eval_every == 0 or step == config.steps
                    if step % config.log_every == 0 or validate:
                        flush_metrics(leave=0)
                        with recorder.exclude_from_timing():
                            reachable = peak()
                        recorder.write_training(step, reachable, len(compiled))
                    preempted = should_stop(stop, step, config.log_every)
                    if validate or step % config.checkpoint_every == 0 or preempted is not None:
                        flush_metrics(leave=0)
                        with recorder.exclude_from_timing():
                            recorder.checkpoint(step, state, frozen, stream.get_state(), validate)
                    if preempted is not None:
                        recorder.flush()
                        log.log(f"{preempted.name}: saved at step {step}; the same command goes on from here")
                        raise Preempted(step, preempted)
        finally:
            stream.close()

        # ---------------------------------------------------------------------------------------------------- outcome
        check_outcome(base, frozen["params"], initial, state["trainable"], step, task, log.log)
        return recorder.finish(state, frozen)


def check_outcome(
    base: str, frozen: Any, initial: Any, trainable: Any, steps: int, task: LoopTask, log: Callable[[str], None]
) -> None:
    """Checks that no frozen array has changed and that the trained ones have.

    Raises:
      RuntimeError: A frozen array has changed.
      ValueError: Nothing of the delta has moved.
    """
    if sharding.digest(frozen) != base:
        raise RuntimeError("a frozen parameter has changed in training: this is a bug, do not trust the run")
    unchanged = unchanged_params(initial, trainable) if steps else []
    if not unchanged:
        return
    delta = [name for name in unchanged if name.startswith("delta/")]
    if delta and len(delta) == len(jax.tree.leaves(initial["delta"])):
        raise ValueError(
            f"nothing of the delta has moved in {steps} steps: the method {task.method.name!r} has trained nothing. "
            "Look at the learning rate, its scales and warm-up, and at accumulate"
        )
    log(f"warning: not moved by {steps} steps: {', '.join(unchanged)}")


def unchanged_params(before: Any, after: Any) -> list[str]:
    """Returns the paths of the arrays that are equal bit by bit in two trees; `before` is on this host."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return [trees.path_name(path) for (path, old), new in pairs if np.array_equal(old, sharding.fetch(new))]
