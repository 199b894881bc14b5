"""Images: untrusted bytes -> RGB -> the pixels and patches that the model sees."""
