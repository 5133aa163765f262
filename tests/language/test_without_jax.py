"""The two wings do not load one another."""

import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="needs the extra language")

pytestmark = pytest.mark.language


def test_the_language_wing_loads_no_jax():
    code = "import sys, trimtab.language.gradreg, trimtab.run.folder; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
