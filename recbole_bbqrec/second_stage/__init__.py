"""Second stages: fitted on validation over the scores of a finished model, and carried by any model that scores items.

Enters: a model's scores, histories and their next items. Leaves: scores.
"""
