"""What a run says when the machine gives out."""

import pytest

from comvex.training.failure import explain_failures
from comvex.training.recipe import Recipe


def test_a_run_without_memory_says_what_helps_and_which_checkpoint_there_is(tmp_path):
    helps = r"batches of 64 pictures: --accumulate 2 .* --batch-size .* needs less; "
    with pytest.raises(ValueError, match=helps + "there is no checkpoint yet"), explain_failures(Recipe(), tmp_path):
        raise MemoryError
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    kept = "the checkpoint of step 7 is kept"
    with pytest.raises(ValueError, match=helps + kept), explain_failures(Recipe(), tmp_path):
        raise MemoryError
