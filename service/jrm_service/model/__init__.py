"""The checkpoint format, and the model that runs in worker processes behind the backend interface."""
