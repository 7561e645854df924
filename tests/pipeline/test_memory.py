import sys

import pytest

from pipeline.memory import keep_freed_memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is asked")
def test_the_allocator_takes_the_thresholds_however_often_it_is_told() -> None:
    assert keep_freed_memory() and keep_freed_memory()
