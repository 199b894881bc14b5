"""The last groups that were scored, kept for people to look at, and how the rewards of all of them move.

Everything is in memory, bounded in groups and bytes, and off unless ``--keep-recent`` says how many groups.
"""
