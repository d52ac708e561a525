"""The products and rules of a manifest, from the TOML file that admins write."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields, validate

from protocol.manifest import MAX_WINDOW_DAYS, PERSON, POLICY_COUNT, SUBJECT_TYPES, SUM_INSURED, Rule
from protocol.sharing import HALF_RING
from transport.settings import SettingsError

CURRENCY = "CNY"
RECHECKS_A_DAY = 2
"""What a rule allows that does not say: one a night, and as many again for nights that go wrong."""


@dataclass(frozen=True)
class RuleBook:
    """What a rules file says."""

    products: tuple[str, ...]
    rules: tuple[Rule, ...]


_PRODUCT = fields.String(validate=validate.Regexp(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"))


class _RuleSchema(Schema):
    id = fields.String(required=True, validate=validate.Regexp(r"[a-z0-9][a-z0-9-]{0,63}\Z"))
    version = fields.Integer(required=True, strict=True, validate=validate.Range(1))
    products = fields.List(_PRODUCT, required=True, validate=validate.Length(1, 64))
    subject_type = fields.String(load_default=PERSON, validate=validate.OneOf(sorted(SUBJECT_TYPES)))
    window_days = fields.Integer(required=True, strict=True, validate=validate.Range(1, MAX_WINDOW_DAYS))
    measure = fields.String(required=True, validate=validate.OneOf([SUM_INSURED, POLICY_COUNT]))
    limit = fields.Decimal(required=True, validate=validate.Range(0), places=None)
    budget = fields.Integer(required=True, strict=True, validate=validate.Range(1))
    recheck_budget = fields.Integer(load_default=None, strict=True, validate=validate.Range(0, (1 << 32) - 1))
    budget_days = fields.Integer(required=True, strict=True, validate=validate.Range(1, MAX_WINDOW_DAYS))
    valid_from = fields.Raw(required=True)
    min_current = fields.Integer(load_default=0, strict=True, validate=validate.Range(0, 4096))


class _FileSchema(Schema):
    products = fields.List(_PRODUCT, required=True, validate=validate.Length(1))
    rule = fields.List(fields.Nested(_RuleSchema(unknown=RAISE)), required=True, validate=validate.Length(1))


def read_rules(file: Path) -> RuleBook:
    """Read a rules file; raise `SettingsError` with what to change. Limits are in yuan, or policies."""
    try:
        values = _FileSchema(unknown=RAISE).load(tomllib.loads(file.read_text(encoding="utf-8")))
        return RuleBook(tuple(values["products"]), tuple(_rule(entry) for entry in values["rule"]))
    except OSError as error:
        raise SettingsError(f"the rules file {file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"the rules file {file} is not TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"the rules file {file} is wrong: {error.messages}") from None


def _rule(entry: dict[str, Any]) -> Rule:
    smallest_unit = 100 if entry["measure"] == SUM_INSURED else 1
    limit = entry.pop("limit") * smallest_unit
    if not limit.is_finite() or limit != limit.to_integral_value() or limit >= HALF_RING:
        raise ValidationError(f"{entry['id']}: the limit is whole fen, or whole policies", "limit")
    if not hasattr(entry["valid_from"], "toordinal") or hasattr(entry["valid_from"], "hour"):
        raise ValidationError(f"{entry['id']}: a day, written 2026-12-31 without quotes", "valid_from")
    day = entry.pop("valid_from").toordinal()
    if entry["recheck_budget"] is None:
        entry["recheck_budget"] = RECHECKS_A_DAY * entry["budget_days"]
    return Rule(limit=int(limit), currency=CURRENCY, valid_from=day, **(entry | {"products": tuple(entry["products"])}))
