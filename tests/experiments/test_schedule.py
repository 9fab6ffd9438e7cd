"""Processes in their order, on each executor: those that end well, fail, hang, are broken off or wait.

No run is trained: small commands write a result or do not.
"""

import io
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import rich.console
from ml_collections import ConfigDict

from experiments.sweeps import executors
from experiments.sweeps.executors import Executor, Options
from experiments.sweeps.processes import Job, Process, execute, started, wait
from experiments.sweeps.progress import Watch, standing
from experiments.sweeps.schedule import Entry, Schedule, drive
from experiments.sweeps.trials import Trial, TrialRun

FINISH = "import os, sys; [open(f + '/result.json', 'w').write('{}') for f in sys.argv[1:]]"


def run(workdir: Path, name: str, code: str = FINISH, needs: tuple[TrialRun, ...] = ()) -> TrialRun:
    config = ConfigDict({"name": name, "train": {"steps": 10, "metric": "ndcg@5"}})
    folder = workdir.resolve() / name
    command = ("-c", code, str(folder))
    return TrialRun(Trial(name, "", {}, name), config, folder, {n.folder: n.trial.name for n in needs}, command)


def job(folder: Path, code: str, **options: float) -> Job:
    folder.mkdir(exist_ok=True)
    return Job("token", ("-c", code, str(folder)), (str(folder),), os.getcwd(), **options)


@pytest.fixture(scope="module")
def ray_executor(tmp_path_factory: pytest.TempPathFactory):
    executor = executors.on_ray(Options(tmp_path_factory.mktemp("ray")))
    yield executor
    executor.close()


@pytest.fixture(params=["local", "ray", "slurm"])
def executor(request, tmp_path) -> Executor:
    if request.param == "ray":
        return request.getfixturevalue("ray_executor")
    return executors.EXECUTORS[request.param](Options(tmp_path, slurm={"timeout_min": 5}, slurm_local=True))


def test_a_schedule_on_every_executor(executor, tmp_path):
    good = run(
        tmp_path, "good", "import os, time; time.sleep(.2); print(os.environ['JAX_COMPILATION_CACHE_DIR']); " + FINISH
    )
    crashed = run(tmp_path, "crashed", "import ctypes; ctypes.string_at(0)")
    raised = run(tmp_path, "raised", "import sys; print('before', flush=True); raise ValueError('what was wrong')")
    gone = run(tmp_path, "gone", "pass")
    after = run(
        tmp_path, "after", f"import os; assert os.path.exists({str(good.folder)!r} + '/result.json'); {FINISH}", (good,)
    )
    blocked = run(tmp_path, "blocked", needs=(crashed,))
    held = run(tmp_path, "held", needs=(gone,))
    waiting = run(tmp_path, "slow", "import time; time.sleep(600)")
    schedule = Schedule(executor, workers=2)
    listed = (after, blocked, held, good, crashed, raised, gone, waiting)
    entries = {r.trial.name: schedule.add([r])[0] for r in listed}
    seen = set()

    def beat() -> None:
        seen.update((e.run.trial.name, e.status) for e in entries.values())
        if entries["slow"].status == "running":
            schedule.cancel(entries["slow"], "pruned")

    assert drive(schedule, beat, interval=0.02) is None
    assert {name: entry.status for name, entry in entries.items()} == {
        "after": "finished", "blocked": "failed", "held": "waiting", "good": "finished", "crashed": "failed",
        "raised": "failed", "gone": "interrupted", "slow": "pruned",
    }  # fmt: skip
    assert ("good", "running") in seen
    assert entries["crashed"].error == "killed by SIGSEGV"
    assert "Segmentation fault" in (crashed.folder / "failure.txt").read_text()
    assert entries["raised"].error == "ValueError: what was wrong"
    record = (raised.folder / "failure.txt").read_text()
    assert "ended: exit code 1" in record
    assert "before\nTraceback (most recent call last)" in record
    assert entries["blocked"].error == "not started, since crashed failed"
    assert not (blocked.folder / "log.txt").exists()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] in (good.folder / "log.txt").read_text()
    assert not list(tmp_path.glob("*/stop-*"))


def test_what_needs_a_failed_run_fails_however_it_is_listed(tmp_path):
    first = run(tmp_path, "first", "raise ValueError('no')")
    second = run(tmp_path, "second", needs=(first,))
    third = run(tmp_path, "third", needs=(second,))
    schedule = Schedule(executors.local(Options(tmp_path)))
    entries = [schedule.add([r])[0] for r in (third, second, first)]
    assert drive(schedule, lambda: None, interval=0.02) is None
    assert [(e.status, e.error) for e in entries] == [
        ("failed", "not started, since second failed"),
        ("failed", "not started, since first failed"),
        ("failed", "ValueError: no"),
    ]


