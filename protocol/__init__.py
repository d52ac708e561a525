"""The lookup protocol: pure, without I/O, clock or randomness of its own. Read SPEC.md, check.py, deposit.py."""
