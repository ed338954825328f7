"""Commands for what a user does before and after training. Each file holds one: its options, and what it prints.

`add_parser(add)` registers a command; importing these files imports no torch.
"""
