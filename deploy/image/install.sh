#!/bin/sh
# Makes the virtual environment of an image, for the Dockerfile alone: install.sh EXTRAS CONSTRAINTS
# The wheel of this repository lies beside this file.
set -eu
extras=$1
constraints=$2
wheel=$(echo "$(dirname "$0")"/jrm_serve-*.whl)

# Without a pip of its own: nothing is to be installed into a running image.
python3 -m venv --without-pip /opt/jrm
python3 -m pip --python /opt/jrm/bin/python3 install \
    --no-cache-dir --no-compile --constraint "$constraints" "jrm-serve[$extras] @ file://$wheel"

# Bytecode that does not look at the times of files, which builders and registries may change. It is no failure that
# torch has a file for newer versions of Python.
/opt/jrm/bin/python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash /opt/jrm/lib || true

case ",$extras," in
*,explain,*) ;;
*)
    if [ -e "$(echo /opt/jrm/lib/python3.*/site-packages)/nvidia" ]; then
        echo "warning: this torch is the CUDA build, several GB larger than the one for CPUs: docs/docker.md#size" >&2
    fi
    ;;
esac
