"""Speed and memory, as ratios measured in one run against the floor and a naive loop."""
