"""REST: requests under an Idempotency-Key, made again until they are answered."""

import http.client
import json
import ssl
import time
import uuid
from collections.abc import Callable
from urllib.parse import quote, urlsplit

from books import Policy, Step
from doors import PAUSE_SECONDS, Door, Work, yuan

ANSWER_SECONDS = 15


class Rest(Door):
    """POST, PUT and cancellation under an Idempotency-Key, repeated until answered; some answers are not waited for."""

    name = "rest"
    at_once = 2
    lost = 0.15

    def __init__(
        self,
        member: int,
        taken: Callable[[Work], None],
        fail: Callable[[str], None],
        seed: object,
        place: tuple[str, str],
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(member, taken, fail, seed)
        self._url, self._key = place
        self._context = context

    def _round(self) -> None:
        work = self._next()
        if work is None:
            return
        (step,) = work.steps
        request = _request(work.policy, step)
        key, patience = str(uuid.UUID(int=self._chance.getrandbits(128))), time.monotonic() + self._chance.uniform(2, 8)
        loses = self._chance.random() < self.lost
        work.send()
        while not self._stop.is_set():
            status, body = self._ask(*request, key=key, loses=loses)
            loses = False
            if status in (200, 201):
                self._require_right(work.policy, step, body)
                self._finish(work)
                return
            if status == 409 and body.get("code") == "idempotency-key-in-use":
                # Whoever was killed holds the key for a minute; what shall be may as well be said under another.
                if time.monotonic() > patience:
                    key = str(uuid.UUID(int=self._chance.getrandbits(128)))
            elif status is not None and status < 500:
                self._fail(f"member {self.member}: {step.event} of {work.policy.number} was refused: {status} {body}")
                return
            self.counts["rest requests again"] += 1
            self._stop.wait(PAUSE_SECONDS)

    def _ask(
        self, method: str, path: str, body: dict[str, object], *, key: str, loses: bool
    ) -> tuple[int | None, dict[str, str]]:
        """Return status and JSON, or None for no answer; one that `loses` hangs up before it."""
        parts = urlsplit(self._url)
        assert parts.hostname is not None
        connection = http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=ANSWER_SECONDS, context=self._context
        )
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", "Idempotency-Key": key}
        try:
            connection.request(method, path, json.dumps(body), headers)
            if loses:
                return None, {}
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None, {}
        finally:
            connection.close()

    def _require_right(self, policy: Policy, step: Step, body: dict[str, str]) -> None:
        status = "in_force" if step.count else "cancelled"
        told = (body["policy_number"], body["insured_amount"], body["status"])
        if told != (policy.number, yuan(step.fen), status):
            self._fail(f"member {self.member}: {step.event} of {policy.number} was answered with {told}")


def _request(policy: Policy, step: Step) -> tuple[str, str, dict[str, object]]:
    subject = dict(zip(("document_type", "document_number"), policy.person, strict=True))
    if step.event == "issue":
        body = {"policy_number": policy.number, "subject": subject, "product": policy.product}
        return "POST", "/v1/policies", body | {"insured_amount": yuan(step.fen), "issued_on": policy.day.isoformat()}
    path = "/v1/policies/" + quote(policy.number, safe="")
    if step.event == "amend":
        return "PUT", path, {"insured_amount": yuan(step.fen)}
    return "POST", path + "/cancellation", {}
