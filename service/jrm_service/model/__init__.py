"""The checkpoint format and the model behind the backend interface."""
