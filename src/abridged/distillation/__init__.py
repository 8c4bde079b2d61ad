"""Distillation: a student learns from a teacher's outputs. Losses are a table; `distill` trains."""
