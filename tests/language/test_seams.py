"""TRL is as it was when the overrides were written; and when it moves, the seam is named."""

from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs the extra language")

from trimtab.language import seams

pytestmark = pytest.mark.language


def test_every_seam_is_where_it_was():
    assert not seams.moved(), "\n".join(seams.moved())


def test_a_moved_seam_is_named():
    seam = seams.SEAMS[0]
    assert "has another body" in seams.moved((replace(seam, digest="0" * 16),))[0]
    assert (
        "now takes (self, model, inputs, num_items_in_batch), took (self)"
        in seams.moved((replace(seam, signature="self"),))[0]
    )
    gone = seams.moved((replace(seam, where="transformers.trainer:Trainer.no_such_step"),))[0]
    assert gone.startswith("transformers.trainer:Trainer.no_such_step is gone") and seam.rests in gone
