"""Twenty updates of each agent give the recorded losses. If a change of results is meant: see `regenerate.py`."""

import json

import numpy as np
import pytest

from tests.golden.regenerate import HERE, UPDATES, losses
from tests.representative import every_agent
from trimtab.agents import AGENTS


@pytest.mark.parametrize("name", every_agent())
def test_losses_are_the_recorded_ones(name):
    file = HERE / f"{name}.json"
    assert file.exists(), f"no golden losses yet: python tests/golden/regenerate.py {name}"
    advice = f"if this change of results is meant, run python tests/golden/regenerate.py {name}"
    recorded, found = json.loads(file.read_text()), losses(name)
    assert found.keys() == recorded.keys()
    as_array = lambda series: np.array([np.nan if value is None else value for value in series])
    for metric, series in recorded.items():
        assert len(series) == UPDATES and any(value is not None for value in series)
        # Loose enough for another processor's order of summation, far tighter than any change of the method.
        a, b = as_array(found[metric]), as_array(series)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=f"{name} {metric}: {advice}")


def test_no_file_is_left_over():
    assert {file.stem for file in HERE.glob("*.json")} == set(AGENTS)
