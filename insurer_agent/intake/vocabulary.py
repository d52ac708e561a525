"""The words that insurers' exports use for columns, events, document types and products; a profile adds others.

Only words with one meaning stand here. 生效日期, say, is when cover begins and not when it was issued, and
投保人证件号码 is the policyholder's document and not the insured person's: whoever has them must say so in a profile.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from insurer_agent.intake.amounts import Unit
from insurer_agent.intake.documents import fold
from insurer_agent.intake.errors import FileRejected

_BRACKETED = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|【[^【】]*】")


@lru_cache(maxsize=1024)  # the same few words stand in every row
def squash(words: str) -> str:
    """Return what two spellings of a word have in common: letters and digits, lower case, half width."""
    return "".join(character for character in fold(words).lower() if character.isalnum())


def _table(words: dict[str, str]) -> dict[str, str]:
    return {squash(word): name for name, spellings in words.items() for word in [name, *spellings.split("|")]}


COLUMNS = _table(
    {
        "policy_number": "保单号|保单号码|保单编号|保险单号|保险单号码|policy no|policy id|policy num|policy",
        "document_type": "证件类型|证件种类|证件类别|被保险人证件类型|被保险人证件种类|被保人证件类型|被保人证件种类"
        "|id type|insured id type|insured document type|type of document|certificate type|identity document type",
        "document_number": "证件号码|证件号|证件编号|被保险人证件号码|被保险人证件号|被保人证件号码|被保人证件号"
        "|document no|id number|id no|insured id number|insured document number|certificate number|certificate no",
        "product": "险种|险种名称|险种代码|产品|产品名称|产品代码|product name|product code|product type"
        "|line of business",
        "insured_amount": "保额|保险金额|基本保额|基本保险金额|sum insured|sum assured|amount insured|coverage amount"
        "|cover amount|face amount",
        "issued_on": "承保日期|签单日期|出单日期|签发日期|保单签发日期|承保日|承保时间|签单时间|出单时间"
        "|issue date|issued date|date issued|date of issue|policy issue date",
        "event": "业务类型|业务类别|事件|事件类型|操作类型|变更类型|批改类型|event type|transaction type|business type",
    }
)
"""By squashed header: the column of ours."""

_UNITS = {
    "": Unit.YUAN,
    **dict.fromkeys(
        ("元", "人民币元", "人民币", "单位元", "rmb", "cny", "yuan", "rmbyuan", "inyuan", "元人民币"), Unit.YUAN
    ),
    **dict.fromkeys(
        ("万元", "万", "人民币万元", "单位万元", "wan", "inwan", "万元人民币", "rmb10000", "wanyuan"), Unit.WAN
    ),
}
"""By the squashed words that follow an amount column's name, in brackets or not."""

UNIT_HINT = "set amount_unit in the profile if they are in yuan or wan"

_OTHER_UNIT = re.compile(
    r"(?:[十百千亿]万?元|[十百千]万|[十百千亿]|[美港欧日澳韩加台]元|usd|hkd|eur|thousand|million|fen|分)$"
)
_LIKE_A_UNIT = re.compile(
    r"[元圆币万萬千百亿億$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}%\N{PER MILLE SIGN}]|单位|unit|分$|英镑|美金"
    r"|(?<![a-z])(?:usd?|us|hkd?|eur|gbp|jpy|twd|ntd?|mop|krw|sgd|aud|cad|chf|rmb|cny|yuan|wan|fen|cents?|dollars?|euros?"
    r"|yen|pounds?|hundreds?|thousands?|millions?|billions?|k|m|mn|mm|bn|mio|0{3,4}s?|1,?0+(?:,0+)*)(?![a-z])"
)
# In a line above the header, its cells put together: 单位:万元, 金额单位(人民币千元), Unit: USD, in thousands.
_ABOVE = re.compile(
    r"(?:单位|币种|货币|金额|保额|units?|currency|amounts?in|figuresin)(?:均|为|是|of|is|in)*"
    r"((?:人民币|rmb|cny)?(?:[十百千万萬亿億]+(?:元|圆|人民币|$)|(?:元|圆)|[美港欧日澳韩加台新][元币]|美金|英镑|日圆"
    r"|usd|hkd|eur|gbp|jpy|twd|mop|sgd|wan|yuan|thousands?|millions?|10{3,}|0{3,4}|分)(?:人民币)?)"
    r"|(?:^|人民币|rmb|cny)([百千万萬亿億]+元)$|(?:rmb|cny|yuan|^)(?:in)(thousands?|millions?|wan|10{3,})|(?:rmb|cny)(0{3,4}$)"
)

