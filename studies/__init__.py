"""The paper's comparisons made again with a trained checkpoint: alpha = 0.7 beside alpha = 0 (sections 4.2, 4.3).

Not part of the wheel. `python -m studies --help`.
"""
