"""The clock of the host."""

from __future__ import annotations

import time


class SystemClock:
    """The host's time (`core.ports.Clock`)."""

    def now_ns(self) -> int:
        """Wall-clock time, nanoseconds since 1970 UTC; may step."""
        return time.time_ns()

    def monotonic_ns(self) -> int:
        """Nanoseconds since the host started, counting suspend; never steps."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
