"""Which graphics cards a process sees, by `CUDA_VISIBLE_DEVICES`; nothing asks the driver."""

from itertools import takewhile


def count_visible(given: str | None, cards: int | None) -> int:
    """Return how many cards CUDA shows to a process.

    Args:
        given: `CUDA_VISIBLE_DEVICES`, `None` where it is not set.
        cards: that there are, `None` where nobody knows.
    """
    if given is None:
        return cards or 0

    def names_card(word: str) -> bool:
        is_number = word.isdecimal() and (cards is None or int(word) < cards)
        return is_number or word.startswith(("GPU-", "MIG-"))

    # an entry that names no card hides all behind it; a card that is named twice hides every one
    shown = list(takewhile(names_card, (word.strip() for word in given.split(","))))
    if len(set(shown)) != len(shown):
        return 0
    return len(shown) if cards is None else min(cards, len(shown))
