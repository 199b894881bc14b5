"""The HTTP layer: routes, request bodies, keys, limits and replies. No torch here."""
