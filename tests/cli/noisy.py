"""A saga that logs, warns, and configures neither."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from sagaz_es import Saga, action


class NoisySaga(Saga):
    """One step, which has much to say."""

    saga_name = "noisy"

    @action("speak")
    async def speak(self, ctx: Any) -> None:
        logger = logging.getLogger("noisy")
        logger.info("it is quiet")
        try:
            raise ValueError(7)
        except ValueError:
            logger.exception("it is loud")
        warnings.warn("it is old", stacklevel=1)
