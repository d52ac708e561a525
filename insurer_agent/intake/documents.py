"""Document numbers as people write them, made into one canonical identity per person.

The lookup finds a person only if every insurer normalises the number to the same characters, so the rules
below are as binding as the wire format: changing one splits the people it touches. A number that is not
understood is refused, since a rejected row is seen and mended and a wrong identity is not.

Every type. Compatibility forms are folded (`fold`), white space and invisible characters are dropped wherever
they are, letters become upper case, and only ASCII letters and digits may be left. Homoglyphs (a Cyrillic
letter that looks like H) are therefore refused, never guessed at. Dots are never dropped: "12345678.0" is a
spreadsheet's doing, and one zero more would be another person. A hyphen between two characters is dropped
where the fixed length or the check digit proves that it was mere punctuation; so not in a passport's number,
where "-1" may be someone's suffix.

Sources: GB 11643-1999 (resident ids); GB 32100-2015 (organizations); the Ministry of Public Security's notice
of 10 March 2010 on the numbers of Hong Kong and Macau permits; the announcement of 11 September 2008 that
Taiwan permits bear one number for life from 25 September 2008 on.
"""

import re
import unicodedata

from stdnum.cn import ric, uscc
from stdnum.exceptions import ValidationError

from insurer_agent.intake.errors import IntakeError
from protocol.identity import DocumentType, Identity

EARLIEST_BIRTH_YEAR = 1800

_TYPES = {document_type.value: document_type for document_type in DocumentType}

# The kinds of compatibility character whose plain form means something else; see fold().
_DECORATED = ("<super>", "<sub>", "<circle>", "<square>", "<fraction>")

# One dash of any length between two letters or digits (full-width dashes are ASCII by the time this is used).
_INNER_DASH = re.compile("(?<=[0-9A-Za-z])[-\u2010-\u2015\u2212](?=[0-9A-Za-z])")

_RESIDENT_15 = re.compile(r"[0-9]{15}")
_RESIDENT_18 = re.compile(r"[0-9]{17}[0-9X]")
# Authority, kind of body, region (6 digits), body (9), check digit; the letters are without I, O, S, V and Z.
_CREDIT_CODE = re.compile(r"[0-9A-HJ-NPQRTUWXY]{2}[0-9]{6}[0-9A-HJ-NPQRTUWXY]{10}")
_CREDIT_CODE_LENGTH = 18
_PLAIN = re.compile(r"[0-9A-Za-z]*")
_PASSPORT = re.compile(r"[0-9A-Z]+")
_PASSPORT_LENGTHS = range(5, 21)
_HK_MACAU_PERMIT = re.compile(r"([HM][0-9]{8})(?:[0-9]{2})?")
_TAIWAN_PERMIT = re.compile(r"([0-9]{8})(?:[0-9]{2}(?:[A-Z]|\([0-9A-Z]\))?)?")
_TAIWAN_SINGLE_ENTRY = re.compile(r"[A-Z][0-9A-Z]{9}")


def normalise(document_type: str, number: str) -> Identity:
    """Return the canonical identity of a document.

    `document_type` is a value of `DocumentType` (case and surrounding white space do not matter), `number`
    the number as the insurer wrote it. Raises IntakeError with one of the codes document-type-unknown,
    document-number-empty, document-number-length, document-number-malformed, check-digit-wrong,
    birth-date-wrong.
    """
    # A look-up, not DocumentType(...): the enum's ValueError quotes its argument, and columns do get swapped.
    kind = _TYPES.get(trim(fold(document_type)).lower())
    if kind is None:
        raise IntakeError("document-type-unknown", "document type is not known")
    written = number
    if not _PLAIN.fullmatch(number):  # else nothing is folded, and nothing invisible
        written = "".join(character for character in fold(number) if not _is_invisible(character))
    if not written:
        raise IntakeError("document-number-empty", "document number is empty")
    if kind is not DocumentType.PASSPORT:
        written = _INNER_DASH.sub("", written)
    # Before upper(), which makes ASCII out of other letters: a sharp s gives SS, a dotless i gives I.
    if not written.isascii():
        raise _malformed()
    return Identity(kind, _canonical_number(kind, written.upper()))


def _canonical_number(kind: DocumentType, written: str) -> str:
    match kind:
        case DocumentType.RESIDENT_ID:
            return _resident_id(written)
        case DocumentType.ORGANIZATION:
            return _credit_code(written)
        case DocumentType.PASSPORT:
            return _passport(written)
        case DocumentType.HK_MACAU_PERMIT:
            return _hk_macau_permit(written)
        case DocumentType.TAIWAN_PERMIT:
            return _taiwan_permit(written)


