"""`python -m grpo_math` and `accelerate launch -m grpo_math RECIPE`: the command `grpo-math`."""

import sys

from grpo_math.cli import main

if __name__ == "__main__":
    sys.exit(main())
