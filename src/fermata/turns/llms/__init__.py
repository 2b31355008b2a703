"""turns/llms"""
