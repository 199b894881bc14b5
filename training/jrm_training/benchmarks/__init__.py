"""Public benchmarks of reward models for image editing, read from the files that their authors publish."""
