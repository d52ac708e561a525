"""The JSON of the REST interface; `/openapi.json` is made from these schemas."""

import datetime as dt
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate, validates_schema

from insurer_agent.requester import EndKind
from insurer_agent.roles import DAYS, MAX_DAYS, Role
from insurer_agent.store.api_keys import ENDING_DAYS, MAX_NAME
from protocol.check import Void
from protocol.identity import DocumentType

MAX_RULES = 16
MAX_REFERENCE = 128
MAX_BATCH = 1_000
MAX_JOB = 100_000


def _about(description: str, example: object = None, **more: object) -> dict[str, Any]:
    return {"description": description} | ({} if example is None else {"example": example}) | more


class _Strict(Schema):
    class Meta:
        """Unknown fields are errors, so that a misspelt one is noticed."""

        unknown = RAISE


class _Text(fields.String):
    """A text, of which each validator is asked by itself: marshmallow makes a chain of them anew for each value."""

    def _validate(self, value: str) -> None:
        for each in self.validators:
            each(value)


class SubjectSchema(_Strict):
    """Who is to be insured: the insured person's own document."""

    document_type = _Text(
        required=True,
        validate=validate.OneOf([document.value for document in DocumentType]),
        metadata=_about("The kind of document.", "resident_id"),
    )
    document_number = _Text(
        required=True,
        validate=validate.Length(1, 128),
        metadata=_about("As people write it; the agent normalises it.", "110101194903070014"),
    )


class CheckRequestSchema(_Strict):
    """Would the person's total with `proposed_amount` more exceed the limit? `rule` asks under one rule, `rules` under
    several in one check.
    """

    subject = fields.Nested(SubjectSchema, required=True)
    rule = _Text(validate=validate.Length(1, 64), metadata=_about("A rule's id, from GET /v1/rules.", "accident-30d"))
    rules = fields.List(
        _Text(validate=validate.Length(1, 64)),
        validate=validate.Length(1, MAX_RULES),
        metadata=_about("Several rules' ids, each once, in place of `rule`.", uniqueItems=True),
    )
    proposed_amount = _Text(
        required=True,
        validate=validate.Length(1, 64),
        metadata=_about("The cover that would be added, in yuan; 0 asks how things stand.", "3000000.00"),
    )
    reference = _Text(
        load_default=None,
        allow_none=True,
        validate=validate.Length(max=MAX_REFERENCE),
        metadata=_about("The caller's own mark, given back in the answer; it never leaves the agent.", "UW-1"),
    )

    @validates_schema
    def _one_way_to_name_rules(self, data: dict[str, Any], **_: object) -> None:
        if ("rule" in data) == ("rules" in data):
            raise ValidationError("Send either rule or rules.", "rule")
        if len(set(data.get("rules", ()))) != len(data.get("rules", ())):
            raise ValidationError("Name each rule once.", "rules")


class WindowSchema(Schema):
    """The days that count: `to` is the as-of day, and later days count too."""

    first = fields.Date(required=True, data_key="from", metadata=_about("The first day that counts.", "2026-10-25"))
    last = fields.Date(required=True, data_key="to", metadata=_about("The as-of day, UTC+8.", "2026-11-23"))


class ResultSchema(Schema):
    """The verdict under one rule."""

    rule = fields.String(required=True, metadata=_about("The rule's id.", "accident-30d"))
    rule_version = fields.Integer(required=True, metadata=_about("The version that was in force.", 1))
    verdict = fields.String(
        required=True,
        validate=validate.OneOf(["exceeds", "within", "indeterminate"]),
        metadata=_about("`indeterminate` is never `within`: it says that there is no answer."),
    )
    exceeds_limit = fields.Boolean(
        required=True, allow_none=True, metadata=_about("The same as a boolean; null when indeterminate.")
    )
    advice = fields.String(
        required=True,
        validate=validate.OneOf(["proceed", "refer", "retry"]),
        metadata=_about("`refer` is to a person: `exceeds` alone is no ground to decline. `retry` asks again later."),
    )
    reason = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf([reason.value for reason in Void]),
        metadata=_about("Why it is indeterminate, else null."),
    )
    retry_after = fields.Integer(
        required=True,
        allow_none=True,
        metadata=_about("Seconds after which to ask again when indeterminate, else null."),
    )
    budget_until = fields.Date(
        required=True,
        allow_none=True,
        metadata=_about("The day, UTC+8, from which a spent budget has an answer again; else null.", "2026-12-24"),
    )
    budget_until_is = fields.String(
        required=True,
        allow_none=True,
        validate=validate.OneOf([kind.value for kind in EndKind]),
        metadata=_about(
            "How that is meant. `earliest`: by the agent's own count there is none before. `expected`: the same, if"
            " what it asks just now is answered. `latest`: custodians say that the budget is spent, and by then all of"
            " it is there again, unless the insurer's group asks meanwhile."
        ),
    )
    window = fields.Nested(WindowSchema, required=True)


