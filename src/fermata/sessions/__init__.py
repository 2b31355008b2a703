"""A piece of work: sessions, the chats in them, and their messages.

Knows accounts (who may see a session) and nothing of sandboxes, models or HTTP: what a session's machine
does is its sandbox's business, and `flows/` bring the two together. Start with `model.py`, then `access.py`
(the one rule of who may use a session) and `store.py`.
"""
