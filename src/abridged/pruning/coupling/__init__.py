"""Which channels stand and fall together: `labels` is the idea, `contractions`, `elements` and `moves` one rule per op, `groups` the result."""
