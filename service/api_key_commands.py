"""Commands about the API keys of admins and auditors: `lookup-service api-key …`."""

import argparse
import secrets
import time
from pathlib import Path

from service.api_keys import Action, ApiKeys, Role, day_time
from transport.commands import command_maker, hand_out


def add_api_key_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `api-key` with its actions."""
    text = "Make, list and revoke the API keys of the alliance's admins and auditors."
    parser = commands.add_parser("api-key", help=text, description=text)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    action = command_maker(actions, "the service's")
    make = action("make", _make, "Make a key under a name that has none that is good, and print it, once.")
    make.add_argument("name")
    make.add_argument("--role", required=True, choices=[*map(str, Role)])
    make.add_argument("--days", required=True, type=int, help="after which it ends, 366 at most")
    scope = "let it do this alone, of what its role may; may be given several times"
    make.add_argument("--only", action="append", default=[], choices=[*map(str, Action)], help=scope)
    make.add_argument("--file", type=Path, help="write the key to this file instead, readable by its owner alone")
    action("list", _list, "List the keys: role, when each was made and ends, what it may do, and its name.")
    revoke = action("revoke", _revoke, "End a key: the next request that bears it is refused.")
    revoke.add_argument("name")


def _make(args: argparse.Namespace) -> int:
    keys = ApiKeys(args.state, time.time)
    key = keys.make(args.name, Role(args.role), args.days, secrets.token_bytes, map(Action, args.only))
    hand_out(key, args.file)
    return 0


def _list(args: argparse.Namespace) -> int:
    print("role\tmade\tends\tmay\tname")
    for one in ApiKeys(args.state, time.time).entries():
        ends = day_time(one.expires_at) + (" (has)" if one.expires_at <= time.time() else "")
        print(f"{one.role}\t{day_time(one.made_at)}\t{ends}\t{','.join(sorted(one.scope))}\t{one.name}")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    ApiKeys(args.state, time.time).revoke(args.name)
    return 0
