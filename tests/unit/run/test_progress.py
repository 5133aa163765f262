"""The line of progress."""

from trimtab.run.logging import Progress


def test_a_run_that_ends_beyond_its_total_has_no_time_left(capsys):
    Progress(100, 0, "step").evaluated(130, 1.0, 0.0)
    assert capsys.readouterr().err.rstrip().endswith("0:00 left")
