"""``jrm bench``: how fast a checkpoint is scored on this machine, in process and over HTTP. No server imports it."""
