"""The alliance's lookup service: relays sealed messages and evaluates garbled comparisons, blind. Keeps no database.

One file tells its story: `relay`.
"""
