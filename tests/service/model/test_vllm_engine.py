"""Which GPU vLLM gets: it takes the first that it sees."""

from jrm_service.model.vllm_engine import only_gpu
from support.cases import each

SEEN = {
    "the first": ("cuda:0", {}, {}),
    "the first of those that are seen": ("cuda:0", {"CUDA_VISIBLE_DEVICES": "3,1"}, {}),
    "another": ("cuda:2", {}, {"CUDA_VISIBLE_DEVICES": "2"}),
    "another of those that are seen": ("cuda:1", {"CUDA_VISIBLE_DEVICES": "3, 1"}, {"CUDA_VISIBLE_DEVICES": "1"}),
    "by their names": ("cuda:1", {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}),
}


@each("device, environment, expected", SEEN.values())
def test_vllm_sees_no_gpu_before_its_own(device, environment, expected):
    assert only_gpu(device, environment) == expected
