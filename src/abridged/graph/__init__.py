"""The Graph, its capture from a module, its meaning and its cost."""
