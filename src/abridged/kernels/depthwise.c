/* ---
family: depthwise
op: conv
format: taps
dtype: f32
doc: one input channel for each output; NV vectors of accumulators, all taps.
with: rows.h
macros: O G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4}
  - {NV: 8}
  - {NV: 2}
--- */
/* Group g has one channel and O outputs (the multiplier). Packed weights are T numbers for each output. */
INLINE void NAME(tile)(const struct args *a, long row, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    const float *w = (const float *)a->w + row * T, *x = a->x + row / O * XROW + p;
    V sum[WIDE];

    for (int j = 0; j < n; j++) sum[j] = v_set(0.0f);
    for (int t = 0; t < T; t++)
        for (int j = 0; j < n; j++) sum[j] += w[t] * v_load(x + taps[t] + j * LANES);
    NAME(finish)(a, row, p, sum, n);
}

enum { NAME(tasks) = G * O };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long row = begin; row < end; row++) {
        for (long block = 0; block < WIDES; block++) NAME(tile)(a, row, BLOCK_START(block), WIDE);
        for (long block = WIDES; block < BLOCKS; block++) NAME(tile)(a, row, BLOCK_START(block), WIDE - 1);
    }
}
