"""How every command of the project runs: one line and status 2 for errors of use and configuration."""

import argparse
import logging
import sys

from protocol.errors import ProtocolError
from transport.problems import Problem
from transport.settings import SettingsError


def run_command(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    """Parse the arguments and run the sub-command that they choose; return the exit status."""
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        status: int = args.run(args)
    except SettingsError as error:
        told = str(error)
    except Problem as error:
        told = error.detail
    except ProtocolError as error:
        told = error.hint
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    else:
        return status
    sys.stderr.write(f"{parser.prog}: {told}\n")
    return 2
