"""Foreign errors at the door to the vendors, and the sentence for each. Nothing of what a vendor wrote is
repeated: it may hold a key."""

from pydantic_ai import exceptions as pai

from fermata.kit.errors import ModelError

#: First match wins: (error, sentence, whether trying again soon may help). Covers `FOREIGN`.
_TABLE: tuple[tuple[type[Exception], str, bool], ...] = (
    (
        pai.ModelContextWindowExceededError,
        "This chat has become too long for {model}. Start a new one.",
        False,
    ),
    (pai.ModelAuthenticationError, "{vendor} refused the key that this server has for it.", False),
    (pai.ModelNotFoundError, "{vendor} has no model named {model}.", False),
    (pai.ModelQuotaExceededError, "This server's account at {vendor} has used up its quota.", False),
    (pai.ModelRateLimitError, "{vendor} limits how often this server may ask. Try again in a minute.", True),
    (pai.ModelTimeoutError, "{vendor} did not answer in time. Try again.", True),
    (pai.ModelConnectionError, "The connection to {vendor} failed. Try again.", True),
    (pai.ModelUnavailableError, "{vendor} is overloaded or not available. Try again in a minute.", True),
    (pai.ModelServerError, "{vendor} failed to answer. Try again in a minute.", True),
    (pai.ContentFilterError, "{vendor} refused this request under its content rules.", False),
    (pai.ModelRequestRejectedError, "{vendor} did not accept the request for {model}.", False),
    (pai.ModelAPIError, "{vendor} failed to answer. Try again in a minute.", True),
    (pai.UserError, "{model} cannot take this message: a file or a part of it is of an unknown kind.", False),
    (pai.AgentRunError, "The answer of {vendor} could not be understood.", False),
)


FOREIGN = (pai.AgentRunError, pai.UserError)


def is_retriable(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    return _entry(error)[1]


def retry_after(error: Exception) -> float:
    """Seconds that the vendor asks to wait; 0 when it did not say."""
    return (error.retry_after or 0.0) if isinstance(error, pai.ModelAPIError) else 0.0


def to_model_error(error: Exception, vendor: str, model: str) -> ModelError:
    return ModelError(_entry(error)[0].format(vendor=vendor, model=model))


def _entry(error: Exception) -> tuple[str, bool]:
    return next((sentence, again) for kind, sentence, again in _TABLE if isinstance(error, kind))
