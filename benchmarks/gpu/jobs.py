"""The jobs of a child process: one function for each part, from a job to an answer, both JSON."""

from grpo_math import memory
from grpo_math.memory import GIB

# As `module:function`: a job imports only what it needs
JOBS = {
    "machine": "benchmarks.gpu.jobs:machine",
    "predict": "benchmarks.gpu.jobs:predict",
    "measure": "benchmarks.gpu.jobs:measure",
    "gradients": "benchmarks.gpu.gradients:gradients",
    "throughput": "benchmarks.gpu.throughput:throughput",
}


def predict(job: dict) -> dict:
    """`memory.predict` of a configuration, as a dictionary."""
    return memory.predict(job["path"], job["argv"], job["prompt_length"], workspace=job["workspace"]).as_dict()


def measure(job: dict) -> dict:
    """`memory.measure` of a configuration."""
    return memory.measure(job["path"], job["argv"], job["prompt_length"], job["cap"])


def machine(job: dict) -> dict:
    """The machine, cuBLAS's workspace, and the card's name, GiB in all and GiB free."""
    import torch

    from benchmarks import common

    found = {"machine": common.machine(), "line": common.machine_line(), "card": "cpu", "total": None, "free": None}
    found["workspace"] = memory.cublas_workspace()
    if job["device"] == "cuda":
        free, total = torch.cuda.mem_get_info()
        found.update(card=torch.cuda.get_device_name(), total=total / GIB, free=free / GIB)
    return found
