"""What recipes share: each of their processes keeps to cores of its own, and none begins after one has failed."""

import os
import subprocess
import sys
import threading

import pytest

from trimtab.core import RunError
from trimtab.papers import recipe
from trimtab.papers.recipe import Job, core_shares, run_jobs

linux = pytest.mark.skipif(sys.platform != "linux", reason="threads are kept to cores on Linux only")


@linux
@pytest.mark.parametrize(
    ("jobs", "shares"),
    [(0, [{1, 3, 5, 8}]), (1, [{1, 3, 5, 8}]), (3, [{1, 8}, {3}, {5}]), (4, [{1}, {3}, {5}, {8}]), (9, None)],
)
def test_cores_are_dealt_out_to_as_many_workers_as_there_are_jobs(jobs, shares, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {8, 1, 5, 3})
    assert core_shares(jobs) == (shares or core_shares(4))


@linux
def test_runs_keep_to_their_workers_cores_and_nothing_else_does(monkeypatch, tmp_path):
    ours = os.sched_getaffinity(0)
    workers = min(2, len(ours))
    both, found = threading.Barrier(workers), []

    def run(job, out):
        both.wait(60)  # so that no worker runs two
        code = "import os; print(*os.sched_getaffinity(0))"
        found.append({int(core) for core in subprocess.check_output([sys.executable, "-c", code], text=True).split()})
        return job, 0.0

    monkeypatch.setattr(recipe, "_run", run)
    run_jobs([Job("world", "agent", seed, ("sac",)) for seed in range(workers)], tmp_path, lambda line: None)
    assert set.union(*found) == ours and sum(map(len, found)) == len(ours)
    assert os.sched_getaffinity(0) == ours


def test_after_a_failure_no_run_is_begun(monkeypatch, tmp_path):
    """As where a user interrupts: the runs under way end with an error, and their workers take no other."""
    begun = []

    def run(job, out):
        begun.append(job.seed)
        raise RunError(f"seed {job.seed} was interrupted")

    monkeypatch.setattr(recipe, "_run", run)
    workers = len(core_shares(99))
    with pytest.raises(RunError, match="seed 0 was interrupted"):
        run_jobs([Job("world", "agent", seed, ("sac",)) for seed in range(workers + 40)], tmp_path, lambda line: None)
    assert len(begun) <= workers
