"""Raw files to atomic files to feature matrices; knows neither models nor RecBole."""
