"""A finished run without its data set.

Works from the run's folder alone and imports nothing of `experiments`. Enters: item tokens. Leaves: ranked items.
"""
