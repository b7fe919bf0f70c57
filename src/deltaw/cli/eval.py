"""Not yet."""


def run() -> None:
    """Placeholder."""
