"""Whether ways to run that must not change the student do not: measured on the user's own models and data."""
