"""Doors to language models, each an `Llm` of `turns/contract.py`.

`catalogue.py` knows which models there are and which door leads to each; `demo.py` needs no vendor at all.
`vendors.py` speaks with vendors: it asks by `requests.py`, which is pydantic-ai with a transport of ours, and
reads by `openai_answers.py` or `anthropic_answers.py`, which know nothing of pydantic-ai.
"""
