"""The queue between HTTP and the model: types, planner, batcher, the backend interface. No torch here."""
