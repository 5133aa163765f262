"""Text environments of several turns, and the rollouts that bring them to TRL's trainers."""
