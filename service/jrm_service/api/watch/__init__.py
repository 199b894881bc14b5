"""``/v1/watch``: the most recently scored groups, kept for people to look at, and how rewards drift over time.

Everything is in memory, bounded in groups and bytes, and off unless ``--keep-recent`` says how many groups.
"""
