"""Data sets that stay on disk: the batches they give, the memory they take, and runs that go on from them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.random as jr
import numpy as np
import pytest

from tests.cli.conftest import TINY, edit_config, environment, metrics_of
from tests.unit.data.test_formats import transitions
from trimtab.cli.main import main
from trimtab.core import UsageError
from trimtab.data import stream
from trimtab.data.readers import read_recorded
from trimtab.data.sources import OfflineSource
from trimtab.data.stream import Stream, StreamSource
from trimtab.policies.compose import Uniform
from trimtab.training.compile import batch_rows


def write(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    return write(tmp_path / "folder", transitions(300))


def test_it_gives_the_batches_of_a_set_in_memory(folder):
    source, run_key = StreamSource(Stream(folder), 16), jr.key(5)
    recorded, spec = read_recorded(folder)
    memory = OfflineSource(recorded.transition, 16)
    assert (source.stream.spec.obs, source.stream.spec.action_size) == (spec.obs, spec.action_size)
    rows = np.asarray(batch_rows(run_key, np.int32(7), 3, 16, np.int32(300)))
    state = source.receive(source.init(run_key), source.stream.gather(rows))
    for i in range(3):
        _, k_batch, _ = jr.split(jr.fold_in(run_key, 7 + i), 3)  # what the loop draws a batch with
        state = source.advance(Uniform.create(spec), state, run_key)
        one, two = source.batch(state, k_batch), memory.batch((), k_batch)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_who_looks_without_the_loop_sees_rows_of_the_data(folder):
    source = StreamSource(Stream(folder), 16)
    stored = source.stored(source.init(jr.key(0)))
    assert stored.block.reward.shape == (0,)  # a checkpoint holds no rows
    state = source.restored(stored)
    one, two = source.batch(state, jr.key(1)), source.batch(state, jr.key(2))
    rewards = transitions(300)["rewards"]
    assert np.isin(one.reward, rewards).all() and len(np.unique(one.reward)) > 8
    assert not np.array_equal(one.reward, two.reward)


def test_when_a_set_stays_on_disk(folder, monkeypatch):
    assert stream.wanted(folder, "always") and not stream.wanted(folder, "never")
    assert not stream.wanted(folder, "auto")
    monkeypatch.setattr(stream, "SHARE", 1e-9)
    assert stream.wanted(folder, "auto") and not stream.wanted(folder / "rewards.npy", "auto")
    with pytest.raises(UsageError, match="unknown stream mode 'often': choose auto, always, never"):
        stream.wanted(folder, "often")


def test_bad_rows_are_named_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.setattr("trimtab.data.readers.BLOCK", 100)
    arrays = transitions(300)
    arrays["observations"][257, 1] = np.nan
    with pytest.raises(UsageError, match=r"observations\[257, 1\] is nan"):
        Stream(write(tmp_path / "nan", arrays))
    arrays = transitions(300)
    arrays["actions"][199, 0] = 1.5
    with pytest.raises(UsageError, match=r"actions\[199, 0\] is outside"):
        Stream(write(tmp_path / "range", arrays))
    arrays = {name: array for name, array in transitions(300).items() if name != "next_observations"}
    with pytest.raises(UsageError, match=r"cannot stay on disk: `trimtab data convert .* --to npy"):
        Stream(write(tmp_path / "next", arrays))
    np.savez(tmp_path / "file.npz", **transitions())
    with pytest.raises(UsageError, match=r"is no folder of \.npy files"):
        Stream(tmp_path / "file.npz")


PEAK = """
import resource, sys, jax.random as jr, numpy as np
from pathlib import Path
from trimtab.assemble import moments
from trimtab.data.stream import Stream
from trimtab.training.compile import batch_rows
data = Stream(Path(sys.argv[1]))
moments(data.obs)
for step in range(0, 640, 64):
    data.gather(np.asarray(batch_rows(jr.key(0), np.int32(step), 64, 256, np.int32(len(data)))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, len(data))
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_set(tmp_path):
    peaks = []
    for rows in (200_000, 5_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        shapes = {"observations": (rows, 11), "next_observations": (rows, 11), "actions": (rows, 3)}
        kinds = {"rewards": np.float32, "terminals": bool, "timeouts": bool}
        for name in (*shapes, *kinds):  # files of zeros take no room on disk
            file, kind = folder / f"{name}.npy", kinds.get(name, np.float32)
            np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shapes.get(name, (rows,)))
        found = subprocess.run([sys.executable, "-c", PEAK, folder], env=environment(), capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        peak, n = found.stdout.split()
        assert int(n) == rows
        peaks.append(float(peak))
    assert sum(file.stat().st_size for file in folder.iterdir()) > 500e6
    # 25 times the rows. What may differ are the pages that hold one block's rows, which lie further apart.
    assert peaks[1] - peaks[0] < 80, peaks  # MB


@pytest.mark.thorough
def test_a_run_is_the_same_from_disk_from_memory_and_resumed(folder, tmp_path):
    train = f"train iql --dataset {folder} {TINY} --agent.batch-size 64 --out {tmp_path} --log-freq 100 --eval-freq 0"
    train = f"{train} --offline-steps 700 --checkpoint-freq 300 --name"
    assert main([*train.split(), "disk", "--stream", "always"]) == 0
    assert main([*train.split(), "memory", "--stream", "never"]) == 0
    runs = tmp_path / "folder" / "iql"
    # The same batches; the last digits differ, since the compiled programs do.
    disk, memory = (
        {(step, name): float(value) for step, name, value in (line.split(",") for line in metrics_of(runs / run)[1:])}
        for run in ("disk", "memory")
    )
    assert disk.keys() == memory.keys() and len(disk) > 20
    for name in disk:
        assert disk[name] == pytest.approx(memory[name], rel=1e-3, abs=1e-4), name

    # Stopped in the middle of a block, and gone on with.
    stopped = train.replace("700", "350").replace("300", "350")
    assert main([*stopped.split(), "stopped", "--stream", "always"]) == 0
    (runs / "stopped" / "DONE").unlink()
    edit_config(runs / "stopped", offline_steps=700)
    assert main(["resume", str(runs / "stopped")]) == 0
    final = [(runs / name / "final" / "agent.eqx").read_bytes() for name in ("disk", "stopped")]
    assert final[0] == final[1]
    assert json.loads((runs / "disk" / "config.json").read_text())["stream"] == "always"


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ("train iql --dataset FOLDER --dataset-fraction 0.5 --offline-steps 9", "to draw a share of the rows"),
        ("train iql --dataset FILE --offline-steps 9", "is no folder of .npy files"),
    ],
)
def test_what_needs_the_data_in_memory_says_so(folder, tmp_path, capsys, args, text):
    np.savez(tmp_path / "file.npz", **transitions())
    args = args.replace("FOLDER", str(folder)).replace("FILE", str(tmp_path / "file.npz"))
    assert main([*args.split(), "--stream", "always", "--out", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert text in err and len(err.strip().splitlines()) == 1 and not (tmp_path / "runs").exists()