def test_runs_of_one_process_have_errors_of_their_own(tmp_path):
    code = "import sys; print('error of b: NonFiniteLoss: at step 3', file=sys.stderr); raise ValueError('of a')"
    runs = [run(tmp_path, name, code) for name in "ab"]
    schedule = Schedule(executors.local(Options(tmp_path)))
    entries = schedule.add(runs, runs[0].command)
    assert drive(schedule, lambda: None, interval=0.02) is None
    assert [e.error for e in entries] == ["ValueError: of a", "NonFiniteLoss: at step 3"]
    assert "error: NonFiniteLoss: at step 3\n" in (runs[1].folder / "failure.txt").read_text()


def test_a_failed_run_is_tried_again_and_its_failure_forgotten(tmp_path):
    flaky = run(
        tmp_path,
        "flaky",
        f"import sys; sys.exit(3) if not __import__('os').path.exists({str(tmp_path / 'mended')!r}) else 0; " + FINISH,
    )
    for status, error in (("failed", "exit code 3"), ("finished", "")):
        schedule = Schedule(executors.local(Options(tmp_path)))
        (entry,) = schedule.add([flaky])
        drive(schedule, lambda: None, interval=0.02)
        assert (entry.status, entry.error) == (status, error)
        assert (flaky.folder / "failure.txt").exists() == (status == "failed")
        (tmp_path / "mended").touch()
    (entry,) = Schedule(executors.local(Options(tmp_path))).add([flaky])
    assert entry.status == "finished"
    assert (flaky.folder / "log.txt").read_text().count("--- ") == 2


def test_one_process_may_work_on_several_runs(tmp_path):
    runs = [run(tmp_path, name) for name in ("a", "b", "c")]
    schedule = Schedule(executors.local(Options(tmp_path)))
    command = ("-c", FINISH + "; sys.exit('the third is lost')", *(str(r.folder) for r in runs[:2]))
    entries = schedule.add(runs, command)
    drive(schedule, lambda: None, interval=0.02)
    assert [entry.status for entry in entries] == ["finished", "finished", "failed"]
    record = (runs[2].folder / "failure.txt").read_text()
    assert "trial: c (in one process with 2 others)" in record
    assert "the third is lost" in record
    # The rest of them is run again.
    (done, _, left) = schedule.add(runs, ("-c", FINISH, str(runs[2].folder)))
    drive(schedule, lambda: None, interval=0.02)
    assert (done.status, left.status) == ("finished", "finished")


def test_workers_bound_the_processes_at_a_time(tmp_path):
    schedule = Schedule(executors.local(Options(tmp_path)), workers=2)
    slow = "import time; time.sleep(.1); " + FINISH
    entries = [schedule.add([run(tmp_path, str(i), slow)])[0] for i in range(5)]
    most = 0

    def beat() -> None:
        nonlocal most
        most = max(most, sum(entry.status == "running" for entry in entries))

    drive(schedule, beat, interval=0.01)
    assert {entry.status for entry in entries} == {"finished"}
    assert most == 2


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


@pytest.mark.parametrize(
    ("code", "ended"), [("import time; time.sleep(600)", -15), (STUBBORN, -9)], ids=["", "stubborn"]
)
def test_a_hanging_job_is_stopped_and_killed_if_need_be(tmp_path, code, ended):
    result = execute(job(tmp_path / "run", code, timeout=0.5, grace=0.5))
    assert (result.code, result.late) == (ended, True)
    assert result.note == "stopped after 0.5 s" + (", and killed 0.5 s later" if ended == -9 else "")


def test_a_late_run_has_failed(tmp_path):
    saves = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(600)"
    schedule = Schedule(executors.local(Options(tmp_path)), timeout=0.5)
    (entry,) = schedule.add([run(tmp_path, "late", saves)])
    drive(schedule, lambda: None, interval=0.02)
    assert (entry.status, entry.error) == ("failed", "stopped after 0.5 s")


def test_two_processes_never_work_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.sweeps.schedule._BUSY", 0.05)
    first = Process(job(tmp_path / "run", "import time; time.sleep(600)"))
    assert started(job(tmp_path / "run", ""))
    second = Process(job(tmp_path / "run", "")._replace(token="other"))
    refused = second.poll()
    assert refused is not None
    assert refused.busy
    holder = json.loads((tmp_path / "run" / "lock").read_text())
    assert f"run is worked in by process {holder['pid']} on {holder['host']}, since" in refused.note
    schedule = Schedule(executors.local(Options(tmp_path)))
    (entry,) = schedule.add([run(tmp_path, "run")])
    begun = time.monotonic()

    def beat() -> None:
        if time.monotonic() - begun > 0.4:
            assert entry.status in ("waiting", "running", "finished")
            first.stop()
            wait(first, 0.01)

    drive(schedule, beat, interval=0.02)
    assert entry.status == "finished"
    assert time.monotonic() - begun > 0.4


