/* ---
family: depthwise
op: conv
format: taps
dtype: f32
doc: one input channel for each output; NV vectors of accumulators, all taps.
with: rows.h
macros: O G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4, BANDS: 1}
  - {NV: 8, BANDS: 1}
  - {NV: 4, BANDS: 2}
  - {NV: 8, BANDS: 2}
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

/* A unit of work is one row of one band of blocks: with bands, a thread has the same part of the map in every layer. */
#define PARTS MIN(BLOCKS, BANDS)
enum { NAME(tasks) = PARTS * G * O };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        const long part = u / (G * O), row = u % (G * O);
        for (long block = part * BLOCKS / PARTS; block < (part + 1) * BLOCKS / PARTS; block++)
            if (IS_WIDE(block)) NAME(tile)(a, row, BLOCK_START(block), WIDE);
            else NAME(tile)(a, row, BLOCK_START(block), WIDE - 1);
    }
}
