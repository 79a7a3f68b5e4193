"""What is fitted on validation over the scores of a finished model, and may be carried by any model that scores items.

Enters: a model's scores, histories and their next items. Leaves: scores.
"""
