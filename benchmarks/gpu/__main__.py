"""A child process of the GPU benchmark, `python -m benchmarks.gpu JOB`: runs one job and prints its answer."""

import json
import pkgutil
import sys

from benchmarks.gpu.children import ANSWER
from benchmarks.gpu.jobs import JOBS
from grpo_math.startup import quieten

if __name__ == "__main__":
    quieten()
    job = json.loads(sys.argv[1])
    print(ANSWER + json.dumps(pkgutil.resolve_name(JOBS[job["part"]])(job)))
