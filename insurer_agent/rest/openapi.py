"""The OpenAPI document of the REST interface, made from the marshmallow schemas."""

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema

from insurer_agent.rest import schemas
from insurer_agent.rest.job_files import COLUMNS, CSV, FORMATS, OPTIONAL
from insurer_agent.rest.requests import IDEMPOTENCY_KEY, KEPT, MAX_KEY_CHARACTERS, REPLAYED
from insurer_agent.roles import Role

PROBLEM = "application/problem+json"
_PROBLEMS = {
    400: "The body is not JSON, or a header is malformed.",
    401: "No good API key, and no registered client certificate; or it has ended, `api-key-expired`.",
    403: "The key has none of the roles that may do this, `forbidden-role`.",
    404: "No such rule, policy, job or API key.",
    409: "It does not fit what is known, the job is not done, or the first request under the key is still under way.",
    413: "The body is too large.",
    415: "The body is not declared as JSON, or as CSV where that is taken.",
    422: "It does not fit the schema, a value is not good, or the Idempotency-Key was used for another request.",
    429: "More than this API key may ask at once; `retry_after` says when to send it again.",
    503: "It cannot be answered now. Sending it again is safe.",
}
_RETRIED = (409, 429, 503)
_OF_BODIES = (400, 409, 413, 415, 422, 429)
_RETRY_AFTER = {
    "description": "Seconds after which to send it again, where that is known.",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_NUMBER = {
    "name": "number",
    "in": "path",
    "required": True,
    "description": "The policy's number.",
    "schema": {"type": "string", "minLength": 1},
    "example": "P-2026-0001",
}
_JOB_ID = {
    "name": "job_id",
    "in": "path",
    "required": True,
    "description": "The job's id.",
    "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    "example": "5f" * 16,
}
_KEY_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The name that the key has.",
    "schema": {"type": "string", "minLength": 1},
    "example": "core-system",
}
_PARAMETERS = {"{number}": _NUMBER, "{job_id}": _JOB_ID, "{name}": _KEY_NAME}
_FORMAT = {
    "name": "format",
    "in": "query",
    "description": "As what: JSON lines, or CSV that Excel opens; without it, as the job was handed in.",
    "schema": {"type": "string", "enum": list(FORMATS)},
}
_CSV_EXAMPLE = ",".join((*COLUMNS, OPTIONAL)) + "\nresident_id,110101194903070014,accident-30d,3000000.00,UW-1\n"
_IDEMPOTENCY = {
    "name": IDEMPOTENCY_KEY,
    "in": "header",
    "description": "A key of the caller's choice: the same request under it is answered as it was the first time, for a"
    " day. An indeterminate check is not kept: asking again asks anew.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[ -~]+$"},
}


_REPEATED = {
    REPLAYED: {"description": "True where this is the answer to an earlier request.", "schema": {"const": "true"}},
    KEPT: {
        "description": "False where this is not kept: a repeat under the Idempotency-Key is done anew.",
        "schema": {"const": "false"},
    },
}


