"""`utrn demo`: placeholder until the next commit."""


def demo() -> None:
    """Run the demo."""
