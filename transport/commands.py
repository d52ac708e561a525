"""How every command of the project runs: one line and status 2 for errors of use and configuration."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from protocol.errors import ProtocolError
from transport.problems import Problem
from transport.settings import SettingsError, write_private


def command_maker(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", whose: str
) -> Callable[..., argparse.ArgumentParser]:
    """Return what adds a sub-command by its name, function and text, with a state directory unless told otherwise."""

    def command(name: str, run: object, text: str, *, state: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if state:
            sub.add_argument("--state", type=Path, required=True, help=f"{whose} state directory")
        return sub

    return command


def hand_out(key: str, file: Path | None) -> None:
    """Print a key, once, or write it to a file that its owner alone can read."""
    if file is None:
        print(key)  # noqa: T201  printing is what a command does
    else:
        write_private(file, key.encode() + b"\n")


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
