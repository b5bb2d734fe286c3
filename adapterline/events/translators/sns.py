"""Amazon SNS puts what it delivers to a queue in an envelope, unless the subscription delivers raw messages."""

from __future__ import annotations

import json
from typing import Any

from adapterline.events.translators.base import get


def unwrapped(payload: Any) -> Any:
    """What lies in SNS's envelope; anything else as it is."""
    message = get(payload, "Message")
    if get(payload, "Type") != "Notification" or not isinstance(message, str) or not get(payload, "TopicArn"):
        return payload
    try:
        return json.loads(message)
    except ValueError:
        return payload
