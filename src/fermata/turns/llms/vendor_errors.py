"""What can go wrong at a vendor, the sentence for each, and how to tell them apart. Nothing of what a vendor
wrote is repeated: it may hold a key."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from fermata.kit.errors import ModelError


class Trouble(Enum):
    """A sentence, and whether the same request may succeed a little later."""

    TOO_LONG = ("This chat has become too long for {model}. Start a new one.", False)
    KEY_REFUSED = ("{vendor} refused the key that this server has for it.", False)
    NO_SUCH_MODEL = ("{vendor} has no model named {model}.", False)
    QUOTA_USED_UP = ("This server's account at {vendor} has used up its quota.", False)
    RATE_LIMITED = ("{vendor} limits how often this server may ask. Try again in a minute.", True)
    TIMED_OUT = ("{vendor} did not answer in time. Try again.", True)
    CONNECTION_FAILED = ("The connection to {vendor} failed. Try again.", True)
    UNAVAILABLE = ("{vendor} is overloaded or not available. Try again in a minute.", True)
    FAILED = ("{vendor} failed to answer. Try again in a minute.", True)
    CONTENT_REFUSED = ("{vendor} refused this request under its content rules.", False)
    REJECTED = ("{vendor} did not accept the request for {model}.", False)
    NOT_ASKED = ("{model} cannot take this message: a file or a part of it is of an unknown kind.", False)
    NOT_UNDERSTOOD = ("The answer of {vendor} could not be understood.", False)

    def __init__(self, sentence: str, retriable: bool) -> None:
        self.sentence = sentence
        self.retriable = retriable


class VendorError(Exception):
    def __init__(self, trouble: Trouble, *, status: int | None = None, retry_after: float = 0.0) -> None:
        super().__init__(trouble.name)
        self.trouble = trouble
        self.status = status
        #: Seconds that the vendor asks to wait; 0 when it did not say.
        self.retry_after = retry_after

    def to_model_error(self, vendor: str, model: str) -> ModelError:
        return ModelError(self.trouble.sentence.format(vendor=vendor, model=model))


#: By the `code` or the `type` of an error, of OpenAI and of servers like it, and of Anthropic.
_BY_CODE = {
    "context_length_exceeded": Trouble.TOO_LONG,
    "request_too_large": Trouble.TOO_LONG,
    "insufficient_quota": Trouble.QUOTA_USED_UP,
    "billing_hard_limit_reached": Trouble.QUOTA_USED_UP,
    "credit_balance_exhausted": Trouble.QUOTA_USED_UP,
    "organization_spend_limit_exceeded": Trouble.QUOTA_USED_UP,
    "project_spend_limit_exceeded": Trouble.QUOTA_USED_UP,
    "organization_usage_limit_exceeded": Trouble.QUOTA_USED_UP,
    "exceeded_current_quota_error": Trouble.QUOTA_USED_UP,
    "billing_error": Trouble.QUOTA_USED_UP,
    "model_not_found": Trouble.NO_SUCH_MODEL,
    "not_found_error": Trouble.NO_SUCH_MODEL,
    "invalid_api_key": Trouble.KEY_REFUSED,
    "authentication_error": Trouble.KEY_REFUSED,
    "permission_error": Trouble.KEY_REFUSED,
    "content_filter": Trouble.CONTENT_REFUSED,
    "content_policy_violation": Trouble.CONTENT_REFUSED,
    "rate_limit_exceeded": Trouble.RATE_LIMITED,
    "rate_limit_error": Trouble.RATE_LIMITED,
    "too_many_requests": Trouble.RATE_LIMITED,
    "overloaded": Trouble.UNAVAILABLE,
    "overloaded_error": Trouble.UNAVAILABLE,
    "server_is_overloaded": Trouble.UNAVAILABLE,
    "service_unavailable": Trouble.UNAVAILABLE,
    "service_unavailable_error": Trouble.UNAVAILABLE,
    "timeout_error": Trouble.TIMED_OUT,
    "api_error": Trouble.FAILED,
    "server_error": Trouble.FAILED,
}

#: Some say what is wrong in words only.
_BY_WORDS = {
    "maximum context length": Trouble.TOO_LONG,
    "reduce the length of the messages": Trouble.TOO_LONG,
    "prompt is too long": Trouble.TOO_LONG,
    "credit balance is too low": Trouble.QUOTA_USED_UP,
}

_BY_STATUS = {
    401: Trouble.KEY_REFUSED,
    402: Trouble.QUOTA_USED_UP,
    403: Trouble.KEY_REFUSED,
    404: Trouble.NO_SUCH_MODEL,
    408: Trouble.TIMED_OUT,
    413: Trouble.TOO_LONG,
    429: Trouble.RATE_LIMITED,
    503: Trouble.UNAVAILABLE,
    504: Trouble.TIMED_OUT,
    529: Trouble.UNAVAILABLE,
}


def decide_trouble(status: int | None, body: Any) -> Trouble:
    """`body` is the JSON of an answer or of an event that tells an error; `status` None within a stream."""
    error = body.get("error") if isinstance(body, dict) else None
    error = error if isinstance(error, dict) else {}
    words = error.get("message")
    words = words.lower() if isinstance(words, str) else ""
    for part, trouble in _BY_WORDS.items():
        if part in words:
            return trouble
    for code in (error.get("code"), error.get("type")):
        if isinstance(code, str) and code in _BY_CODE:
            return _BY_CODE[code]
        if status is None and str(code).isdecimal() and len(str(code)) == 3:
            # Gateways pass the status of the vendor behind them on as the code.
            status = int(str(code))
    if status is None:
        return Trouble.FAILED
    return _BY_STATUS.get(status) or (Trouble.REJECTED if 400 <= status < 500 else Trouble.FAILED)


def read_retry_after(text: str | None) -> float:
    """Seconds, from the header that holds seconds or a date."""
    if not text:
        return 0.0
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (until - datetime.now(UTC)).total_seconds()) if until.tzinfo else 0.0
