/* ---
family: rows_nm
op: conv
format: nm
dtype: f32
doc: N of every M inputs, one row at a time; every row has as many weights, so that no loop's length is data.
with: rows.h
rank: 3
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {N: 2, M: 4, NV: 8, ROWS: 16}
  - {N: 4, M: 8, NV: 8, ROWS: 16}
  - {N: 1, M: 4, NV: 8, ROWS: 16}
--- */
/* An input is one tap of one channel, number channel x T + tap. Packed weights: values (float, by row and M inputs), then
 * which of the M (uint8), each section at a multiple of 64 bytes. A unit of work is ROWS rows of one block of positions. */
#define QUADS (C * T / M)
#define CHUNKS ((G * O + ROWS - 1) / ROWS)

INLINE void NAME(row)(const struct args *a, long row, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    const float *values = (const float *)a->w + row * (QUADS * N);
    const uint8_t *which = (const uint8_t *)((const float *)a->w + STEPS((size_t)G * O * QUADS * N)) + row * (QUADS * N);
    const float *x = a->x + row / O * C * XROW + p;
    V sum[WIDE];

    for (int j = 0; j < n; j++) sum[j] = v_set(0.0f);
    for (uint32_t first = 0; first < C * T; first += M)
        for (int i = 0; i < N; i++) {
            const uint32_t input = first + *which++;
            const float w = *values++, *in = x + (long)(input / T) * XROW + taps[input % T];
            for (int j = 0; j < n; j++) sum[j] += w * v_load(in + j * LANES);
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
