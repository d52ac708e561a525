"""Which threads and processes come after those that answer underwriters, when a machine's processors are all busy."""

import os
import sys
import threading
from contextlib import suppress

BEHIND = 5
"""By how much the nice value is raised: a third of the processor time of others that want it, and later turns."""
_this_thread = threading.local()


def come_after_underwriters() -> None:
    """Have the thread that calls this, and what it starts from here on, come after those that answer underwriters.

    A second call in the same thread changes nothing; nor does any elsewhere than on Linux, where threads have no nice
    value of their own (sched(7)), or where it is not allowed.
    """
    if sys.platform == "linux" and not hasattr(_this_thread, "is_behind"):
        _this_thread.is_behind = True
        with suppress(OSError):
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND)
