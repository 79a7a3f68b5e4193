"""A finished run without its data set.

Works from the run's folder alone and imports nothing of `experiments`. Enters: item tokens. Leaves: ranked items. Only
`lists.known_histories` reads the data set, for who wants the lists of its users.
"""
