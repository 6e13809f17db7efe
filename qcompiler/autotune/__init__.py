"""Choosing by measurement: models and seconds -> a file of tuning records."""
