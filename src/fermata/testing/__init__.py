"""Shipped for tests, ours and those of people who add to Fermata.

`provider_kit.py` checks any sandbox provider against the contract; `scripted_llm.py` is a model that says
what a test tells it; `memory_journal.py` is a journal without a database. Start with `provider_kit.py`.
"""
