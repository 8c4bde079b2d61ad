/* ---
family: rows_blocks
op: conv
format: blocks
dtype: f32
doc: BR rows at a time, their blocks of BR x BC weights that are not all zero; a vector of inputs serves BR rows.
with: rows.h
rank: 2
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {BR: 4, BC: 1, NV: 6, ROWS: 16}
  - {BR: 4, BC: 1, NV: 3, ROWS: 16}
  - {BR: 1, BC: 4, NV: 8, ROWS: 16}
  - {BR: 4, BC: 4, NV: 6, ROWS: 16}
  - {BR: 4, BC: 4, NV: 3, ROWS: 16}
--- */
/* An input is one tap of one channel, number channel x T + tap. Packed weights: starts (uint32, one per BR rows and one
 * more), blocks (float, input by row), then the first input of each block / BC (uint16 where that fits), each section at a
 * multiple of 64 bytes. A unit of work is ROWS rows of one block of positions. */
#define BANDS (O / BR)
#define TOGETHER (ROWS / BR)
#define CHUNKS ((G * BANDS + TOGETHER - 1) / TOGETHER)
#if C * T / BC <= 65536
#define INDEX uint16_t
#else
#define INDEX uint32_t
#endif

INLINE void NAME(band)(const struct args *a, long band, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    const uint32_t *starts = (const uint32_t *)a->w, blocks = starts[G * BANDS];
    const float *values = (const float *)(starts + STEPS(G * BANDS + 1));
    const INDEX *indices = (const INDEX *)(values + STEPS((size_t)blocks * (BR * BC)));
    const float *x = a->x + band / BANDS * C * XROW + p;
    V sum[BR][WIDE], in[WIDE];

    for (int r = 0; r < BR; r++)
        for (int j = 0; j < n; j++) sum[r][j] = v_set(0.0f);
    for (uint32_t i = starts[band], end = starts[band + 1]; i < end; i++) {
        const float *w = values + (size_t)i * (BR * BC);
        for (int c = 0; c < BC; c++, w += BR) {
            const uint32_t input = indices[i] * (uint32_t)BC + (uint32_t)c;
            for (int j = 0; j < n; j++) in[j] = v_load(x + (long)(input / T) * XROW + taps[input % T] + j * LANES);
            for (int r = 0; r < BR; r++)
                for (int j = 0; j < n; j++) sum[r][j] += w[r] * in[j];
        }
    }
    for (int r = 0; r < BR; r++) NAME(finish)(a, band * BR + r, p, sum[r], n);
}

enum { NAME(tasks) = BLOCKS * CHUNKS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long block = u / CHUNKS, first = u % CHUNKS * TOGETHER, last = MIN(first + TOGETHER, G * BANDS);
        if (IS_WIDE(block))
            for (long band = first; band < last; band++) NAME(band)(a, band, BLOCK_START(block), WIDE);
        else
            for (long band = first; band < last; band++) NAME(band)(a, band, BLOCK_START(block), WIDE - 1);
    }
}
