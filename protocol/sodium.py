"""libsodium through rbcl, and nothing left behind: rbcl unpacks its library into a temporary file at every import.

Once the library is loaded neither its file nor the copy in memory that it was written from is needed any more. This is
the one place of the protocol that touches a file.
"""

import contextlib
import sys
from pathlib import Path

import rbcl

with contextlib.suppress(OSError, AttributeError):
    Path(sys.modules["rbcl._sodium"].lib_path).unlink()
with contextlib.suppress(AttributeError):
    del sys.modules["rbcl._sodium"].sodium_bs

__all__ = ["rbcl"]
