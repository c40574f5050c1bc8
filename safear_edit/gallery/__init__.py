"""The mini image world that makes the whole program real on a CPU: renders, captions, trainings, their measurement."""