class CompletenessSchema(Schema):
    """How far the members' deposits are complete: a total can be no more whole than what was deposited."""

    members = fields.Integer(required=True, metadata=_about("How many insurers the alliance has.", 25))
    current = fields.Integer(
        required=True, metadata=_about("Of how many all policies taken in up to 10 minutes ago are deposited.", 25)
    )
    oldest = fields.AwareDateTime(
        required=True,
        allow_none=True,
        format="iso",
        metadata=_about("Up to when the least complete member's are; null if one has said nothing yet."),
    )


class _WholeCheck(Schema):
    check_id = fields.String(required=True, metadata=_about("The check's id, for the files.", "c6" * 16))
    reference = fields.String(required=True, allow_none=True, metadata=_about("As the request had it.", "UW-1"))
    checked_at = fields.AwareDateTime(required=True, format="iso", metadata=_about("When it was answered, UTC+8."))
    completeness = fields.Nested(CompletenessSchema, required=True)


class CheckAnswerSchema(_WholeCheck, ResultSchema):
    """The answer to a check under one `rule`."""


class ChecksAnswerSchema(_WholeCheck):
    """The answer to a check under several `rules`."""

    results = fields.List(
        fields.Nested(ResultSchema), required=True, metadata=_about("One result a rule, in the request's order.")
    )


_CHECKS_EXAMPLE = [
    {
        "subject": {"document_type": "resident_id", "document_number": "110101194903070014"},
        "rule": "accident-30d",
        "proposed_amount": "3000000.00",
        "reference": "UW-1",
    }
]


def _checks(most: int, description: str) -> "fields.List[Any]":
    return fields.List(
        fields.Nested(CheckRequestSchema),
        required=True,
        validate=validate.Length(1, most),
        metadata=_about(description, _CHECKS_EXAMPLE),
    )


class BatchRequestSchema(_Strict):
    """Many checks, each as `POST /v1/checks` takes it. One that is bad is told so in its place; the others go on."""

    checks = _checks(MAX_BATCH, "The checks; the same may stand there twice.")


class LooseBatchSchema(_Strict):
    """As a batch or a job is read: its items one by one, afterwards."""

    checks = fields.List(fields.Raw(allow_none=True), required=True, validate=validate.Length(1))


def _one_of(*schemas: str) -> dict[str, Any]:
    return {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in schemas]}


class BatchAnswerSchema(Schema):
    """The answers to a batch."""

    checked_at = fields.AwareDateTime(required=True, format="iso", metadata=_about("When it was answered, UTC+8."))
    completeness = fields.Nested(
        CompletenessSchema, required=True, metadata=_about("The least complete that a check of it found.")
    )
    results = fields.List(
        fields.Raw(metadata=_one_of("CheckAnswer", "ChecksAnswer", "ItemProblem")),
        required=True,
        metadata=_about("One an item, in the request's order: what POST /v1/checks answers, or what is wrong with it."),
    )


class JobRequestSchema(_Strict):
    """A job: as a batch, of more checks."""

    checks = _checks(MAX_JOB, "The checks; 16 MiB in all.")


class VerdictsSchema(Schema):
    """How many verdicts there are, one an item and rule."""

    exceeds = fields.Integer(required=True)
    within = fields.Integer(required=True)
    indeterminate = fields.Integer(required=True)


