"""The accelerate configurations beside the recipes: accelerate reads each, and knows every key."""

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from conftest import ROOT

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
KINDS = {
    "single_gpu": "NO",
    "ddp": "MULTI_GPU",
    "fsdp2": "FSDP",
    "deepspeed_zero2": "DEEPSPEED",
    "deepspeed_zero3": "DEEPSPEED",
}


@pytest.mark.parametrize("path", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_accelerate_reads_it(path):
    config = load_config_from_file(str(path))  # an unknown key is an error
    assert config.distributed_type == DistributedType(KINDS[path.stem])
    known = vars(launch_command_parser().parse_args(["--config_file", str(path), "recipe.yaml"]))
    values = yaml.safe_load(path.read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        for name in values.get(section, {}):
            assert name in known, f"{section}: {name}"


def test_none_is_left_out():
    assert {path.stem for path in CONFIGS} == set(KINDS)


def test_ddp_asks_for_two_processes():
    path = str(ROOT / "recipes" / "accelerate" / "ddp.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "recipe.yaml"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    assert (arguments.num_processes, arguments.multi_gpu) == (2, True)
    assert defaults.main_process_port == 0
