"""The JSON of the underwriting REST interface."""

from marshmallow import RAISE, Schema, fields, validate

from protocol.identity import DocumentType


class _Strict(Schema):
    class Meta:
        """Unknown fields are errors, so that a misspelt one is noticed."""

        unknown = RAISE


class SubjectSchema(_Strict):
    """Who is to be insured: the insured person's own document."""

    document_type = fields.String(required=True, validate=validate.OneOf([document.value for document in DocumentType]))
    document_number = fields.String(required=True, validate=validate.Length(1, 128))


class CheckRequestSchema(_Strict):
    """A question: would the total with `proposed_amount` more exceed the rule's limit?"""

    subject = fields.Nested(SubjectSchema, required=True)
    rule = fields.String(required=True, validate=validate.Length(1, 64))
    proposed_amount = fields.String(required=True, validate=validate.Length(1, 64))
    reference = fields.String(load_default=None, allow_none=True, validate=validate.Length(max=128))


class WindowSchema(Schema):
    """The days that count: `to` is the as-of day, and later days count too."""

    first = fields.Date(required=True, data_key="from")
    last = fields.Date(required=True, data_key="to")


class CheckAnswerSchema(Schema):
    """The verdict. `exceeds_limit` is null, and `reason` says why, when it is indeterminate."""

    check_id = fields.String(required=True)
    reference = fields.String(allow_none=True)
    rule = fields.String(required=True)
    rule_version = fields.Integer(required=True)
    verdict = fields.String(required=True, validate=validate.OneOf(["exceeds", "within", "indeterminate"]))
    exceeds_limit = fields.Boolean(allow_none=True)
    reason = fields.String(allow_none=True)
    window = fields.Nested(WindowSchema, required=True)
    checked_at = fields.AwareDateTime(required=True, format="iso")


class RuleSchema(Schema):
    """A rule in force. `limit` is in the currency's unit for `sum_insured`, in policies for `policy_count`."""

    id = fields.String(required=True)
    version = fields.Integer(required=True)
    products = fields.List(fields.String(), required=True)
    window_days = fields.Integer(required=True)
    measure = fields.String(required=True)
    limit = fields.String(required=True)
    currency = fields.String(required=True)
    budget = fields.Integer(required=True)
    budget_days = fields.Integer(required=True)
    valid_from = fields.Date(required=True)
