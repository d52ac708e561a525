"""Jobs: more checks than one waits for, handed in together, asked in the background, and fetched as a file."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response, jsonify, request

from insurer_agent.agent import Agent
from insurer_agent.rest.access import CHECKS, allow, caller
from insurer_agent.rest.answers import CHINA
from insurer_agent.rest.batches import checks_of
from insurer_agent.rest.items import PROBLEMS, Asked, Refused, read_items, refusal
from insurer_agent.rest.job_files import CSV, FORMATS, csv_lines, json_lines, read_csv
from insurer_agent.rest.requests import Reply, answer_read, read_json
from insurer_agent.rest.schemas import MAX_JOB, JobSchema
from insurer_agent.store.check_jobs import Job, NewItem, Outcome
from protocol.check import Verdict, shard_of_person
from transport.problems import Problem

MAX_JOB_BYTES = 16 << 20
_ID_BYTES = 16
_ANSWERS_AT_ONCE = 1_000
_RETRY_SECONDS = 5
_JOB = JobSchema()


@dataclass(frozen=True)
class _Asked:
    """A request for a job, whole."""

    api_key: str = field(repr=False)
    items: Iterable[Any] = field(repr=False)
    as_csv: bool


def serve(app: Flask, agent: Agent) -> None:
    """Add the endpoints."""
    limit = agent.limits.checks

    def counted() -> str:
        mark = caller().mark
        limit.take(mark)
        return mark

    def make(asked: _Asked) -> Reply:
        job_id = secrets.token_bytes(_ID_BYTES)
        _make(agent, job_id, asked)
        return Reply(_body(_found(agent, job_id, asked.api_key)), 202)

    @app.post("/v1/checks/jobs")
    @allow(*CHECKS)
    def make_job() -> Response:
        response = answer_read(agent, limit, _read, make)
        response.headers["Location"] = f"/v1/checks/jobs/{response.get_json()['job_id']}"
        return response

    @app.get("/v1/checks/jobs/<job_id>")
    @allow(*CHECKS)
    def find_job(job_id: str) -> Response:
        return jsonify(_body(_found(agent, _id_of(job_id), counted())))

    @app.delete("/v1/checks/jobs/<job_id>")
    @allow(*CHECKS)
    def remove_job(job_id: str) -> Response:
        if not agent.jobs.remove(_id_of(job_id), counted()):
            raise _unknown()
        return Response(status=204)

    @app.get("/v1/checks/jobs/<job_id>/result")
    @allow(*CHECKS)
    def job_result(job_id: str) -> Response:
        job = _found(agent, _id_of(job_id), counted())
        wanted = request.args.get("format", "csv" if job.as_csv else "jsonl")
        if wanted not in FORMATS:
            raise Problem(422, "unknown-format", "there is no such format", hint="format is csv or jsonl")
        if job.finished_at is None:
            detail = "the job is not done"
            raise Problem(409, "job-not-done", detail, hint="see its progress", retry_after=_RETRY_SECONDS)
        lines = (csv_lines if wanted == "csv" else json_lines)(_answers(agent, job))
        headers = {"Content-Disposition": f"attachment; filename={job_id}.{wanted}", "Cache-Control": "no-store"}
        return Response(lines, headers=headers, content_type=f"{FORMATS[wanted]}; charset=utf-8")


def _read(api_key: str) -> tuple[Any, _Asked]:
    if request.mimetype == CSV:
        request.max_content_length = MAX_JOB_BYTES
        data = request.get_data()
        count, items = read_csv(data)
        if not 1 <= count <= MAX_JOB:
            raise Problem(422, "too-many-checks", f"a job has 1 to {MAX_JOB} checks", hint="cut it into several")
        return {"csv": hashlib.sha256(data).hexdigest()}, _Asked(api_key, items, as_csv=True)
    body = read_json(MAX_JOB_BYTES)
    return body, _Asked(api_key, checks_of(body, MAX_JOB, hint="cut it into several"), as_csv=False)


def _make(agent: Agent, job_id: bytes, asked: _Asked) -> None:
    def kept(place: int, item: Asked | Refused) -> NewItem | Outcome:
        if isinstance(item, Refused):
            return refusal(item.body)
        subject = item.item.subject
        return NewItem(place, shard_of_person(agent.party, subject), subject.encode(), item.encode())

    items = enumerate(read_items(agent, asked.items, typed=not asked.as_csv))
    agent.jobs.make(job_id, asked.api_key, (kept(place, item) for place, item in items), as_csv=asked.as_csv)


def _answers(agent: Agent, job: Job) -> Iterator[tuple[int, bytes]]:
    after = -1
    while answers := agent.jobs.answers(job.job_id, after, _ANSWERS_AT_ONCE):
        yield from answers
        after = answers[-1][0]
    if after != job.total - 1:  # it was removed meanwhile: the answer is cut off, which its reader notices
        raise _unknown()


def _found(agent: Agent, job_id: bytes, api_key: str) -> Job:
    job = agent.jobs.find(job_id, api_key)
    if job is None:
        raise _unknown()
    return job


def _id_of(text: str) -> bytes:
    try:
        job_id = bytes.fromhex(text)
    except ValueError:
        job_id = b""
    if job_id.hex() != text or len(job_id) != _ID_BYTES:
        raise _unknown()
    return job_id


def _unknown() -> Problem:
    hint = "it may have been removed, be older than 7 days, or another API key's"
    return Problem(404, "unknown-job", "there is no such job", hint=hint)


def _body(job: Job) -> Any:  # noqa: ANN401  JSON
    started, finished = (None if at is None else at.astimezone(CHINA) for at in (job.started_at, job.finished_at))
    return _JOB.dump(
        {
            "job_id": job.job_id.hex(),
            "state": "waiting" if started is None else "running" if finished is None else "done",
            "total": job.total,
            "done": job.done,
            "verdicts": {verdict.value: job.counts.get(verdict.value, 0) for verdict in Verdict},
            "problems": job.counts.get(PROBLEMS, 0),
            "created_at": job.created_at.astimezone(CHINA),
            "started_at": started,
            "finished_at": finished,
            "expires_at": job.expires_at.astimezone(CHINA),
        }
    )
