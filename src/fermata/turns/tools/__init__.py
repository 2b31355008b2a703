"""turns/tools"""
