"""An insurer's agent: deposits its policies with others, keeps others' shares, asks checks.

Three files tell the three stories: `requester`, `depositor`, `custodian`.
"""
