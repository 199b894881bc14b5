"""Language supervision for preference data (A.1, A.2), by a vision model behind an OpenAI-compatible endpoint."""
