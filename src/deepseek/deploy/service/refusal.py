"""Why a request is not answered: one exception, one form of answer."""


class Refusal(Exception):
    """A request that is turned down.

    Args:
        status: of HTTP.
        message: what happened, with the value and the rule that it broke.
        fix: what the client can do.
        retry_after_s: when to try again, for 429 and 503.
    """

    def __init__(
        self, status: int, message: str, *, fix: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        # half of a surrogate pair, which a client may have sent, is no text that could be answered
        self.message = message.encode("utf-8", "replace").decode()
        self.fix = fix.encode("utf-8", "replace").decode()
        self.retry_after_s = retry_after_s

    def body(self) -> dict:
        """Return the answer as JSON-able content."""
        return {"error": self.message, "fix": self.fix}

    def headers(self) -> dict[str, str]:
        """Return what goes beside it."""
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after_s)))}
