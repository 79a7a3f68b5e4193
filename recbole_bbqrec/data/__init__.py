"""The hook in RecBole's data sets: features and codes attached, histories cut into windows.

Enters: a config and atomic files. Leaves: RecBole data sets and loaders.
"""