def document(access: Mapping[tuple[str, str], Collection[Role] | None] | None = None) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document. `access` has, by method and address as Flask writes it, the roles that may ask:
    each operation says its own, in words and as `x-roles`.
    """
    roles = {(method.lower(), _address(rule)): found for (method, rule), found in (access or {}).items()}
    spec = APISpec(
        title="Insurer agent",
        version=version("cover-lookup"),
        openapi_version="3.1.0",
        plugins=[MarshmallowPlugin(schema_name_resolver=_name)],
        info={"description": "Checks at underwriting, and policies as they are issued, amended and cancelled."},
        security=[{"apiKey": []}, {"clientCertificate": []}],
    )
    spec.components.security_scheme("apiKey", {"type": "http", "scheme": "bearer"})
    spec.components.security_scheme("clientCertificate", {"type": "mutualTLS"})
    problem = {"schema": schemas.ProblemSchema}
    for status, description in _PROBLEMS.items():
        told: dict[str, Any] = {"description": description, "content": {PROBLEM: problem}}
        if status in _RETRIED:
            told["headers"] = {"Retry-After": _RETRY_AFTER}
        spec.components.response(_problem(status), told)
    spec.components.schema("ItemProblem", schema=schemas.ItemProblemSchema)
    for path, operations in _paths().items():
        for method, operation in operations.items():
            found = [role.value for role in Role if role in (roles.get((method, path)) or ())]
            if found:
                operation |= {"x-roles": found, "description": f"For an API key with the role {' or '.join(found)}."}
        named = [parameter for name, parameter in _PARAMETERS.items() if name in path]
        spec.path(path, parameters=named, operations=operations)
    result: dict[str, Any] = spec.to_dict()
    request = result["components"]["schemas"]["CheckRequest"]
    request["oneOf"] = [{"required": ["rule"]}, {"required": ["rules"]}]
    return result


def _paths() -> dict[str, dict[str, Any]]:
    either = {"oneOf": [schemas.CheckAnswerSchema, schemas.ChecksAnswerSchema]}
    return {
        "/v1/checks": {
            "post": _operation(
                "Check a person's total against a limit", {200: either}, schemas.CheckRequestSchema, problems=(404, 409)
            )
        },
        "/v1/checks/batch": {
            "post": _operation(
                "Check many persons at once", {200: schemas.BatchAnswerSchema}, schemas.BatchRequestSchema
            )
        },
        "/v1/checks/jobs": {
            "post": _operation(
                "Hand in a job of many checks",
                {202: schemas.JobSchema},
                schemas.JobRequestSchema,
                text={"schema": {"type": "string", "example": _CSV_EXAMPLE}},
            )
        },
        "/v1/checks/jobs/{job_id}": {
            "get": _operation("Tell how far a job is", {200: schemas.JobSchema}, problems=(404, 429)),
            "delete": _operation("Cancel a job and remove it", {204: None}, problems=(404, 429)),
        },
        "/v1/checks/jobs/{job_id}/result": {
            "get": _operation(
                "Fetch the answers of a job",
                {200: None},
                problems=(404, 409, 422, 429),
                parameters=[_FORMAT],
                file=True,
            )
        },
        "/v1/rules": {"get": _operation("List the rules in force", {200: schemas.RulesSchema})},
        "/v1/status": {"get": _operation("Tell how far the agent's deposits are", {200: schemas.StatusSchema})},
        "/v1/policies": {
            "post": _operation(
                "Issue a policy",
                {200: schemas.PolicyAnswerSchema, 201: schemas.PolicyAnswerSchema},
                schemas.PolicySchema,
                problems=(409,),
            )
        },
        "/v1/policies/{number}": {
            "get": _operation("Find the policies of a number", {200: schemas.PoliciesSchema}, problems=(404, 422, 429)),
            "put": _operation(
                "Amend a policy's sum insured",
                {200: schemas.PolicyAnswerSchema},
                schemas.AmendmentSchema,
                problems=(404, 409),
            ),
        },
        "/v1/policies/{number}/cancellation": {
            "post": _operation(
                "Cancel a policy", {200: schemas.PolicyAnswerSchema}, schemas.CancellationSchema, problems=(404, 409)
            ),
        },
        "/v1/api-keys": {
            "get": _operation("List the API keys' names, roles and ends", {200: schemas.ApiKeysSchema}),
            "post": _operation(
                "Make an API key", {201: schemas.MadeApiKeySchema}, schemas.ApiKeyRequestSchema, once=True
            ),
        },
        "/v1/api-keys/{name}": {"delete": _operation("Revoke an API key", {204: None}, problems=(404,))},
        "/healthz": {"get": _operation("Tell that the agent runs", {200: schemas.HealthSchema}, open_to_all=True)},
        "/readyz": {"get": _operation("Tell whether it can answer", {200: schemas.HealthSchema}, open_to_all=True)},
    }


def _operation(
    summary: str,
    answers: dict[int, Any],
    body: type[Schema] | None = None,
    *,
    text: dict[str, Any] | None = None,
    problems: tuple[int, ...] = (),
    parameters: Sequence[dict[str, Any]] = (),
    file: bool = False,
    open_to_all: bool = False,
    once: bool = False,
) -> dict[str, Any]:
    """Return an operation; its body may also be CSV, which is `text`, and its answer a `file` in place of JSON.

    What is to be done `once` is under no Idempotency-Key.
    """
    responses: dict[str, Any] = {}
    for status, schema in answers.items():
        responses[str(status)] = {"description": "The answer."}
        if schema is not None:
            responses[str(status)]["content"] = {"application/json": {"schema": schema}}
        if file:
            responses[str(status)]["content"] = {kind: {"schema": {"type": "string"}} for kind in FORMATS.values()}
        if body is not None and not once:
            responses[str(status)]["headers"] = _REPEATED
    always = (503,) if open_to_all else (401, 403, 503)
    for status in (*problems, *always, *(_OF_BODIES if body is not None else ())):
        responses[str(status)] = _problem(status)
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = list(parameters)
    if open_to_all:
        operation["security"] = []
    if body is not None:
        content: dict[str, Any] = {"application/json": {"schema": body}} | ({} if text is None else {CSV: text})
        operation["requestBody"] = {"required": True, "content": content}
        operation |= {} if once else {"parameters": [_IDEMPOTENCY]}
    return operation


def _address(rule: str) -> str:
    """Return an address of Flask's as OpenAPI writes it."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def _problem(status: int) -> str:
    return f"Problem{status}"


def _name(schema: type[Schema] | Schema) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")