class JobSchema(Schema):
    """How far a job is. It goes on through restarts of the agent."""

    job_id = fields.String(required=True, metadata=_about("Known to the API key that handed it in.", "5f" * 16))
    state = fields.String(required=True, validate=validate.OneOf(["waiting", "running", "done"]))
    total = fields.Integer(required=True, metadata=_about("How many items it has.", 20000))
    done = fields.Integer(required=True, metadata=_about("How many are settled.", 5120))
    verdicts = fields.Nested(VerdictsSchema, required=True)
    problems = fields.Integer(required=True, metadata=_about("Items that are bad: nobody was asked about them.", 0))
    created_at = fields.AwareDateTime(required=True, format="iso")
    started_at = fields.AwareDateTime(required=True, allow_none=True, format="iso")
    finished_at = fields.AwareDateTime(required=True, allow_none=True, format="iso")
    expires_at = fields.AwareDateTime(
        required=True, format="iso", metadata=_about("When it is removed with its result, whether done or not.")
    )


class RuleSchema(Schema):
    """A rule in force. `limit` is in the currency's unit for `sum_insured`, in policies for `policy_count`."""

    id = fields.String(required=True)
    version = fields.Integer(required=True)
    products = fields.List(fields.String(), required=True)
    subject_type = fields.String(required=True, metadata=_about("Whose total it is: a person's.", "person"))
    window_days = fields.Integer(required=True)
    measure = fields.String(required=True)
    limit = fields.String(required=True)
    currency = fields.String(required=True)
    budget = fields.Integer(required=True)
    recheck_budget = fields.Integer(
        required=True, metadata=_about("Answers by rechecks in `budget_days` days, beside `budget`; 0: no rechecks.")
    )
    budget_days = fields.Integer(required=True)
    valid_from = fields.Date(required=True)
    min_current = fields.Integer(
        required=True, metadata=_about("How many members must be current for `within`; else `incomplete`.")
    )


class RulesSchema(Schema):
    """The version in force today of every rule."""

    rules = fields.List(fields.Nested(RuleSchema), required=True)


class _KeySchema(Schema):
    name = fields.String(required=True, metadata=_about("The system that has the key.", "core-system"))
    expires_at = fields.AwareDateTime(
        required=True,
        allow_none=True,
        format="iso",
        default_timezone=dt.UTC,
        metadata=_about("When it ends; null: it was made before keys ended, and should be replaced."),
    )


class EndingKeySchema(_KeySchema):
    """A key that should be replaced."""


_ROLES = validate.OneOf([role.value for role in Role])


class ApiKeySchema(_KeySchema):
    """What is known of an API key, or of a client certificate that is registered as one."""

    roles = fields.List(fields.Enum(Role, by_value=True), required=True, metadata=_about("What it may do."))
    created_at = fields.AwareDateTime(required=True, format="iso")
    last_used_at = fields.AwareDateTime(
        required=True, allow_none=True, format="iso", metadata=_about("To the hour; null if it never was.")
    )


class ApiKeysSchema(Schema):
    """All keys, also those that have ended."""

    api_keys = fields.List(fields.Nested(ApiKeySchema), required=True)


class ApiKeyRequestSchema(_Strict):
    """A key to be made."""

    name = fields.String(
        required=True, validate=validate.Length(1, MAX_NAME), metadata=_about("The system that has it.", "core-system")
    )
    roles = fields.List(
        fields.String(validate=_ROLES),
        required=True,
        validate=validate.Length(1, len(Role)),
        metadata=_about("What it may do.", ["underwriter"]),
    )
    days = fields.Integer(
        strict=True,
        load_default=DAYS,
        validate=validate.Range(1, MAX_DAYS),
        metadata=_about("For how many days it is good.", DAYS),
    )
    replace = fields.Boolean(
        load_default=False, truthy={True}, falsy={False}, metadata=_about("End the key that the name has.")
    )


class MadeApiKeySchema(_KeySchema):
    """A key that was made. It is shown this once."""

    api_key = fields.String(required=True, metadata=_about("The key.", "cover_" + "5f" * 32))
    roles = fields.List(fields.String(validate=_ROLES), required=True)