def _resident_id(written: str) -> str:
    """Return the 18 characters of a resident id written with 15 or 18.

    The first generation (15 digits, issued until 1999) has no century and no check digit: both are put in.
    The region code is not looked up anywhere: codes are abolished and renamed while their holders keep them
    for life, and stdnum's own validate() refuses such people.
    """
    if _RESIDENT_15.fullmatch(written):
        body = f"{written[:6]}19{written[6:]}"
        written = body + ric.calc_check_digit(body + "0")  # it wants the check digit's place filled
    elif not _RESIDENT_18.fullmatch(written):
        raise _malformed() if len(written) in (15, 18) else _wrong_length()
    # The check digit first: it finds every single wrong digit, the likeliest cause of a wrong date.
    if written[-1] != ric.calc_check_digit(written):
        raise _wrong_check_digit()
    if not _has_birth_date(written):
        raise IntakeError("birth-date-wrong", "birth date in the document number is no calendar day")
    return written


def _has_birth_date(resident_id: str) -> bool:
    # Registers hold people born on "29 February" of years that had none; a clerk's error makes nobody uninsurable.
    if resident_id[10:14] == "0229" and int(resident_id[6:10]) >= EARLIEST_BIRTH_YEAR:
        return True
    try:
        return ric.get_birth_date(resident_id).year >= EARLIEST_BIRTH_YEAR
    except ValidationError:
        return False


def _credit_code(written: str) -> str:
    """Return the 18 characters of a Unified Social Credit Code.

    stdnum's validate() wants digits in the first two places, where GB 32100-2015 has digits or letters (Y is
    the authority "other"), and so refuses real bodies. Its check digit is used and its format check is not.
    """
    if len(written) != _CREDIT_CODE_LENGTH:
        raise _wrong_length()
    if not _CREDIT_CODE.fullmatch(written):
        raise _malformed()
    if written[-1] != uscc.calc_check_digit(written):
        raise _wrong_check_digit()
    return written


def _passport(written: str) -> str:
    """Return a passport's number, of which all that is known for every country is the alphabet."""
    if not _PASSPORT.fullmatch(written):
        raise _malformed()
    if len(written) not in _PASSPORT_LENGTHS:
        raise _wrong_length()
    return written


def _hk_macau_permit(written: str) -> str:
    """Return the 9 characters of a permit that the same person keeps for life.

    The cards introduced in 1999 print 11: H or M, eight digits for life, and two that count the renewals.
    Later cards print the first nine alone. Keeping the count would make a new person at every renewal.
    """
    if permit := _HK_MACAU_PERMIT.fullmatch(written):
        return permit[1]
    raise _malformed()


def _taiwan_permit(written: str) -> str:
    """Return the 8 digits that the same person keeps for life, or all 10 characters of a single-entry permit.

    Permits before September 2008 print after the 8 two digits that count the issues, and some then the
    issuing office, a letter or digit in brackets. The brackets of a letter may be missing, but an eleventh
    digit is refused: it may be a slip. None of this is the person's. Ten characters that start with a letter
    are no mistyped number of that kind; no part of them is known to be for life, so they are kept whole.
    """
    if permit := _TAIWAN_PERMIT.fullmatch(written):
        return permit[1]
    if _TAIWAN_SINGLE_ENTRY.fullmatch(written):
        return written
    raise _malformed()


def fold(text: str) -> str:
    """Return `text` with each character in its NFKC form, save superscripts, circled numbers and the like.

    So full width becomes half width, and the Roman numeral ten that input methods offer becomes X; but the
    note mark of "E1234567\N{SUPERSCRIPT TWO}" does not become one digit more, nor 10 squared the amount 102.
    """
    if text.isascii():
        return text
    return "".join(
        character
        if unicodedata.decomposition(character).startswith(_DECORATED)
        else unicodedata.normalize("NFKC", character)
        for character in text
    )


def trim(text: str) -> str:
    """Return `text` without the white space and the invisible characters at its ends."""
    if text.isascii():
        return text.strip()
    visible = [index for index, character in enumerate(text) if not _is_invisible(character)]
    return text[visible[0] : visible[-1] + 1] if visible else ""


def _is_invisible(character: str) -> bool:
    # Cf: zero-width spaces and joiners, byte order marks, soft hyphens, writing directions.
    return character.isspace() or unicodedata.category(character) == "Cf"


def _malformed() -> IntakeError:
    return IntakeError("document-number-malformed", "document number does not have the form of its type")


def _wrong_length() -> IntakeError:
    return IntakeError("document-number-length", "document number does not have the length of its type")


def _wrong_check_digit() -> IntakeError:
    return IntakeError("check-digit-wrong", "check digit is wrong")
