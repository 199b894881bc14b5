"""The wire formats of other trainers and protocols, one file each, translated to and from our own requests."""
