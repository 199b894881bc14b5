"""The images, built and tried for real: ``python -m tools.image build`` and ``python -m tools.image check``.

With Docker, or with Podman, which builds with Buildah. It takes Linux: containers use the network of the host.
"""
