"""How one insurer's files are laid out, from a TOML file; without one, what is well known is understood."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from insurer_agent.intake.amounts import Unit
from insurer_agent.intake.dates import DateFormat
from insurer_agent.intake.policy import COLUMNS, Event
from insurer_agent.intake.vocabulary import DOCUMENT_TYPES, EVENTS, PRODUCTS, squash
from protocol.identity import DocumentType
from transport.settings import load_settings

ENCODINGS = ("utf-8", "gb18030")
_WORD = validate.Length(1, 256)


def _words(names: list[str] | None = None) -> fields.Dict:
    named = fields.String(validate=_WORD if names is None else validate.OneOf(names))
    return fields.Dict(keys=fields.String(validate=_WORD), values=named, load_default=dict)


def _by_column(columns: tuple[str, ...]) -> fields.Dict:
    name = fields.String(validate=validate.OneOf(columns))
    return fields.Dict(keys=name, values=fields.String(validate=_WORD), load_default=dict)


class _ProfileSchema(Schema):
    """What may be set; all of it may be left out."""

    encoding = fields.String(load_default=None, validate=validate.OneOf(ENCODINGS))
    delimiter = fields.String(load_default=None, validate=validate.OneOf([",", ";", "\t", "|"]))
    sheet = fields.String(load_default=None, validate=_WORD)
    header_row = fields.Integer(load_default=None, strict=True, validate=validate.Range(1, 1_000_000))
    date_format = fields.Enum(DateFormat, by_value=True, load_default=DateFormat.YEAR_FIRST)
    document_numbers_are_text = fields.Boolean(load_default=False)
    amount_unit = fields.String(load_default=None, validate=validate.OneOf(["yuan", "wan"]))
    columns = _by_column(COLUMNS)
    constants = _by_column(("document_type", "product", "issued_on", "event"))
    products = _words()
    events = _words([event.value for event in Event])
    document_types = _words([kind.value for kind in DocumentType])

    @validates_schema
    def _name_each_column_once(self, data: Mapping[str, Any], **_: object) -> None:
        if both := sorted(set(data.get("columns", ())) & set(data.get("constants", ()))):
            raise ValidationError(f"a column or a constant, not both: {', '.join(both)}", "constants")


@dataclass(frozen=True)
class Profile:
    """A layout. What is None is found out file by file; the vocabularies map squashed words to our names."""

    encoding: str | None = None
    delimiter: str | None = None
    sheet: str | None = None
    header_row: int | None = None
    date_format: DateFormat = DateFormat.YEAR_FIRST
    document_numbers_are_text: bool = False
    amount_unit: Unit | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, str] = field(default_factory=dict)
    products: Mapping[str, str] = field(default_factory=lambda: PRODUCTS)
    events: Mapping[str, str] = field(default_factory=lambda: EVENTS)
    document_types: Mapping[str, str] = field(default_factory=lambda: DOCUMENT_TYPES)

    @classmethod
    def load(cls, file: Path) -> "Profile":
        """Read a profile; raise `SettingsError` that says what to change in it."""
        values = load_settings(_ProfileSchema, file, "", {})
        if values["amount_unit"] is not None:
            values["amount_unit"] = Unit[values["amount_unit"].upper()]
        # The insurer's own words come before the well-known ones.
        for name, known in (("products", PRODUCTS), ("events", EVENTS), ("document_types", DOCUMENT_TYPES)):
            values[name] = known | {squash(word): meant for word, meant in values[name].items()}
        return cls(**values)

    def of_rejects(self) -> "Profile":
        """Return the profile for a rejects file, which has a layout of its own and the words of the file before it."""
        return replace(self, encoding=None, delimiter=None, sheet=None, header_row=None)

    def product(self, written: str, products: frozenset[str] | None) -> str | None:
        """Return the product that a cell names, of those that exist; if that is not known (None), as well as can be."""
        name = self.products.get(squash(written), written)
        if products is None:
            return name or None
        return next((one for one in (written, name) if one in products), None)
