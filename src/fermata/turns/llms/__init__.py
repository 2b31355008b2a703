"""Doors to language models, each an `Llm` of `turns/contract.py`.

`catalogue.py` knows which models there are and which door leads to each; `demo.py` needs no vendor at all.
`vendors.py` speaks with vendors: `requests.py` builds what it asks, with pydantic-ai; `openai_answers.py` and
`anthropic_answers.py` read what comes back, and know nothing of pydantic-ai.
"""
