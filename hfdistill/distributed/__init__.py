"""A run of many processes: how it was launched, where the teacher lies, and models that are cut into shards."""
