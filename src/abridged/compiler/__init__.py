"""Graph to C: passes, layout, kernels, memory, emission, build; `pipeline.py` puts them in order."""
