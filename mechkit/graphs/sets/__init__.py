"""Graphs of many prompts, kept slim, aligned by feature, averaged and compared."""
