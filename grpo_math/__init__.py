"""GRPO (Group Relative Policy Optimization) on Countdown and GSM8K for one 8 GB GPU or a laptop CPU, on top of TRL."""

__version__ = "0.1.0"
