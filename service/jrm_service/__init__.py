"""JRM Serve: the server around a trained JRM checkpoint."""
