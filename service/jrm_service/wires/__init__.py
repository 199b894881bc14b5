"""What other trainers send and understand, one file each, translated to and from the one way of a request."""
