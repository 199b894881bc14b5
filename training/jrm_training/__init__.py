"""Joint training of a reward model that can explain itself, a synthetic world to try it on, and evaluation."""