def test_a_signal_stops_the_processes_and_starts_no_more(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    schedule = Schedule(executors.local(Options(tmp_path)))
    entries = [schedule.add([run(tmp_path, name, "import time; time.sleep(600)")])[0] for name in ("a", "b")]

    def beat() -> None:
        if entries[0].status == "running" and not schedule.stopping:
            os.kill(os.getpid(), signal.SIGINT)

    assert drive(schedule, beat, interval=0.02) == signal.SIGINT
    assert [entry.status for entry in entries] == ["interrupted", "waiting"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_slurm_sends_a_run_that_loses_its_node_back_to_the_queue(tmp_path):
    executor = executors.slurm(Options(tmp_path, slurm_local=True))
    marked = tmp_path / "marked"
    twice = (
        f"import os, signal, sys, time; p = {str(marked)!r}\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(p, 'w').close(), sys.exit(0)))\n"
        f"if os.path.exists(p):\n    {FINISH}\nelse:\n    time.sleep(600)\n"
    )
    schedule = Schedule(executor)
    (entry,) = schedule.add([run(tmp_path, "twice", twice)])
    sent = []

    def beat() -> None:
        log = entry.run.folder / "log.txt"
        if not sent and entry.status == "running" and log.exists() and time.monotonic() - (entry.began or 0) > 0.5:
            watcher = json.loads((entry.run.folder / "lock").read_text())["watcher"]
            sent.append(watcher)
            os.kill(watcher, signal.SIGUSR2)

    drive(schedule, beat, interval=0.02)
    assert entry.status == "finished"
    assert marked.exists()
    assert (entry.run.folder / "log.txt").read_text().count("--- ") == 2


def test_what_an_executor_cannot_do_is_said(tmp_path, ray_executor, monkeypatch):
    import ray

    with monkeypatch.context() as patch:
        patch.setattr(ray, "init", lambda **_: None)
        patch.setattr(ray, "shutdown", lambda: None)
        with pytest.raises(
            ValueError, match=r"takes 1 CPUs and 512 GPUs, and no machine of Ray has them: \d+ CPUs and"
        ):
            executors.on_ray(Options(tmp_path, gpus=512))
    with pytest.raises(ValueError, match=r"unknown executor 'slrum'; did you mean 'slurm'\? .* local, ray, slurm"):
        executors.EXECUTORS.lookup("slrum")
    with pytest.raises(ValueError, match=r"Slurm, through submitit: .*srun"):
        executors.slurm(Options(tmp_path))
    with pytest.raises(ValueError, match=r"Slurm, through submitit: .*partitoin"):
        executors.slurm(Options(tmp_path, slurm={"slurm_partitoin": "gpu"}, slurm_local=True))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "submitit", None)
        with pytest.raises(ValueError, match=r"pip install 'llm4rec-jax\[sweep\]'"):
            executors.slurm(Options(tmp_path))


@pytest.fixture
def half_way(tmp_path) -> Entry:
    entry = Entry(run(tmp_path, "half"), "running", began=time.monotonic() - 61)
    entry.run.folder.mkdir()
    records = [
        {"kind": "validation", "step": 0, "seconds": 1.0, "ndcg@5": 0.1},
        {"kind": "train", "step": 2, "seconds": 5.0, "loss": 1.0},
        {"kind": "validation", "step": 2, "seconds": 6.0, "ndcg@5": 0.3},
        {"kind": "train", "step": 4, "seconds": 9.0, "loss": 1.0},
        {"kind": "validation", "step": 4, "seconds": 10.0, "ndcg@5": 0.2},
    ]
    (entry.run.folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return entry


def test_a_standing_is_read_from_the_metrics(half_way):
    # Two seconds a step, six steps to come.
    assert standing(half_way) == (4, 10, 0.3, 12.0)


def test_a_standing_is_the_least_where_less_is_better_and_none_of_damaged_records(half_way):
    half_way.run.config.train.metric = "mean_rank"
    file = half_way.run.folder / "metrics.jsonl"
    whole = file.read_text()
    file.write_text(whole.replace("ndcg@5", "mean_rank"))
    assert standing(half_way).best == 0.1
    file.write_text(whole.replace("validation", "validatoin", 1).replace("{", "", 1))
    assert standing(half_way) == (0, 10, None, None)


def test_a_terminal_shows_a_table_that_fits_and_others_get_lines(half_way, tmp_path):
    waiting = [Entry(run(tmp_path, f"waiting-{i}")) for i in range(50)]
    finished = Entry(run(tmp_path, "done"), "finished", seconds=40.0, ended=1.0)
    failed = Entry(run(tmp_path, "bad"), "failed", "ValueError: no", seconds=1.0)
    entries = [*waiting, finished, failed, half_way]
    console = rich.console.Console(width=100, height=20, record=True, force_terminal=True, file=io.StringIO())
    with Watch(console, entries, workers=2) as watch:
        watch.changed(finished)
        watch.changed(failed)
    shown = console.export_text()
    assert "half" in shown
    assert "4/10" in shown
    assert "ndcg@5 0.3000" in shown
    assert "1 running, 1 failed, 1 finished, 50 waiting, about" in shown
    assert "waiting-0" in shown
    assert "waiting-30" not in shown
    assert "bad: failed, 1 s: ValueError: no; 50 to come" in shown
    lines = rich.console.Console(width=40, record=True, force_terminal=False, file=io.StringIO())
    with Watch(lines, entries, workers=2) as watch:
        watch.changed(half_way)
        watch.changed(finished)
        watch.beat()
    assert lines.export_text() == "half: running in half\ndone: finished, 40 s; 50 to come\n"
