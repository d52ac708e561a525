"""What an API key is for, and for how long one is good."""

from enum import Enum

DAYS, MAX_DAYS = 365, 3 * 365
"""For how many days a key is good unless its maker says otherwise, and at most."""


class Role(Enum):
    """A key has one or several. What each may do stands in `deploy/agent-roles.md`; `rest/access.py` sees to it."""

    UNDERWRITER = "underwriter"
    DATA_OPERATOR = "data_operator"
    AUDITOR = "auditor"
    ADMIN = "admin"
