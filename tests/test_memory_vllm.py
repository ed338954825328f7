"""vLLM in the prediction: a lower bound beside what the trainer holds, and the share of the card that it takes."""

import pytest
from conftest import GSM8K

from grpo_math import memory
from grpo_math.memory.results import GIB, OVERHEAD_BYTES
from grpo_math.memory.vllm import CATEGORY

COLOCATE = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}


@pytest.fixture(scope="module")
def predictions(small_shape):
    values = {"model_name_or_path": small_shape, "heldout_size": 0, "max_completion_length": 24}
    variants = {
        "transformers": {},
        "asleep": {**COLOCATE, "vllm_enable_sleep_mode": True},
        "awake": COLOCATE,
        "server": {"use_vllm": True, "vllm_mode": "server"},
    }
    return {name: memory.predict(GSM8K, memory.as_arguments({**values, **more}), 32) for name, more in variants.items()}


def test_its_part_is_the_weights_and_the_cache_of_one_completion(predictions):
    vllm = predictions["asleep"].vllm
    embedding, layer = 3000 * 128, 2 * 128 * 128 + 2 * 64 * 128 + 128 + 2 * 64 + 3 * 128 * 320 + 2 * 128
    assert vllm.weights == 2 * (embedding + 2 * layer + 128)  # two bytes each; the LM head is the embedding
    assert vllm.cache == 2 * 2 * 64 * 2 * (32 + 24)  # keys and values, layers, heads x size, bytes, tokens


def test_asleep_it_counts_while_generating_alone(predictions):
    asleep, awake, server = (predictions[name] for name in ("asleep", "awake", "server"))
    for phase, parts in asleep.parts.items():
        assert parts[CATEGORY] == (asleep.vllm.least if phase == "generation" else 0)
    assert awake.peaks["training"] == asleep.peaks["training"] + awake.vllm.least
    assert server.vllm is None
    # Nothing but what is live: the generation's own cache and activations are vLLM's
    assert server.peaks["generation"] < predictions["transformers"].peaks["generation"]
    assert asleep.peaks["generation"] == server.peaks["generation"] + asleep.vllm.least


def test_whether_it_fits_counts_the_share_of_the_card(predictions):
    asleep, awake = predictions["asleep"], predictions["awake"]
    # A card on which the training phase just fits, as long as nothing else lies beside it
    vram = (1.03 * asleep.peaks["training"] + OVERHEAD_BYTES) / GIB * 1.02
    assert "training" not in asleep.too_large(vram)
    assert "training" in awake.too_large(vram)
    assert awake.fits(8.0)
