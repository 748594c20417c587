"""Shares as people write them."""


def parse_share(text: str) -> float:
    """Return `0.5%` or `0.005` as a number.

    Raises:
        ValueError: it is neither.
    """
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
