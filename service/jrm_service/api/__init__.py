"""HTTP: parse, guard, answer. No torch here."""
