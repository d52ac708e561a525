"""The command `insurer-agent consume`."""

import argparse
import os
import socket
from collections.abc import Callable
from pathlib import Path

from transport.settings import SettingsError

# As in cli.py, what a command needs is imported when it runs.

REDIS_URL = "POLICY_REDIS_URL"
"""The variable for the URL of Redis, unless another is named: a password on the command line stands in `ps`."""


def add_consume_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command; `command` takes its name, what it runs and its help."""
    consuming = command("consume", _consume, "Take policy events from a Redis stream until stopped (SIGTERM).")
    consuming.add_argument(
        "--redis-url-env",
        metavar="VAR",
        default=REDIS_URL,
        help=f"the variable that has redis://, rediss:// or unix:// with user and password ({REDIS_URL})",
    )
    consuming.add_argument("--stream", required=True, metavar="NAME", help="the key; dead letters go to NAME:rejected")
    consuming.add_argument("--group", metavar="G", default="insurer-agent", help="the consumer group (insurer-agent)")
    consuming.add_argument(
        "--consumer", metavar="C", default=socket.gethostname(), help="the name in the group (the host's)"
    )
    consuming.add_argument("--batch", type=_number(1, 10_000), default=500, help="entries taken at once (500)")
    consuming.add_argument(
        "--claim-after",
        type=_number(0, 86_400),
        default=30,
        metavar="SECONDS",
        help="take over what another consumer has left pending that long (30)",
    )
    consuming.add_argument(
        "--patience",
        type=_number(0, 86_400),
        default=60,
        metavar="SECONDS",
        help="try a correction of an unknown policy that long before it is rejected (60)",
    )


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"a whole number from {least} to {most}")
        return int(text)

    return number


def _consume(args: argparse.Namespace) -> int:
    import logging
    import signal
    import threading

    from insurer_agent import background, stream_consumer
    from insurer_agent.agent import Agent
    from insurer_agent.policy_stream import PolicyStream

    url = os.environ.get(args.redis_url_env)
    if not url:
        raise SettingsError(f"consume needs the URL of Redis in {args.redis_url_env} in the environment")
    if not all((args.stream, args.group, args.consumer)):
        raise SettingsError("stream, group and consumer have a name")
    stream = PolicyStream(url, args.stream, args.group, args.consumer)
    stream_consumer.log.setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent.open(Path(args.state), connections=3)
    try:
        background.follow(agent)
        stream_consumer.Consumer(
            stream,
            agent.database,
            agent.register,
            stream_consumer.NewestMapping(agent.acting),
            lock=stream_consumer.lock_of(args.stream, args.group),
            pace=stream_consumer.Pace(batch=args.batch, claim=args.claim_after, patience=args.patience),
            stop=stop,
        ).run()
    finally:
        agent.database.close()
        stream.close()
    return 0
