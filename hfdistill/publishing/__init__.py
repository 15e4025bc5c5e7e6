"""What is written beside a saved student, and how it gets to the hub: record, card, repository."""
