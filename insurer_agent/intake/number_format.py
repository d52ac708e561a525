"""Which number formats of a spreadsheet show another number, or one of another thing than yuan, than the cell holds."""

import re

from insurer_agent.intake.documents import fold

MAX_FORMAT_CHARACTERS = 1024

_GENERAL = re.compile(r"general|g/(?:通用格式|标准)|常规|通用格式", re.IGNORECASE)
_PIECE = re.compile(
    r'"(?P<quoted>[^"]*)"?|[\\!](?P<escaped>.?)|[_*].?|\[\$(?P<currency>[^\]-]*)(?P<locale>[^\]]*)\]|\[[^\]]*\]'
    r"|(?P<end>;)|(?P<sign>[0#?.,%@])|[Ee](?=[-+])|(?P<literal>.)",
    re.DOTALL,
)
# Literals that change nothing: our currency, signs, brackets, the slash of fractions.
_PLAIN = re.compile(r"人民币|rmb|cny|yuan|[元圆圓\N{YEN SIGN}\s()+/-]|\N{EN DASH}|\N{MINUS SIGN}", re.IGNORECASE)
_SCALED = re.compile(r"[0#?],+(?![0#?,])")
_JAPANESE = re.compile(r"-(?:[0-9A-F]*411|ja.*)", re.IGNORECASE)


def shows_another_number(code: str) -> bool:
    """Say whether what is shown in this format is not the number in yuan.

    That is a percentage, a number scaled by commas at its end, and any literal but the signs of yuan: a scale, another
    currency, digits or a point put in. A section without a place for digits shows no number.
    """
    if len(code) > MAX_FORMAT_CHARACTERS:
        return True
    signs, literals = "", ""
    for piece in [*_PIECE.finditer(_GENERAL.sub("0", code)), None]:
        if piece is None or piece["end"]:
            if any(sign in "0#?" for sign in signs) and (
                "%" in signs or _SCALED.search(signs) or _PLAIN.sub("", fold(literals))
            ):
                return True
            signs, literals = "", ""
            continue
        if piece["locale"] and piece["currency"] and _JAPANESE.fullmatch(piece["locale"]):
            return True
        signs += piece["sign"] or ""
        literals += piece["quoted"] or piece["escaped"] or piece["currency"] or piece["literal"] or ""
    return False
