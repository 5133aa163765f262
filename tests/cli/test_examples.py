"""What the documentation shows runs: the scripts under examples/, and the commands and code of the pages, as written.

Each page is run with a hundredth of its steps, in a folder where the files it tells the reader to save are saved.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, environment

pytestmark = pytest.mark.slow

EXAMPLES = {
    "train_own_env.py": r"return 9\d\.\d .* of at most 100",
    "own_world.py": r"returns of four seeds: \[9\d\.\d 9\d\.\d 9\d\.\d 9\d\.\d\]",
    "own_loop.py": r"the policy balances for \d+ of 1000 steps",
    "export_onnx.py": r"an episode by onnxruntime: return \d+",
}
"""Script -> what its output must say."""

PAGES = (
    "quickstart.md",
    "offline.md",
    "run-folder.md",
    "add-a-method.md",
    "concepts.md",
    "agents/sac.md",
    "agents/td3.md",
    "agents/ddpg.md",
    "agents/iql.md",
    "../README.md",
)
CODE = ("cart.py", "cart_world.py", "make_dataset.py", "awac.py")
"""Files under docs/code that the pages tell the reader to save."""

BEFORE = {"run-folder.md": "trimtab train sac --env InvertedPendulum-v5 --steps 60 --eval-freq 60 --name first"}
"""Page -> what its reader has run before."""

LONGER = {"offline.md": ("--steps 20000", "--steps 300000")}
"""Page -> what is longer when it is run, and the length of which a hundredth is taken: so little that SAC learns."""

# Not a user's commands: installing, and working on the library itself.
ELSEWHERE = re.compile(r"^\s*(make|pip|pytest|python -m venv|python tests/|trimtab train awac)\b", re.M)


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        command, cwd=folder, env=environment(PATH=path, PYTHONPATH=""), capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, f"{' '.join(command)}\n{found.stdout}\n{found.stderr}"
    return found.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)
    assert re.search(EXAMPLES[name], run([sys.executable, str(ROOT / "examples" / name)], tmp_path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """What the quick start's script makes."""
    folder = tmp_path_factory.mktemp("dataset")
    run([sys.executable, str(ROOT / "docs" / "code" / "make_dataset.py")], folder)
    return folder / "pendulum.npz"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_as_written(page, dataset, tmp_path):
    for file in (*(ROOT / "docs" / "code" / name for name in CODE), dataset):
        shutil.copy(file, tmp_path)
    run(["bash", "-c", BEFORE.get(page, "true")], tmp_path)
    text = (ROOT / "docs" / page).read_text().replace(*LONGER.get(page, ("", "")))
    ran = 0
    for language, code in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.M | re.S):
        if language == "bash" and not ELSEWHERE.search(code):
            run(["bash", "-e", "-c", shortened(code)], tmp_path)
        elif language == "python" and re.search(r"^(import|from) ", code, re.M):
            run([sys.executable, "-c", shortened(code)], tmp_path)
        else:
            continue
        ran += 1
    assert ran, f"{page} shows nothing that runs"


def shortened(code: str) -> str:
    """The code with a hundredth of its steps, and at least 60."""
    shorter = lambda found: f"{found[1]}{max(60, int(found[2].replace('_', '')) // 100)}"
    return re.sub(r"(steps[ =]|-freq |_freq=)([\d_]+)", shorter, code)


def test_steps_are_shortened():
    assert shortened("--steps 10000 --eval-freq 2000 --offline-steps 12000") == (
        "--steps 100 --eval-freq 60 --offline-steps 120"
    )
    assert shortened("steps=100_000, offline_steps=3_000") == "steps=1000, offline_steps=60"
