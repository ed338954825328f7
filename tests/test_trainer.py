"""GRPOMathConfig and GRPOMathTrainer: a drop-in, clear errors, dynamic sampling, and TRL's private names."""

import ast
import dataclasses
import math
from pathlib import Path

import pytest
import torch
import trl.trainer.grpo_trainer
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from trainer_fixtures import ALL_OFF, STOCK_GENERATION, prompts, reward, tiny_model, tiny_tokenizer, train
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    HfArgumentParser,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)
from transformers.generation import GenerationMixin
from trl import GRPOConfig, GRPOTrainer, TrlParser

from grpo_math import trainer as trainer_module
from grpo_math.trainer import PRIVATE_NAMES, STATE_FILE, GRPOMathConfig, GRPOMathTrainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def config(tmp_path, **options):
    return GRPOMathConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)


# --- the README ---


def readme_snippets():
    """The README's Python blocks that train."""
    text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    return [block.split("```")[0] for block in text.split("```python\n")[1:] if ".train()" in block.split("```")[0]]


def test_there_are_two_snippets_that_train():
    assert len(readme_snippets()) == 2


@pytest.mark.parametrize("number", [0, 1])
def test_the_readmes_snippets_run_as_pasted(number, tmp_path, monkeypatch, small_chat_model):
    monkeypatch.chdir(tmp_path)
    snippet = readme_snippets()[number]
    assert snippet.count("Qwen/Qwen2.5-0.5B-Instruct") == 1
    exec(snippet.replace("Qwen/Qwen2.5-0.5B-Instruct", str(small_chat_model)), {})
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


# --- a drop-in ---


