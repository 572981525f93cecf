"""Samples that could not be read: each is named once, and too many stop the work."""

import logging
from collections.abc import Sequence

from core.errors import UnreadableSampleError

logger = logging.getLogger(__name__)


class SkippedSamples:
    """The different samples that could not be read so far, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reasons: set[str] = set()

    def note(self, reasons: Sequence[str]) -> None:
        """Warn of each reason that is new.

        Raises:
            UnreadableSampleError: There are more than the limit by now.
        """
        for reason in reasons:
            is_new = reason not in self._reasons
            self._reasons.add(reason)
            if len(self._reasons) > self._limit:
                raise UnreadableSampleError(
                    f"{len(self._reasons)} samples cannot be read, --skip-bad allows {self._limit}: {reason}"
                )
            if is_new:
                logger.warning("skipped: %s", reason)

    def __len__(self) -> int:
        return len(self._reasons)
