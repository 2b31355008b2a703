"""Sandboxes on this machine: Linux namespaces walled by bubblewrap, a disk by overlayfs, and our own first
process inside. Knows the contract and this machine; must not know the database, the web or other providers.

Start reading in `provider.py` (the contract's verbs), then `machine.py` (one running sandbox), `sandbox.py`
(the handle), `walls.py` (what is walled off) and `native/init.c` (the inside).
"""

import sys

if sys.platform == "linux":
    from fermata.sandboxes.providers.local.provider import LocalProvider
else:
    from fermata.sandboxes.providers.local.elsewhere import LocalProvider

__all__ = ["LocalProvider"]
