"""Tools without opinions about the domain: clock, ids, database, errors, settings, logging.

Knows no noun of any room and imports none. Start with `errors.py` (the one error table) and
`database.py` (how rows are read and written).
"""
