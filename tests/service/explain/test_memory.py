"""Whether the language head fits, and the arithmetic in the message."""

from jrm_service.explain.memory import GiB, Shape, cpu_problem, problem

# Qwen3-VL 8B: 36 layers, 8 heads of 128 for keys and values.
EIGHT_B = Shape(parameters=8_770_000_000, layers=36, kv_heads=8, head_dim=128)
GPU = {"total": 80 * GiB, "context": 8192, "bytes_per_value": 2, "device": "cuda:0"}


def test_a_token_of_8b_in_bf16_leaves_144_kib():
    assert EIGHT_B.cache_bytes(1, 2) == 144 * 1024


def test_8b_twice_on_80_gib():
    assert problem(EIGHT_B, share=0.45, scorer=True, **GPU) is None


def test_too_small_a_share_for_vllm():
    message = problem(EIGHT_B, share=0.2, scorer=True, **GPU)
    assert message is not None
    for number in ("16.00 GiB", "17.96 GiB", "16.34 GiB", "1.12 GiB", "0.50 GiB"):
        assert number in message
    assert "explain_gpu_share" in message


def test_too_little_left_for_the_scorer():
    message = problem(EIGHT_B, share=0.8, scorer=True, **GPU)
    assert message is not None
    assert "leaves 16.00 GiB of 80.00 GiB" in message
    assert problem(EIGHT_B, share=0.8, scorer=False, **GPU) is None


def test_a_cpu_needs_its_cache_and_both_weights():
    def found(available: float, cache: float, *, scorer: bool = True) -> str | None:
        return cpu_problem(
            EIGHT_B,
            available=int(available * GiB),
            cache=int(cache * GiB),
            scorer=scorer,
            context=8192,
            bytes_per_value=2,
        )

    assert found(64, 2) is None
    assert found(20, 2, scorer=False) is None
    assert "one sequence of 8192 tokens needs 1.12 GiB" in (found(64, 1) or "")
    assert "20.00 GiB of memory are free, 35.67 GiB are needed" in (found(20, 2) or "")
