"""Options of GRPOMathConfig that contradict each other, and savings that the loss, the model or the generation rules out."""

import math

import pytest
from trainer_fixtures import config, prompts, reward, tiny_model, tiny_tokenizer, train
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from grpo_math.trainer import GRPOMathTrainer


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kl_target": 0.1}, ["kl_target=0.1", "beta=0", "Set beta"]),
        ({"kl_estimator": "k2"}, ["kl_estimator='k2'", "beta=0", "Set beta"]),
        (
            {"kl_estimator": "k1", "beta": 0.1, "use_bias_correction_kl": False},
            ["kl_estimator='k1'", "use_bias_correction_kl=False", "Set use_bias_correction_kl=True"],
        ),
        ({"kl_target": -1.0, "beta": 0.1}, ["kl_target=-1.0", "positive"]),
        ({"kl_target": math.nan, "beta": 0.1}, ["kl_target=nan", "positive"]),
        ({"kl_horizon": 100.0}, ["kl_horizon=100.0", "kl_target"]),
        ({"kl_target": 0.1, "beta": 0.1, "kl_horizon": 1.0}, ["kl_horizon=1.0", "kl_target", "well above 8"]),
        ({"ref_clip_low": -0.5}, ["ref_clip_low=-0.5", "at least 0"]),
        ({"ref_clip_high": math.nan}, ["ref_clip_high=nan", "at least 0"]),
        ({"sort_by_length": True, "loss_type": "bnpo"}, ["sort_by_length=True", "loss_type='bnpo'", "dapo"]),
        ({"sort_by_length": True, "entropy_coef": 0.1}, ["sort_by_length=True", "entropy_coef=0.1"]),
        ({"sort_by_length": True, "top_entropy_quantile": 0.2}, ["sort_by_length=True", "top_entropy_quantile=0.2"]),
        ({"skip_zero_advantage": True, "beta": 0.04}, ["skip_zero_advantage=True", "beta=0.04", "use beta=0"]),
        (
            {"skip_zero_advantage": True, "entropy_coef": 0.1},
            ["skip_zero_advantage=True", "entropy_coef=0.1", "Leave skip_zero_advantage out"],
        ),
        (
            {"skip_zero_advantage": True, "use_adaptive_entropy": True},
            ["skip_zero_advantage=True", "use_adaptive_entropy=True", "Leave skip_zero_advantage out"],
        ),
        (
            {"skip_zero_advantage": True, "top_entropy_quantile": 0.2},
            ["skip_zero_advantage=True", "top_entropy_quantile=0.2", "top_entropy_quantile=1"],
        ),
        ({"share_prefill": True, "use_vllm": True}, ["share_prefill=True", "use_vllm=True", "Leave share_prefill out"]),
        (
            {"drop_finished": True, "use_transformers_continuous_batching": True},
            ["drop_finished=True", "use_transformers_continuous_batching=True", "Leave drop_finished out"],
        ),
        ({"dynamic_sampling": -1}, ["dynamic_sampling=-1", "0 for none"]),
        ({"dynamic_sampling": 1.5}, ["dynamic_sampling=1.5", "0 for none"]),
        ({"dynamic_sampling": True}, ["dynamic_sampling=True", "0 for none"]),
        ({"skip_zero_advantage": "maybe"}, ["skip_zero_advantage='maybe'", "True, False, or None"]),
        ({"drop_finished": 1}, ["drop_finished=1", "True, False, or None"]),
        ({"embeddings_on_host": "no"}, ["embeddings_on_host='no'", "True or False"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, (dict, list)) else str(value),
)
def test_contradictory_options_are_errors_that_name_the_fields_and_the_fix(tmp_path, options, named):
    with pytest.raises(ValueError, match=named[0].replace("(", r"\(")) as error:
        config(tmp_path, **options)
    assert all(words in str(error.value) for words in named)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_sorting_by_default_is_disabled_silently_where_the_loss_rules_it_out(tmp_path, caplog, loss_type):
    options = {"skip_zero_advantage": False, "pack_groups": False, "trim_padding": False, "num_generations": 2}
    trainer = train(True, tmp_path, loss_type=loss_type, **options)
    lengths = [
        (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist() for batch in trainer._buffered_inputs
    ]
    together = [length for micro_batch in lengths for length in micro_batch]
    assert (together == sorted(together, reverse=True)) == (loss_type == "dapo")
    assert not [record for record in caplog.records if "sort" in record.message]


def build(tmp_path, model, **options):
    return GRPOMathTrainer(model, reward, config(tmp_path, **options), prompts(), processing_class=tiny_tokenizer())


def test_continuous_batching_that_would_turn_float32_weights_into_bfloat16_is_refused(tmp_path):
    batching = {"use_transformers_continuous_batching": True}
    with pytest.raises(ValueError, match=r"use_transformers_continuous_batching=True and bf16=True.*embed_tokens"):
        build(tmp_path, tiny_model(), bf16=True, **batching)
    build(tmp_path, tiny_model(), **batching)  # in full precision TRL casts nothing
    build(tmp_path, tiny_model().bfloat16(), bf16=True, **batching)


def mixture_of_experts():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"shared_expert_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = Qwen2MoeConfig(vocab_size=23, pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    return {"model": Qwen2MoeForCausalLM(config), "router_aux_loss_coef": 0.01}


def vision():
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=16, **small)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=seen, text_config=tiny_model().config))
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return {"model": model, "processing_class": LlavaProcessor(images, tiny_tokenizer(), patch_size=8)}


