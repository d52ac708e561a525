"""libsodium through rbcl, and nothing left behind: rbcl unpacks its library into a temporary file at every import.

Once the library is loaded neither its file nor the copy in memory that it was written from is needed any more. This is
the one place of the protocol that touches a file.
"""

import contextlib
import ctypes
import sys
from pathlib import Path

import rbcl

with contextlib.suppress(OSError, AttributeError):
    Path(sys.modules["rbcl._sodium"].lib_path).unlink()
with contextlib.suppress(AttributeError):
    del sys.modules["rbcl._sodium"].sodium_bs

_verify = rbcl._sodium.crypto_sign_ed25519_verify_detached  # noqa: SLF001  which rbcl ships and does not wrap
_verify.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulonglong, ctypes.c_char_p]
_verify.restype = ctypes.c_int


def ed25519_verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether an Ed25519 signature (RFC 8032) verifies; keys of small order and scalars out of range never do.

    libsodium takes half the time that OpenSSL does.
    """
    if len(public) != 32 or len(signature) != 64:  # noqa: PLR2004  what the library reads
        return False
    return bool(_verify(signature, message, len(message), public) == 0)


__all__ = ["ed25519_verifies", "rbcl"]
