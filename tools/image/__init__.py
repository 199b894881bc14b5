"""Builds and checks the container images: ``python -m tools.image build`` and ``python -m tools.image check``.

Uses Docker, or Podman, which builds with Buildah. Linux only: containers use the network of the host.
"""
