"""Trainers, checkpoints, optimisers, and what is fitted once training is done.

Enters: a config, a model, loaders. Leaves: a run's folder with weights and states.
"""
