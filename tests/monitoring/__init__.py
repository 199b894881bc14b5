"""One package, so that its fleet ends with its last test and not with the last test of all."""
