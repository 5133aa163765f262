"""SEEM on a control task: values that feed on themselves without LayerNorm, and do not with it."""

import pytest

from trimtab.papers.recipe import Results
from trimtab.papers.seem import CONTROL, control, subsets, train


@pytest.mark.slow
def test_layer_norm_keeps_values_in_bounds_and_learns_from_one_percent(tmp_path):
    """TD3 with targets that are the networks on Pendulum's medium data, 10,000 updates; TD3+BC on 500 transitions of
    them, 5,000 updates. Seeds 0, 1 and 2, all of which must hold."""
    data = tmp_path / "data"
    few = [job for job in subsets("small", data) if job.flags[0] == "td3-bc" and " 1% " in job.setting]
    jobs, results = control("small", data) + few, Results("seem", "test")
    train(results, jobs, tmp_path)
    assert len(jobs) == 12 and len(results.checks) == 5
    assert sum(job.setting.startswith(CONTROL) for job in jobs) == 6
    assert not results.failed(), results.table()
    print(results.table())
