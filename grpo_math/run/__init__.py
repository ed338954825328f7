"""One run: a recipe in, a trained model and everything to judge it by out.

>>> from grpo_math.run.train import train
>>> code = train(load_recipe("recipes/countdown_tiny.yaml"))
"""