EVENTS = _table(
    {
        "issue": "承保|新单|新契约|新保|签单|出单|新单承保|issued|new|new business",
        "cancel": "退保|撤单|撤保|注销|解除合同|合同解除|犹豫期退保|退单|cancelled|canceled|cancellation|surrender",
        "amend": "批改|变更|保额变更|保单变更|amended|amendment|endorsement",
    }
)
DOCUMENT_TYPES = _table(
    {
        "resident_id": "身份证|居民身份证|二代身份证|第二代居民身份证|中国居民身份证|公民身份号码"
        "|resident identity card|identity card|id card",
        "passport": "护照|中国护照|外国护照|因私护照|普通护照",
        "hk_macau_permit": "港澳居民来往内地通行证|港澳通行证(港澳居民)|港澳居民通行证|回乡证"
        "|mainland travel permit for hong kong and macau residents|home return permit",
        "taiwan_permit": "台湾居民来往大陆通行证|台湾居民通行证|台胞证|mainland travel permit for taiwan residents",
        "organization": "统一社会信用代码|统一社会信用代码证|社会信用代码|营业执照"
        "|unified social credit code|uscc|organisation",
    }
)
PRODUCTS = _table(
    {
        "accident": "意外险|意外伤害险|意外伤害保险|个人意外险|个人意外伤害保险|人身意外险|人身意外伤害保险"
        "|personal accident|accident insurance",
        "group_accident": "团体意外险|团体意外伤害险|团体意外伤害保险|团体人身意外伤害保险|团意险"
        "|group personal accident",
        "term_life": "定期寿险|定期人寿保险|定期人寿|term life insurance",
    }
)


def unit_at_end(header: str) -> Unit | None:
    """Return the unit that the end of any amount column's name tells; raise FileRejected, column-unit, for others."""
    folded = fold(header).lower()
    found = {_unit_of_end(squash(_BRACKETED.sub("", folded)))}
    for words in _BRACKETED.findall(folded):
        inside = squash(words)
        if inside in _UNITS:
            found.add(_UNITS[inside] if inside else None)
        elif _LIKE_A_UNIT.search(words[1:-1]) or _OTHER_UNIT.search(inside):
            raise _other_unit()
    found.discard(None)
    if len(found) > 1:
        raise _other_unit()
    return next(iter(found), None)


def _unit_of_end(name: str) -> Unit | None:
    if _OTHER_UNIT.search(name):
        raise _other_unit()
    return Unit.WAN if name.endswith(("万元", "万", "wan")) else None


def _other_unit() -> FileRejected:
    return FileRejected("column-unit", f"the amounts are in a unit that is not read; {UNIT_HINT}")


def units_above(cells: Sequence[str]) -> set[Unit | None]:
    """Return the units that a row above the header gives all amounts, None for those that are not read."""
    found = [one for words in ("".join(cells), *cells) for one in _ABOVE.finditer(squash(words[:256]))]
    return {_UNITS.get(next(filter(None, one.groups()))) for one in found}


def column_of(header: str) -> tuple[str, Unit | None] | None:
    """Return the column that a header names, and the unit that it says its amounts have; None for other columns."""
    name = squash(header)
    if name in COLUMNS:
        return COLUMNS[name], None
    for word, column in COLUMNS.items():
        if column == "insured_amount" and name.startswith(word) and name[len(word) :] in _UNITS:
            return column, _UNITS[name[len(word) :]]
    plain = squash(_BRACKETED.sub("", fold(header)))
    # A remark in brackets, such as (必填) or (YYYY-MM-DD), is none of the name; after an amount it may be a currency.
    if plain != name and COLUMNS.get(plain, "insured_amount") != "insured_amount":
        return COLUMNS[plain], None
    return None