def width_dependent_positions():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return {"model": tiny_model(rope_parameters=rope)}


def environment():
    class Empty:
        def reset(self, **kwargs):
            return None

    tokenizer = tiny_tokenizer()
    tokenizer.response_template = {}
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} {% for call in m.tool_calls or [] %}"
        "{{ call.function.name }} {{ call.function.arguments }} {% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    return {"environment_factory": Empty, "processing_class": tokenizer}


def beam_search():
    return {"generation_kwargs": {"num_beams": 2}}


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory'")
@pytest.mark.parametrize(
    ("saving", "make", "reason"),
    [
        ("skip_zero_advantage", mixture_of_experts, "router_aux_loss_coef=0.01"),
        ("skip_zero_advantage", environment, "environment_factory"),
        ("skip_zero_advantage", vision, "LlavaProcessor"),
        ("sort_by_length", mixture_of_experts, "router_aux_loss_coef=0.01"),
        ("sort_by_length", vision, "LlavaProcessor"),
        ("pack_groups", mixture_of_experts, "router_aux_loss_coef=0.01"),
        ("pack_groups", environment, "environment_factory"),
        ("pack_groups", vision, "LlavaProcessor"),
        ("pack_groups", width_dependent_positions, "not rotary, or depend on the width"),
        ("trim_padding", vision, "LlavaProcessor"),
        ("trim_padding", width_dependent_positions, "rope_type"),
        ("share_prefill", vision, "LlavaProcessor"),
        ("drop_finished", beam_search, "beam"),
    ],
)
def test_a_blocked_saving_is_an_error_where_it_is_set_and_not_where_it_is_left_at_its_default(
    tmp_path, saving, make, reason
):
    def build(**options):
        parts = {"model": tiny_model(), "processing_class": tiny_tokenizer(), "environment_factory": None} | make()
        names = ("model", "processing_class", "environment_factory")
        model, tokenizer, factory = (parts.pop(name) for name in names)
        args = config(tmp_path, **parts, **options)
        return GRPOMathTrainer(model, reward, args, prompts(), processing_class=tokenizer, environment_factory=factory)

    with pytest.raises(ValueError, match=rf"{saving}=True.*{reason}.*Leave {saving} out"):
        build(**{saving: True})
    assert build()._saving[saving]