@pytest.mark.parametrize("parser", [HfArgumentParser, TrlParser])
def test_every_option_parses_from_the_command_line(parser, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--beta", "0.1"]
    arguments += ["--skip_zero_advantage", "false", "--sort_by_length", "true", "--dynamic_sampling", "2"]
    arguments += ["--kl_estimator", "k2", "--kl_target", "0.05", "--kl_horizon", "5000", "--ref_clip_low", "1.5"]
    arguments += ["--ref_clip_high", "inf"]
    (args,) = parser([GRPOMathConfig]).parse_args_into_dataclasses(arguments)
    assert (args.skip_zero_advantage, args.sort_by_length, args.trim_padding) == (False, True, None)
    assert (args.dynamic_sampling, args.kl_estimator, args.kl_target, args.kl_horizon) == (2, "k2", 0.05, 5000)
    assert (args.ref_clip_low, args.ref_clip_high) == (1.5, math.inf)


def test_an_unknown_estimator_is_refused_by_the_parser_and_by_the_config(tmp_path, capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(GRPOMathConfig).parse_args_into_dataclasses(
            ["--output_dir", str(tmp_path), "--kl_estimator", "k4"]
        )
    assert "'k1', 'k2', 'k3'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="kl_estimator='k4'"):
        config(tmp_path, beta=0.1, kl_estimator="k4")


def test_every_option_has_a_help_text_and_a_line_in_the_docstring():
    ours = {field.name: field for field in dataclasses.fields(GRPOMathConfig)}
    ours = {name: ours[name] for name in ours.keys() - {field.name for field in dataclasses.fields(GRPOConfig)}}
    assert len(ours) == 13
    for name, option in ours.items():
        assert option.metadata["help"].endswith(".")
        assert f"{name} (`" in GRPOMathConfig.__doc__


def test_with_trls_config_every_option_is_off(tmp_path):
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    trainer = GRPOMathTrainer(tiny_model(), reward, args, prompts(), processing_class=tiny_tokenizer())
    assert not any(trainer._saving.values())
    head = trainer.model.forward.__func__.__code__.co_filename
    assert head.endswith("trl/trainer/utils.py")  # not the compact one


def test_without_a_config_the_savings_are_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The default precision of TRL's config is bf16, which transformers refuses on a machine without a GPU
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    trainer = GRPOMathTrainer(tiny_model(), reward, train_dataset=prompts(), processing_class=tiny_tokenizer())
    assert isinstance(trainer.args, GRPOMathConfig)
    assert all(trainer._saving.values())


def test_checkpoints_hold_the_same_files_as_trls(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 1}
    train(False, tmp_path / "theirs", **saved)
    train(True, tmp_path / "ours", **saved)
    files = [sorted(p.name for p in (tmp_path / name / "checkpoint-1").iterdir()) for name in ("theirs", "ours")]
    assert files[0] == files[1]


def test_evaluation_reports_trls_metrics(tmp_path):
    evaluation = {"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    ours = train(True, tmp_path, **evaluation, trainer_kwargs={"eval_dataset": prompts(4)}, **STOCK_GENERATION)
    theirs = train(False, tmp_path, **evaluation, trainer_kwargs={"eval_dataset": prompts(4)})
    ours, theirs = ({k: v for e in t.state.log_history for k, v in e.items() if "eval_" in k} for t in (ours, theirs))
    assert theirs["eval_reward"] == ours["eval_reward"]
    assert theirs["eval_entropy"] == pytest.approx(ours["eval_entropy"], rel=1e-4)
    assert set(ours) == set(theirs)


# --- contradictions ---


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
        ({"dynamic_sampling": 2, "scale_rewards": "batch"}, ["dynamic_sampling=2", "scale_rewards='batch'"]),
        (
            {"dynamic_sampling": 2, "multi_objective_aggregation": "normalize_then_sum"},
            ["dynamic_sampling=2", "multi_objective_aggregation='normalize_then_sum'"],
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, (dict, list)) else str(value),
)
def test_contradictory_options_are_errors_that_name_the_fields_and_the_fix(tmp_path, options, named):
    with pytest.raises(ValueError, match=named[0].replace("(", r"\(")) as error:
        config(tmp_path, **options)
    assert all(words in str(error.value) for words in named)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_sorting_by_default_steps_aside_silently_where_the_loss_forbids_it(tmp_path, caplog, loss_type):
    options = {"skip_zero_advantage": False, "trim_padding": False, "num_generations": 2}
    trainer = train(True, tmp_path, loss_type=loss_type, **options)
    lengths = [
        (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1)).tolist() for batch in trainer._buffered_inputs
    ]
    together = [length for micro_batch in lengths for length in micro_batch]
    assert (together == sorted(together, reverse=True)) == (loss_type == "dapo")
    assert not [record for record in caplog.records if "sort" in record.message]


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
        ("trim_padding", vision, "LlavaProcessor"),
        ("trim_padding", width_dependent_positions, "rope_type"),
        ("share_prefill", vision, "LlavaProcessor"),
        ("drop_finished", beam_search, "beam"),
    ],
)
def test_a_saving_that_cannot_act_is_an_error_where_it_is_asked_for_and_not_where_it_is_left_on(
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


def test_dynamic_sampling_with_tools_is_an_error(tmp_path):
    def rollout(prompts, trainer):
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"dynamic_sampling=1.*rollout_func"):
        train(True, tmp_path, dynamic_sampling=1, trainer_kwargs={"rollout_func": rollout})


# --- bad rewards ---


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, ALL_OFF], ids=["on", "off"])
def test_an_infinite_reward_is_an_error_that_names_the_function(tmp_path, value, options):
    def broken(completions, **kwargs):
        return [0.0] * (len(completions) - 1) + [value]

    with pytest.raises(ValueError, match=r"'broken' returned -?inf for row 15"):
        train(True, tmp_path, reward_funcs=[reward, broken], **options)


def test_a_reward_list_of_another_length_is_trls_error(tmp_path):
    with pytest.raises(ValueError, match=r"returned 3 rewards, but 16 were expected"):
        train(True, tmp_path, reward_funcs=lambda completions, **kwargs: [1.0] * 3)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_rewards_of_none_or_nan_only_leave_the_weights_as_they_are(tmp_path, nothing):
    before = torch.cat([p.detach().flatten() for p in tiny_model().parameters()])
    trainer = train(True, tmp_path, reward_funcs=lambda completions, **kwargs: [nothing] * len(completions))
    assert torch.equal(weights(trainer), before)
    assert logged(trainer, "skipped_rows") == [14]


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_row_without_a_reward_has_no_weight_and_the_others_train(tmp_path, nothing):
    def some(completions, **kwargs):
        scores = reward(completions, [False] * len(completions))
        return [nothing if i % 4 == 0 else score for i, score in enumerate(scores)]

    ours = train(True, tmp_path, reward_funcs=some, **STOCK_GENERATION)
    theirs = train(False, tmp_path, reward_funcs=some)
    assert weights(ours).isfinite().all()
    torch.testing.assert_close(ours.gradients[0], theirs.gradients[0], rtol=1e-4, atol=1e-5)
    assert logged(ours, "skipped_rows")[0] >= 4


