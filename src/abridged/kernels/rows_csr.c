/* ---
family: rows_csr
op: conv
format: csr
dtype: f32
doc: one row at a time, its non-zeros alone; each is one weight times NV vectors of the input row that it names.
with: rows.h
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4, ROWS: 16}
  - {NV: 6, ROWS: 16}
  - {NV: 8, ROWS: 16}
--- */
/* Packed weights: starts (uint32, one per row and one more), then values (float), then indices, each section at a
 * multiple of 64 bytes. An index is channel << TAP_BITS | tap, in 16 bits where that fits. A unit of work is ROWS rows
 * of one block of positions; the units of a block follow each other, so that its part of the input stays in the cache. */
#define TAP_BITS (T <= 1 ? 0 : T <= 2 ? 1 : T <= 4 ? 2 : T <= 8 ? 3 : T <= 16 ? 4 : T <= 32 ? 5 : T <= 64 ? 6 : 12)
#define CHUNKS ((G * O + ROWS - 1) / ROWS)
#if (C << TAP_BITS) <= 65536
#define INDEX uint16_t
#else
#define INDEX uint32_t
#endif

INLINE void NAME(row)(const struct args *a, long row, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    const uint32_t *starts = (const uint32_t *)a->w, nonzeros = starts[G * O];
    const float *values = (const float *)(starts + STEPS(G * O + 1));
    const INDEX *indices = (const INDEX *)(values + STEPS((size_t)nonzeros));
    const float *x = a->x + row / O * C * XROW + p;
    V sum[WIDE];

    for (int j = 0; j < n; j++) sum[j] = v_set(0.0f);
    for (uint32_t i = starts[row], end = starts[row + 1]; i < end; i++) {
        uint32_t k = indices[i];
        const float *in = x + (long)(k >> TAP_BITS) * XROW + taps[k & ((1 << TAP_BITS) - 1)];
        for (int j = 0; j < n; j++) sum[j] += values[i] * v_load(in + j * LANES);
    }
    NAME(finish)(a, row, p, sum, n);
}

enum { NAME(tasks) = BLOCKS * CHUNKS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long block = u / CHUNKS, first = u % CHUNKS * ROWS, last = MIN(first + ROWS, G * O), p = BLOCK_START(block);
        if (IS_WIDE(block))
            for (long row = first; row < last; row++) NAME(row)(a, row, p, WIDE);
        else
            for (long row = first; row < last; row++) NAME(row)(a, row, p, WIDE - 1);
    }
}
