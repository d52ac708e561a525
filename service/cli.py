"""The command of whoever runs the lookup service: `lookup-service`."""

import argparse
import json
import sys
from pathlib import Path

from transport.commands import run_command


def _init(args: argparse.Namespace) -> int:
    from service.config import generate_keys, public_keys, save_keys

    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = generate_keys()
    save_keys(keys, args.state)
    path = args.state / "service.json"
    path.write_text(json.dumps(public_keys(keys) | {"url": args.url}, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def _serve(args: argparse.Namespace) -> int:
    from service.app import make_app, open_service
    from transport.redis_link import warn_unless_redis_answers
    from transport.server import serve

    settings = open_service(args.state)[0]
    if settings.redis is not None:
        warn_unless_redis_answers(settings.redis)
    serve(
        lambda: make_app(args.state),
        host=settings.host,
        port=settings.port,
        state=settings.state,
        workers=settings.workers,
        threads=settings.threads,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lookup-service", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    init = commands.add_parser("init", help="Make the service's keys, and service.json for the alliance's admins.")
    init.add_argument("--url", required=True, help="where agents reach the service")
    init.set_defaults(run=_init)
    serve = commands.add_parser("serve", help="Serve the alliance's agents until stopped.")
    serve.set_defaults(run=_serve)
    for command in (init, serve):
        command.add_argument("--state", type=Path, required=True, help="the service's state directory")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `run_command`."""
    return run_command(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