# --- dynamic sampling ---


def words_only(completions, prompts, dead, **kwargs):
    """Groups of the data set's dead prompts have equal rewards, the others never."""
    return [0.5 if is_dead else float(i % 4) for i, is_dead in enumerate(dead)]


def test_dead_groups_are_replaced_by_fresh_prompts(tmp_path):
    dataset = prompts(64)
    trainer = train(
        True, tmp_path, dataset=dataset, shuffle_dataset=False, dynamic_sampling=10, reward_funcs=words_only
    )
    assert logged(trainer, "dynamic_sampling/replaced_groups") == [2]
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [0]
    assert logged(trainer, "skipped_rows") == [0]
    assert logged(trainer, "frac_reward_zero_std") == [0.5]  # TRL's metrics describe the first draw
    rows = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs])
    assert rows.sort().values.view(4, 4).std(dim=1).max() < 1e-5  # four groups with advantages of 0 1 2 3
    tokens = sum(batch["completion_mask"].sum() for batch in trainer._buffered_inputs)
    assert trainer._buffered_inputs[0]["num_items_in_batch"] == tokens


def test_replaced_rows_carry_their_own_prompt_and_gradient(tmp_path):
    """The gradient is that of a batch that held the live prompts from the start."""
    trainer = train(
        True,
        tmp_path,
        dataset=prompts(64),
        shuffle_dataset=False,
        dynamic_sampling=10,
        reward_funcs=words_only,
        generation_kwargs={"do_sample": False},
    )
    decode = lambda ids, mask: tiny_tokenizer().decode(ids[mask.bool()])  # noqa: E731
    live = {row["prompt"] for row in prompts(64) if not row["dead"]}
    generated = {}
    for batch in trainer._buffered_inputs:
        for row in range(len(batch["live"])):
            prompt = decode(batch["prompt_ids"][row], batch["prompt_mask"][row])
            generated[prompt] = decode(batch["completion_ids"][row], batch["completion_mask"][row])
    assert len(generated) == 4
    assert set(generated) <= live
    model = tiny_model().eval()
    for prompt, completion in generated.items():
        ids = tiny_tokenizer()(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[
            0, ids["input_ids"].size(1) :
        ]
        assert tiny_tokenizer().decode(output[output != 0]) == completion


def test_after_n_rounds_the_batch_goes_on_as_it_is(tmp_path):
    always = lambda completions, **kwargs: [1.0] * len(completions)  # noqa: E731
    calls = []

    def counted(completions, **kwargs):
        calls.append(len(completions))
        return always(completions)

    trainer = train(True, tmp_path, dynamic_sampling=3, reward_funcs=counted)
    assert calls == [16] * 4
    assert logged(trainer, "dynamic_sampling/rounds") == [3]
    assert logged(trainer, "dynamic_sampling/replaced_groups") == [0]
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [4]


def test_dynamic_sampling_works_with_a_streamed_data_set_and_several_updates_a_batch(tmp_path):
    streamed = IterableDataset.from_generator(lambda: iter(prompts(64)))
    trainer = train(
        True,
        tmp_path,
        dataset=streamed,
        dynamic_sampling=10,
        reward_funcs=words_only,
        num_iterations=2,
        max_steps=4,
        beta=0.0,
    )
    assert logged(trainer, "dynamic_sampling/dead_groups_left") == [0, 0]
    assert "old_per_token_logps" in trainer._buffered_inputs[0]


# --- TRL's private names ---


def private_names_in(path: Path) -> set[str]:
    """Private names that a module reads from or sets on an object, less those that its own classes define."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names}
    private = {name for name in used if name.startswith("_") and not name.startswith("__")}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {f.name for c in classes for f in c.body if isinstance(f, ast.FunctionDef)}
    for init in (f for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"):
        own |= {
            target.attr
            for node in ast.walk(init)
            if isinstance(node, ast.Assign)
            for outer in node.targets
            for target in ([outer] if isinstance(outer, ast.Attribute) else ast.walk(outer))
            if isinstance(target, ast.Attribute)
        }
    return private - own


def test_no_private_name_is_used_that_is_not_listed():
    folder = Path(trainer_module.__file__).parent
    listed = {name for names in PRIVATE_NAMES.values() for name in names}
    used = set().union(*(private_names_in(folder / f"{room}.py") for room in ("trainer", "savings", "generation")))
    assert used - listed == set()
    assert not [name for name in vars(trl.trainer.grpo_trainer) if name in used]


def test_every_listed_private_name_exists_in_trl_and_every_override_is_listed(tmp_path):
    overridden = {name for name in vars(GRPOMathTrainer) if name.startswith("_") and hasattr(GRPOTrainer, name)}
    overridden = {name for name in overridden if not name.startswith("__") and callable(getattr(GRPOTrainer, name))}
    assert overridden == set(PRIVATE_NAMES["overridden"])
    args = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none")
    stock = GRPOTrainer(tiny_model(), reward, args, prompts(), processing_class=tiny_tokenizer())
    for name in (*PRIVATE_NAMES["read"], *PRIVATE_NAMES["changed"]):
        assert hasattr(stock, name), name
    for name in PRIVATE_NAMES["transformers"]:
        assert hasattr(GenerationMixin, name), name


def test_a_peft_model_trains_with_every_saving(tmp_path):
    trainer = train(True, tmp_path, trainer_kwargs={"peft_config": LoraConfig(r=4)}, max_steps=2)
    assert logged(trainer, "skipped_rows")[0] == 8
    assert trainer.gradients[0].norm() > 0


def test_columns_of_the_data_set_reach_the_reward_of_replaced_rows(tmp_path):
    seen = []

    def spy(completions, prompts, dead, tag, **kwargs):
        seen.extend(zip(prompts, tag, strict=True))
        return words_only(completions, prompts, dead)

    rows = [dict(row, tag=f"tag of {row['prompt']}") for row in prompts(32)]
    train(True, tmp_path, dataset=Dataset.from_list(rows), dynamic_sampling=2, reward_funcs=spy)
    assert len(seen) > 16
    assert all(tag == f"tag of {prompt}" for prompt, tag in seen)


# --- checkpoints ---


@pytest.mark.parametrize("streamed", [False, True], ids=["indexed", "streamed"])
@pytest.mark.parametrize("rows", [6, 8, 16], ids=["second pass", "end of a pass", "first pass"])
def test_a_resumed_run_draws_the_fresh_prompts_that_follow(tmp_path, rows, streamed):
    """Every group is dead, so each step draws its 4 prompts and then 4 fresh ones, 8 of these before the checkpoint."""

    def run(folder, **resume):
        drawn = []

        def spy(completions, prompts, **kwargs):
            drawn.append(prompts[::4])
            return [1.0] * len(completions)

        dataset = prompts(rows)
        if streamed:
            dataset = IterableDataset.from_generator(lambda: iter(prompts(rows)))
        saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        train(True, folder, dataset=dataset, dynamic_sampling=1, reward_funcs=spy, **saved, **resume)
        return drawn[1::2]  # TRL's own draws after the first pass do not depend on us

    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "resumed", resume_from=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed == whole[2:]
    assert resumed != whole[:2]  # what a run that starts anew would draw


def test_a_checkpoint_without_our_state_loads(tmp_path):
    train(True, tmp_path, save_strategy="steps", save_steps=1)
    checkpoint = tmp_path / "checkpoint-1"
    assert not (checkpoint / STATE_FILE).exists()
    resumed = train(
        True, tmp_path, max_steps=2, dynamic_sampling=10, reward_funcs=words_only, resume_from=str(checkpoint)
    )
    assert resumed.state.global_step == 2
    assert logged(resumed, "dynamic_sampling/dead_groups_left") == [0]
