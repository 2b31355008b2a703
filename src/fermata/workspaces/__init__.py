"""Git repositories: the workspaces that sessions work in.

A repository is known by owner and name, as on GitHub, and lives on a host: the built-in one (bare
repositories in the data directory) or GitHub. Sandboxes never talk to a host: they are given a bundle,
and what they made comes back as a bundle, so no credential ever enters one.

This room knows no account, session, sandbox or database; who may use which repository is decided
above it. Start with `contract.py`, then `service.py`; `smart_http.py` is how people clone and push.
"""
