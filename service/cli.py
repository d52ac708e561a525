"""The command of whoever runs the lookup service: `lookup-service`."""

import argparse
import json
import sys
import time
from urllib.parse import urlsplit

from service.api_key_commands import add_api_key_commands
from transport.commands import command_maker, run_command
from transport.tls_files import add_tls_commands


def _init(args: argparse.Namespace) -> int:
    from service.config import generate_keys, public_keys, save_keys
    from transport.tls_files import make_request

    args.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = generate_keys()
    save_keys(keys, args.state)
    path = args.state / "service.json"
    path.write_text(json.dumps(public_keys(keys) | {"url": args.url}, indent=1) + "\n", encoding="utf-8")
    print(path)
    if urlsplit(args.url).scheme == "https":
        print(make_request(args.state))
    return 0


def _serve(args: argparse.Namespace) -> int:
    from service.api_keys import ApiKeys
    from service.app import make_app, open_service
    from transport.certificates import SERVICE
    from transport.redis_link import warn_unless_redis_answers
    from transport.server import serve
    from transport.tls import open_tls, warn_if_plain

    settings, acting = open_service(args.state)
    ApiKeys(args.state, time.time)  # what is wrong with them is said here, before any worker starts
    tls = open_tls(settings.tls, acting.now().manifest, SERVICE)
    warn_if_plain(tls)
    if settings.redis is not None:
        warn_unless_redis_answers(settings.redis)
    serve(
        lambda: make_app(args.state, tls),
        host=settings.host,
        port=settings.port,
        state=settings.state,
        workers=settings.workers,
        threads=settings.threads,
        tls=tls,
        files=settings.tls,
        messages=(b"/v1/checks ", b"/v1/deposits ", b"/v1/relay ", b"/v1/watermarks "),
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lookup-service", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = command_maker(commands, "the service's")
    init = command("init", _init, "Make the service's keys, and service.json and tls.csr for the alliance's admins.")
    init.add_argument("--url", required=True, help="where agents reach the service")
    command("serve", _serve, "Serve the alliance's agents until stopped.")
    add_tls_commands(command)
    add_api_key_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `run_command`."""
    return run_command(_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
