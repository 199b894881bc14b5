"""The page that a browser shows at ``/``, from files of this package, and the reply of ``GET /`` to other clients."""
