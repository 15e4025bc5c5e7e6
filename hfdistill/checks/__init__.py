"""The pre-flight doctor: what it looks at before a run costs anything, and what it finds."""