class ManifestSchema(Schema):
    """The manifest that the agent acts under."""

    serial = fields.Integer(required=True, metadata=_about("Grows with every manifest.", 2))
    hash = fields.String(required=True, metadata=_about("SHA-256 of what the admins signed, in hex.", "5f" * 32))
    valid_until = fields.AwareDateTime(
        required=True, format="iso", metadata=_about("No check and no deposit is taken from then on.")
    )
    state = fields.String(
        required=True,
        validate=validate.OneOf(["good", "ending", "expired"]),
        metadata=_about(
            "`ending` from 14 days before `valid_until`: no newer one has come, or one is withheld.", "good"
        ),
    )


class StatusSchema(Schema):
    """How many of the agent's own deposits are on their way, how complete all members' are, the manifest, and which API
    keys should be replaced.
    """

    deposits_unmade = fields.Integer(required=True, metadata=_about("Not counted in checks yet."))
    deposits_incomplete = fields.Integer(required=True, metadata=_about("Counted, but a holder lacks them still."))
    deposits_set_aside = fields.Integer(
        required=True,
        metadata=_about("Unmade, and refused again and again or damaged: their persons' totals lack them."),
    )
    completeness = fields.Nested(CompletenessSchema, required=True)
    manifest = fields.Nested(ManifestSchema, required=True)
    api_keys_ending = fields.List(
        fields.Nested(EndingKeySchema),
        required=True,
        metadata=_about(f"API keys that have ended, end within {ENDING_DAYS} days, or never do."),
    )


class HealthSchema(Schema):
    """That the agent runs, or is ready."""

    status = fields.String(required=True)


class _PolicyFacts(Schema):
    product = fields.String(
        required=True, validate=validate.Length(1, 64), metadata=_about("The alliance's product name.", "accident")
    )
    insured_amount = fields.String(
        required=True, validate=validate.Length(1, 64), metadata=_about("The sum insured, in yuan.", "3000000.00")
    )


class PolicySchema(_Strict, _PolicyFacts):
    """A policy that was issued."""

    policy_number = fields.String(
        required=True, validate=validate.Length(1, 128), metadata=_about("The insurer's own number.", "P-2026-0001")
    )
    subject = fields.Nested(SubjectSchema, required=True)
    issued_on = fields.Date(required=True, metadata=_about("The day of issue, UTC+8.", "2026-11-23"))


class CancellationSchema(_Strict):
    """A policy that was cancelled. Subject and product are needed where several policies have the number."""

    subject = fields.Nested(SubjectSchema)
    product = fields.String(validate=validate.Length(1, 64), metadata=_about("As issued.", "accident"))


class AmendmentSchema(CancellationSchema):
    """A policy's sum insured from now on; it counts on the day of issue."""

    insured_amount = fields.String(
        required=True, validate=validate.Length(1, 64), metadata=_about("The sum insured, in yuan.", "2000000.00")
    )


class _PolicyFound(_PolicyFacts):
    policy_number = fields.String(required=True, metadata=_about("The policy's number.", "P-2026-0001"))
    issued_on = fields.Date(required=True, metadata=_about("The day on which it counts.", "2026-11-23"))
    status = fields.String(required=True, validate=validate.OneOf(["in_force", "cancelled"]))


class PolicyAnswerSchema(_PolicyFound):
    """A policy as it stands after a request. Sending the request again comes to `repeated`."""

    outcome = fields.String(required=True, validate=validate.OneOf(["accepted", "corrected", "repeated"]))


class PolicyStateSchema(_PolicyFound):
    """A policy as it stands, and whether checks see it so already."""

    visible_to_checks = fields.Boolean(required=True)


class PoliciesSchema(Schema):
    """The policies of one number: group policies and riders repeat it."""

    policies = fields.List(fields.Nested(PolicyStateSchema), required=True)


class ProblemSchema(Schema):
    """What went wrong (RFC 9457). `code` is stable; `hint` says what to do about it."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    code = fields.String(required=True)
    detail = fields.String(required=True)
    hint = fields.String()
    errors = fields.Dict(keys=fields.String(), metadata=_about("What is wrong with each field."))
    retry_after = fields.Integer(metadata=_about("Seconds after which to send it again, as in Retry-After."))


class ItemProblemSchema(ProblemSchema):
    """What is wrong with one item of a batch; nobody was asked about it."""

    index = fields.Integer(required=True, metadata=_about("The item's place in the request; 0 is the first.", 0))
    reference = fields.String(required=True, allow_none=True, metadata=_about("As the item had it.", "UW-1"))
