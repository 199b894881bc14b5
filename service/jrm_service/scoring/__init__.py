"""Scoring, between HTTP and the model: waiting line, queue, planner, batcher, backend interface. No torch here."""
