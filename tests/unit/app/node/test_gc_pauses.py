"""What the garbage collector costs is counted."""

import gc

from app.node.gc_pauses import CollectorPauses


def test_collections_of_all_that_lives_are_counted_and_young_ones_are_not() -> None:
    pauses = CollectorPauses()
    pauses.install()
    try:
        gc.collect(0)
        gc.collect(1)
        assert pauses.count == 0
        gc.collect()
        gc.collect()
    finally:
        pauses.remove()
    gc.collect()
    assert pauses.count == 2
    assert 0 < pauses.longest <= pauses.seconds
