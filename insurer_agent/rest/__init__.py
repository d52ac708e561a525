"""The agent's HTTP faces: REST for underwriting and policy systems, and the calls of the lookup service."""

from insurer_agent.rest.app import make_app

__all__ = ["make_app"]
