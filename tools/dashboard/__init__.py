"""The Grafana dashboard as a program: ``python -m tools.dashboard`` writes helm/jrm/files/dashboard.json."""
