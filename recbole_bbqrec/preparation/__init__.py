"""Raw files and people's tables become atomic files; texts and images become matrices.

Knows neither RecBole nor models. Enters: paths, tables, addresses. Leaves: a data set's folder, `[n, F]` matrices.
"""
