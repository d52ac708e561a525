"""libsodium through rbcl, and nothing left behind: rbcl unpacks its library into a temporary file at every import.

Once the library is loaded its file is not needed any more, so it is removed. This is the one place of the protocol
that touches a file.
"""

import contextlib
import sys
from pathlib import Path

import rbcl

with contextlib.suppress(OSError, AttributeError):
    Path(sys.modules["rbcl._sodium"].lib_path).unlink()

__all__ = ["rbcl"]
