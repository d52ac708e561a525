"""What both kinds of process need around the protocol: settings, problem+json, calls to peers, gunicorn.

Imports `protocol` alone; `service` and `insurer_agent` import it.
"""
