"""What can go wrong while a student trains, and how each of these ends: alike on all processes, with what to do."""
