"""Untrusted bytes to RGB, RGB to what the model sees."""
