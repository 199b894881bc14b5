"""The page that a browser shows at ``/``: files of this package, and what ``GET /`` tells everybody else."""
