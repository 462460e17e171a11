"""The head ends that there are in tests."""

HEAD_END = "sandbox"
OTHERS = ("another", "elsewhere", "gaining-head-end")


def known_head_ends() -> frozenset[str]:
    """Return their names."""
    return frozenset({HEAD_END, *OTHERS})
