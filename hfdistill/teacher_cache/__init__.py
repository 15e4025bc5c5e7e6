"""What a teacher shows of each row, kept on disk under what the row holds: `keys`, `shards` and `store` keep it."""
