"""sandboxes/providers"""
