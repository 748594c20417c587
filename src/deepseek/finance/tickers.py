"""Tickers in a text: `$TSLA`, `(NYSE: IBM)`, `NASDAQ:AAPL`, `BRK.B` behind an exchange."""

import re

EXCHANGES = (
    "NYSE", "NASDAQ", "AMEX", "OTC", "LSE", "TSX", "ASX", "HKEX", "SEHK", "OMX", "FRA", "ETR",
    "EPA", "SWX", "BIT", "BME", "NSE", "BSE", "SSE", "SZSE", "TSE", "TYO", "KRX",
)  # fmt: skip
_CASHTAG = r"(?<![\w$])\$(?P<cash>[A-Za-z]{1,6}(?:[._-][A-Za-z]{1,2})?)(?!\w)"
_LISTED = (
    rf"\b(?P<exchange>{'|'.join(EXCHANGES)})\s?:\s?(?P<listed>[A-Z0-9]{{1,6}}(?:[.-][A-Z]{{1,2}})?)"
    r"(?![\w])"
)
_TICKERS = re.compile(f"{_CASHTAG}|{_LISTED}")


def find_tickers(text: str) -> list[dict]:
    """Return the tickers of a text, in order: `kind`, `text`, `ticker`, `start`, `end`.

    Args:
        text: of any length; the time is linear in it.

    Example:
        >>> [found["ticker"] for found in find_tickers("$TSLA up, Oracle (NYSE: ORCL) costs $5")]
        ['TSLA', 'ORCL']
    """
    return [
        {
            "kind": "ticker",
            "text": found[0],
            "ticker": (found["cash"] or found["listed"]).upper(),
            "start": found.start(),
            "end": found.end(),
        }
        for found in _TICKERS.finditer(text)
    ]
