"""A finished run without its data set.

Works from the run's folder alone and imports nothing of `experiments`. Enters: item tokens. Leaves: ranked items. Apart
from `saving`, which writes that folder, only `lists.known_histories` reads the data set, for lists of its users.
"""
