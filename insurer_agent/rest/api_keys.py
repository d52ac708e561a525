"""The agent's own admin's face: API keys are made, listed and revoked."""

import secrets

from flask import Flask, Response, jsonify

from insurer_agent.agent import Agent
from insurer_agent.rest.access import KEY_NAMES, KEYS, allow
from insurer_agent.rest.requests import read_json
from insurer_agent.rest.schemas import ApiKeyRequestSchema, ApiKeysSchema, MadeApiKeySchema
from insurer_agent.roles import Role

_REQUEST, _MADE, _ALL = ApiKeyRequestSchema(), MadeApiKeySchema(), ApiKeysSchema()


def serve(app: Flask, agent: Agent) -> None:
    """Add the endpoints. The making of a key is under no Idempotency-Key, as its answer must be kept nowhere."""

    @app.get("/v1/api-keys")
    @allow(*KEY_NAMES)
    def list_api_keys() -> Response:
        return jsonify(_ALL.dump({"api_keys": agent.api_keys.entries()}))

    @app.post("/v1/api-keys")
    @allow(*KEYS)
    def make_api_key() -> Response:
        asked = _REQUEST.load(read_json())
        roles = [Role(name) for name in asked["roles"]]
        key, ends = agent.api_keys.make_ending(
            asked["name"], secrets.token_bytes, roles=roles, days=asked["days"], replace=asked["replace"]
        )
        made = {"name": asked["name"], "roles": asked["roles"], "expires_at": ends, "api_key": key}
        response = jsonify(_MADE.dump(made))
        response.status_code = 201
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.delete("/v1/api-keys/<path:name>")
    @allow(*KEYS)
    def revoke_api_key(name: str) -> Response:
        agent.api_keys.revoke(name)
        return Response(status=204)
